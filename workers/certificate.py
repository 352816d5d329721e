"""The agent's certificate: its own, made with a key that never leaves this machine, or one that the operator brings."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from workers.config import AgentConfig

log = logging.getLogger("workers.agent")


class CertificateError(Exception):
    """There is no usable certificate; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key, the certificate for it and what leads on from there, all PEM. ``expires`` is when it runs out."""

    key: bytes
    chain: bytes
    begins: datetime.datetime
    expires: datetime.datetime


class Certificate:
    """The certificate on disk. Whether there is to be one at all is for the caller to know (``agents_address``)."""

    def __init__(self, config: AgentConfig, now: Callable[[], datetime.datetime] | None = None) -> None:
        self._region = config.region
        self._file = config.state_dir / "agent.pem"
        self._brought = (config.tls_key, config.tls_cert) if config.tls_key and config.tls_cert else None
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))

    @property
    def brought(self) -> bool:
        """Whether the operator brings and renews it."""
        return self._brought is not None

    @property
    def remedy(self) -> str:
        """What to do when it has run out."""
        if self._brought is not None:
            return f"replace {self._brought[1]} and {self._brought[0]}"
        return f"give the agent a new token (`suanli region enrol-token {self._region}`)"

    def read(self) -> Identity | None:
        """What is there now; None when the agent has none of its own yet. CertificateError when it is not usable."""
        try:
            key, chain = (path.read_bytes() for path in self._brought or (self._file, self._file))
        except FileNotFoundError as error:
            if self._brought is None:
                return None
            raise CertificateError(f"the agent's certificate is not there: {error.filename}") from error
        except OSError as error:
            raise CertificateError(f"cannot read the agent's certificate {error.filename}: {error.strerror}") from error
        return _identity(key, chain)

    def is_due(self) -> bool:
        """Whether the agent's own certificate has less than a third of its time left."""
        identity = None if self.brought else self.read()
        return identity is not None and (identity.expires - self._now()) * 3 < identity.expires - identity.begins

    def has_expired(self) -> bool:
        """Whether what is there can be read and is good no more."""
        try:
            identity = self.read()
        except CertificateError:
            return False
        return identity is not None and identity.expires <= self._now()

    def request(self) -> tuple[bytes, str]:
        """A new key (P-256), and the request (PKCS #10) for a certificate for it, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"agent of {self._region}")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, request.public_bytes(Encoding.PEM).decode()

    def keep(self, key: bytes, chain: str) -> None:
        """Keep a new key and its certificate, in one file so that they are never of two kinds. CertificateError for a wrong one."""
        _identity(key, chain.encode())
        write_private(self._file, key + chain.encode())


def _identity(key: bytes, chain: bytes) -> Identity:
    try:
        certificate = x509.load_pem_x509_certificate(chain)
        private_key = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError("the agent's certificate or its key is not readable PEM (without a password)") from error
    if private_key.public_key() != certificate.public_key():
        raise CertificateError("the agent's key is not the key of its certificate")
    return Identity(key, chain, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def write_private(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner's eyes only, and have it on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
