"""The certificates of a local deployment: an authority of its own, the control plane's certificate, one for each region's agent.

All keys are of P-256 (gRPC's TLS refuses Ed25519) and stay in the state folder, mode 0600. ``ensure`` makes what is missing, does not
fit together, or has less than a third of its time left; what it replaces is read again by those that use it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from suanli.local.state import LocalError

CA_DAYS = 3_652
DAYS = 90
REGION_URI = "suanli://region/"
# A clock that is set back a little makes nothing invalid.
_BEFORE = datetime.timedelta(minutes=5)
_Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class Certificates:
    """The files in one folder. Methods raise LocalError when it cannot be written."""

    def __init__(self, folder: Path, now: Callable[[], datetime.datetime] | None = None) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.ca_key = folder / "ca.key"
        self.server = folder / "server.pem"
        self.server_key = folder / "server.key"
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))

    def agent(self, region: str) -> tuple[Path, Path]:
        """Where the certificate of a region's agent and its key are."""
        return self.folder / f"agent-{region}.pem", self.folder / f"agent-{region}.key"

    def ensure(self, regions: Sequence[str]) -> None:
        """Make what is needed for the regions and is not there, or not for long any more."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            authority = self._read(self.ca, self.ca_key) or self._make_authority()
            local = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
            names = [x509.DNSName("localhost"), *local]
            self._ensure(
                authority, self.server, self.server_key, "control plane", names, ExtendedKeyUsageOID.SERVER_AUTH
            )
            for region in regions:
                uri = [x509.UniformResourceIdentifier(REGION_URI + region)]
                client = ExtendedKeyUsageOID.CLIENT_AUTH
                self._ensure(authority, *self.agent(region), f"agent of {region}", uri, client)
        except OSError as error:
            raise LocalError(f"The certificates in {self.folder} cannot be kept: {error.strerror}.") from error

    def _ensure(
        self,
        authority: _Pair,
        cert: Path,
        key: Path,
        name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
    ) -> None:
        present = self._read(cert, key)
        if present is None or not _is_issued_by(present[0], authority[0]):
            self._make(authority, cert, key, name, names, usage)

    def _read(self, cert: Path, key: Path) -> _Pair | None:
        """A certificate and its key; None when they cannot be used, or not for long any more."""
        try:
            certificate = x509.load_pem_x509_certificate(cert.read_bytes())
            private = load_pem_private_key(key.read_bytes(), None)
        except (FileNotFoundError, ValueError, TypeError, UnsupportedAlgorithm):
            return None
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        fits = isinstance(private, ec.EllipticCurvePrivateKey) and private.public_key() == certificate.public_key()
        if not fits or (ends - self._now()) * 3 < ends - begins:
            return None
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        return certificate, private

    def _make_authority(self) -> _Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Suanli on this machine")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            self._builder(name, key, CA_DAYS)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(self.ca_key, _pem(key), 0o600)
        _write(self.ca, certificate.public_bytes(Encoding.PEM), 0o644)
        return certificate, key

    def _make(
        self,
        authority: _Pair,
        cert: Path,
        key_file: Path,
        name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
    ) -> None:
        issuer, issuer_key = authority
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        certificate = (
            self._builder(_name(name), key, DAYS)
            .issuer_name(issuer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        # Whoever reads between the two sees that they do not fit, and takes them a moment later.
        _write(key_file, _pem(key), 0o600)
        _write(cert, certificate.public_bytes(Encoding.PEM), 0o644)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        now = self._now()
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    draft.replace(path)
