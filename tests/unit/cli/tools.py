"""The command in this process, against a platform in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from suanli.cli.main import cli

REPOSITORY = Path(__file__).resolve().parents[3]


def invoke(*arguments: str, stdin: str = "") -> Result:
    """Run the command; an exception that is no exit fails the test with its own traceback."""
    return CliRunner().invoke(cli, list(arguments), input=stdin, prog_name="suanli", catch_exceptions=False)


@dataclass(frozen=True)
class Platform:
    """A running platform: where it is, and the keys of its people."""

    address: str
    keys: dict[str, str]
    process: subprocess.Popen[str]
    log: Path

    def run(self, *arguments: str, user: str = "ada", code: int = 0, stdin: str = "") -> Result:
        """Run the command as ``user``; it must end with ``code``."""
        result = invoke("--address", self.address, "--api-key", self.keys[user], *arguments, stdin=stdin)
        ended = f"\n(the platform has ended with {self.process.poll()}: {self.log.read_text()[-2000:]})"
        assert result.exit_code == code, result.output + ("" if self.process.poll() is None else ended)
        return result

    def data(self, *arguments: str, user: str = "ada", code: int = 0) -> Any:
        """What the command prints as JSON."""
        return json.loads(self.run(*arguments, "-o", "json", user=user, code=code).stdout)

    def submit(self, *arguments: str, user: str = "ada", code: int = 0) -> str:
        """The id of a submitted job."""
        return self.run("submit", *arguments, user=user, code=code).stdout.splitlines()[0]


@contextmanager
def running_platform(folder: Path) -> Iterator[Platform]:
    """Start ``tests.unit.cli.player``, and end it with the ``with``."""
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.cli.player", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=REPOSITORY,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield Platform(ready["address"], ready["keys"], process, log)
    finally:
        process.stdin.close()
        process.wait(30)
