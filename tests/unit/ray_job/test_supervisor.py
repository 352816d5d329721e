"""The supervisor of a ray job as a process, with a stand-in for Ray: what it starts, what it tells whom, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from suanli.ray_job.supervisor import link_folder, own_address
from suanli.ray_nodes import free_ports
from workers.executor import procfs

FAKE = Path(__file__).with_name("fake_ray.py")
ROOT = Path(__file__).parents[3]
DEADLINE_S = 60


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not happen within {DEADLINE_S} s: {what}"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Stage:
    """Supervisors of one job, each with a folder and a fake Ray of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []
        self.port = 0

    def start(
        self,
        *command: str,
        plan: str = "up",
        rank: int = 0,
        world: int = 1,
        token: str = "t",
        options: tuple[str, ...] = (),
    ) -> subprocess.Popen[str]:
        place = self.place(rank)
        place.mkdir()
        (place / "plan").write_text(plan)
        (place / "token").write_text(token)
        python = place / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE}" "$@"\n')
        python.chmod(0o755)
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "FAKE_RAY": str(place),
            "SUANLI_ATTEMPT_ROOT": str(place),
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
        }
        if world > 1:
            if not self.port:
                with free_ports(1) as (self.port,):
                    pass
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        argv = [sys.executable, "-P", "-m", "suanli.ray_job.supervisor", "--python", str(python)]
        argv += ["--folder", str(place / "ray"), "--token", str(place / "token"), "--cpu-milli", "2000", *options]
        process = subprocess.Popen(
            [*argv, "--", *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.running.append(process)
        return process

    def place(self, rank: int = 0) -> Path:
        return self.folder / f"rank{rank}"

    def starts(self, rank: int = 0) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.place(rank) / "starts").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    def nothing_of_ray_is_left(self) -> bool:
        return not any(is_alive(one["pid"]) for rank in range(3) for one in self.starts(rank))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    # As a region's executor does: what a supervisor that was killed has left has its mark.
    procfs.kill_marked(str(tmp_path))
    for process in made.running:
        process.communicate()


WAITS = "import signal, sys, time; print('waits', flush=True); time.sleep(600)"


def test_the_command_runs_once_the_head_is_up_and_its_code_is_the_jobs(stage: Stage) -> None:
    script = "import json, os; print(json.dumps(dict(os.environ))); raise SystemExit(7)"
    code, out, err = stage.end(stage.start(sys.executable, "-c", script))
    assert (code, err) == (7, "")
    (head,) = stage.starts()
    options = dict(word.partition("=")[::2] for word in head["argv"])
    assert head["argv"][:4] == ["-P", "-m", "ray.scripts.scripts", "start"]
    assert (options["--num-cpus"], options["--node-ip-address"]) == ("2", "127.0.0.1")
    env = json.loads(out)
    assert env["RAY_ADDRESS"] == f"127.0.0.1:{options['--port']}"
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(stage.place() / "token"))
    assert "RANK" not in env
    assert stage.nothing_of_ray_is_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_dies_of_a_signal_takes_the_job_along(stage: Stage, number: int) -> None:
    code, _, err = stage.end(stage.start("/bin/sh", "-c", f"kill -{int(number)} $$"))
    assert (code, err) == (-number, "")
    assert stage.nothing_of_ray_is_left()


def test_the_command_is_told_of_a_signal_and_keeps_its_cluster_until_it_has_answered(stage: Stage) -> None:
    script = (
        "import os, signal, sys, time\n"
        "def leave(*_):\n"
        "    os.kill(int(sys.argv[1]), 0)\n"
        "    print('cluster still there'); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    # The head's id is known before the command's: the command gets it from a shell.
    shell = f'pid=$(tail -1 "$FAKE_RAY/starts" | sed "s/.*\\"pid\\": \\([0-9]*\\).*/\\1/"); exec "{sys.executable}" -c "$0" $pid'
    process = stage.start("/bin/sh", "-c", shell, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    code, out, _ = stage.end(process)
    assert (code, out) == (3, "cluster still there\n")
    assert stage.nothing_of_ray_is_left()


def test_a_signal_before_the_cluster_is_up_ends_it_at_once(stage: Stage) -> None:
    process = stage.start("true", plan="hang")
    eventually(stage.starts, "a start")
    process.send_signal(signal.SIGTERM)
    assert stage.end(process)[0] == -signal.SIGTERM
    assert stage.nothing_of_ray_is_left()


def test_a_node_that_fails_is_tried_once_more(stage: Stage) -> None:
    code, out, err = stage.end(stage.start("echo", "hi", plan="die up"))
    assert (code, out) == (0, "hi\n")
    assert err == "suanli: Ray did not start, and is tried once more; Ray cannot do this\n"
    assert len(stage.starts()) == 2


@pytest.mark.parametrize(
    ("plan", "why"),
    [("die", "Ray did not start; Ray's last words: Ray cannot do this"), ("hang", "Ray did not start within 0.5 s")],
)
def test_a_cluster_that_does_not_start_fails_the_job_with_rays_words(stage: Stage, plan: str, why: str) -> None:
    code, out, err = stage.end(
        stage.start("echo", "hi", plan=plan, options=("--start-s", "0.5" if plan == "hang" else "60"))
    )
    assert (code, out) == (70, "")
    assert err.splitlines()[-1].startswith(f"suanli: {why}")
    assert stage.nothing_of_ray_is_left()


def test_a_command_that_cannot_be_run_is_said(stage: Stage) -> None:
    code, _, err = stage.end(stage.start("no-such-command"))
    assert (code, err) == (127, "suanli: cannot run 'no-such-command': No such file or directory\n")
    assert stage.nothing_of_ray_is_left()


def test_a_cluster_that_dies_ends_the_command_and_is_said(stage: Stage) -> None:
    process = stage.start(sys.executable, "-c", WAITS, plan="crash")
    assert process.stdout is not None
    process.stdout.readline()
    (stage.place() / "crash").touch()
    code, _, err = stage.end(process)
    assert code == 70
    assert err.splitlines()[-1] == (
        "suanli: the Ray node of rank 0 failed: it ended by itself; its last words: "
        "Some Ray subprocesses exited unexpectedly: raylet [exit code=-9]"
    )


def test_a_gang_is_one_cluster_and_ends_well_with_the_command(stage: Stage) -> None:
    others = [stage.start("false", rank=rank, world=3) for rank in (2, 1)]
    head = stage.start("echo", "once", rank=0, world=3)
    assert stage.end(head) == (0, "once\n", "")
    assert [stage.end(one) for one in others] == [(0, "", "")] * 2
    address = next(word for word in stage.starts(0)[0]["argv"] if word.startswith("--port=")).partition("=")[2]
    for rank in (1, 2):
        (joined,) = stage.starts(rank)
        assert f"--address=127.0.0.1:{address}" in joined["argv"]
        assert {"RANK", "MASTER_ADDR", "RAY_ADDRESS"}.isdisjoint(joined["env"])
    assert stage.nothing_of_ray_is_left()


def test_a_command_of_a_gang_that_fails_is_the_one_to_say_so(stage: Stage) -> None:
    member = stage.start("true", rank=1, world=2)
    head = stage.start("/bin/sh", "-c", "exit 9", rank=0, world=2)
    assert stage.end(head)[0] == 9
    assert stage.end(member) == (0, "", "")


def test_a_rank_that_does_not_come_fails_the_gang_in_time(stage: Stage) -> None:
    head = stage.start("echo", "never", rank=0, world=2, options=("--join-s", "0.5"))
    code, out, err = stage.end(head)
    assert (code, out) == (70, "")
    assert err == "suanli: the Ray nodes of these ranks did not join within 0.5 s: 1\n"
    late = stage.start("true", rank=1, world=2, options=("--join-s", "0.5"))
    code, _, err = stage.end(late)
    assert code == 70
    assert "did not find rank 0" in err
    assert stage.nothing_of_ray_is_left()


def test_a_rank_with_another_token_is_none_of_the_gang(stage: Stage) -> None:
    stage.start("true", rank=0, world=2, options=("--join-s", "60"))
    code, _, err = stage.end(stage.start("true", rank=1, world=2, token="another", options=("--join-s", "2")))
    assert code == 70
    assert "did not find rank 0" in err
    assert stage.starts(1) == []


def running_gang(stage: Stage, plan: str = "up") -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    member = stage.start("true", rank=1, world=2, plan=plan, options=("--hold-s", "0.2"))
    head = stage.start(sys.executable, "-c", WAITS, rank=0, world=2, options=("--hold-s", "0.2"))
    assert head.stdout is not None
    assert head.stdout.readline() == "waits\n"
    return head, member


def test_a_node_of_a_gang_that_dies_fails_the_job_and_says_which(stage: Stage) -> None:
    head, member = running_gang(stage, plan="crash")
    (stage.place(1) / "crash").touch()
    code, _, err = stage.end(head)
    assert code == 70
    assert err.startswith("suanli: rank 1: the Ray node of rank 1 failed: it ended by itself; its last words: Some Ray")
    code, _, err = stage.end(member)
    assert code == 70
    assert "raylet [exit code=-9]" in err


def test_a_rank_that_is_killed_is_missed(stage: Stage) -> None:
    head, member = running_gang(stage)
    member.kill()
    assert stage.end(head)[::2] == (70, "suanli: the Ray node of rank 1 is gone\n")


def test_a_head_that_is_killed_takes_the_others_along(stage: Stage) -> None:
    head, member = running_gang(stage)
    head.kill()
    assert stage.end(member)[::2] == (70, "suanli: the Ray head on rank 0 is gone\n")
    assert not is_alive(stage.starts(1)[0]["pid"])


def test_ranks_that_are_asked_to_end_leave_the_answer_to_the_command(stage: Stage) -> None:
    head, member = running_gang(stage)
    member.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        member.wait(0.5)
    head.send_signal(signal.SIGTERM)
    assert stage.end(head)[0] == -signal.SIGTERM
    assert stage.end(member)[0] == 0


def test_a_short_way_leads_to_the_folder_and_only_through_one_of_ones_own(tmp_path: Path) -> None:
    link, target = tmp_path / "mine" / "abc", tmp_path / "deep" / "folder"
    target.parent.mkdir()
    for _ in range(2):
        link_folder(link, target)
        assert link.resolve() == target
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="not a folder of yours alone"):
        link_folder(tmp_path / "open" / "abc", target)
    (tmp_path / "other").symlink_to(tmp_path / "mine")
    with pytest.raises(PermissionError, match="not a folder of yours alone"):
        link_folder(tmp_path / "other" / "def", target)


def test_a_machine_knows_its_address_on_the_way_to_another() -> None:
    assert own_address("127.0.0.1", 1) == "127.0.0.1"
    assert own_address("127.0.0.2", 1).startswith("127.")
