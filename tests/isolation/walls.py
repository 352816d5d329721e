"""The walls around a job, and how a test takes each of them away without the product knowing of it.

A wall is taken away by changing what the executor hands to bubblewrap, or a function of it; those that stand in the warden,
which is a process of its own, by starting that with a few lines in front.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pyseccomp
import pytest

from tests.isolation.attack_tools import Site
from workers.executor import environment, node_executor, procfs, warden_link

ROOT = os.geteuid() == 0
GROUP = 4242
"""A group whose files the executor may read."""
Take = Callable[[Site, pytest.MonkeyPatch], Awaitable[None] | None]
Spec = dict[str, Any]


def edited(change: Callable[[Spec], None]) -> Take:
    """A wall that is part of what the sandbox is told."""

    def take(site: Site, patch: pytest.MonkeyPatch) -> None:
        sandbox = site.executor._sandbox
        make = sandbox.spec

        def spec(*arguments: Any) -> Spec:
            made = make(*arguments)
            change(made)
            return made

        patch.setattr(sandbox, "spec", spec)

    return take


def replaced(part: str, old: list[str], new: list[str]) -> Take:
    """Words of a command line; a wall that is not there cannot be taken away."""

    def change(spec: Spec) -> None:
        words = spec[part]
        at = next((i for i in range(len(words)) if words[i : i + len(old)] == old), None)
        assert at is not None, f"{old} is not in {words}"
        words[at : at + len(old)] = new

    return edited(change)


def option(*words: str) -> Take:
    """An option of bubblewrap."""
    return replaced("options", list(words), [])


def inside(prefix: str) -> Take:
    """The options of the programs within that begin so."""

    def change(spec: Spec) -> None:
        kept = [word for word in spec["inside"] if not word.startswith(prefix)]
        assert kept != spec["inside"]
        spec["inside"] = kept

    return edited(change)


async def away(take: Take, site: Site, patch: pytest.MonkeyPatch) -> None:
    """Take one wall away."""
    taken = take(site, patch)
    if taken is not None:
        await taken


def in_warden(code: str) -> Take:
    """A wall in the warden, which is started anew with ``code`` before it begins; whatever runs below the old one ends."""

    async def take(site: Site, patch: pytest.MonkeyPatch) -> None:
        head, name, main = warden_link._BOOT.rpartition("from workers")
        patch.setattr(warden_link, "_BOOT", f"{head}exec({code!r}); {name}{main}")
        await restarted(site)

    return take


async def restarted(site: Site) -> None:
    """Start the warden anew; whatever runs below it ends."""
    executor = site.executor
    assert executor._link is not None
    await executor._link.close()
    executor._sandbox.groups.prepare()
    await executor._start_warden()


def open_pids(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The shared process namespace. A plain user may not mount a proc for it and sees the node's."""
    option("--unshare-pid")(site, patch)
    if not ROOT:
        replaced("options", ["--proc", "/proc"], ["--ro-bind", "/proc", "/proc"])(site, patch)


def unfiltered(site: Site, patch: pytest.MonkeyPatch) -> None:
    path = site.folder / "no-filter.bpf"
    if not path.exists():
        with path.open("wb") as file:
            pyseccomp.SyscallFilter(pyseccomp.ALLOW).export_bpf(file)
    edited(lambda spec: spec.update(filter=str(path)))(site, patch)


def as_root(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The user id of its own: the job stays root, who owns what root's node has made."""

    def change(spec: Spec) -> None:
        spec["uid"] = None
        words = ("--reuid", "--regid", "--clear-groups")
        spec["inside"] = [word for word in spec["inside"] if not word.startswith(words)]

    edited(change)(site, patch)
    patch.setattr(site.executor._sandbox, "uid_for", lambda *_: None)


async def in_groups(site: Site, patch: pytest.MonkeyPatch) -> None:
    """That groups of the executor's are left behind; it has one here."""
    mine = os.getgroups()
    os.setgroups([*mine, GROUP])
    try:
        await restarted(site)
    finally:
        os.setgroups(mine)
    replaced("inside", ["--clear-groups"], ["--keep-groups"])(site, patch)


def shown(*paths: str) -> Take:
    """That only what is named is there: these are, too."""

    def take(site: Site, patch: pytest.MonkeyPatch) -> None:
        places = [path or str(site.folder) for path in paths if os.path.exists(path or site.folder)]
        patch.setattr(site.executor._sandbox, "_shown", [*site.executor._sandbox._shown, *places])
        unmasked(site, patch)

    return take


def unmasked(site: Site, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site.executor._sandbox, "_masked", [])


def writable(site: Site, patch: pytest.MonkeyPatch) -> None:
    """That what is shown is shown to be read."""

    def change(spec: Spec) -> None:
        words = spec["options"]
        for i, word in enumerate(words):
            ours = word == "--ro-bind" and words[i + 1].startswith(str(site.folder))
            words[i] = "--bind" if ours else word

    edited(change)(site, patch)


def ungrouped(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The control groups, all of them."""
    patch.setattr(site.executor._sandbox.groups, "open", lambda *_: [])


def unkilled(site: Site, patch: pytest.MonkeyPatch) -> None:
    """That a group is killed as one."""
    patch.setattr(site.executor._sandbox.groups, "kill", lambda _: None)


def inherited(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The environment made from nothing."""
    build = environment.build
    patch.setattr(environment, "build", lambda *arguments: {**os.environ, **build(*arguments)})


def large_shm(spec: Spec) -> None:
    words = spec["options"]
    at = words.index("/dev/shm")
    assert words[at - 3] == "--size"
    words[at - 2] = str(1 << 30)


def unwatched(site: Site, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site.executor._disk, "look", site.note_look)


def unchecked_links(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The look at what a link among the results leads to."""
    patch.setattr("artifacts.store.os.path.isfile", lambda path: os.path.exists(path) and not os.path.isdir(path))

    def walk(part: Any) -> Any:
        for base, _, names in os.walk(part.folder):
            for name in names:
                path = os.path.realpath(os.path.join(base, name))
                yield path, name, None

    patch.setattr("artifacts.store._walk", walk)


def trusted_opening(site: Site, patch: pytest.MonkeyPatch) -> None:
    """The look at where a file of the results was really opened."""
    patch.setattr("artifacts.store._is_below", lambda *_: True)


def open_installer(site: Site, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(site.executor._sandbox, "installer", lambda _: None)


def shared_uid(site: Site, patch: pytest.MonkeyPatch) -> None:
    # That of the victim, which is the first.
    uid = site.executor._sandbox._uid(1)
    patch.setattr(site.executor._sandbox, "_uid", lambda _: uid)


def unswept(site: Site, patch: pytest.MonkeyPatch) -> None:
    """That the executor looks for what a dead warden has left."""
    patch.setattr(procfs, "kill_marked", lambda *_: 0)


def unlimited_data(site: Site, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node_executor, "data_limit", lambda _: 0)


NO_FILE_BOUND = "from workers.executor import warden_sandbox; warden_sandbox.MAX_FILES = 1 << 40"
"""More than the hard limit, so that stays."""
NO_CORE_BOUND = (
    "from workers.executor import warden; import resource; warden.resource.RLIMIT_CORE = resource.RLIMIT_RTTIME"
)
LOUD_VARIABLES = """
from workers.executor import warden_sandbox
enter = warden_sandbox.enter
warden_sandbox.enter = lambda spec, *rest: (enter(spec, *rest)[0], spec["env"])
"""

FRESH = {"RLIMIT_NOFILE", "RLIMIT_CORE", "variables come last", "--clear-groups"}
"""Those that stand in the warden: who takes them away needs a node of their own."""
WALLS: Mapping[str, Take] = {
    "only what is named is there": shown("", "/etc/hostname"),
    "masks": unmasked,
    "read-only binds": writable,
    "--remount-ro /": option("--remount-ro", "/"),
    "--remount-ro /dev": option("--remount-ro", "/dev"),
    "a /dev of its own": replaced("options", ["--dev", "/dev"], ["--dev-bind", "/dev", "/dev"]),
    "--unshare-pid": open_pids,
    "--unshare-net": option("--unshare-net"),
    "--unshare-ipc": option("--unshare-ipc"),
    "--unshare-uts": option("--unshare-uts"),
    "--unshare-cgroup-try": option("--unshare-cgroup-try"),
    "--die-with-parent": option("--die-with-parent"),
    "sweep": unswept,
    "cgroup.kill": unkilled,
    "--cap-drop": option("--cap-drop", "ALL"),
    "--bounding-set": inside("--bounding-set"),
    "own uid": as_root,
    "a uid for each": shared_uid,
    "--clear-groups": in_groups,
    "system call filter": unfiltered,
    "--nproc": inside("--nproc"),
    "pids group": ungrouped,
    "size of /dev/shm": edited(large_shm),
    "RLIMIT_FSIZE": edited(lambda spec: spec.update(file_limit=0)),
    "RLIMIT_DATA": unlimited_data,
    "RLIMIT_NOFILE": in_warden(NO_FILE_BOUND),
    "RLIMIT_CORE": in_warden(NO_CORE_BOUND),
    "disk watch": unwatched,
    "links of results": unchecked_links,
    "where results are opened": trusted_opening,
    "environment from nothing": inherited,
    "variables come last": in_warden(LOUD_VARIABLES),
    "packages are built inside": open_installer,
}
