"""Reading /proc: who descends from whom, what carries our mark, how much memory a tree holds and CPU time it took."""

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
_ENDED = (b"Z", b"X")
"""States of a process, or a thread, that is over."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One line of /proc/PID/stat, as far as we need it."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    zombie: bool
    """Nothing of it lives. One whose first thread has ended while others go on is none, though the kernel calls it so."""
    rss_kib: int
    cpu_ticks: int = 0
    """Of the process and of its children that have ended and were waited for."""


def read_process(pid: int) -> Process | None:
    """Return the process, or None when there is none of that id any more."""
    fields = _stat(f"/proc/{pid}")
    if fields is None:
        return None
    zombie, pages = fields[0] in _ENDED, fields[21]
    if zombie and int(fields[17]) > 1 and (thread := _living_thread(pid)):
        living = _stat(thread)
        zombie, pages = living is None, living[21] if living is not None else pages
    ticks = sum(map(int, fields[11:15]))
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), zombie, int(pages) * _PAGE_KIB, ticks)


def _stat(folder: str) -> list[bytes] | None:
    """The fields of a process's or thread's ``stat`` from its state on."""
    try:
        fd = os.open(f"{folder}/stat", os.O_RDONLY)
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
    return fields if len(fields) >= 22 else None


def _living_thread(pid: int) -> str | None:
    """The folder in /proc of a thread of the process that has not ended: it still has what the first has given back."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            fields = _stat(f"/proc/{pid}/task/{name}")
            if fields is not None and fields[0] not in _ENDED:
                return f"/proc/{pid}/task/{name}"
    return None


def snapshot() -> dict[int, Process]:
    """Return every process of the machine by id. Costs about 10 microseconds per process."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


class Forest:
    """All processes by parent, session and group, for asking which belong together."""

    def __init__(self, processes: dict[int, Process]) -> None:
        self.processes = processes
        self._related: dict[int, list[int]] = {}
        for process in processes.values():
            for leader in {process.ppid, process.sid, process.pgid}:
                self._related.setdefault(leader, []).append(process.pid)

    def members(self, roots: Iterable[int]) -> set[int]:
        """Return ``roots``, all their descendants and the members of the sessions and groups these lead."""
        found: set[int] = set()
        queue = list(roots)
        while queue:
            pid = queue.pop()
            if pid not in found:
                found.add(pid)
                queue.extend(self._related.get(pid, ()))
        return found & self.processes.keys()

    def orphans(self, parent: int, own: Collection[int]) -> list[Process]:
        """Return the living children of ``parent`` that are not among ``own``."""
        children = (self.processes[pid] for pid in self._related.get(parent, ()))
        return [one for one in children if one.ppid == parent and one.pid not in own and not one.zombie]


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
    content = _environ(f"/proc/{pid}")
    if not content and (thread := _living_thread(pid)):
        content = _environ(thread)
    if not content:
        return None
    prefix = f"{MARKER}=".encode()
    for entry in content.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return ""


def _environ(folder: str) -> bytes:
    try:
        with open(f"{folder}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


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


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since the machine started."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0


def _proportional_kib(process: Process) -> int:
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return process.rss_kib


class Tree(NamedTuple):
    """What a process tree uses: memory now, CPU time so far. That of a child which nobody waited for goes with it."""

    memory_mib: int
    cpu_ms: int
    pids: frozenset[int]


def use_of_trees(roots: dict[int, tuple[str, int]], parent: int) -> tuple[dict[int, Tree], Collection[int]]:
    """Return what each process tree uses, by root id, and the ids of all processes of the machine.

    ``roots`` gives each tree's attempt folder and memory limit in MiB (0: none); ``parent`` is their common parent, to
    which what they leave behind belongs. Resident set sizes are summed first, which is cheap and never too low. Only
    when that sum comes near the limit, and more than one process could be counting the same page, is each asked for
    its proportional share.
    """
    forest = Forest(snapshot())
    extra: dict[int, list[int]] = {}
    by_folder = {folder: pid for pid, (folder, _) in roots.items()}
    for process in forest.orphans(parent, roots):
        owner = process.sid if process.sid in roots else by_folder.get(marker_of(process.pid) or "")
        if owner is not None:
            extra.setdefault(owner, []).append(process.pid)
    trees = {}
    for pid, (_, limit_mib) in roots.items():
        members = forest.members([pid, *extra.get(pid, ())])
        ticks = sum(forest.processes[member].cpu_ticks for member in members)
        cpu_ms = ticks * 1000 // _TICKS_PER_S
        trees[pid] = Tree(_tree_mib(forest, members, limit_mib), cpu_ms, frozenset(members))
    return trees, forest.processes.keys()


def _tree_mib(forest: Forest, members: Collection[int], limit_mib: int) -> int:
    alive = [one for pid in members if not (one := forest.processes[pid]).zombie]
    total = sum(process.rss_kib for process in alive)
    if limit_mib and len(alive) > 1 and total > limit_mib * 1024 * 9 // 10:
        total = sum(_proportional_kib(process) for process in alive)
    return -(-total // 1024)
