"""One deployment on this machine through its life: up, used, broken, mended, down, and up again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from suanli import Client
from suanli.local.ray_cluster import cluster_pids
from tests.e2e.tools import ENVIRONMENT, command, leftovers, pids, running, status, suanli, wait_for

PARTS = {"control-plane", "agent:east", "agent:west", "ray:east", "ray:west"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("up") / "state"
    with running(folder, "--regions", "east,west", "--cpus-per-region", "2", "--memory-per-region", "4096"):
        yield folder


@pytest.fixture
def client(state: Path) -> Iterator[Client]:
    with Client(state_dir=state) as client:
        yield client


def test_all_parts_run_and_the_key_is_private(state: Path) -> None:
    parts = status(state)["parts"]
    assert {part["name"] for part in parts} == PARTS
    assert all(part["alive"] for part in parts)
    assert all("online" in part["detail"] for part in parts if part["name"].startswith("agent:"))
    assert (state / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_job_needs_no_set_up(state: Path) -> None:
    done = suanli("--state-dir", str(state), "submit", "--wait", "--", "sh", "-c", "exit 7", status=7)
    assert "exit code 7" in done.stderr + done.stdout


def test_everything_listens_on_the_loopback_interface_only(state: Path) -> None:
    ours = set(pids(state).values())
    for region in ("east", "west"):
        ours.update(cluster_pids(state / "regions" / region / "ray"))
    listening = [
        connection.laddr.ip
        for pid in ours
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.family in {socket.AF_INET, socket.AF_INET6}
    ]
    assert len(listening) > 5
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_a_second_up_says_that_it_runs_already(state: Path) -> None:
    before = pids(state)
    assert "already" in suanli("up", "--state-dir", str(state)).stderr
    assert pids(state) == before


def test_a_running_region_is_not_given_other_cpus(state: Path) -> None:
    text = suanli("up", "--state-dir", str(state), "--cpus-per-region", "7", status=1).stderr
    assert "2 CPUs" in text
    assert "suanli down" in text


def test_another_deployment_beside_it_comes_and_goes(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with running(other, "--regions", "north", "--cpus-per-region", "1"):
        assert status(other)["address"] != status(state)["address"]
    assert all(part["alive"] for part in status(state)["parts"])


def test_what_is_killed_is_started_again_and_a_running_job_does_not_notice(state: Path, client: Client) -> None:
    job = client.submit(shell="while [ ! -e go ]; do sleep 0.1; done", only_regions=["east"])
    wait_for(lambda: job.status().state == "RUNNING")
    before, address = pids(state), status(state)["address"]
    for name in ("control-plane", "agent:east", "ray:west"):
        os.kill(before[name], signal.SIGKILL)
    dead = {part["name"] for part in status(state, code=1)["parts"] if not part["alive"]}
    assert dead == {"control-plane", "agent:east", "ray:west"}

    suanli("up", "--state-dir", str(state))

    after = pids(state)
    # The agent of a cluster that is gone is started anew with it.
    assert {name for name in PARTS if after[name] == before[name]} == {"ray:east"}
    assert status(state)["address"] == address
    # In a sandbox a job sees no folder but its own.
    (folder,) = state.rglob(f"{job.id}@1-0/work")
    (folder / "go").touch()
    info = job.wait(timeout=60)
    assert (info.state, info.attempt) == ("SUCCEEDED", 1)
    assert client.submit(command=["true"], only_regions=["west"]).wait(timeout=60).succeeded


def test_a_running_job_survives_down_in_the_queue_and_runs_at_the_next_up(state: Path) -> None:
    with Client(state_dir=state) as client:
        job = client.submit(shell='if [ "$SUANLI_ATTEMPT" -gt 1 ]; then exit 0; fi; sleep 600')
        wait_for(lambda: job.status().state == "RUNNING")
    suanli("down", "--state-dir", str(state))
    assert leftovers(state) == []
    assert "Nothing runs" in suanli("down", "--state-dir", str(state)).stderr
    assert "suanli up" in suanli("status", "--state-dir", str(state), status=1).stderr

    suanli("up", "--state-dir", str(state))

    assert set(status(state)["regions"]) == {"east", "west"}
    with Client(state_dir=state) as client:
        info = client.job(job.id).wait(timeout=60)
    # While one region goes down, the other may have taken it for a moment.
    assert info.state == "SUCCEEDED"
    assert info.attempt >= 2


def test_an_up_that_is_killed_leaves_nothing_that_down_does_not_find(tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = command("up", "--state-dir", str(state), "--regions", "east", "--cpus-per-region", "1")
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as starting:
        wait_for(lambda: (state / "regions" / "east").is_dir() and cluster_pids(state / "regions" / "east" / "ray"))
        starting.kill()
    assert leftovers(state) != []
    suanli("down", "--state-dir", str(state))
    assert leftovers(state) == []


def test_in_the_foreground_it_mends_itself_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = command("up", "--state-dir", str(state), "--regions", "east", "--cpus-per-region", "1", "--foreground")
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as foreground:
        wait_for((state / "settings.json").exists)
        before = pids(state)["control-plane"]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: pids(state)["control-plane"] != before)
        wait_for(lambda: all(part["alive"] for part in status(state)["parts"]))
        foreground.send_signal(signal.SIGINT)
        _, said = foreground.communicate(timeout=60)
    assert foreground.returncode == 0
    assert "control-plane has died" in said
    assert leftovers(state) == []
