"""What ``up``, ``down`` and ``status`` do with records and folders that are not as they left them. Nothing is started here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from suanli.local import processes
from suanli.local.launcher import Launcher
from suanli.local.state import Process, RegionSettings, RunningRegion, StateDir, Up
from tests.e2e.tools import leftovers, suanli, wait_for


def _record(state: StateDir, process: Process, boot_id: str) -> None:
    state.path.mkdir(parents=True, exist_ok=True)
    up = Up(boot_id, "127.0.0.1:1", metrics="127.0.0.1:2", processes={process.name: process})
    up.regions["east"] = RunningRegion(RegionSettings("east", 1, 0, 1024), "127.0.0.1:3")
    state.write_up(up)


@pytest.mark.parametrize(
    ("later_by", "boot"), [(1, "this"), (0, "another")], ids=["a recycled id", "an id of an earlier boot"]
)
def test_a_process_that_only_has_a_recorded_id_is_not_ended(tmp_path: Path, later_by: int, boot: str) -> None:
    state = StateDir(tmp_path / "state")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            began = processes.start_time(stranger.pid)
            assert began is not None
            boot_id = processes.boot_id() if boot == "this" else "another"
            _record(state, Process("control-plane", stranger.pid, began - later_by), boot_id)
            assert Launcher(state, lambda name, doing: None).down() == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert not state.up_file.exists()


def test_the_recorded_process_is_ended(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    process = processes.spawn("control-plane", ["sleep", "60"], os.environ, tmp_path, tmp_path / "log")
    _record(state, process, processes.boot_id())
    assert Launcher(state, lambda name, doing: None).down() == 1
    assert not processes.is_alive(process)


def test_a_process_without_a_record_is_found_by_its_mark(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.path.mkdir()
    environment = {**os.environ, processes.MARKER: str(state.path)}
    process = processes.spawn("stray", ["sleep", "60"], environment, tmp_path, tmp_path / "log")
    # It carries the mark once it is the command, and is a copy of this process until then.
    wait_for(lambda: processes.MARKER.encode() in Path(f"/proc/{process.pid}/environ").read_bytes())
    assert Launcher(state, lambda name, doing: None).down() == 1
    assert not processes.is_alive(process)


def test_a_damaged_record_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{")
    text = suanli("down", "--state-dir", str(tmp_path), status=1).stderr
    assert str(tmp_path / "up.json") in text
    assert "damaged" in text


def test_a_record_of_another_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"version": 99}))
    assert "another version" in suanli("down", "--state-dir", str(tmp_path), status=1).stderr
    assert (tmp_path / "up.json").exists()


@pytest.mark.parametrize("regions", ["East", "east,east", "", "a,b c", ",".join(f"r{n}" for n in range(17))])
def test_bad_names_of_regions_are_refused(tmp_path: Path, regions: str) -> None:
    text = suanli("up", "--state-dir", str(tmp_path), "--regions", regions, status=2).stderr
    assert "region" in text.lower()
    assert not (tmp_path / "up.json").exists()


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file/state" in suanli("up", "--state-dir", str(tmp_path / "file" / "state"), status=1).stderr


def test_two_commands_at_once_do_not_meet(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with state.locked():
        assert "Another command" in suanli("down", "--state-dir", str(tmp_path), status=1).stderr


def test_a_control_plane_that_does_not_start_is_quoted_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "control-plane").mkdir()
    (tmp_path / "control-plane" / "suanli.db").write_text("this is no database" * 1000)
    text = suanli("up", "--state-dir", str(tmp_path), "--regions", "east", "--cpus-per-region", "1", status=1).stderr
    assert "control plane ended while it was starting" in text
    assert "control-plane.log" in text
    assert "not a database" in text
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "up.json").exists()


def test_a_demonstration_does_not_write_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    text = suanli("demo", "--results", str(tmp_path), status=1).stderr
    assert "not a demonstration's" in text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
