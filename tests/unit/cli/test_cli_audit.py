"""suanli audit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from protos.suanli.v1 import audit_pb2
from suanli.reports.audit_chain import AuditChain
from tests.unit.cli.tools import Platform


def some_records(platform: Platform) -> None:
    found = platform.data("project", "list", user="ann")
    if not any(project["id"] == "audited" for project in found):
        platform.run("project", "create", "audited", user="ann")
    platform.run("quota", "set", "uni-a", "--project", "audited", "--cpus", "7", user="ann")
    platform.run("institution", "create", "uni-x", user="ada", code=4)


def test_list_shows_who_did_what(platform: Platform) -> None:
    some_records(platform)
    shown = platform.run("audit", "--actor", "ann", "--action", "SetQuota", user="op").stdout
    assert "uni-a/audited" in shown
    assert "allowed" in shown
    (newest, *_) = platform.data("audit", "list", "--outcome", "refused", "--actor", "ada", user="op")
    assert (newest["action"], newest["outcome"], newest["reason"]) == ("PutInstitution", "REFUSED", "ROLE_NOT_ALLOWED")
    rows = list(csv.DictReader(io.StringIO(platform.run("audit", "list", "-o", "csv", "-n", "2", user="op").stdout)))
    assert len(rows) == 2
    assert set(rows[0]) == {field.name for field in audit_pb2.AuditRecord.DESCRIPTOR.fields}
    assert rows[0]["outcome"] in ("allowed", "refused", "failed")
    assert platform.data("audit", "list", "--actor", "nobody", user="op") == []
    platform.run("audit", "list", user="ada", code=4)


def exported(platform: Platform, *arguments: str, user: str = "op") -> list[dict[str, Any]]:
    platform.run("audit", "export", "--out", "audit.jsonl", *arguments, user=user)
    return [json.loads(line) for line in Path("audit.jsonl").read_text().splitlines()]


def test_export_holds_everything(platform: Platform) -> None:
    some_records(platform)
    lines = exported(platform)
    numbers = [line["record"]["sequence"] for line in lines if "record" in line]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [line for line in lines if "head" in line]
    own = exported(platform, "--action", "SetQuota", user="ann")
    assert own
    assert {line["record"]["on_behalf_of"] for line in own} == {"uni-a"}


def test_verify_here_and_there(platform: Platform) -> None:
    some_records(platform)
    assert platform.data("audit", user="op")
    key = platform.data("audit", "key", user="op")
    head = key["newest_head"]
    assert "Public key" in platform.run("audit", "key", user="op").stdout
    found = platform.data("audit", "verify", "--here", user="op")
    assert (found["faults"], found["done"]) == ([], True)
    assert found["checked_here"] >= found["checked"] > 0
    told = f"{head['sequence']}:{head['hash']}"
    assert "Nothing is wrong." in platform.run("audit", "verify", "--head", told, user="op").output
    wrong = platform.data("audit", "verify", "--head", f"{head['sequence']}:{'0' * 64}", user="op", code=1)
    assert wrong["faults"][0]["code"] == "HEAD_DIFFERS"
    platform.data("audit", "verify", "--here", "--key", key["public_key"], user="op")
    strange = platform.data("audit", "verify", "--here", "--key", "00" * 32, user="op", code=1)
    assert strange["faults"][0]["code"] == "HEAD_UNTRUSTED"
    for wrong_use in (["--key", "00" * 32], ["--here", "--from", "2"], ["--here", "--key", "xy"], ["--head", "1:ab"]):
        platform.run("audit", "verify", *wrong_use, user="op", code=2)
    platform.run("audit", "verify", user="ann", code=4)


def test_a_chain_of_nothing_is_whole() -> None:
    chain = AuditChain([])
    chain.add(audit_pb2.StreamAuditResponse())
    assert (chain.fault, chain.records) == (None, 0)
