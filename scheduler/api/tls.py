"""Certificates: those the server shows, read again when their files change, and those it signs for agents."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scheduler.domain.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger(__name__)
REGION_URI: Final = "suanli://region/"
"""Before a region's id: the URI in the certificates of its agent."""
MAX_REQUEST_CHARACTERS: Final = 16_384
AGENT_CERTIFICATE_DAYS: Final = 90
# Clocks of other machines may be late.
_BEFORE = datetime.timedelta(minutes=5)
_MAX_FILE_BYTES = 1 << 20
# What gRPC's TLS takes on both sides; it refuses Ed25519.
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_MIN_RSA_BITS = 2048


class ConfigurationError(Exception):
    """The configuration cannot be served; the text says what to change."""


@dataclass(frozen=True)
class Tls:
    """PEM files, read again when they change. A broken new file is logged, and what was read before stays in force."""

    cert: Path
    """The certificate of `listen` and `agents_listen`, and what leads from it to its authority."""
    key: Path
    """Its private key, without a password."""
    client_ca: Path | None = None
    """With it, all callers of `listen` must show a certificate that one of these authorities signed."""
    agent_ca_cert: Path | None = None
    """The authorities of agents' certificates; `agents_listen` needs it."""
    agent_ca_key: Path | None = None
    """The private key of one of them. With it the control plane itself signs what agents ask for; without, you bring their
    certificates."""
    agents_need_certificates: bool = False
    """Whether agents must show a certificate with their region in it. Then they can only use `agents_listen` (or a `listen` with
    `client_ca`)."""

    def __post_init__(self) -> None:
        if self.agent_ca_key is not None and self.agent_ca_cert is None:
            raise ConfigurationError("tls.agent_ca_key: give tls.agent_ca_cert too.")


class ExpiryObserver(Protocol):
    """Is told when certificates run out."""

    def certificate_expiry(self, certificate: str, at_s: float) -> None:
        """What is in force now under this name (server, client_ca, agent_ca) runs out at this Unix time."""
        ...


_Stamp = tuple[tuple[int, int, int], ...]


class ReloadingCertificates:
    """What one listener shows and trusts, read again at the first handshake after a file has changed.

    Files may be replaced in any way, by renaming or by the swapped links of a Kubernetes Secret. What does not hold together (a key
    that is not the certificate's, damaged PEM) is logged once and the former stays. Raises ``ConfigurationError`` when made of such.
    """

    def __init__(self, tls: Tls, roots: Path | None, roots_name: str, observer: ExpiryObserver) -> None:
        self._paths = [path for path in (tls.cert, tls.key, roots) if path is not None]
        self._names = ("cert", "key", roots_name)
        self._roots_name = roots_name
        self._observer = observer
        # gRPC asks from threads of its own.
        self._guard = threading.Lock()
        self._stamp = self._look()
        self._configuration = self._load()
        self._require = roots is not None

    def credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``. Callers must show a certificate where there are roots, and are not asked for one elsewhere."""
        # The stubs do not know what gRPC documents: None says that nothing has changed.
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch,  # type: ignore[arg-type]
            self._require,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new; None when nothing is. gRPC calls it at every handshake."""
        with self._guard:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                self._configuration = self._load()
            except ConfigurationError as error:
                log.error("new certificates are not used, those before stay in force: %s", error)
                return None
            log.info("read new certificates: %s", ", ".join(map(str, self._paths)))
            return self._configuration

    def _look(self) -> _Stamp:
        stamps = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        cert, key, *roots = (_read(path, name) for path, name in zip(self._paths, self._names, strict=False))
        chain = _certificates(cert, "cert")
        if chain[0].public_key() != _private_key(key, "key").public_key():
            raise ConfigurationError("tls.key: it is not the key of the certificate in tls.cert.")
        authorities = _certificates(roots[0], self._roots_name) if roots else []
        self._observer.certificate_expiry("server", min(map(_expiry, chain)))
        if authorities:
            self._observer.certificate_expiry(self._roots_name.removesuffix("_cert"), min(map(_expiry, authorities)))
        return grpc.ssl_server_certificate_configuration([(key, cert)], roots[0] if roots else None)


class AgentAuthority:
    """Signs agents' certificates. Its files are read at every signature, so that a new authority needs no restart."""

    def __init__(self, cert: Path, key: Path, now: Callable[[], datetime.datetime] | None = None) -> None:
        self._cert = cert
        self._key = key
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))
        self._issuer()

    def _issuer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
        key = _private_key(_read(self._key, "agent_ca_key"), "agent_ca_key")
        for certificate in _certificates(_read(self._cert, "agent_ca_cert"), "agent_ca_cert"):
            if certificate.public_key() == key.public_key():
                return certificate, key
        raise ConfigurationError("tls.agent_ca_key: it is the key of none of the certificates in tls.agent_ca_cert.")

    def sign(self, request: str, region: str, field: str) -> str:
        """A certificate for a region's agent, in PEM form, good for 90 days or as long as the authority's own.

        Of the request (PKCS #10, RFC 2986) only the key counts. ``InvalidArgument`` names ``field``.
        """
        public_key = check_request(request, field)
        try:
            issuer, key = self._issuer()
        except ConfigurationError as error:
            log.error("an agent's certificate cannot be signed: %s", error)
            raise FailedPrecondition(
                "The control plane cannot sign certificates now; its log says why.", reason="NO_AGENT_CA"
            ) from None
        now = self._now()
        until = min(now + datetime.timedelta(days=AGENT_CERTIFICATE_DAYS), issuer.not_valid_after_utc)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"agent of {region}")])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(REGION_URI + region)]), False)
            .add_extension(usage, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        log.info(
            "signed a certificate for the agent of %s, number %x, good until %s",
            region,
            certificate.serial_number,
            until,
        )
        return certificate.public_bytes(Encoding.PEM).decode()


def check_request(request: str, field: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key that a certificate is asked for. ``InvalidArgument`` names ``field``."""
    if len(request) > MAX_REQUEST_CHARACTERS:
        raise InvalidArgument(
            f"{field}: {len(request):,} characters are too many; give at most {MAX_REQUEST_CHARACTERS:,}.", field=field
        )
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        signed = parsed.is_signature_valid
        key = parsed.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidArgument(f"{field}: give a PKCS #10 request in PEM form.", field=field) from None
    if not signed:
        raise InvalidArgument(f"{field}: sign it with the key that it is for.", field=field)
    if not _is_usable(key):
        raise InvalidArgument(
            f"{field}: its key must be of P-256, of P-384 or RSA with 2,048 bits or more.", field=field
        )
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)

    return key


def region_in(uri: str) -> str:
    """The region that a certificate's URI names; empty when it names none."""
    return uri.removeprefix(REGION_URI) if uri.startswith(REGION_URI) else ""


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"tls.{name}: {path} cannot be read: {error.strerror}") from error


def _certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"tls.{name}: there is no readable certificate (PEM) in it.") from None


def _private_key(pem: bytes, name: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(f"tls.{name}: there is no readable private key (PEM, no password) in it.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or not _is_usable(key.public_key()):
        raise ConfigurationError(f"tls.{name}: gRPC takes keys of P-256, of P-384 or RSA with 2,048 bits or more only.")
    return key


def _is_usable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS


def _expiry(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()
