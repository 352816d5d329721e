"""What the control plane reads and signs of certificates."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from scheduler.api.tls import AgentAuthority, ConfigurationError, ReloadingCertificates, Tls, region_in
from scheduler.domain.errors import FailedPrecondition, InvalidArgument
from tests.support.certificates import certificates, loaded, request, uris


class Expiries(dict[str, float]):
    """An observer."""

    def certificate_expiry(self, certificate: str, at_s: float) -> None:
        self[certificate] = at_s


def test_what_is_signed_is_for_the_region_and_for_clients_only(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    _, wish = request(uri="suanli://region/west")
    signed = loaded(AgentAuthority(files.ca, files.ca_key).sign(wish, "east", "f"))
    signed.verify_directly_issued_by(loaded(files.ca))
    assert uris(signed) == ["suanli://region/east"]
    usage = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert signed.public_key() == x509.load_pem_x509_csr(wish.encode()).public_key()


def test_it_never_outlives_the_authority(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    end = loaded(files.ca).not_valid_after_utc
    authority = AgentAuthority(files.ca, files.ca_key, now=lambda: end - datetime.timedelta(days=1))
    assert loaded(authority.sign(request()[1], "east", "f")).not_valid_after_utc == end


def test_a_new_authority_beside_the_old_one_signs_without_a_restart(tmp_path: Path) -> None:
    files, other = certificates(tmp_path / "a"), certificates(tmp_path / "b")
    authority = AgentAuthority(files.ca, files.ca_key)
    files.ca.write_bytes(files.ca.read_bytes() + other.ca.read_bytes())
    files.ca_key.write_bytes(other.ca_key.read_bytes())
    loaded(authority.sign(request()[1], "east", "f")).verify_directly_issued_by(loaded(other.ca))
    files.ca_key.write_bytes(b"")
    with pytest.raises(FailedPrecondition, match="cannot sign"):
        authority.sign(request()[1], "east", "f")


def _tampered() -> str:
    lines = request()[1].splitlines()
    # In the signature, at the end.
    lines[-2] = ("A" if lines[-2][0] != "A" else "B") + lines[-2][1:]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("", "PKCS #10"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "PKCS #10"),
        ("\u00fc\ud800", "PKCS #10"),
        (_tampered(), "certificate_request"),
        (request(ed25519.Ed25519PrivateKey.generate())[1], "P-256"),
        (request(ec.generate_private_key(ec.SECP521R1()))[1], "P-256"),
        ("x" * 16_385, "16,385"),
    ],
    ids=["empty", "no DER", "no UTF-8", "tampered", "Ed25519", "P-521", "long"],
)
def test_a_wrong_request_is_refused_by_name(tmp_path: Path, wish: str, words: str) -> None:
    files = certificates(tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        AgentAuthority(files.ca, files.ca_key).sign(wish, "east", "certificate_request")
    assert caught.value.field == "certificate_request"
    assert words in caught.value.message


def test_what_is_wrong_at_the_start_is_named(tmp_path: Path) -> None:
    files, other = certificates(tmp_path / "a"), certificates(tmp_path / "b")
    weak = tmp_path / "weak.key"
    key = rsa.generate_private_key(65_537, 1024)
    weak.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for tls, words in (
        (Tls(tmp_path / "none", files.server_key), "tls.cert: .* cannot be read"),
        (Tls(files.server_key, files.server_key), "tls.cert: there is no readable certificate"),
        (Tls(files.server, files.server), "tls.key: there is no readable private key"),
        (Tls(files.server, weak), "tls.key: gRPC takes"),
        (Tls(files.server, other.server_key), "tls.key: it is not the key"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            ReloadingCertificates(tls, None, "client_ca", Expiries())
    with pytest.raises(ConfigurationError, match=r"tls\.client_ca: there is no readable certificate"):
        ReloadingCertificates(Tls(files.server, files.server_key), files.server_key, "client_ca", Expiries())
    with pytest.raises(ConfigurationError, match=r"tls\.agent_ca_key: it is the key of none"):
        AgentAuthority(files.ca, other.ca_key)


def test_the_first_end_of_what_is_in_force_is_told(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    files.server.write_bytes(files.server.read_bytes() + files.ca.read_bytes())
    expiries = Expiries()
    ReloadingCertificates(Tls(files.server, files.server_key), files.ca, "client_ca", expiries)
    server, ca = (loaded(path).not_valid_after_utc.timestamp() for path in (files.server, files.ca))
    assert expiries == {"server": server, "client_ca": ca}


def test_a_region_is_read_from_its_own_kind_of_uri_only() -> None:
    assert region_in("suanli://region/east") == "east"
    assert (region_in("spiffe://region/east"), region_in("east"), region_in("")) == ("", "", "")
