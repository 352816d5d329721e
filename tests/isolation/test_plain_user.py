"""The walls of a node whose Ray is not root's: the same tests once more, as somebody who is nobody else."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isolation.walls import ROOT

ROOM = Path(__file__).parents[2]
NOBODY = 65_534
NEED_ROOT = pytest.mark.skipif(not ROOT, reason="whoever is not root has run test_defences.py as a plain user")


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of that user's; those of pytest belong to root and to nobody else."""
    folder = Path(tempfile.mkdtemp(prefix="suanli-plain-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def plain() -> list[str]:
    """A command line's beginning that turns into that user, to whom the interpreter and the repository are open."""
    needed = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), ROOM}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        above = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    opened: list[str] = []
    for folder, paths in closed.items():
        opened += ["--tmpfs", str(folder)]
        for path in paths:
            between = [
                parent for parent in reversed(path.parents) if parent.is_relative_to(folder) and parent != folder
            ]
            opened += [word for parent in between for word in ("--perms", "0755", "--dir", str(parent))]
            opened += ["--bind", str(path), str(path)]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["bwrap", "--dev-bind", "/", "/", *opened, "--", *user] if opened else user


@NEED_ROOT
def test_the_walls_of_a_plain_users_node_hold_and_each_is_needed(theirs: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"HOME": str(theirs), "TMPDIR": str(theirs), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOM)}
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={theirs / 'pytest'}"]
    tests = [f"tests/isolation/test_{name}.py" for name in ("defences", "control_groups", "terminal")]
    done = subprocess.run(
        [*plain(), sys.executable, "-m", "pytest", *options, *tests],
        check=False,
        cwd=ROOM,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout
