import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.focus import lint, rows_of
from tests.unit.cli.tools import Platform


def test_institutions_and_projects(platform: Platform) -> None:
    made = platform.data("institution", "create", "uni-c", "--title", "丙大学", "--weight", "500", user="op")
    assert (made["id"], made["title"], made["weight"]) == ("uni-c", "丙大学", 500)
    assert "already" in platform.run("institution", "create", "uni-c", user="op", code=6).stderr
    changed = platform.data("institution", "set", "uni-c", "--weight", "700", user="op")
    assert (changed["title"], changed["weight"]) == ("丙大学", 700)
    assert "uni-c" in [one["id"] for one in platform.data("institution", "list", user="op")]
    assert [one["id"] for one in platform.data("institution", "list", user="ann")] == ["uni-a"]
    assert platform.run("institution", "set", "uni-z", "--weight", "1", user="op", code=3).stdout == ""

    assert platform.data("project", "create", "thesis", user="ann")["institution"] == "uni-a"
    platform.run("project", "create", "thesis", user="ann", code=6)
    platform.run("project", "set", "none", "--title", "x", user="ann", code=3)
    assert platform.data("project", "set", "thesis", "--title", "T", user="ann")["title"] == "T"
    assert "say which" in platform.run("project", "create", "thesis", user="op", code=2).stderr
    assert "uni-a/thesis" in platform.run("project", "list", user="ann").stdout


def test_users_and_keys(platform: Platform) -> None:
    made = platform.data("user", "create", "eve", "--institution", "uni-a", "--role", "finance", user="op")
    assert (made["role"], made["disabled"]) == ("FINANCE", False)
    platform.run("user", "create", "eve", "--institution", "uni-a", user="op", code=6)
    created = platform.run("key", "create", "eve", "--expires", "1d", "--title", "laptop", user="op")
    secret = created.stdout.strip()
    assert created.stdout.count("\n") == 1
    assert "not shown again" in created.stderr
    eve = replace(platform, keys={"eve": secret})
    assert eve.data("whoami", user="eve")["role"] == "FINANCE"
    listed = platform.data("key", "list", "--user", "eve", user="op")
    assert [one["title"] for one in listed] == ["laptop"]
    assert listed[0]["expire_time_ms"] > listed[0]["create_time_ms"]
    assert platform.data("user", "set", "eve", "--disable", user="op")["disabled"]
    eve.run("whoami", user="eve", code=4)
    platform.run("user", "set", "eve", "--enable", user="op")
    assert eve.run("whoami", user="eve").stdout
    assert platform.data("key", "revoke", secret, user="op")["revoked"]
    eve.run("whoami", user="eve", code=4)
    assert secret.split("_")[2] not in platform.run("key", "list", user="op").stdout


def test_quotas_keep_what_is_not_given(platform: Platform) -> None:
    platform.run("institution", "create", "uni-q", user="op")
    first = platform.data("quota", "set", "uni-q", "--cpus", "64", "--memory", "256GiB", user="op")
    assert (first["cpu_milli"], first["memory_mib"], first["gpu_milli"], first["pending_jobs"]) == (
        64_000,
        262_144,
        -1,
        -1,
    )
    second = platform.data("quota", "set", "uni-q", "--gpus", "0.5", "--cpus", "none", user="op")
    assert (second["cpu_milli"], second["memory_mib"], second["gpu_milli"]) == (-1, 262_144, 500)
    table = platform.run("quota", "list", "--institution", "uni-q", user="op").stdout
    assert "0 / no limit" in table
    assert "0 MiB / 256 GiB" in table
    assert "Nothing to set" in platform.run("quota", "set", "uni-q", user="op", code=2).stderr
    assert "lots" in platform.run("quota", "set", "uni-q", "--cpus", "lots", user="op", code=2).stderr


def test_places_and_draining(platform: Platform) -> None:
    assert "online" in platform.run("regions").stdout
    assert platform.data("pools", "--region", "east")[0]["capacity"]["cpu_milli"] == 8000
    assert platform.data("nodes", "--pool", "east/cpu")[0]["node"]["name"] == "node-one"
    assert platform.data("nodes", "--pool", "none") == []
    platform.run("nodes", "--pool", "east/cpu", "--region", "west", code=2)
    assert "draining" in platform.run("drain", "east", "node-one", user="op").stdout
    waiting = platform.submit("true")
    assert "drain" in platform.run("why", waiting).stdout.lower()
    assert "draining" not in platform.run("undrain", "east", "node-one", user="op").stdout
    platform.run("wait", waiting, "--timeout", "20s")
    platform.run("drain", "east", "no-node", user="op", code=3)


def test_an_enrolment_token_stands_alone_on_stdout(platform: Platform) -> None:
    result = platform.run("region", "enrol-token", "north", "--ttl", "30m", user="op")
    assert len(result.stdout.split()) == 1
    assert "north" in result.stderr
    assert platform.data("region", "enrol-token", "north", user="op").keys() == {"token", "expire_time_ms"}
    assert "north" in platform.run("regions").stdout


def test_usage_is_exact_in_json_and_agrees_with_the_ledger(platform: Platform) -> None:
    # Other tests have jobs there, too.
    before = platform.data("usage", "--by", "user,pool", user="ben")["total"]["cpu_milli_ms"]
    job = platform.submit("--cpus", "2", "--wait", "true", user="bob")
    records = platform.data("ledger", "--job", job, user="ben")
    assert [record["job_id"] for record in records] == [job]
    held = sum(record["cpu_milli"] * (record["end_ms"] - record["start_ms"]) for record in records)
    usage = platform.data("usage", "--by", "user,pool", user="ben")
    assert ("bob", "cpu") in [(row["user"], row["pool"]) for row in usage["rows"]]
    assert usage["total"]["cpu_milli_ms"] == before + held
    assert sum(row["cpu_milli_ms"] for row in usage["rows"]) == before + held
    assert platform.data("usage", "--from", "2100-01", user="ben")["rows"] == []
    table = platform.run("usage", "--by", "institution,month", "--running", user="fin").stdout.splitlines()
    assert table[0].split()[:2] == ["INSTITUTION", "MONTH"]
    assert "Nothing" in platform.run("usage", "--to", "2000-01", user="ben").stderr
    assert "'moon'" in platform.run("usage", "--by", "moon", code=2).stderr
    assert "ends before" in platform.run("usage", "--from", "2026-02", "--to", "2026-01", code=2).stderr


def test_the_export_and_the_ledgers_file_hold_the_charges_of_a_job(platform: Platform, tmp_path: Path) -> None:
    job = platform.submit("--wait", "true", user="bob")
    rows = rows_of(platform.run("usage", "export", "--institution", "uni-b", user="fin").stdout)
    assert lint(rows) == []
    assert job in {row["x_JobId"] for row in rows}
    assert {row["BillingAccountName"] for row in rows} == {"UNI-B"}
    platform.run("ledger", "list", "-o", "csv", "--out", str(tmp_path / "ledger.csv"), user="ben")
    recorded = rows_of((tmp_path / "ledger.csv").read_text())
    assert {row["sequence"] for row in recorded} == {row["x_LedgerSeq"] for row in rows} - {""}
    platform.run("usage", "export", user="bob", code=4)
    platform.run("usage", "export", "--institution", "uni-z", user="fin", code=3)


@pytest.mark.parametrize("command", ["institution", "project", "user", "key", "quota"])
def test_every_listing_is_a_list_in_json(platform: Platform, command: str) -> None:
    assert isinstance(json.loads(platform.run(command, "list", "-o", "json", user="op").stdout), list)


def test_the_catalogue(platform: Platform) -> None:
    assert platform.data("algorithms", "list") == []
    assert "empty" in platform.run("algorithms", "list").stderr
