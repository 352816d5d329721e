"""The command as a person types it, and what of a deployment is left on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suanli.local.ray_cluster import short_folder

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND_S = 150
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("SUANLI_", "RAY_"))},
    "PYTHONPATH": str(REPOSITORY),
    "NO_COLOR": "1",
}


def command(*arguments: str) -> list[str]:
    """The words that start the command."""
    return [sys.executable, "-m", "suanli.cli", *arguments]


def suanli(*arguments: str, status: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must be with this exit code and without a traceback."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=COMMAND_S, env=ENVIRONMENT, cwd=cwd, check=False
    )
    assert done.returncode == status, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def running(state: Path, *options: str) -> Iterator[Path]:
    """``up`` in a state folder, and in the end ``down``, which must leave nothing."""
    try:
        suanli("up", "--state-dir", str(state), *options)
        yield state
    finally:
        suanli("down", "--state-dir", str(state))
    assert leftovers(state) == []


def status(state: Path, code: int = 0) -> dict[str, Any]:
    """What ``status`` says."""
    document: dict[str, Any] = json.loads(suanli("status", "--state-dir", str(state), "-o", "json", status=code).stdout)
    return document


def pids(state: Path) -> dict[str, int]:
    """The processes that ``up`` has recorded, by name."""
    return {item["name"]: item["pid"] for item in json.loads((state / "up.json").read_text())["processes"]}


def leftovers(state: Path) -> list[str]:
    """Every process of the machine that has anything to do with a state folder, or with the folders of its Ray clusters."""
    marks = {str(state).encode()}
    marks |= {str(short_folder(path / "ray")).encode() for path in (state / "regions").glob("*")}
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        folder = Path("/proc", name)
        try:
            words = folder.joinpath("cmdline").read_bytes()
            text = words + folder.joinpath("environ").read_bytes() + os.fsencode(os.readlink(folder / "cwd"))
        except OSError:
            continue
        if int(name) != os.getpid() and any(mark in text for mark in marks):
            found.append(f"{name} {words.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    for mark in marks - {str(state).encode()}:
        # Made by the look at its name.
        twin = Path(os.fsdecode(mark))
        twin.rmdir() if not any(twin.iterdir()) else found.append(str(twin))
    return found


def wait_for(what: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + within_s
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return answer
