"""``suanli data`` and ``suanli grant`` against the real control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from suanli.cli.data_file import read_data_set
from suanli.cli.runtime import Failure
from tests.unit.cli.tools import Platform, running_platform

CENSUS = """
name: census
version: 2024
title: Census of schools
classification: restricted
personal: true
deidentification: 2
home_region: east
allowed_regions: [west]
purposes: [thesis, report]
size: 4GiB
replicas:
  east: {location: /data/census, size: 4GiB}
schema: {fields: [{name: school}]}
retention_until: 2999-01-01
on_revoke: finish
listed: true
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of its own: it is about what is registered."""
    with running_platform(tmp_path_factory.mktemp("data-platform")) as running:
        yield running


def test_from_the_registration_to_the_withdrawal(platform: Platform) -> None:
    assert "no data set" in platform.run("data", "list").stderr
    shown = platform.run("data", "put", "-", user="sam", stdin=CENSUS).stdout
    assert "census@2024" in shown
    assert "running jobs finish" in shown
    one = platform.data("data", "show", "census", user="bob")
    assert (one["classification"], one["size_mib"], one["steward"], one["on_revoke"]) == (
        "RESTRICTED",
        4096,
        "sam",
        "FINISH",
    )
    assert json.loads(one["schema_json"]) == {"fields": [{"name": "school"}]}
    assert one["replicas"]["east"] == {"location": "/data/census", "size_mib": 4096, "checksum": ""}
    assert "census@2024" in platform.run("data", "list", "census", user="bob").stdout

    refused = platform.run("data", "check", "census@2024", "--purpose", "party", user="bob", code=6).stdout
    assert "PURPOSE_NOT_ALLOWED" in refused
    assert "NO_GRANT" in refused
    assert (
        "data is not granted" in platform.run("submit", "--data-set", "census", "--", "true", user="bob", code=6).stderr
    )

    ask = ("grant", "request", "census@20*", "--purpose", "thesis", "--reason", "board 12", "--to", "2998-01-01")
    asked = platform.data(*ask, "--action", "read", "--action", "export", user="bob")
    assert (asked["status"], asked["actions"], asked["version"]) == ("REQUESTED", ["READ", "EXPORT"], "20*")
    platform.run("grant", "approve", asked["id"], user="stu", code=4)
    assert asked["id"] in platform.run("grant", "list", "--status", "requested", user="sam").stdout
    assert platform.data("grant", "approve", asked["id"], user="sam")["status"] == "APPROVED"
    allowed = platform.data("data", "check", "census", "--purpose", "thesis", user="bob")
    assert (allowed["allowed"], allowed["grants"], allowed["pools"]) == (True, {"census": asked["id"]}, ["east/cpu"])

    job = platform.submit("--data-set", "census", "--purpose", "thesis", "--wait", "--", "true", user="bob")
    lineage = platform.run("data", "lineage", job, user="bob").stdout
    assert "census@2024" in lineage
    assert "restricted" in lineage
    events = [
        json.loads(line) for line in platform.run("data", "lineage", job, "--export", user="bob").stdout.splitlines()
    ]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]

    assert (
        "say it again with --yes"
        in platform.run("grant", "revoke", asked["id"], "--reason", "x", user="sam", code=6).stderr
    )
    assert platform.data("grant", "revoke", asked["id"], "--reason", "x", "--yes", user="sam")["status"] == "REVOKED"
    again = platform.data(*ask, user="bob")
    assert platform.data("grant", "refuse", again["id"], "--reason", "no", user="sam")["status"] == "REFUSED"

    platform.run("data", "withdraw", "census", "--reason", "x", "--yes", user="sam", code=2)
    assert (
        "withdrawn"
        in platform.run("data", "withdraw", "census@2024", "--reason", "x", "--yes", user="sam").stdout.lower()
    )
    assert platform.data("data", "list", user="bob") == []
    assert "withdrawn" in platform.run("data", "list", "--all", user="bob").stdout


def test_a_steward_is_made_by_the_institutions_admin(platform: Platform) -> None:
    made = platform.data("user", "create", "sky", "--institution", "uni-a", "--role", "steward", user="ann")
    assert made["role"] == "STEWARD"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "give names with values"),
        ("colour: red", "'colour' is not known"),
        ("classification: secret", "none of public"),
        ("size: big", "size: 'big' is not an amount"),
        ("purposes: thesis", "give a list"),
        ("replicas: {east: {path: /x}}", "replicas.east.path is not known"),
        ("personal: perhaps", "personal: 'perhaps' cannot stand here"),
        ("retention_until: never", "cannot stand here"),
        ("name: [", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path, text: str, words: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as caught:
        read_data_set(str(path))
    assert words in caught.value.message
