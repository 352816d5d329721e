"""Each wall around a job is what stops an attack: take it away, and the attack works.

Where several walls stop the same attack, each of them does so alone, and it works only when all are gone. Run by root the
rows are those of a node whose Ray is root's; ``test_plain_user.py`` runs them as somebody else.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.isolation.attack_tools import SECRETS, Site, attacked_node, host
from tests.isolation.attacks import ATTACKS, CALLS
from tests.isolation.walls import FRESH, ROOT, WALLS, away
from workers.executor.sandbox import Sandbox
from workers.executor.types import Launch

LIMITS, KILLS = host()
ROWS: list[tuple[tuple[str, ...], str]] = [
    *((("only what is named is there",), f"read {what}") for what in SECRETS.values()),
    (("only what is named is there",), "read the node's /etc"),
    (("masks",), "read what is masked"),
    (("read-only binds",), "write what is shown"),
    (("read-only binds",), "change a data set"),
    (("read-only binds",), "change its parameters"),
    (("a /dev of its own",), "find the node's devices"),
    *(((f"--unshare-{name}",), f"be in the node's {name} namespace") for name in ("pid", "net", "ipc", "uts")),
    (("--unshare-cgroup-try",), "be in the node's cgroup namespace"),
    (("--unshare-pid",), "see another job"),
    (("--unshare-net",), "reach a port of the node"),
    (("--unshare-net",), "reach a socket without a file"),
    (("--unshare-ipc",), "open shared memory"),
    *((("system call filter",), f"call {name}") for name in CALLS),
    (("system call filter",), "be root of a new namespace"),
    (("system call filter",), "type into a terminal"),
    (("size of /dev/shm",), "hide memory in files"),
    (("--nproc", *(("pids group",) if "pids" in LIMITS else ())), "fork bomb"),
    (("RLIMIT_FSIZE",), "make a huge file"),
    (("RLIMIT_DATA",), "reserve huge memory"),
    (("RLIMIT_CORE",), "dump core"),
    (("RLIMIT_NOFILE",), "open files without end"),
    (("disk watch",), "fill the disk"),
    (("links of results", "where results are opened"), "bring a secret out by a link"),
    (("--die-with-parent", "sweep", *(("cgroup.kill",) if KILLS else ())), "outlive the warden"),
    (("environment from nothing",), "find Ray's address"),
    (("variables come last",), "preload into bubblewrap"),
    (("packages are built inside",), "steal while a package is built"),
]
ROWS_OF_ROOT: list[tuple[tuple[str, ...], str]] = [
    (("--unshare-pid", "a uid for each"), "kill another job"),
    (("--unshare-pid", "own uid"), "kill the agent"),
    (("--unshare-pid", "own uid", "--cap-drop", "--bounding-set"), "read the agent's variables"),
    (("own uid",), "read what root alone may"),
    (("--clear-groups",), "read what a group of Ray's may"),
    (("a uid for each",), "use up another's processes"),
    (("read-only binds", "own uid"), "relink a data set"),
    (("--remount-ro /", "own uid"), "fill the root's memory"),
    (("--remount-ro /dev", "own uid"), "fill /dev's memory"),
    (("--cap-drop", "--bounding-set", "own uid"), "take priority"),
    (("--cap-drop", "--bounding-set", "own uid", "system call filter"), "mount"),
]
ROWS_OF_OTHERS: list[tuple[tuple[str, ...], str]] = [
    # Variables of the agent are out of reach in any case, by the user namespace that bubblewrap cannot do without here.
    (("--unshare-pid",), "kill another job"),
    (("--unshare-pid",), "kill the agent"),
    (("read-only binds",), "relink a data set"),
    (("--remount-ro /",), "fill the root's memory"),
    (("--remount-ro /dev",), "fill /dev's memory"),
]


def rows(fresh: bool) -> list[object]:
    """The rows that can, or cannot, be tried on a node that others have been tried on."""
    found: list[object] = []
    for walls, attack in (*ROWS, *(ROWS_OF_ROOT if ROOT else ROWS_OF_OTHERS)):
        if fresh is (attack == "outlive the warden" or not FRESH.isdisjoint(walls)):
            found.append(pytest.param(walls, attack, id=f"{'+'.join(walls)}: {attack}"))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    async with attacked_node(folder) as site:
        yield site


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("walls", "attack"), rows(fresh=False))
async def test_without_these_walls_the_attack_works(shared: Site, walls: tuple[str, ...], attack: str) -> None:
    await prove(shared, walls, attack)


@pytest.mark.parametrize(("walls", "attack"), rows(fresh=True))
async def test_without_these_walls_in_the_warden_the_attack_works(
    site: Site, walls: tuple[str, ...], attack: str
) -> None:
    await prove(site, walls, attack)


async def prove(site: Site, walls: tuple[str, ...], attack: str) -> None:
    """Each wall alone stops it, and nothing else does."""
    act = ATTACKS[attack]
    for left in walls if len(walls) > 1 else ("",):
        with pytest.MonkeyPatch.context() as patch:
            for wall in walls:
                if left not in {"", wall}:
                    await away(WALLS[wall], site, patch)
            assert not await act(site), f"it works although there is {left or 'everything'}"
    with pytest.MonkeyPatch.context() as patch:
        for wall in walls:
            await away(WALLS[wall], site, patch)
        assert await act(site), "something else stops it as well"


ELSEWHERE = {
    "--unshare-user": "bubblewrap adds it by itself for anybody but root",
    "--uid": "how a job without a user id of its own sees itself",
    "--gid": "the same",
    "--cap-add": "gives the three capabilities by which setpriv takes the user id of its own and gives up the rest",
    "--new-session": "see test_terminal.py",
    "--inh-caps": "bubblewrap hands on none, whoever runs it",
    "--no-new-privs": "bubblewrap sets it by itself, always, and mounts everything without set-user-id programs",
    "--regid": "the group that belongs to the user id of its own: see there",
}
"""Options that have no row, and why. What they are for is read in /proc by ``test_it_has_no_rights_and_gains_none``."""
TREE = {"--perms", "--dir", "--bind", "--ro-bind-try", "--symlink", "--tmpfs", "--proc", "--chdir"}
"""Those that make the tree that a job sees: "only what is named is there"."""
BY_OPTION = {
    "--ro-bind": "read-only binds",
    "--dev": "a /dev of its own",
    "--reuid": "own uid",
    "--size": "size of /dev/shm",
    "--remount-ro": "--remount-ro /",
}


def test_each_option_of_the_sandbox_is_a_wall_with_a_row_or_has_a_reason(shared_options: set[str]) -> None:
    proven = {wall for walls, _ in (*ROWS, *ROWS_OF_ROOT, *ROWS_OF_OTHERS) for wall in walls}
    unknown = shared_options - ELSEWHERE.keys() - TREE
    assert {one for one in unknown if BY_OPTION.get(one, one) not in proven} == set()
    assert not ELSEWHERE.keys() & proven


def test_each_wall_and_each_attack_is_in_a_row() -> None:
    every = (*ROWS, *ROWS_OF_ROOT, *ROWS_OF_OTHERS)
    # What this host has no control groups for cannot be taken away here.
    missing = {"pids group"} - {name for name in ("pids group",) if "pids" in LIMITS}
    missing |= set() if KILLS else {"cgroup.kill"}
    assert {wall for walls, _ in every for wall in walls} == WALLS.keys() - missing
    assert {attack for _, attack in every} == ATTACKS.keys()


@pytest.fixture
def shared_options(tmp_path: Path) -> set[str]:
    """All that the sandbox says to bubblewrap and to the programs within."""
    (tmp_path / "node").mkdir()
    sandbox = Sandbox(tmp_path / "node")
    sandbox.prepare()
    spec = sandbox.spec(Launch("job", 1, ("true",)), str(tmp_path), 1, {})
    sandbox.groups.close()
    words = (*spec["options"], *spec["inside"])
    return {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
