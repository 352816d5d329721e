"""``python -m scheduler.simulation`` in this process."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scheduler.simulation import plots
from scheduler.simulation.__main__ import main

EXPORT = Path(__file__).resolve().parents[2] / "data" / "simulation"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded export's first 60 jobs."""
    folder = tmp_path_factory.mktemp("export") / "history"
    shutil.copytree(EXPORT, folder)
    lines = (folder / "jobs.csv").read_text().splitlines(keepends=True)
    (folder / "jobs.csv").write_text("".join(lines[:61]))
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    assert main(list(arguments)) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_tells_how_far_it_is_and_leaves_the_figures(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "found"
    lines = said(capsys, str(short), "--into", str(into), "--policy", "fifo", "--policy", "fair", "--no-plots")
    assert [line["kind"] for line in lines] == ["progress", "variant", "progress", "variant", "result"]
    assert (lines[1]["label"], lines[1]["done"], lines[1]["of"]) == ("fifo", 60, 60)
    assert json.loads((into / "metrics.json").read_text()) == lines[-1]["metrics"]
    assert lines[-1]["tables"][0]["head"] == ["", "fifo", "fair"]
    with (into / "jobs-1-fifo.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60
    waits = [int(row["end_ms"]) - int(row["submit_ms"]) - int(row["held_ms"]) for row in rows]
    assert waits == [int(row["wait_ms"]) for row in rows]
    assert lines[-1]["metrics"]["variants"][0]["figures"]["wait_average_ms"] == sum(waits) // 60
    assert not list(into.glob("*.png"))


def test_the_same_again_says_the_same_and_replaces_what_was_there(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = str(tmp_path / "found")
    first = said(capsys, str(short), "--into", into, "--policy", "fair", "--policy", "suanli", "--no-plots")
    second = said(capsys, str(short), "--into", into, "--policy", "fair", "--no-plots")
    assert first[-1]["metrics"]["variants"][0] == second[-1]["metrics"]["variants"][0]
    assert [path.name for path in (tmp_path / "found").glob("jobs-*")] == ["jobs-1-fair.csv"]


def test_drawings_and_a_page_that_needs_nothing_beside_it(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, str(short), "--into", str(tmp_path), "--scale-load", "1.5", "--add-region", "north=east")
    names = ("utilisation", "queue", "fairness", "waits")
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert 'src="http' not in page
    assert "suanli: region north like east, load × 1.5" in page
    assert "<b>Changed:</b> region north like east, load × 1.5" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--add-nodes", "east=4"], "REGION/POOL=COUNT"),
        (["--add-nodes", "east/gpu-a100=0"], "REGION/POOL=COUNT"),
        (["--remove-nodes", "east/cpu=9"], "has 1 nodes, not 9"),
        (["--add-region", "north"], "NEW=LIKE"),
        (["--scale-load", "-1"], "no factor"),
        (["--scale-load", "0"], "no factor"),
        (["--policy", "moon"], "neither a preset"),
        (["--moon"], "unrecognized arguments: --moon"),
    ],
)
def test_wrong_arguments_are_one_line_and_simulate_nothing(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    into = tmp_path / "found"
    (error,) = said(capsys, str(short), "--into", str(into), "--no-plots", *arguments, code=2)
    assert error["kind"] == "error"
    assert says in error["message"]
    assert not into.exists()


def test_a_folder_with_something_else_is_left_alone(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    (error,) = said(capsys, str(short), "--into", str(tmp_path), "--no-plots", code=1)
    assert "something other" in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_matplotlib_it_says_what_to_install(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    (error,) = said(capsys, str(short), "--into", str(tmp_path), code=1)
    assert "pip install 'suanli[plots]'" in error["message"]
    assert said(capsys, str(short), "--into", str(tmp_path), "--no-plots")[-1]["kind"] == "result"
