"""Certificates for tests: the authority of a local deployment, also as it was some days ago."""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from scheduler.api.tls import Tls
from suanli.local.certificates import Certificates


def certificates(folder: Path, *regions: str, days_ago: int = 0) -> Certificates:
    """A deployment's certificates, made so many days ago unless they are there."""
    made_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    files = Certificates(folder, now=lambda: made_at)
    files.ensure(regions)
    return files


def tls_of(files: Certificates, *, need: bool = True, sign: bool = True) -> Tls:
    """What a server is given that uses them."""
    return Tls(
        files.server,
        files.server_key,
        agent_ca_cert=files.ca,
        agent_ca_key=files.ca_key if sign else None,
        agents_need_certificates=need,
    )


def trusting(files: Certificates, region: str = "") -> grpc.ChannelCredentials:
    """Credentials of a client, with the certificate of a region's agent or none."""
    if not region:
        return grpc.ssl_channel_credentials(files.ca.read_bytes())
    cert, key = files.agent(region)
    return grpc.ssl_channel_credentials(files.ca.read_bytes(), key.read_bytes(), cert.read_bytes())


def showing(files: Certificates, key: bytes, chain: str) -> grpc.ChannelCredentials:
    """Credentials of a client with any certificate."""
    return grpc.ssl_channel_credentials(files.ca.read_bytes(), key, chain.encode())


def issued(files: Certificates, *names: x509.GeneralName) -> grpc.ChannelCredentials:
    """Credentials of a client whose certificate the authority has signed for these names."""
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    authority_key = load_pem_private_key(files.ca_key.read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return showing(files, pem, certificate.public_bytes(Encoding.PEM).decode())


def request(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None, uri: str = ""
) -> tuple[bytes, str]:
    """A key and a request for a certificate for it, which may ask for a name."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def loaded(pem: str | bytes | Path) -> x509.Certificate:
    """The first certificate in a text or a file."""
    if isinstance(pem, Path):
        pem = pem.read_bytes()
    return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)


def uris(certificate: x509.Certificate) -> list[str]:
    """The URIs that it names."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))
