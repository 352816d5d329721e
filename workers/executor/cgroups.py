"""Control groups: limits on an attempt that the kernel itself keeps, where the host lets the executor write them.

Which of them a host allows is found out by trying, at the start of the node. Each attempt in the sandbox has a group of its
own below one group of the executor's; its first process enters it before it turns into bubblewrap, so all that follow are in it.

* Version 2: one tree. Only groups without processes may hand limits on to the groups below them, so the executor first moves
  whatever stands in its own group one step down. As root it does so only in a group that was given away (systemd's
  ``Delegate=``, a container's root): elsewhere the tree is systemd's to arrange. ``cgroup.kill`` ends all of a group at once.
* Version 1: a tree for each controller. Used are ``cpu`` and ``pids``. The memory controller is not: kernels leave it out
  since 6.11 unless they are told otherwise, and it knows no clean end of a group that is out of memory.

Weights are in proportion to the cores that were asked for, against other attempts and against the node's own programs: who
needs less leaves the rest to others, and nobody loses what is theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

CONTROLLERS = ("cpu", "memory", "pids")
_VERSION_1 = ("cpu", "pids")
_PREFIX = "suanli-"
_OWN = "suanli-node"
"""Where the node's own programs go, beside the attempts' groups."""
_EXTRA_PROCESSES = 2
"""Bubblewrap's own, one on each side of the process namespace."""
_SHARES = (1024, 2, 262_144)
"""Version 1: of a core, the least, the most."""
_WEIGHT = (100, 1, 10_000)
"""Version 2: the same."""
_ROUNDS = 20
_END_S = 5.0
_RETRY_S = 0.02


class Kernel:
    """The file system of the control groups; tests put another one in its place."""

    def read(self, path: str) -> str:
        """Return what a file says; raises OSError."""
        with open(path, encoding="utf-8") as file:
            return file.read()

    def write(self, path: str, text: str) -> None:
        """Write it in one call, without making a file; raises OSError."""
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def make(self, path: str) -> None:
        """Make a group, if it is not there; raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)

    def remove(self, path: str) -> None:
        """Remove a group, if it is there; raises OSError when it holds processes or groups."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)

    def groups(self, path: str) -> list[str]:
        """Return the groups below one."""
        try:
            with os.scandir(path) as entries:
                return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []

    def was_given(self, path: str) -> bool:
        """Whether a group is marked as one that was handed to those who run in it."""
        for name in ("trusted.delegate", "user.delegate"):
            with contextlib.suppress(OSError):
                if os.getxattr(path, name) == b"1":
                    return True
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The executor's own group in one tree. ``controllers`` are those of version 1; version 2 says them itself."""

    version: int
    folder: str
    controllers: tuple[str, ...] = ()
    top: bool = False
    """It is the highest one that can be seen: of the machine, or of the container."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """Where the attempts' groups are made, and which limits hold there."""

    version: int
    parent: str
    controllers: tuple[str, ...]
    kills: bool


def places(mounts: str, own: str) -> list[Place]:
    """Return the executor's own groups, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    mine: dict[str, str] = {}
    for line in own.splitlines():
        _, listed, group = line.split(":", 2)
        mine.update(dict.fromkeys(listed.split(","), group))
    found: dict[tuple[int, str], Place] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        if kind not in {"cgroup", "cgroup2"}:
            continue
        root, mount = before.split(" ")[3:5]
        names = tuple(name for name in _VERSION_1 if name in options.split(",")) if kind == "cgroup" else ("",)
        path = mine.get(names[0]) if names else None
        if path is None or not (path == root or path.startswith(root.rstrip("/") + "/")):
            continue
        folder = os.path.normpath(f"{mount}/{path[len(root.rstrip('/')) :]}")
        place = Place(1, folder, names, path == root) if kind == "cgroup" else Place(2, folder, (), path == root)
        found.setdefault((place.version, names[0]), place)
    return sorted(found.values(), key=lambda one: (one.version, one.controllers))


def settings(version: int, cpu_milli: int, memory_mib: int, processes: int) -> dict[str, dict[str, str]]:
    """Return what to write for each controller into the group of an attempt; 0 for a limit is none."""
    unit, least, most = _SHARES if version == 1 else _WEIGHT
    weight = {"cpu.shares" if version == 1 else "cpu.weight": str(min(most, max(least, unit * cpu_milli // 1000)))}
    pids = {"pids.max": str(processes + _EXTRA_PROCESSES)} if processes else {}
    memory = {}
    if version == 2 and memory_mib:
        memory = {"memory.max": str(memory_mib << 20), "memory.swap.max": "0", "memory.oom.group": "1"}
    return {"cpu": weight, "memory": memory, "pids": pids}


class ControlGroups:
    """The groups of one executor, whose folder is ``root``. ``prepare`` first, ``close`` last; nothing here raises OSError."""

    def __init__(self, root: Path, kernel: Kernel | None = None, proc: Path = Path("/proc/self")) -> None:
        self._name = _PREFIX + hashlib.sha256(str(root).encode()).hexdigest()[:12]
        self._kept = root / "cgroups.json"
        self._kernel = kernel or Kernel()
        self._proc = proc
        self._trees: list[Tree] = []
        self._left: set[str] = set()
        self._asked: dict[int, int] = {}
        """Cores in thousandths of those that have groups."""
        self.problems: dict[str, str] = {}
        """Why a limit is not kept by the kernel here."""

    @property
    def limits(self) -> tuple[str, ...]:
        """The controllers whose limits hold for attempts on this node."""
        return tuple(name for name in CONTROLLERS if any(name in tree.controllers for tree in self._trees))

    @property
    def parents(self) -> tuple[str, ...]:
        """The groups that all others are in; whoever lives longest may remove them."""
        return tuple(tree.parent for tree in self._trees)

    # --- finding out ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Remove what an earlier executor has left, and find out what the host allows; blocks for some milliseconds."""
        self._trees, self.problems = (
            [],
            dict.fromkeys(CONTROLLERS, "the host has no control groups that can be used for it"),
        )
        with contextlib.suppress(OSError, ValueError):
            for parent in json.loads(self._kept.read_text()):
                if os.path.basename(parent).startswith(_PREFIX):
                    self._end(parent)
        try:
            found = places((self._proc / "mountinfo").read_text(), (self._proc / "cgroup").read_text())
        except (OSError, ValueError):
            return
        found = [dataclasses.replace(one, folder=_above_own(one.folder)) for one in found]
        parents = [f"{one.folder}/{self._name}" for one in found]
        try:
            self._kept.write_text(json.dumps(parents))
        except OSError as error:
            # Groups that could not be found again would stay for ever.
            self.problems = dict.fromkeys(CONTROLLERS, f"{self._kept} cannot be written: {error.strerror}")
            return
        for place, parent in zip(found, parents, strict=True):
            self._end(parent)
            tree = self._adopt(place, parent)
            if tree is not None:
                self._trees.append(tree)
            else:
                self._end(parent)
        for name in self.limits:
            self.problems.pop(name, None)
        for name, why in self.problems.items():
            _log.info("the kernel does not limit %s of sandboxes on this node: %s", name, why)

    def _adopt(self, place: Place, parent: str) -> Tree | None:
        """Make the parent of the attempts' groups and try one; None where there is nothing to be had."""
        kernel = self._kernel
        try:
            wanted = self._hand_on(place) if place.version == 2 else place.controllers
            kernel.make(parent)
            held = []
            for name in wanted:
                with self._noting(name):
                    if place.version == 2:
                        kernel.write(f"{parent}/cgroup.subtree_control", f"+{name}")
                    held.append(name)
            held = self._try(Tree(place.version, parent, tuple(held), False))
            kills = place.version == 2 and self._kills(parent)
        except OSError as error:
            for name in place.controllers or CONTROLLERS:
                self.problems[name] = _sentence(error)
            return None
        return Tree(place.version, parent, tuple(held), kills) if held or kills else None

    def _hand_on(self, place: Place) -> list[str]:
        """Version 2: let the groups below the executor's own have limits; returns which they can have."""
        kernel, control = self._kernel, f"{place.folder}/cgroup.subtree_control"
        there = kernel.read(f"{place.folder}/cgroup.controllers").split()
        handed = kernel.read(control).split()
        for name in (name for name in CONTROLLERS if name in there and name not in handed):
            with self._noting(name):
                try:
                    kernel.write(control, f"+{name}")
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    self._make_room(place)
                    kernel.write(control, f"+{name}")
                handed.append(name)
        return [name for name in CONTROLLERS if name in handed]

    def _make_room(self, place: Place) -> None:
        """Move the processes of the executor's own group into one below; raises OSError where it is not ours to do so."""
        kernel = self._kernel
        if os.geteuid() == 0 and not place.top and not kernel.was_given(place.folder):
            raise OSError(errno.EPERM, f"{place.folder} was not delegated (systemd: Delegate=yes)")
        own = f"{place.folder}/{_OWN}"
        kernel.make(own)
        for _ in range(_ROUNDS):
            processes = kernel.read(f"{place.folder}/cgroup.procs").split()
            if not processes:
                return
            for pid in processes:
                try:
                    kernel.write(f"{own}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def _try(self, tree: Tree) -> list[str]:
        """Return the controllers whose limits can be written; raises OSError where no process can be put into a group."""
        group = f"{tree.parent}/try"
        self._kernel.make(group)
        held = []
        for name in tree.controllers:
            with self._noting(name):
                self._set(group, settings(tree.version, 1000, 64, 64)[name])
                held.append(name)
        with subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/", env={}
        ) as process:
            # It ends when its input does, at the end of the block.
            self._kernel.write(f"{group}/cgroup.procs", str(process.pid))
        self._end(group)
        return held

    def _kills(self, parent: str) -> bool:
        try:
            self._kernel.write(f"{parent}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problems[name] = _sentence(error)

    # --- attempts -------------------------------------------------------------------------------------------------

    def open(self, number: int, cpu_milli: int, memory_mib: int, processes: int) -> list[str]:
        """Make an attempt's groups and return them, for its first process to enter all of them.

        One that could not be made, or whose limits could not be set, is not there: entering it fails, and so does the start.
        """
        made = []
        self._asked[number] = cpu_milli
        self._weigh()
        for tree in self._trees:
            group = f"{tree.parent}/{number}"
            made.append(group)
            values = settings(tree.version, cpu_milli, memory_mib, processes)
            try:
                self._kernel.make(group)
                for name in tree.controllers:
                    self._set(group, values[name])
            except OSError:
                self._remove(group)
        return made

    def out_of_memory(self, number: int) -> bool | None:
        """Whether the kernel has killed processes of the attempt for lack of memory; None where it does not tell."""
        for tree in self._trees:
            if "memory" in tree.controllers:
                with contextlib.suppress(OSError):
                    events = self._kernel.read(f"{tree.parent}/{number}/memory.events").splitlines()
                    return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in events)
        return None

    def kill(self, number: int) -> None:
        """End all processes of an attempt at once, where that can be done; the warden does it in any case."""
        for tree in self._trees:
            if tree.kills:
                self._kills(f"{tree.parent}/{number}")

    def forget(self, number: int) -> None:
        """Remove an attempt's groups, and what could not be removed before."""
        self.kill(number)
        if self._asked.pop(number, None) is not None:
            self._weigh()
        left = [*self._left, *(f"{tree.parent}/{number}" for tree in self._trees)]
        self._left.clear()
        for group in left:
            self._remove(group)

    def close(self) -> None:
        """Remove all groups of this executor."""
        for tree in self._trees:
            self._end(tree.parent)
        self._trees = []

    def _weigh(self) -> None:
        """Let all attempts together weigh as much against the node's own programs as each of them does for itself."""
        for tree in self._trees:
            if "cpu" in tree.controllers:
                with contextlib.suppress(OSError):
                    self._set(tree.parent, settings(tree.version, sum(self._asked.values()), 0, 0)["cpu"])

    def _set(self, group: str, values: dict[str, str]) -> None:
        for file, value in values.items():
            try:
                self._kernel.write(f"{group}/{file}", value)
            except FileNotFoundError:
                # A kernel that swaps nothing, or is too old to end a group as one.
                if file not in {"memory.swap.max", "memory.oom.group"}:
                    raise

    def _remove(self, group: str) -> None:
        try:
            self._kernel.remove(group)
        except OSError:
            self._left.add(group)

    def _end(self, group: str) -> None:
        """Kill whatever is in a group and below it, and remove it; after a while it is left as it is."""
        deadline = time.monotonic() + _END_S
        while True:
            killed = self._kills(group)
            for below in self._kernel.groups(group):
                self._end(below)
            try:
                self._kernel.remove(group)
            except OSError:
                if not killed:
                    self._signal(group)
                if time.monotonic() > deadline:
                    return
                time.sleep(_RETRY_S)
            else:
                return

    def _signal(self, group: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, self._kernel.read(f"{group}/cgroup.procs").split()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _above_own(folder: str) -> str:
    """The executor's group as it was before an executor moved the processes in it one step down."""
    return os.path.dirname(folder) if os.path.basename(folder) == _OWN else folder


def _sentence(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
