"""A control plane in this process, on any store, with stores that wait or fail when told to and agents that listen."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from scheduler.domain.agent import (
    AgentCommand,
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    Finished,
    Hello,
    Launch,
    Started,
    StateReport,
)
from scheduler.domain.records import InstitutionRecord, JobRecord
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.contract import AgentSession, Submission
from scheduler.service.control_plane import ControlPlane
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.ports import Clock, CommitBatch, Store
from scheduler.service.state import Settings
from scheduler.store.memory import MemoryStore
from tests.unit.service.harness import CODEC, node

DEADLINE_S = 20.0
NODES = (node("n1"),)


class ProbedStore(MemoryStore):
    """A store in memory that counts its commits, and lets each pass only while its gate is open."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock or WallClock())
        self.commits: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()
        self.read_gate = threading.Event()
        self.read_gate.set()

    def commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        assert self.gate.wait(DEADLINE_S)
        super().commit(epoch, commit_no, batch)
        self.commits.append(len(batch.new_jobs))

    def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        found = super().get_jobs(job_ids)
        self.reading.set()
        assert self.read_gate.wait(DEADLINE_S)
        return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def control_plane(store: Store, **settings: int) -> ControlPlane:
    return ControlPlane(store, WallClock(), RandomIds(), CODEC, Policy(), Settings(**settings))


@asynccontextmanager
async def leading(store: Store, **settings: int) -> AsyncIterator[ControlPlane]:
    """A leader with institutions "north" and "south" and region "east"."""
    plane = control_plane(store, **settings)
    await asyncio.wait_for(plane.start(), DEADLINE_S)
    try:
        if not plane.engine.state.institutions:
            for name in ("north", "south"):
                await plane.put_institution(InstitutionRecord(name, "", 1000, "", 0), "op")
            tenants.ensure_region(plane.engine.state, "east")
        yield plane
    finally:
        await asyncio.wait_for(plane.stop(), DEADLINE_S)


async def kill(plane: ControlPlane, store: Store) -> None:
    """As good as kill -9: nothing more is written, nothing is given back."""
    plane._leader = False
    for task in plane._tasks:
        task.cancel()
    await asyncio.gather(*plane._tasks, return_exceptions=True)
    plane._writer.shutdown(wait=True)
    store.close()


def make(*specs: JobSpec, request_id: str = "", user: str = "ada") -> Submission:
    body = hashlib.sha256(b"".join(each.encoded for each in specs)).digest()
    return Submission(user, specs, request_id, body)


class LiveAgent:
    """An agent's stream to a control plane in this process. It ends launched attempts when told to."""

    def __init__(self, plane: ControlPlane, region: str = "east", spool: str = "spool") -> None:
        self.region = region
        self.spool = spool
        self.plane = plane
        self.heard: list[AgentCommand] = []
        self.held: dict[str, AttemptRef] = {}
        self.events = 0
        self.reports = 0
        self.session: AgentSession = plane.open_agent_session(region)
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for command in self.session.commands():
            self.heard.append(command)
            if isinstance(command, Launch):
                self.held[command.ref.job_id] = command.ref

    def heard_of(self, kind: type) -> list[Any]:
        return [command for command in self.heard if isinstance(command, kind)]

    async def hello(self) -> None:
        await self.session.receive(Hello(self.region, "boot", self.spool, "1.0"))

    async def report(self) -> None:
        self.reports += 1
        await self.session.receive(StateReport(self.reports, self.events, NODES, tuple(self.held.values())))

    async def connect(self) -> None:
        await self.hello()
        await self.report()

    async def say(self, ref: AttemptRef, event: Started | Finished) -> None:
        self.events += 1
        await self.session.receive(AttemptEvents((AttemptEvent(self.events, ref, 0, event),)))

    async def finish(self, job_id: str, outcome: AttemptOutcome = AttemptOutcome.SUCCEEDED) -> None:
        await until(lambda: job_id in self.held)
        await self.say(self.held.pop(job_id), Finished(outcome))

    async def close(self) -> None:
        await self.session.close()
        await asyncio.wait_for(self.listening, DEADLINE_S)
