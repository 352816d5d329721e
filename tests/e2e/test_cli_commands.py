"""The command line as people meet it: real processes, a real region, real interruptions."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.tools import COMMAND_S, ENVIRONMENT, command, pids, running, suanli, wait_for

STAY = ("--", "sh", "-c", "exec sleep 600")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running(tmp_path_factory.mktemp("cli") / "state", "--regions", "east", "--cpus-per-region", "4") as folder:
        yield folder


@pytest.fixture
def at(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command finds the deployment by itself, and runs in a folder of its own."""
    monkeypatch.setitem(ENVIRONMENT, "SUANLI_STATE_DIR", str(state))
    return tmp_path


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command under way."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(*arguments), stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(COMMAND_S)


def until_running(job: str) -> None:
    """Wait for the event that says so."""
    seen = suanli("watch", job, "--after", "0", "--count", "3", "-o", "json").stdout.splitlines()
    assert json.loads(seen[-1])["state"] == "RUNNING"


def test_a_script_from_submission_to_the_bill(at: Path) -> None:
    (at / "answer.py").write_text(
        "import os, pathlib, sys\n"
        "print('the answer is', 6 * 7)\n"
        "print('a warning', file=sys.stderr)\n"
        "pathlib.Path(os.environ['SUANLI_RESULTS'], 'answer.txt').write_text(sys.argv[1])\n"
    )
    job = suanli("submit", "--script", "answer.py", "--wait", "--", "四十二", cwd=at).stdout.strip()
    logs = suanli("logs", job)
    assert logs.stdout == "the answer is 42\n"
    assert logs.stderr == "a warning\n"
    suanli("fetch", job, "--to", "out", cwd=at)
    assert (at / "out" / "answer.txt").read_text() == "四十二"
    record = json.loads(suanli("ledger", "--job", job, "-o", "json").stdout)
    usage = json.loads(suanli("usage", "--by", "user", "-o", "json").stdout)
    held = sum(one["cpu_milli"] * (one["end_ms"] - one["start_ms"]) for one in record)
    assert 0 < held <= usage["total"]["cpu_milli_ms"]


def test_a_real_jobs_fate_is_the_exit_code(at: Path) -> None:
    suanli("submit", "--wait", "--", "sh", "-c", "exit 9", status=9)
    suanli("submit", "--wait", "--", "sh", "-c", "kill -TERM $$", status=143)
    suanli("submit", "--wait", "--max-runtime", "1s", *STAY, status=124)
    suanli("submit", "--wait", "--", "no-such-program", status=1)


def test_follow_goes_on_over_retries(at: Path) -> None:
    line = 'echo "try $SUANLI_ATTEMPT"; test "$SUANLI_ATTEMPT" = 2'
    done = suanli("submit", "--follow", "--retries", "2", "--shell", line)
    assert done.stdout == "try 1\ntry 2\n"


def test_ctrl_c_ends_the_waiting_and_not_the_job(at: Path) -> None:
    job = suanli("submit", *STAY).stdout.strip()
    until_running(job)
    with started("logs", "-f", job) as waiting:
        wait_for(lambda: talks(waiting.pid))
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=COMMAND_S)
    assert waiting.returncode == 130, err
    assert "The job goes on." in err
    assert f"suanli cancel {job}" in err
    assert "Traceback" not in out + err
    suanli("cancel", job)
    suanli("wait", job, status=130)


def talks(pid: int) -> bool:
    """Whether the process has come so far as to call the control plane: it has gRPC's threads then."""
    return len(os.listdir(f"/proc/{pid}/task")) > 4


def test_watch_goes_on_over_a_killed_control_plane(at: Path, state: Path) -> None:
    first = suanli("submit", "--wait", "--", "true").stdout.strip()
    with started("watch", "--after", "0", "-o", "json") as watching:
        assert watching.stdout is not None
        events = []
        while not events or (events[-1]["job_id"], events[-1]["state"]) != (first, "SUCCEEDED"):
            events.append(json.loads(watching.stdout.readline()))
        os.kill(pids(state)["control-plane"], signal.SIGKILL)
        suanli("up")
        second = suanli("submit", "--wait", "--", "true").stdout.strip()
        while (events[-1]["job_id"], events[-1]["state"]) != (second, "SUCCEEDED"):
            events.append(json.loads(watching.stdout.readline()))
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences))
    assert [event["state"] for event in events if event["job_id"] == second][-1] == "SUCCEEDED"


def test_ps_watch_draws_on_a_terminal(at: Path) -> None:
    job = suanli("submit", *STAY).stdout.strip()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command("ps", "--watch"), stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    try:
        read_until(ours, f"{job}")
        suanli("cancel", job)
        read_until(ours, "CANCELLED")
        process.send_signal(signal.SIGINT)
        read_until(ours, "")
        assert process.wait(COMMAND_S) == 130
    finally:
        process.kill()
        process.wait(COMMAND_S)
        os.close(ours)


def read_until(terminal: int, words: str) -> None:
    """Read what is drawn until ``words`` are seen, or, for no words, until the end."""
    seen = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (words and words.encode() in seen):
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 65_536)
            except OSError:
                return
    assert words.encode() in seen, seen[-2000:].decode(errors="replace")


def test_a_reader_that_leaves_is_no_error(at: Path) -> None:
    words = " ".join(command("algorithms", "show", "irt", "-o", "json"))
    done = subprocess.run(
        ["sh", "-c", f"{words} | head -1"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
        timeout=COMMAND_S,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_server_and_agent_take_over_the_process(at: Path) -> None:
    assert "server.yaml" in suanli("server", "--config", "server.yaml", status=2).stderr
    assert "agent.yaml" in suanli("agent", "--config", "agent.yaml", status=2).stderr
