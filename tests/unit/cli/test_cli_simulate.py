"""``suanli simulate``: exporting what happened on a platform, and trying something on an export."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.tools import REPOSITORY, Platform, invoke

EXPORT = REPOSITORY / "tests" / "data" / "simulation"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def exported(platform: Platform, folder: str = "history", *options: str) -> dict[str, dict[str, str]]:
    platform.run("simulate", "export", folder, "--from", "1h", *options, user="op")
    return {row["job_id"]: row for row in rows(Path(folder) / "jobs.csv")}


def test_an_export_holds_what_the_ledger_says(platform: Platform) -> None:
    platform.run("project", "create", "sims", user="ben")
    done = platform.submit(
        *("--project", "sims", "--cpus", "2", "--memory", "2GiB", "--max-runtime", "10m", "--name", "训练", "--wait"),
        *("--region", "east", "--preemptible", "true"),
        user="bob",
    )
    failed = platform.submit("--retries", "1", "exit", "3", user="bob")
    platform.run("wait", failed, user="bob", code=3)
    found = exported(platform)
    row = found[done]
    assert (row["institution"], row["project"], row["user"], row["name"]) == ("uni-b", "sims", "bob", "训练")
    assert (row["cpu_milli"], row["memory_mib"], row["gpu_milli"], row["replicas"]) == ("2000", "2048", "0", "1")
    assert (row["state"], row["priority"], row["preemptible"], row["limit_ms"]) == (
        "SUCCEEDED",
        "NORMAL",
        "1",
        "600000",
    )
    assert (row["preferred_regions"], row["region"], row["pool"]) == ("east", "east", "cpu")
    shown = platform.data("show", done, user="bob")
    for column in ("submit", "start", "end"):
        assert int(row[f"{column}_ms"]) == shown[f"{column}_time_ms"]
    for job_id in (done, failed):
        records = platform.data("ledger", "--job", job_id, user="ben")
        assert int(found[job_id]["runtime_ms"]) == sum(one["end_ms"] - one["start_ms"] for one in records)
    # An attempt that ended in the millisecond of its grant held nothing, and is not in the ledger.
    attempts = str(len({one["attempt"] for one in records}))
    assert (found[failed]["attempts"], found[failed]["evictions"], found[failed]["state"]) == (attempts, "0", "FAILED")


def test_a_running_job_counts_with_what_it_has_run_and_a_waiting_one_not_at_all(platform: Platform) -> None:
    running = platform.submit("stay", user="bob")
    platform.run("watch", running, "--after", "0", "--count", "3", user="bob")
    waiting = platform.submit("--cpus", "8", "true", user="bob")
    try:
        found = exported(platform)
    finally:
        platform.run("cancel", running, user="bob")
    shown = platform.data("show", running, user="bob")
    grant_ms = shown["attempts"][0]["grant_time_ms"]
    manifest = json.loads(Path("history/manifest.json").read_text())
    assert int(found[running]["runtime_ms"]) == manifest["exported_ms"] - grant_ms > 0
    assert (found[running]["state"], found[running]["end_ms"]) == ("RUNNING", "0")
    assert (found[waiting]["state"], found[waiting]["runtime_ms"]) == ("QUEUED", "0")


def test_arrays_are_exported_task_by_task_and_dependants_from_when_they_were_ready(platform: Platform) -> None:
    array = platform.submit("--array", "3", "--wait", "true", user="bob")
    after = platform.submit("--after", array, "--wait", "true", user="bob")
    found = exported(platform)
    assert array not in found
    tasks = [one["id"] for one in platform.data("ps", "--array", array, user="bob")]
    assert len(tasks) == 3
    assert all(found[task]["state"] == "SUCCEEDED" for task in tasks)
    assert int(found[after]["eligible_ms"]) <= int(found[after]["end_ms"]) - int(found[after]["runtime_ms"])


def test_nodes_tenants_and_the_manifest(platform: Platform) -> None:
    platform.run("quota", "set", "uni-b", "--memory", "512GiB", user="op")
    data = platform.data("simulate", "export", "h", "--from", "2h", "--to", "2100-01-01", user="op")
    manifest = json.loads(Path("h/manifest.json").read_text())
    assert data["to_ms"] == manifest["to_ms"] == manifest["exported_ms"]
    assert data["to_ms"] - data["from_ms"] == pytest.approx(7_200_000, abs=60_000)
    assert manifest["time_zone"] == "UTC"
    assert manifest["counts"] == {name: data[name] for name in ("jobs", "nodes", "tenants")}
    assert manifest["counts"]["jobs"] == len(rows(Path("h/jobs.csv")))
    (node,) = [row for row in rows(Path("h/nodes.csv")) if row["region"] == "east"]
    assert (node["node"], node["name"], node["pool"], node["cpu_milli"], node["up"]) == (
        "n1",
        "node-one",
        "cpu",
        "8000",
        "1",
    )
    tenants = {(row["institution"], row["project"]): row for row in rows(Path("h/tenants.csv"))}
    assert (tenants["uni-b", ""]["weight"], tenants["uni-b", ""]["memory_mib"]) == ("1000", "524288")
    assert tenants["uni-b", ""]["cpu_milli"] == "-1"
    assert ("uni-a", "default") in tenants


def test_one_who_may_see_less_exports_less(platform: Platform) -> None:
    mine = platform.submit("--wait", "true", user="ada")
    others = platform.submit("--wait", "true", user="bob")
    platform.run("simulate", "export", "h", "--from", "1h", user="ann")
    found = {row["job_id"] for row in rows(Path("h/jobs.csv"))}
    assert mine in found
    assert others not in found


def test_windows_and_folders_that_cannot_be(platform: Platform) -> None:
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("precious")
    assert "something other" in platform.run("simulate", "export", "full", "--from", "1h", user="op", code=2).stderr
    assert "--from" in platform.run("simulate", "export", "h", user="op", code=2).stderr
    ends_first = ("--from", "2026-02-01", "--to", "2026-01-01")
    assert "ends before" in platform.run("simulate", "export", "h", *ends_first, user="op", code=2).stderr
    assert "ends before" in platform.run("simulate", "export", "h", "--from", "2100-01-01", user="op", code=2).stderr
    assert not Path("h").exists()
    platform.run("simulate", "export", "h", "--from", "1h", user="op")
    platform.run("simulate", "export", "h", "--from", "1h", user="op")


def test_export_and_simulation_at_once(platform: Platform) -> None:
    job = platform.submit("--wait", "true", user="bob")
    data = platform.data("simulate", "--from", "1h", "--policy", "fair", "--policy", "fifo", "--no-plots", user="op")
    assert [one["label"] for one in data["variants"]] == ["fair", "fifo"]
    assert job in {row["job_id"] for row in rows(Path("suanli-simulation/history/jobs.csv"))}
    assert job in {row["job_id"] for row in rows(Path("suanli-simulation/jobs-2-fifo.csv"))}
    assert data["variants"][0]["figures"]["ended"] >= 1
    again = platform.data("simulate", "--from", "1h", "--no-plots", user="op")
    assert [one["label"] for one in again["variants"]] == ["current"]
    in_force = platform.data("policy", "show", user="op")
    assert Path("suanli-simulation/history/policy.yaml").read_text() == in_force["effective_yaml"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded export's first 60 jobs."""
    folder = tmp_path_factory.mktemp("short") / "history"
    folder.mkdir()
    for file in EXPORT.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[:61]))
    return folder


def simulated(short: Path, tmp_path: Path, *options: str, code: int = 0) -> Any:
    result = invoke("simulate", "run", str(short), "--into", str(tmp_path / "found"), "--no-plots", *options)
    assert result.exit_code == code, result.output
    return result


def test_a_table_with_each_difference(short: Path, tmp_path: Path) -> None:
    result = simulated(short, tmp_path, "--policy", "fair", "--add-nodes", "east/gpu-a100=2")
    lines = result.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["fair", "fair: +2 east/gpu-a100"]
    in_use = next(line for line in lines if line.startswith("GPUs in use"))
    assert re.search(r"\d \(−\d+\.\d points\)$|% \(−\d+\.\d points\)$", in_use.strip()), in_use
    assert any(line.startswith("By institution") for line in lines)
    assert any(line.startswith("The baseline beside what happened") for line in lines)
    assert "report.html" in result.stderr


def test_data_are_those_of_the_file(short: Path, tmp_path: Path) -> None:
    result = simulated(short, tmp_path, "--policy", "fifo", "--scale-load", "1.5", "-o", "json")
    data = json.loads(result.stdout)
    assert data == json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert [one["figures"]["jobs"] for one in data["variants"]] == [60, 90]


def test_what_the_simulation_refuses_is_listed(short: Path, tmp_path: Path) -> None:
    picky = tmp_path / "history"
    shutil.copytree(short, picky)
    jobs = rows(picky / "jobs.csv")
    jobs[7] |= {"accelerators": "NVIDIA-A100", "gpu_milli": "1000"}
    with (picky / "jobs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(jobs[0]))
        writer.writeheader()
        writer.writerows(jobs)
    result = simulated(picky, tmp_path, "--remove-nodes", "east/gpu-a100=2")
    assert re.search(rf"refuses {jobs[7]['job_id']} \(\w+\): No pool can hold", result.stderr), result.stderr
    refused = next(line for line in result.stdout.splitlines() if line.startswith("jobs refused"))
    assert refused.split()[-2] == "0"
    assert int(refused.split()[-1]) >= 1


def test_errors_of_the_simulation_are_sentences(short: Path, tmp_path: Path) -> None:
    assert "neither a preset" in simulated(short, tmp_path, "--policy", "moon", code=2).stderr
    assert "REGION/POOL=COUNT" in simulated(short, tmp_path, "--add-nodes", "x", code=2).stderr
    folder = tmp_path / "other"
    folder.mkdir()
    assert "simulate export" in invoke("simulate", "run", str(folder), "--no-plots").stderr
    both = invoke("simulate", "run", str(short), "--from", "1h")
    assert both.exit_code == 2
    assert "either a folder or" in both.stderr
