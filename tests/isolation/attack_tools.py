"""A node with a victim on it and secrets around it, for jobs that mean harm."""

import dataclasses
import os
from pathlib import Path

from tests.integration.executor_tools import IsolatingExecutor, Run, python
from workers.executor.isolation import Isolation, Tier
from workers.executor.types import Exited, ExitReason, Launch, Stream

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
