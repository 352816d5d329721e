"""Processes that outlive the command that started them: started apart from it, known by id and start time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from suanli.local.state import Process

MARKER = "SUANLI_LOCAL"
"""Control plane and agents carry ``SUANLI_LOCAL=<state folder>``."""
JOB_MARKER = "SUANLI_ATTEMPT_ROOT"
"""Job processes carry the folder of their attempt, which is below the state folder."""
_TAIL_BYTES = 4096


def boot_id() -> str:
    """The id of the machine's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None when it has ended (or is a zombie)."""
    try:
        fields = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return start_time(process.pid) == process.start_time


def spawn(name: str, argv: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Process:
    """Start a process in a session of its own, so that neither Ctrl-C nor the end of its parent reaches it.

    It works in ``folder``: Python takes modules from there first, and the folder of whoever types may hold anything.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_suffix(".old.log"))
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    # A child that has ended already is a zombie until it is waited for, so that its id cannot be another's here.
    return Process(name, child.pid, start_time(child.pid) or 0)


def end(process: Process, number: signal.Signals, patience_s: float) -> bool:
    """Send a signal and wait; SIGKILL when that takes too long. False when it did not run any more."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        # Checked after the descriptor is there: from now on it means this very process.
        if not is_alive(process):
            return False
        _signal(fd, number)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(int(patience_s * 1000)):
            _signal(fd, signal.SIGKILL)
            poller.poll(5000)
        return True
    finally:
        os.close(fd)
        _reap(process.pid)


def end_marked(state_dir: Path) -> int:
    """Kill all processes that carry the mark of a state folder, and return how many there were."""
    own = f"{MARKER}={state_dir}".encode()
    jobs = f"{JOB_MARKER}={state_dir}/".encode()

    def is_ours(folder: Path) -> bool:
        variables = folder.joinpath("environ").read_bytes().split(b"\0")
        return any(variable == own or variable.startswith(jobs) for variable in variables)

    return _end_all(is_ours)


def end_session(leader: Process, title: bytes) -> int:
    """Kill what is left of a session whose leader has been killed: processes that call themselves ``title``….

    Ray's helpers write their title over the mark in their environment, and live on when their cluster was killed.
    """

    def is_ours(folder: Path) -> bool:
        fields = folder.joinpath("stat").read_bytes().rpartition(b")")[2].split()
        named = folder.joinpath("cmdline").read_bytes().startswith(title)
        return named and int(fields[3]) == leader.pid and int(fields[19]) >= leader.start_time

    return _end_all(is_ours)


def _end_all(is_ours: Callable[[Path], bool], patience_s: float = 10.0) -> int:
    ended: set[int] = set()
    deadline = time.monotonic() + patience_s
    while (found := dict(_found(is_ours))) and time.monotonic() < deadline:
        poller = select.poll()
        for fd in found.values():
            _signal(fd, signal.SIGKILL)
            poller.register(fd, select.POLLIN)
        poller.poll(200)
        for fd in found.values():
            os.close(fd)
        ended |= found.keys()
    return len(ended)


def _found(is_ours: Callable[[Path], bool]) -> Iterator[tuple[int, int]]:
    """(pid, pidfd) of living processes; the caller closes the descriptors."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            fd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            ours = start_time(int(name)) is not None and is_ours(Path("/proc", name))
        except OSError:
            ours = False
        if ours:
            yield int(name), fd
        else:
            os.close(fd)


def last_words(log: Path, lines: int = 12) -> str:
    """The sentence with which one of our processes gave up, else the last lines of its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            content = file.read()
    except OSError:
        return ""
    said = content.decode("utf-8", "replace").splitlines()
    sentences = [line for line in said if line.startswith("suanli ")]
    return sentences[-1] if sentences else "\n".join(said[-lines:])


def _signal(fd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, number)


def _reap(pid: int) -> None:
    """Take leave of a child; what this process did not start is none."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def python_path() -> str:
    """Where these very packages are, also when they are not installed."""
    return os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
