"""The file of the key that signs the audit log's heads."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from scheduler.api.tls import ConfigurationError
from scheduler.audit_key import load_audit_key


def private(key: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined,no-any-return]


def public(key: bytes) -> bytes:
    return Ed25519PublicKey.from_public_bytes(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_key_is_made_once_for_its_owners_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / "audit-key.pem"
    made = load_audit_key(path, create=True)
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert [each.name for each in tmp_path.iterdir()] == ["audit-key.pem"]
    assert load_audit_key(path, create=True).public_key == made.public_key
    signature = made.sign(b"x")
    assert made.verify(made.public_key, b"x", signature)
    assert not made.verify(made.public_key, b"y", signature)
    assert not made.verify(b"no key", b"x", signature)


def test_heads_of_an_earlier_key_count_when_its_public_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    earlier = load_audit_key(path, create=True)
    path.write_bytes(b"# the new one\n" + private(Ed25519PrivateKey.generate()) + public(earlier.public_key))
    key = load_audit_key(path, create=False)
    assert key.trusted == {key.public_key, earlier.public_key}
    assert key.public_key != earlier.public_key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no private key"),
        (public(bytes(32)), "holds no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be read"),
        (private(generate_private_key(SECP256R1())), "no Ed25519 key"),
        (private(Ed25519PrivateKey.generate()) * 2, "second private key"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: bytes | None, words: str) -> None:
    path = tmp_path / "key.pem"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=words):
        load_audit_key(path, create=False)
