"""Reading /proc: who descends from whom, what carries our mark, how much memory a tree holds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

MARKER = "SUANLI_ATTEMPT_ROOT"
"""Variable that every job process inherits: the folder of its attempt. It survives setsid and double forks."""

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Process(NamedTuple):
    """One line of /proc/PID/stat, as far as we need it."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    zombie: bool
    rss_kib: int


def read_process(pid: int) -> Process | None:
    """Return the process, or None when there is none of that id any more."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        line = os.read(fd, 1024)
    except OSError:
        return None
    finally:
        os.close(fd)
    # The command name stands in brackets and may itself hold spaces and brackets.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 22:
        return None
    zombie = fields[0] in {b"Z", b"X"}
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), zombie, int(fields[21]) * _PAGE_KIB)


def snapshot() -> dict[int, Process]:
    """Return every process of the machine by id. Costs about 10 microseconds per process."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(processes: dict[int, Process], roots: Iterable[int]) -> set[int]:
    """Return the ids of ``roots``, of all their descendants and of the members of their sessions and groups."""
    children: dict[int, list[int]] = {}
    by_session: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
        for leader in {process.sid, process.pgid}:
            by_session.setdefault(leader, []).append(process.pid)
    members: set[int] = set()
    queue = list(roots)
    while queue:
        pid = queue.pop()
        if pid in members:
            continue
        members.add(pid)
        queue.extend(children.get(pid, ()))
        queue.extend(by_session.get(pid, ()))
    return members & processes.keys()


def last_pid() -> int:
    """Return the id given last to a process or thread of this machine; 0 when the kernel does not tell."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[4])
    except (OSError, ValueError, IndexError):
        return 0


def marker_of(pid: int) -> str | None:
    """Return the attempt folder that the process carries in its environment.

    "" when it carries none, None when that cannot be told (gone, not ours to read, or in the midst of an exec).
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            content = file.read()
    except OSError:
        return None
    if not content:
        return None
    prefix = f"{MARKER}=".encode()
    for entry in content.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return ""


def kill_marked(root: str, timeout_s: float = 10.0) -> int:
    """Kill every process that carries an attempt folder below ``root``; return how many there were.

    Raises TimeoutError when some still live after ``timeout_s`` (a process stuck in the kernel).
    """
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while True:
        alive = list(_open_marked(root, killed))
        if not alive:
            return len(killed)
        poller = select.poll()
        for fd in alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            poller.register(fd, select.POLLIN)
        waiting = set(alive)
        while waiting and time.monotonic() < deadline:
            for fd, _ in poller.poll(100):
                poller.unregister(fd)
                waiting.discard(fd)
        for fd in alive:
            os.close(fd)
        if waiting:
            raise TimeoutError(f"{len(waiting)} process(es) of an earlier run below {root} do not die")


def _open_marked(root: str, seen: set[int]) -> Iterable[int]:
    prefix = root.rstrip("/") + "/"
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        pid = int(name)
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        # The mark is read after the descriptor is open: the id cannot have passed to another process unnoticed.
        process = read_process(pid)
        if process is None or process.zombie or not (marker_of(pid) or "").startswith(prefix):
            os.close(fd)
            continue
        seen.add(pid)
        yield fd


def memory_kib(pid: int, rss_kib: int, *, exact: bool) -> int:
    """Return the memory of one process in KiB; ``exact`` shares pages held in common among their holders (PSS)."""
    if not exact:
        return rss_kib
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        return rss_kib
    return rss_kib


def tree_memory_mib(processes: dict[int, Process], members: Collection[int], limit_mib: int) -> int:
    """Return what a process tree holds, in MiB.

    Resident set sizes are summed first, which is cheap and never too low. Only when that sum comes near the limit,
    and more than one process could be counting the same page, is each asked for its proportional share.
    """
    alive = [processes[pid] for pid in members if pid in processes and not processes[pid].zombie]
    total = sum(process.rss_kib for process in alive)
    if limit_mib and len(alive) > 1 and total > limit_mib * 1024 * 9 // 10:
        total = sum(memory_kib(process.pid, process.rss_kib, exact=True) for process in alive)
    return -(-total // 1024)
