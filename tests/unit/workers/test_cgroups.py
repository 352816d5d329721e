"""Which limits a host lets an executor write, told by a kernel that follows the rules of control groups on plain files."""

import errno
import os
from pathlib import Path

import pytest

from workers.executor.cgroups import ControlGroups, Kernel, Place, places, settings

FILES = {
    "cpu": {1: ("cpu.shares",), 2: ("cpu.weight",)},
    "pids": {1: ("pids.max",), 2: ("pids.max",)},
    "memory": {2: ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events")},
}


class FakeKernel(Kernel):
    """Version 2 below ``root``; a tree of version 1 below ``root/NAME`` for each of ``old``."""

    def __init__(self, root: Path, controllers: tuple[str, ...] = (), old: tuple[str, ...] = ()) -> None:
        self.root, self.controllers, self.old = str(root), controllers, old
        self.members: dict[str, set[str]] = {}
        self.denied: set[str] = set()
        """Ends of the paths that may not be written."""
        self.given: set[str] = set()

    def version(self, path: str) -> int:
        return 1 if any(path.startswith(f"{self.root}/{name}") for name in self.old) else 2

    def add(self, path: str) -> None:
        """Make a group with the files that it has in such a tree."""
        os.makedirs(path, exist_ok=True)
        self.members.setdefault(path, set())
        if self.version(path) == 1:
            for name in self.old:
                if path.startswith(f"{self.root}/{name}"):
                    self.files(path, name, 1)
            return
        parent = Path(path).parent / "cgroup.subtree_control"
        handed = parent.read_text().split() if parent.exists() else self.controllers
        Path(path, "cgroup.controllers").write_text(" ".join(handed))
        Path(path, "cgroup.subtree_control").write_text("")
        for name in handed:
            self.files(path, name, 2)

    def files(self, path: str, name: str, version: int) -> None:
        for file in FILES[name].get(version, ()):
            Path(path, file).write_text("")

    def check(self, path: str) -> None:
        if any(path.endswith(end) for end in self.denied):
            raise PermissionError(errno.EACCES, "Permission denied", path)

    def read(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name == "cgroup.procs":
            return "\n".join(self.members[folder])
        return super().read(path)

    def write(self, path: str, text: str) -> None:
        self.check(path)
        folder, name = os.path.split(path)
        if name == "cgroup.procs":
            if self.version(path) == 2 and Path(folder, "cgroup.subtree_control").read_text():
                raise OSError(errno.EBUSY, "Device or resource busy")
            for members in self.members.values():
                members.discard(text)
            self.members[folder].add(text)
        elif name == "cgroup.kill":
            if self.version(path) == 1 or folder not in self.members:
                raise FileNotFoundError(path)
            for group, members in self.members.items():
                if group == folder or group.startswith(f"{folder}/"):
                    members.clear()
        elif name == "cgroup.subtree_control":
            if self.members[folder]:
                raise OSError(errno.EBUSY, "Device or resource busy")
            old = Path(path).read_text()
            if text.lstrip("+") not in Path(folder, "cgroup.controllers").read_text().split():
                raise OSError(errno.ENOENT, "No such file or directory")
            Path(path).write_text(f"{old} {text.lstrip('+')}".strip())
        else:
            if not os.path.exists(path):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            Path(path).write_text(text)

    def make(self, path: str) -> None:
        self.check(path)
        if not os.path.isdir(path):
            self.add(path)

    def remove(self, path: str) -> None:
        if not os.path.isdir(path):
            return
        # A process that has ended is in no group; the only real one here is that of the trial.
        alive = {one for one in self.members[path] if not one.isdigit() or os.path.exists(f"/proc/{one}")}
        if self.groups(path) or alive:
            raise OSError(errno.EBUSY, "Device or resource busy")
        del self.members[path]
        for file in os.listdir(path):
            os.unlink(f"{path}/{file}")
        os.rmdir(path)

    def was_given(self, path: str) -> bool:
        return path in self.given


def groups(tmp_path: Path, kernel: FakeKernel, own: str, mounts: str) -> ControlGroups:
    proc, root = tmp_path / "proc", tmp_path / "node"
    for folder in (proc, root):
        folder.mkdir(exist_ok=True)
    (proc / "mountinfo").write_text(mounts)
    (proc / "cgroup").write_text(own)
    found = ControlGroups(root, kernel, proc)
    found.prepare()
    return found


def unified(tmp_path: Path, own: str = "/", **fields: tuple[str, ...]) -> tuple[FakeKernel, str, str]:
    kernel = FakeKernel(tmp_path / "cg", fields.get("controllers", ("cpu", "memory", "pids", "io")))
    kernel.controllers = tuple(name for name in kernel.controllers if name in FILES)
    kernel.add(str(tmp_path / "cg") + own.rstrip("/"))
    return kernel, f"0::{own}\n", f"41 31 0:38 / {tmp_path}/cg rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


HYBRID = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 /docker/x /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
"""
OWN = "8:pids:/docker/x\n4:memory:/m\n2:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/ray\n"


def test_its_own_groups_are_found_once_each_in_mounts_whole_and_in_part() -> None:
    assert places(HYBRID, OWN) == [
        Place(1, "/sys/fs/cgroup/cpu,cpuacct/a/b", ("cpu",)),
        Place(1, "/sys/fs/cgroup/pids", ("pids",), top=True),
        Place(2, "/sys/fs/cgroup/unified/ray"),
    ]
    # Its group lies outside of what the container has mounted.
    assert places("39 31 0:36 /docker/y /cg rw - cgroup cgroup rw,pids\n", OWN) == []
    assert places("", "") == []


def test_weights_are_in_proportion_and_within_what_the_kernel_takes() -> None:
    assert settings(1, 1500, 64, 10) == {"cpu": {"cpu.shares": "1536"}, "memory": {}, "pids": {"pids.max": "12"}}
    assert settings(2, 1500, 64, 0) == {
        "cpu": {"cpu.weight": "150"},
        "memory": {"memory.max": str(64 << 20), "memory.swap.max": "0", "memory.oom.group": "1"},
        "pids": {},
    }
    assert [settings(1, milli, 0, 0)["cpu"]["cpu.shares"] for milli in (0, 1, 10**9)] == ["2", "2", "262144"]
    assert [settings(2, milli, 0, 0)["cpu"]["cpu.weight"] for milli in (0, 1, 10**9)] == ["1", "1", "10000"]


@pytest.mark.usefixtures("plain")
def test_in_a_delegated_group_all_limits_hold_and_the_nodes_own_programs_step_aside(tmp_path: Path) -> None:
    kernel, own, mounts = unified(tmp_path, "/user/ray")
    base = f"{tmp_path}/cg/user/ray"
    kernel.members[base] = {"ray", "agent"}
    found = groups(tmp_path, kernel, own, mounts)
    assert (found.limits, found.problems) == (("cpu", "memory", "pids"), {})
    assert (kernel.members[base], kernel.members[f"{base}/suanli-node"]) == (set(), {"ray", "agent"})
    (group,) = found.open(7, 2500, 512, 20)
    assert {name: Path(group, name).read_text() for name in ("cpu.weight", "pids.max", "memory.max")} == {
        "cpu.weight": "250",
        "pids.max": "22",
        "memory.max": str(512 << 20),
    }
    assert Path(group, "memory.swap.max").read_text() == "0"
    # The next executor of this machine, or the same one started again, stands one step down.
    again = groups(tmp_path, kernel, "0::/user/ray/suanli-node\n", mounts)
    assert again.limits == ("cpu", "memory", "pids")
    assert not Path(group).exists()
    assert sorted(os.listdir(base))[-1] == "suanli-node"


def test_all_together_weigh_what_each_of_them_does(tmp_path: Path) -> None:
    found = groups(tmp_path, *unified(tmp_path))
    parent = Path(found.open(1, 1500, 64, 20)[0]).parent / "cpu.weight"
    weights = [parent.read_text()]
    found.open(2, 3000, 64, 20)
    weights.append(parent.read_text())
    for number in (1, 2, 2):
        found.forget(number)
        weights.append(parent.read_text())
    assert weights == ["150", "450", "300", "1", "1"]


def test_what_the_kernel_says_of_memory_is_asked_for(tmp_path: Path) -> None:
    found = groups(tmp_path, *unified(tmp_path))
    (group,) = found.open(1, 1000, 64, 20)
    events = Path(group, "memory.events")
    events.write_text("low 0\noom 3\noom_kill 0\n")
    assert found.out_of_memory(1) is False
    events.write_text("oom_kill 2\n")
    assert found.out_of_memory(1) is True
    found.forget(1)
    assert found.out_of_memory(1) is None


@pytest.mark.usefixtures("admin")
def test_root_leaves_a_tree_alone_that_was_not_given_to_it(tmp_path: Path) -> None:
    kernel, own, mounts = unified(tmp_path, "/system/ray")
    base = f"{tmp_path}/cg/system/ray"
    kernel.members[base] = {"ray"}
    found = groups(tmp_path, kernel, own, mounts)
    assert (found.limits, kernel.members[base]) == ((), {"ray"})
    assert all("was not delegated" in why for why in found.problems.values())
    kernel.given.add(base)
    assert groups(tmp_path, kernel, own, mounts).limits == ("cpu", "memory", "pids")


def test_each_limit_that_cannot_be_written_is_named_and_the_others_hold(tmp_path: Path) -> None:
    kernel, own, mounts = unified(tmp_path, controllers=("cpu", "pids"))
    kernel.denied.add("pids.max")
    found = groups(tmp_path, kernel, own, mounts)
    assert found.limits == ("cpu",)
    assert "Permission denied" in found.problems["pids"]
    assert "no control groups that can be used" in found.problems["memory"]


@pytest.mark.parametrize("end", ["/cg", "cgroup.procs"])
def test_where_no_group_can_be_used_there_is_none(tmp_path: Path, end: str) -> None:
    kernel, own, mounts = unified(tmp_path)
    kernel.denied.update({end, f"{end}/suanli-{'x' * 12}"} if end == "/cg" else {end})
    made = kernel.make
    if end == "/cg":
        kernel.make = lambda path: kernel.check("/cg") or made(path)  # type: ignore[method-assign, func-returns-value]
    found = groups(tmp_path, kernel, own, mounts)
    assert (found.limits, found.open(1, 1000, 64, 8)) == ((), [])
    assert all("Permission denied" in why for why in found.problems.values())
    assert [name for name in os.listdir(tmp_path / "cg") if name.startswith("suanli")] == []


def test_trees_of_version_1_are_used_each_for_its_own(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path / "cg", (), ("cpu", "pids"))
    for name in ("cpu", "pids"):
        kernel.add(f"{tmp_path}/cg/{name}")
    mounts = "".join(f"3 2 0:1 / {tmp_path}/cg/{name} rw - cgroup cgroup rw,{name}\n" for name in ("cpu", "pids"))
    found = groups(tmp_path, kernel, "2:pids:/\n1:cpu:/\n", mounts)
    assert found.limits == ("cpu", "pids")
    cpu, pids = found.open(1, 500, 64, 8)
    assert (Path(cpu, "cpu.shares").read_text(), Path(pids, "pids.max").read_text()) == ("512", "10")
    found.close()
    assert [os.listdir(f"{tmp_path}/cg/{name}") for name in ("cpu", "pids")] == [["cpu.shares"], ["pids.max"]]


def test_a_group_that_cannot_be_limited_cannot_be_entered(tmp_path: Path) -> None:
    kernel, own, mounts = unified(tmp_path)
    found = groups(tmp_path, kernel, own, mounts)
    kernel.denied.add("7/pids.max")
    (group,) = found.open(7, 1000, 64, 8)
    assert not Path(group).exists()


def test_a_group_that_is_busy_is_removed_later(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path / "cg", (), ("pids",))
    kernel.add(f"{tmp_path}/cg/pids")
    mounts = f"3 2 0:1 / {tmp_path}/cg/pids rw - cgroup cgroup rw,pids\n"
    found = groups(tmp_path, kernel, "1:pids:/\n", mounts)
    (busy,) = found.open(1, 1000, 64, 8)
    kernel.members[busy].add("late")
    found.forget(1)
    assert Path(busy).exists()
    kernel.members[busy].clear()
    found.forget(2)
    assert not Path(busy).exists()


def test_what_a_killed_executor_left_elsewhere_is_removed(tmp_path: Path) -> None:
    kernel, own, mounts = unified(tmp_path, "/first")
    (group,) = groups(tmp_path, kernel, own, mounts).open(3, 1000, 64, 8)
    kernel.members[group].add("left")
    kernel.add(f"{tmp_path}/cg/second")
    groups(tmp_path, kernel, "0::/second\n", mounts)
    assert not Path(group).parent.exists()
