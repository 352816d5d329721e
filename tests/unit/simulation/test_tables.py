"""Reading the tables of a history, and saying where they are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scheduler.domain.errors import InvalidArgument
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.simulation.tables import read_history

EXPORT = Path(__file__).resolve().parents[2] / "data" / "simulation"
HEAD = "job_id,institution,submit_ms,start_ms,end_ms,state,runtime_ms,cpu_milli,memory_mib,gpu_milli"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "history"
    shutil.copytree(EXPORT, copy)
    return copy


def test_the_recorded_export_is_read_whole() -> None:
    history = read_history(EXPORT)
    manifest = json.loads((EXPORT / "manifest.json").read_text())
    assert len(history.jobs) == manifest["counts"]["jobs"] == 400
    assert (history.from_ms, history.to_ms) == (manifest["from_ms"], manifest["to_ms"])
    assert {region: len(nodes) for region, nodes in history.regions.items()} == {"east": 3, "west": 3}
    assert {each.institution: each.weight for each in history.tenants}["hua-uni"] == 2000
    quotas = {each.institution: each.quota for each in history.tenants}
    assert quotas == {"hua-uni": None, "min-edu": Resources(-1, -1, 24_000), "school-net": None}


def test_optional_columns_have_defaults(folder: Path) -> None:
    (folder / "jobs.csv").write_text(f"{HEAD}\nj1,a,5,7,9,SUCCEEDED,2,1000,1024,0\n")
    (job,) = read_history(folder).jobs
    assert (job.project, job.eligible_ms, job.priority) == ("default", 5, PriorityClass.NORMAL)
    assert (job.shape.replicas, job.shape.request, job.limit_ms) == (1, Resources(1000, 1024, 0), 86_400_000)
    assert not job.preemptible


def test_lists_and_selectors(folder: Path) -> None:
    row = 'j1,a,5,7,9,SUCCEEDED,2,1000,1024,0,NVIDIA-A100; NVIDIA-H100,"{""rack"": ""r1"", ""disk"": ""ssd""}",urgent'
    (folder / "jobs.csv").write_text(f"{HEAD},accelerators,node_selector,priority\n{row}\n")
    (job,) = read_history(folder).jobs
    assert job.shape.accelerators == ("NVIDIA-A100", "NVIDIA-H100")
    assert job.shape.node_selector == (("disk", "ssd"), ("rack", "r1"))
    assert job.priority is PriorityClass.URGENT


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ("j1,a,5,7,9,SUCCEEDED,2,many,1024,0", "cpu_milli", "'many' is no whole number"),
        ("j1,a,5,7,9,SUCCEEDED,-2,1000,1024,0", "runtime_ms", "-2 is not from 0"),
        ("j1,,5,7,9,SUCCEEDED,2,1000,1024,0", "institution", "is empty"),
        ("j1,a,5,7,4,SUCCEEDED,2,1000,1024,0", "end_ms", "before submit_ms"),
        ("j1,a,5,3,9,SUCCEEDED,2,1000,1024,0", "start_ms", "before submit_ms"),
        ("j1,a,5,7,9,SUCCEEDED,2,1000,1024", "job_id", "not as many cells"),
        ("j1,a,5,7,9,SUCCEEDED,2,1000,1024,0,0", "job_id", "not as many cells"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(folder: Path, row: str, column: str, says: str) -> None:
    (folder / "jobs.csv").write_text(f"{HEAD}\nj0,a,5,7,9,SUCCEEDED,2,1000,1024,0\n{row}\n")
    with pytest.raises(InvalidArgument) as caught:
        read_history(folder)
    assert caught.value.message.startswith(f"jobs.csv, line 3, column {column}: ")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_wrong_priorities_and_selectors(folder: Path) -> None:
    (folder / "jobs.csv").write_text(f"{HEAD},priority\nj1,a,5,7,9,SUCCEEDED,2,1,1,0,soon\n")
    with pytest.raises(InvalidArgument, match="column priority: 'SOON' is none of LOW, NORMAL, HIGH, URGENT"):
        read_history(folder)
    (folder / "jobs.csv").write_text(f"{HEAD},node_selector\nj1,a,5,7,9,SUCCEEDED,2,1,1,0,disk=ssd\n")
    with pytest.raises(InvalidArgument, match="column node_selector: is no JSON object"):
        read_history(folder)


def test_a_missing_column_and_a_missing_file(folder: Path) -> None:
    (folder / "jobs.csv").write_text("job_id,institution\nj1,a\n")
    with pytest.raises(InvalidArgument, match=r"jobs.csv, line 1: has no column 'submit_ms'"):
        read_history(folder)
    (folder / "nodes.csv").unlink()
    shutil.copy(EXPORT / "jobs.csv", folder / "jobs.csv")
    with pytest.raises(InvalidArgument, match=r"nodes.csv: No such file"):
        read_history(folder)


def test_what_stands_twice_is_refused(folder: Path) -> None:
    lines = (folder / "nodes.csv").read_text().splitlines()
    (folder / "nodes.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(InvalidArgument, match="'east-gpu-a100-1' occurs twice"):
        read_history(folder)


def test_nodes_that_are_down_are_left_out_and_all_of_them_is_an_error(folder: Path) -> None:
    lines = (folder / "nodes.csv").read_text().splitlines()
    down = [line[: line.rindex(",1,")] + ",0,0" for line in lines[1:]]
    (folder / "nodes.csv").write_text("\n".join([lines[0], down[0], *lines[2:]]) + "\n")
    assert len(read_history(folder).regions["east"]) == 2
    (folder / "nodes.csv").write_text("\n".join([lines[0], *down]) + "\n")
    with pytest.raises(InvalidArgument, match="no node is up"):
        read_history(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"format": 2}, "reads 1"), ({"to_ms": 1}, "to_ms is not after"), ({"from_ms": "then"}, "from_ms is no instant")],
)
def test_a_wrong_manifest(folder: Path, change: dict[str, object], says: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InvalidArgument, match=says):
        read_history(folder)
