"""The key that heads of the audit log are signed with: Ed25519 (RFC 8032), in a PEM file for its owner's eyes only."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from scheduler.api.tls import ConfigurationError

_MAX_BYTES = 64 * 1024
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


class AuditKey:
    """Signs and verifies. Implements ``scheduler.service.auditing.Signer``."""

    def __init__(self, private: Ed25519PrivateKey, earlier: frozenset[bytes] = frozenset()) -> None:
        self._private = private
        self._public = _raw(private.public_key())
        self._trusted = earlier | {self._public}

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._public

    @property
    def trusted(self) -> frozenset[bytes]:
        """This key's public one and those of earlier ones."""
        return self._trusted

    def sign(self, statement: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(statement)

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether the signature is right."""
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
        except (InvalidSignature, ValueError):
            return False
        return True


def load_audit_key(path: Path, *, create: bool) -> AuditKey:
    """Read a PEM file: an Ed25519 private key, and the public keys of earlier ones that still count.

    ``create``: where there is none, make one. ``ConfigurationError`` when it cannot be read.
    """
    if create and not path.exists():
        _create(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(f"audit_key_file: {path} cannot be read: {error.strerror}") from error
    private: Ed25519PrivateKey | None = None
    earlier: set[bytes] = set()
    for block in _BLOCK.finditer(text):
        try:
            if block[1] == b"PUBLIC KEY":
                public = load_pem_public_key(block[0])
                if isinstance(public, Ed25519PublicKey):
                    earlier.add(_raw(public))
                    continue
            else:
                key = load_pem_private_key(block[0], None)
                if isinstance(key, Ed25519PrivateKey) and private is None:
                    private = key
                    continue
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"audit_key_file: {path} holds a key that cannot be read: {error}") from error
        raise ConfigurationError(
            f"audit_key_file: {path} holds a key that is no Ed25519 key, or a second private key; make one with "
            "`openssl genpkey -algorithm ed25519`."
        )
    if private is None:
        raise ConfigurationError(
            f"audit_key_file: {path} holds no private key; make one with `openssl genpkey -algorithm ed25519`."
        )
    return AuditKey(private, frozenset(earlier))


def _create(path: Path) -> None:
    """Write a new key, unless another process does just now."""
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # A link never replaces a file: of two processes that start together the first one's key stays.
        if not path.exists():
            os.link(scratch, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigurationError(f"audit_key_file: {path} cannot be written: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)


def _raw(public: Ed25519PublicKey) -> bytes:
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
