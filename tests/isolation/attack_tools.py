"""A node with a victim on it and secrets around it, for jobs that mean harm."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.integration.executor_tools import (
    SLEEPER,
    IsolatingExecutor,
    Run,
    alive,
    config,
    eventually,
    python,
    shell,
)
from workers.executor.cgroups import ControlGroups
from workers.executor.isolation import Isolation, Tier
from workers.executor.types import Exited, ExitReason, Launch, Started, Stream

MARKER = f"the-victims-own-argument-{os.getpid()}"
SECRETS = {
    "agent/credential": "the agent's key",
    "agent/token": "its enrolment token",
    "agent/spool.db": "its spool",
    "control/suanli.sqlite": "the control plane's database",
    "ray/session_latest/ports.json": "Ray's address and the port of its GCS",
    "home/.ssh/id_ed25519": "a person's key",
    "node/cache/blob": "a file of another job, in the node's cache",
    "node/attempts/victim@1-0/results/secret": "another job's results",
    "node/attempts/victim@1-0/stdout.log": "another job's log",
}
OPENERS = """
import os, sys
def attempt(what, function, *arguments):
    try:
        print("GOT", what, function(*arguments))
    except OSError as error:
        print("refused", what, error)
"""


def tiers(processes: int = 64, **fields: object) -> dict[Tier, Isolation]:
    one = Isolation(Tier.SANDBOX, disk_mib=0, processes=processes)
    one = dataclasses.replace(one, **fields)  # type: ignore[arg-type]
    return {Tier.SANDBOX: one, Tier.PROCESS: dataclasses.replace(one, tier=Tier.PROCESS)}


class Site:
    """A node with secrets around it and a victim on it."""

    def __init__(self, folder: Path, executor: IsolatingExecutor) -> None:
        self.folder = folder
        self.executor = executor
        self.run = Run(executor)
        self.victim = 0
        self.jobs = 0
        self.looks = 0
        """How often somebody has looked at the disk in vain."""

    def note_look(self, _: object) -> None:
        self.looks += 1

    def ended(self, job_id: str) -> bool:
        """Whether a job has ended, whoever has heard of it."""
        return all(key.job_id != job_id for key in self.executor._live)

    async def attack(self, launch: Launch, isolation: Isolation) -> tuple[str, Exited]:
        """Run it as a job of its own; what it printed, and how it ended."""
        self.jobs += 1
        self.executor.isolation = isolation
        launch = dataclasses.replace(launch, job_id=f"attack{self.jobs}")
        ended = await self.run.run(launch)
        said = b""
        for stream in (Stream.STDOUT, Stream.STDERR):
            said += (await self.executor.read_log(launch.job_id, 1, launch.rank, stream, 0, 1 << 20)).data
        return said.decode(), ended

    async def works_only_outside(self, script: str, **isolation: object) -> str:
        """The attack prints GOT as a process and not in the sandbox; what it printed there."""
        tried = tiers(**isolation)  # type: ignore[arg-type]
        outside, _ = await self.attack(python(OPENERS + script), tried[Tier.PROCESS])
        assert "GOT" in outside, f"the attack itself is broken: {outside}"
        inside, ended = await self.attack(python(OPENERS + script), tried[Tier.SANDBOX])
        assert "GOT" not in inside
        assert ended.reason is ExitReason.EXITED, f"{ended.message}: {inside}"
        return inside


@contextlib.asynccontextmanager
async def attacked_node(folder: Path) -> AsyncIterator[Site]:
    """A node in a folder that everybody may look into, with all that is worth an attack."""
    executor = IsolatingExecutor(config(folder, masked=(str(folder / "agent"), str(folder / "agent/token"))))
    await executor.start()
    assert executor.sandbox_problem == ""
    site = Site(folder, executor)
    script = f"echo secret > $SUANLI_RESULTS/secret; echo secret; {SLEEPER} {MARKER}"
    await executor.launch([shell(script, "victim")])
    await site.run.until(lambda event: isinstance(event, Started))
    await eventually(lambda: alive(MARKER, sandbox=False) != [], "the victim")
    site.victim = alive(MARKER, sandbox=False)[0]
    for name in SECRETS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write("secret\n")
    yield site
    await executor.close()


def host() -> tuple[tuple[str, ...], bool]:
    """Which limits the kernel keeps here, and whether it ends a group at once."""
    with tempfile.TemporaryDirectory() as folder:
        groups = ControlGroups(Path(folder))
        groups.prepare()
        found = groups.limits, any(tree.kills for tree in groups._trees)
        groups.close()
    return found
