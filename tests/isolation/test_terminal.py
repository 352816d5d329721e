"""Nothing that a job does reaches the terminal from which somebody has started Ray: three walls, each enough by itself."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.attack_tools import Site, attacked_node
from tests.isolation.attacks import tries
from tests.isolation.walls import Take, away, in_warden, option, restarted
from workers.executor import warden_link

ROOM = Path(__file__).parents[2]
IN_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"
MARK = "attacked:"


async def same_session(site: Site, patch: pytest.MonkeyPatch) -> None:
    """That the warden is started in a session of its own."""
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        return popen(*arguments, **{**options, "start_new_session": False})

    patch.setattr(warden_link.subprocess, "Popen", start)
    await restarted(site)


WALLS: dict[str, Take] = {
    "--new-session": option("--new-session"),
    "setsid in the child": in_warden("import os; os.setsid = lambda: None"),
    "the warden's session": same_session,
}


async def attack() -> dict[str, bool]:
    """Whether a job can open the terminal with all walls but one taken away, and with all."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        async with attacked_node(Path(name)) as site:
            for left in (*WALLS, "none"):
                with pytest.MonkeyPatch.context() as patch:
                    for wall, take in WALLS.items():
                        if wall != left:
                            await away(take, site, patch)
                    found[left] = await tries(site, "attempt('open', open, '/dev/tty', 'w')")
                await restarted(site)
    return found


def test_a_job_does_not_reach_the_terminal() -> None:
    argv = [sys.executable, "-c", IN_A_TERMINAL, sys.executable, "-m", "tests.isolation.test_terminal"]
    env = os.environ | {"PYTHONPATH": str(ROOM)}
    done = subprocess.run(
        argv, check=False, cwd=ROOM, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    said = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), "")
    assert said, done.stdout[-4000:] + done.stderr[-2000:]
    assert json.loads(said.removeprefix(MARK)) == {**dict.fromkeys(WALLS, False), "none": True}


if __name__ == "__main__":
    print(MARK + json.dumps(asyncio.run(attack())))
