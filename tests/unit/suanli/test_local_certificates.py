"""The certificates of a local deployment: made once, renewed in time, keys for their owner only."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from suanli.local.certificates import Certificates
from suanli.local.state import LocalError
from tests.support.certificates import certificates, loaded, uris


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_they_are_for_this_machine_and_for_their_regions(tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls", "east", "west")
    authority, server = loaded(files.ca), loaded(files.server)
    days = authority.not_valid_after_utc - authority.not_valid_before_utc
    assert datetime.timedelta(days=3_652) <= days < datetime.timedelta(days=3_653)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    for region in ("east", "west"):
        agent = loaded(files.agent(region)[0])
        agent.verify_directly_issued_by(authority)
        assert uris(agent) == [f"suanli://region/{region}"]
    server.verify_directly_issued_by(authority)
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tls").glob("*.key")} == {0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


def test_what_has_a_third_of_its_time_left_is_kept_and_what_has_less_is_made_anew(tmp_path: Path) -> None:
    certificates(tmp_path, "east", days_ago=59)
    before = content(tmp_path)
    certificates(tmp_path, "east")
    assert content(tmp_path) == before
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    Certificates(tmp_path, now=lambda: later).ensure(["east"])
    after = content(tmp_path)
    assert {name for name in after if after[name] == before[name]} == {"ca.pem", "ca.key"}


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        ("server.key", {"ca.pem", "ca.key", "agent-east.pem", "agent-east.key"}),
        ("agent-east.pem", {"ca.pem", "ca.key", "server.pem", "server.key"}),
        ("ca.key", set()),
    ],
)
def test_what_is_damaged_or_not_of_the_authority_is_made_anew(tmp_path: Path, damage: str, kept: set[str]) -> None:
    certificates(tmp_path, "east")
    before = content(tmp_path)
    (tmp_path / damage).write_bytes(b"damaged")
    certificates(tmp_path, "east")
    after = content(tmp_path)
    assert {name for name in after if after[name] == before[name]} == kept


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="file/tls"):
        certificates(tmp_path / "file" / "tls")
