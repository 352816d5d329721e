"""Real processes through the node executor: start, environment, streams, ends and faults."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.executor_tools import (
    DEADLINE_S,
    SLEEPER,
    IsolatingExecutor,
    Run,
    alive,
    config,
    eventually,
    python,
    shell,
)
from workers.executor.node_executor import NodeExecutor
from workers.executor.types import AttemptState, ExecutorError, ExitReason, Keep, Launch, Started, Stream


@pytest.fixture(params=["process", "sandbox"])
async def run(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    """What holds of a process holds of one in a sandbox."""
    executor = (IsolatingExecutor if request.param == "sandbox" else NodeExecutor)(config(tmp_path))
    await executor.start()
    if request.param == "sandbox":
        assert executor.sandbox_problem == ""
    yield Run(executor)
    await executor.close()


async def log(run: Run, stream: Stream = Stream.STDOUT, job_id: str = "job", attempt: int = 1) -> str:
    text, offset = b"", 0
    while True:
        chunk = await run.executor.read_log(job_id, attempt, 0, stream, offset, 100_000)
        text, offset = text + chunk.data, chunk.next_offset
        if not chunk.data:
            return text.decode()


async def shows(run: Run, text: str) -> None:
    """Wait until the job's output begins with ``text``."""
    async with asyncio.timeout(DEADLINE_S):
        while not (await log(run)).startswith(text):  # noqa: ASYNC110 - the log is another process's
            await asyncio.sleep(0.02)


def unmarked(marker: str) -> int:
    """Kill what only a living warden could have found (no session, no mark of ours) and return how much it was."""
    found = alive(marker)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


async def test_a_job_that_leaves_nothing_leaves_nothing(run: Run, tmp_path: Path) -> None:
    ended = await run.run(Launch("job", 1, ("true",)))
    assert (ended.reason, ended.exit_code, ended.message) == (ExitReason.EXITED, 0, "finished")
    assert ended.started_ms <= ended.ended_ms
    assert (ended.results_manifest, ended.checkpoint_manifest, ended.logs_manifest) == (None, None, None)
    assert list((tmp_path / "node" / "attempts").iterdir()) == []


async def test_the_environment_is_built_from_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    launch = python(
        "import os,json; print(json.dumps(dict(os.environ)))",
        env={"MINE": "1", "RANK": "99"},
        rank=0,
        world_size=1,
        cpu_milli=2500,
        gpu_indices=(1, 3),
        master_port=4711,
        parameters_json='{"a":1}',
        keep=Keep("n", "inst", "proj", "user", "east", "cpu", 3, 10),
    )
    assert (await run.run(launch)).succeeded
    env = json.loads(await log(run))
    assert not [name for name in env if name.startswith("RAY") or name == "SECRET_TOKEN"]
    assert env["MINE"] == "1"
    assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_PORT"]) == ("0", "1", "4711")
    assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert env["OMP_NUM_THREADS"] == "2"
    assert (env["SUANLI_INSTITUTION"], env["SUANLI_ARRAY_INDEX"], env["SUANLI_ARRAY_SIZE"]) == ("inst", "3", "10")
    assert env["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    # Nobody inherits a descriptor either: the three standard ones and the one that lists them.
    ended = await run.run(shell("ls /proc/self/fd | wc -l", "fds"))
    assert ended.succeeded
    assert int(await log(run, job_id="fds")) == 4


async def test_without_gpus_none_is_visible(run: Run) -> None:
    assert (await run.run(shell('test "${CUDA_VISIBLE_DEVICES-unset}" = ""'))).succeeded


@pytest.mark.parametrize(
    ("launch", "reason", "words"),
    [
        (Launch("job", 1, ("no-such-command",)), ExitReason.SPAWN_FAILED, "no command 'no-such-command'"),
        (Launch("job", 1, ("./train.sh",)), ExitReason.SPAWN_FAILED, "no file './train.sh'"),
        (Launch("job", 1, ("/etc/passwd",)), ExitReason.SPAWN_FAILED, "not an executable file"),
        (Launch("job", 1, ("true",), env={"SUANLI_USER": "x"}), ExitReason.SPAWN_FAILED, "SUANLI_USER"),
        (Launch("job", 1, ("echo", "a\0b")), ExitReason.SPAWN_FAILED, "NUL"),
        (Launch("job", 1, ("true",), workdir_artifact="sha256:" + "0" * 64), ExitReason.ENVIRONMENT_FAILED, "store"),
        (Launch("job", 1, ("true",), packages=("--index-url=x",)), ExitReason.ENVIRONMENT_FAILED, "not a requirement"),
        (shell("exit 3"), ExitReason.EXITED, "exit code 3"),
        (shell("kill -SEGV $$"), ExitReason.SIGNALLED, "SIGSEGV"),
        (shell("kill -KILL $$"), ExitReason.SIGNALLED, "SIGKILL"),
        (shell("sleep 600", max_runtime_ms=200, grace_ms=5000), ExitReason.TIMED_OUT, "limit of 0.2 s"),
        (
            shell("trap '' TERM; sleep 600 & wait; sleep 600", max_runtime_ms=200, grace_ms=200),
            ExitReason.TIMED_OUT,
            "",
        ),
    ],
)
async def test_each_end_has_a_reason_and_a_sentence(run: Run, launch: Launch, reason: ExitReason, words: str) -> None:
    ended = await run.run(launch)
    assert ended.reason is reason
    assert words in ended.message
    assert not ended.succeeded


async def test_a_script_without_interpreter_says_so(run: Run, tmp_path: Path) -> None:
    for name, first in (("a", "#!/no/such/interpreter\n"), ("b", "echo hi\n")):
        (tmp_path / name).write_text(first)
        (tmp_path / name).chmod(0o755)
    assert "interpreter" in (await run.run(Launch("a", 1, (str(tmp_path / "a"),)))).message
    assert "begins with #!" in (await run.run(Launch("b", 1, (str(tmp_path / "b"),)))).message


async def test_launching_twice_runs_once(run: Run) -> None:
    launch = shell("exit 0")
    assert (await run.run(launch)).succeeded
    await run.executor.launch([launch, launch])
    assert (await run.run(shell("true", "other"))).succeeded
    assert len([event for event in run.events if isinstance(event, Started) and event.job_id == "job"]) == 1


async def test_a_stop_that_overtakes_its_launch_wins(run: Run) -> None:
    await run.executor.stop("job", 1, 0)
    refused = await run.executor.launch([shell("true")])
    assert [one.key.job_id for one in refused] == ["job"]
    assert await run.executor.launch([shell("true", attempt=2)]) == ()


STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
marker = sys.argv[1]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", marker])
    os._exit(0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", marker], {})
    os._exit(0)
time.sleep(600)
"""


def stubborn(marker: str) -> Launch:
    """Ignores SIGTERM and double-forks into new sessions, once with its environment and once without."""
    return Launch("job", 1, ("python", "-S", "-c", STUBBORN, marker))


async def test_stop_ends_the_whole_tree_whatever_it_does(run: Run) -> None:
    marker = uuid.uuid4().hex
    await run.executor.launch([stubborn(marker)])
    await eventually(lambda: len(alive(marker, sandbox=False)) == 3, "three processes")
    await run.executor.stop("job", 1, grace_ms=200)
    ended = await run.exited()
    assert (ended.reason, ended.signal) == (ExitReason.STOPPED, "SIGKILL")
    assert alive(marker) == []


async def test_stop_gives_grace(run: Run) -> None:
    script = "trap 'echo saved > $SUANLI_CHECKPOINT/state; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    await run.executor.launch([shell(script)])
    await run.until(lambda event: isinstance(event, Started))
    await shows(run, "ready\n")
    await run.executor.stop("job", 1, grace_ms=10_000)
    ended = await run.exited()
    assert (ended.reason, ended.exit_code) == (ExitReason.STOPPED, 0)
    assert ended.checkpoint_manifest is not None


async def test_what_outlives_the_command_is_killed_before_the_end_is_told(run: Run) -> None:
    marker = uuid.uuid4().hex
    ended = await run.run(shell(f"setsid {SLEEPER} {marker} & {SLEEPER} {marker} & sleep 0.3"))
    assert ended.succeeded
    assert alive(marker) == []


async def test_ranks_of_a_gang_end_each_by_itself(run: Run) -> None:
    gang = [
        shell(f"test $RANK -eq {rank} && exit {rank}" if rank else "sleep 600", rank=rank, world_size=3)
        for rank in range(3)
    ]
    await run.executor.launch(gang)
    assert (await run.exited(rank=2)).exit_code == 2
    assert (await run.exited(rank=1)).exit_code == 1
    await run.until(lambda event: isinstance(event, Started) and event.rank == 0)
    states = {info.rank: info.state for info in await run.executor.attempts()}
    assert states == {0: AttemptState.RUNNING, 1: AttemptState.ENDED, 2: AttemptState.ENDED}
    await run.executor.stop("job", 1, 0)
    assert (await run.exited(rank=0)).reason is ExitReason.STOPPED


@pytest.mark.parametrize("children", [0, 3])
async def test_memory_is_limited_for_the_tree(run: Run, children: int) -> None:
    script = f"""
import os, time
for _ in range({children}):
    if os.fork() == 0: break
block = bytearray((80 if {children} else 300) << 20)
time.sleep(600)
"""
    ended = await run.run(python(script, memory_mib=200))
    assert ended.reason is ExitReason.OUT_OF_MEMORY
    assert "of 200 MiB" in ended.message
    assert ended.usage.peak_memory_mib > 200


async def test_pages_shared_after_a_fork_count_once(run: Run) -> None:
    script = """
import os, time
block = bytearray(120 << 20)
for _ in range(3):
    if os.fork() == 0: break
time.sleep(1.5)
"""
    assert (await run.run(python(script, memory_mib=250))).succeeded


async def test_a_flood_of_output_is_bounded_and_keeps_head_and_tail(run: Run, tmp_path: Path) -> None:
    script = """
import os
os.write(1, b"first\\n")
for _ in range(200):
    os.write(1, b"x" * 65535 + b"\\n")
os.write(1, b"last\\n")
"""
    ended = await run.run(python(script, log_limit_bytes=1 << 20))
    assert ended.succeeded
    path = tmp_path / "node/attempts/job@1-0/stdout.log"
    assert path.stat().st_blocks * 512 <= 1.3 * (1 << 20)
    text = await log(run)
    assert text.startswith("first\n")
    assert text.endswith("x\nlast\n")
    assert text.count("bytes left out ...]") == 1
    assert len(text) < 1.3 * (1 << 20)
    assert ended.logs_manifest is not None


async def test_reopening_the_stream_does_not_cut_the_log(run: Run) -> None:
    ended = await run.run(shell("echo one >&2; echo two > /dev/stderr; echo three >&2"))
    assert ended.succeeded
    assert await log(run, Stream.STDERR) == "one\ntwo\nthree\n"


async def test_the_log_can_be_read_while_the_job_runs(run: Run) -> None:
    await run.executor.launch([shell("echo hello; sleep 600")])
    await run.until(lambda event: isinstance(event, Started))
    await shows(run, "hello\n")
    chunk = await run.executor.read_log("job", 1, 0, Stream.STDOUT, 0, 100)
    assert (chunk.data, chunk.next_offset, chunk.end) == (b"hello\n", 6, False)


async def test_death_of_the_warden_ends_its_jobs_and_is_reported(run: Run) -> None:
    marker = uuid.uuid4().hex
    await run.executor.launch([stubborn(marker)])
    await eventually(lambda: len(alive(marker, sandbox=False)) == 3, "three processes")
    started = await run.until(lambda event: isinstance(event, Started))
    assert isinstance(started, Started)
    os.kill(_parent(started.pid), signal.SIGKILL)
    assert (await run.exited()).reason is ExitReason.LOST
    assert unmarked(marker) <= 1
    assert (await run.run(shell("true", "after"))).succeeded


async def test_a_folder_has_one_executor(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="another executor"):
        await NodeExecutor(config(tmp_path)).start()


EXECUTOR = """
import asyncio, sys
from pathlib import Path
from tests.integration.executor_tools import config
from tests.integration.test_executor_processes import stubborn
from workers.executor.node_executor import NodeExecutor
async def main():
    executor = NodeExecutor(config(Path(sys.argv[1])))
    await executor.start()
    await executor.launch([stubborn(sys.argv[2])])
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("warden_too", [False, True])
async def test_death_of_the_executor_leaves_no_process_of_a_job(tmp_path: Path, warden_too: bool) -> None:
    marker = uuid.uuid4().hex
    executor = await asyncio.create_subprocess_exec(sys.executable, "-c", EXECUTOR, str(tmp_path), marker)
    # The executor's own command line holds the marker as well.
    await eventually(lambda: len(alive(marker)) == 4, "three processes of the job")
    if warden_too:
        children = [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == executor.pid]
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        executor.kill()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        await executor.wait()
        # The kernel takes the direct child; the next executor of this folder sweeps up the one that kept the mark.
        following = NodeExecutor(config(tmp_path))
        await following.start()
        await following.close()
        assert unmarked(marker) <= 1
    else:
        executor.kill()
        await executor.wait()
        await eventually(lambda: alive(marker) == [], "no process left")


def _parent(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


async def test_what_runs_under_a_lease_ends_with_it_and_nothing_else_does(run: Run) -> None:
    sleeping = "import time; time.sleep(60)"
    leased = python(sleeping, job_id="leased", lease_ms=1_500, grace_ms=100)
    assert await run.executor.launch([python(sleeping, job_id="free"), leased]) == ()
    await run.executor.renew(2_500)
    ended = await run.exited("leased")
    assert ended.reason is ExitReason.LOST
    assert "lease" in ended.message
    assert ended.ended_ms - ended.started_ms >= 2_000
    assert [one.job_id for one in await run.executor.attempts() if one.exited is None] == ["free"]


HIDDEN = """
import ctypes, os, pathlib, platform, sys, threading, time

def stay():
    held = b"x" * (int(sys.argv[2]) << 20)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)

threading.Thread(target=stay).start()
# Only this thread ends, and the kernel calls the whole process a zombie.
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def living_threads(mark: str) -> list[str]:
    """Threads that have not ended, of programs with the mark as an argument."""
    found = []
    for task in Path("/proc").glob("[0-9]*/task/*"):
        try:
            state = (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
            if state not in b"ZX" and mark.encode() in (task / "cmdline").read_bytes().split(b"\0"):
                found.append(str(task))
        except OSError:
            continue
    return found


async def test_a_process_whose_first_thread_has_ended_does_not_outlive_its_job(run: Run) -> None:
    mark = uuid.uuid4().hex
    program = f'{sys.executable} -S -c "$0"'
    # One carries the job's environment, by which it is recognised; the other has shed it.
    line = f"setsid {program} one 1 {mark} & setsid env -i {program} two 1 {mark} &"
    waiting = "while ! [ -e one -a -e two ]; do sleep 0.02; done"
    ended = await run.run(Launch("job", 1, ("sh", "-c", f"{line} {waiting}", HIDDEN)))
    assert ended.succeeded
    assert living_threads(mark) == []


async def test_memory_is_limited_when_the_first_thread_has_ended(run: Run) -> None:
    ended = await run.run(Launch("job", 1, ("python", "-S", "-c", HIDDEN, "there", "300"), memory_mib=64))
    assert ended.reason is ExitReason.OUT_OF_MEMORY
