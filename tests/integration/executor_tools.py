"""Help for tests that run real processes through a node executor."""

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workers.executor import procfs
from workers.executor.config import ExecutorConfig
from workers.executor.isolation import Isolation, Tier
from workers.executor.node_executor import NodeExecutor
from workers.executor.types import Cursor, Event, Exited, Launch, Refused

DEADLINE_S = 60


def config(folder: Path, **changes: Any) -> ExecutorConfig:
    values: dict[str, Any] = {"sample_interval_ms": 100, "checkpoint_interval_ms": 0, "store_retry_ms": 10}
    return ExecutorConfig(root=str(folder / "node"), artifact_url=str(folder / "store"), **(values | changes))


def shell(script: str, job_id: str = "job", **fields: Any) -> Launch:
    return Launch(job_id=job_id, attempt=fields.pop("attempt", 1), argv=("sh", "-c", script), **fields)


def python(script: str, job_id: str = "job", **fields: Any) -> Launch:
    return Launch(job_id=job_id, attempt=fields.pop("attempt", 1), argv=("python", "-S", "-c", script), **fields)


class IsolatingExecutor(NodeExecutor):
    """Runs everything in the isolation given to it."""

    isolation = Isolation(Tier.SANDBOX, disk_mib=0)

    async def launch(self, launches: Iterable[Launch]) -> tuple[Refused, ...]:
        return await super().launch(dataclasses.replace(one, isolation=self.isolation) for one in launches)


class Run:
    """An executor and all events that it has told so far."""

    def __init__(self, executor: NodeExecutor) -> None:
        self.executor = executor
        self.events: list[Event] = []
        self.cursor: Cursor | None = None

    async def until(self, wanted: Callable[[Event], bool]) -> Event:
        deadline = time.monotonic() + DEADLINE_S
        seen = 0
        while True:
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            left = deadline - time.monotonic()
            assert left > 0, f"did not happen within {DEADLINE_S} s; so far: {self.events}"
            polled = await self.executor.poll(self.cursor, left)
            self.cursor = polled.cursor
            self.events += polled.events

    async def exited(self, job_id: str = "job", rank: int = 0) -> Exited:
        event = await self.until(lambda e: isinstance(e, Exited) and (e.job_id, e.rank) == (job_id, rank))
        assert isinstance(event, Exited)
        return event

    async def run(self, launch: Launch) -> Exited:
        assert await self.executor.launch([launch]) == ()
        return await self.exited(launch.job_id, launch.rank)


def alive(marker: str, sandbox: bool = True) -> list[int]:
    """Ids of living processes that were given ``marker`` as an argument, those that hold a sandbox together included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            process = procfs.read_process(int(name))
            if not sandbox and words[0].endswith(b"bwrap"):
                continue
            if marker.encode() in words and process is not None and not process.zombie:
                found.append(int(name))
    return found


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.02)


SLEEPER = f"{sys.executable} -S -c 'import time; time.sleep(600)'"
"""A shell command that sleeps, to be followed by a marker argument."""
