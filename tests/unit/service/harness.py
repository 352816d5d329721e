"""The engine on a store in memory, with a clock that is set by hand and agents that say what a test tells them to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from protos.suanli.v1 import jobs_pb2
from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.agent import (
    AgentCommand,
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    Checkpointed,
    Finished,
    Hello,
    Launch,
    NodeReport,
    Started,
    StateReport,
    Stop,
)
from scheduler.domain.isolation import ISOLATION_LABEL
from scheduler.domain.records import EventRecord, InstitutionRecord, JobRecord, LedgerRecord, QuotaRecord
from scheduler.domain.resources import Resources
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.contract import Submission
from scheduler.service.engine import Engine
from scheduler.service.ports import EventQuery, LedgerQuery, RuntimePredictor, Store
from scheduler.service.predicting import LimitPredictor
from scheduler.service.state import Settings
from scheduler.store.memory import MemoryStore
from scheduler.wire.spec import SpecCodec
from tests.simulation.invariants import allocations_fit

# 2026-10-05 00:00 UTC
T0_MS = 1_791_158_400_000
SETTINGS = Settings(heartbeat_interval_ms=2_000, lease_ttl_ms=10_000, max_losses=3, remembered_requests=5)
EIGHT_CORES = Resources(8_000, 32_768, 0)
LEADER_TTL_MS = 1_000_000_000
T = TypeVar("T")


class NoAlgorithms:
    """A catalogue with nothing in it."""

    def resolve(self, name: str, version: str, parameters_json: str, field: str) -> ResolvedAlgorithm:
        raise AssertionError(name)


class ManualClock:
    """Time stands still until a test moves it."""

    def __init__(self, at_ms: int = T0_MS) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms


class CountedIds:
    """Ids in the order they are asked for."""

    def __init__(self) -> None:
        self._count = 0

    def job_id(self, now_ms: int) -> str:
        self._count += 1
        return f"j{self._count:06d}"

    def token(self, size_bytes: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(size_bytes, "big")


def node(
    node_id: str, capacity: Resources = EIGHT_CORES, pool: str = "cpu", accelerator: str = "", tier: str = ""
) -> NodeReport:
    """A node; ``tier`` is what its agent says of isolation."""
    labels = ((ISOLATION_LABEL, tier),) if tier else ()
    return NodeReport(node_id, node_id, pool, accelerator, capacity, labels)


CODEC = SpecCodec(NoAlgorithms())


def spec(
    institution: str = "north", cpu: int = 1_000, after: Mapping[str | int, int] | None = None, **values: Any
) -> JobSpec:
    """A command that asks for ``cpu`` milli-cores. ``after``: job id or index in the call → condition (1 ok, 2 any)."""
    retry = {name: values.pop(name) for name in ("max_retries", "backoff_ms") if name in values}
    array = {name: values.pop(name) for name in ("size", "max_parallel") if name in values}
    resources = {"cpu_milli": cpu, "memory_mib": values.pop("memory", 64), "gpu_milli": values.pop("gpu", 0)}
    message = jobs_pb2.JobSpec(
        institution=institution,
        command=jobs_pb2.Command(argv=["true"]),
        resources=resources,
        retry=jobs_pb2.RetryPolicy(**retry) if retry else None,
        array=jobs_pb2.ArraySpec(**array) if array else None,
        **values,
    )
    for other, condition in (after or {}).items():
        dependency = message.dependencies.add(condition=condition)
        if isinstance(other, int):
            dependency.batch_index = other
        else:
            dependency.job_id = other
    return CODEC.read(message, field="jobs[0]", institution="")


class Agent:
    """A region's agent that says what it is told to. It holds every attempt it was launched and has not ended."""

    def __init__(self, site: Site, region: str, nodes: Sequence[NodeReport], spool: str = "spool-1") -> None:
        self.site = site
        self.region = region
        self.nodes = list(nodes)
        self.spool = spool
        self.session = 0
        self.event_seq = 0
        self.report_seq = 0
        self.held: dict[str, AttemptRef] = {}

    def hello(self) -> list[AgentCommand]:
        self.session = self.site.engine.open_session()
        self.say(Hello(self.region, "boot", self.spool, "1.0"))
        return self.site.turn()

    def connect(self) -> list[AgentCommand]:
        return self.hello() + self.report()

    def hang_up(self) -> None:
        self.site.engine.close_session(self.region, self.session)
        self.site.turn()

    def report(self, held: Sequence[AttemptRef] | None = None, event_seq: int | None = None) -> list[AgentCommand]:
        self.report_seq += 1
        attempts = tuple(self.held.values()) if held is None else tuple(held)
        seq = self.event_seq if event_seq is None else event_seq
        self.say(StateReport(self.report_seq, seq, tuple(self.nodes), attempts))
        return self.site.turn()

    def event(
        self, ref: AttemptRef, event: Started | Finished | Checkpointed, age_ms: int = 0, seq: int = 0
    ) -> list[AgentCommand]:
        if not seq:
            self.event_seq += 1
        self.say(AttemptEvents((AttemptEvent(seq or self.event_seq, ref, age_ms, event),)))
        return self.site.turn()

    def say(self, message: Any) -> None:
        self.site.engine.receive(self.region, self.session, message)

    def hear(self, command: AgentCommand) -> None:
        if isinstance(command, Launch):
            self.held[command.ref.job_id] = command.ref

    def started(self, job_id: str, age_ms: int = 0) -> list[AgentCommand]:
        return self.event(self.held[job_id], Started(), age_ms)

    def finished(
        self, job_id: str, outcome: AttemptOutcome = AttemptOutcome.SUCCEEDED, age_ms: int = 0, **values: Any
    ) -> list[AgentCommand]:
        return self.event(self.held.pop(job_id), Finished(outcome, **values), age_ms)


class Site:
    """One control plane with institutions "north" and "south", and region "east" with one node of eight cores."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        nodes: Sequence[NodeReport] = (node("n1"),),
        policy: Policy | None = None,
        predictor: Callable[[], RuntimePredictor] = LimitPredictor,
        store: Store | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.predictor = predictor
        self.clock = ManualClock()
        self.ids = CountedIds()
        self.store = store or MemoryStore(self.clock)
        self.committed: list[Callable[[Sequence[LedgerRecord]], None]] = []
        """Told of the ledger records of each commit."""
        self.settings = settings
        self.agents: dict[str, Agent] = {}
        self.commits = 0
        self.check_fit = True
        """Cleared by tests that take capacity or quota away from under what runs."""
        self.start()
        for name in ("north", "south"):
            tenants.put_institution(self.engine.state, InstitutionRecord(name, "", 1000, "", 0))
        self.east = self.add_region("east", nodes)

    def start(self) -> None:
        """A new process takes over what the store holds."""
        leadership = self.store.acquire_leadership("test", LEADER_TTL_MS)
        assert leadership is not None
        stored = self.store.load()
        self.commits = stored.last_commit_no
        self.engine = Engine(self.clock, self.ids, CODEC, self.policy, self.settings, predictor=self.predictor())
        self.engine.rebuild(stored, leadership.epoch)

    def restart(self, connect: bool = True) -> None:
        """kill -9, and a new process; the agents connect again."""
        self.store.release_leadership(self.engine.state.epoch)
        self.start()
        if connect:
            for agent in self.agents.values():
                agent.connect()

    def add_region(self, region: str, nodes: Sequence[NodeReport]) -> Agent:
        tenants.ensure_region(self.engine.state, region)
        agent = self.agents[region] = Agent(self, region, nodes)
        agent.connect()
        return agent

    def turn(self) -> list[AgentCommand]:
        """Plan until nothing more starts, commit, and deliver."""
        commands: list[AgentCommand] = []
        while True:
            self.engine.round()
            turn = self.engine.take_turn()
            if turn.batch:
                self.commits += 1
                self.store.commit(self.engine.state.epoch, self.commits, turn.batch)
                for told in self.committed:
                    told(turn.batch.ledger)
            for region, session, command in turn.commands:
                commands.append(command)
                if self.agents[region].session == session:
                    self.agents[region].hear(command)
            if not self.engine.state.round_needed:
                break
        if self.check_fit:
            allocations_fit(self.engine)
        return commands

    def wait(self, ms: int, *, silent: bool = False) -> list[AgentCommand]:
        """Let time pass, and what is due by then happen. Agents go on reporting meanwhile, unless ``silent``."""
        self.clock.at_ms += ms
        commands = [] if silent else [command for agent in self.agents.values() for command in agent.report()]
        self.engine.tick()
        return commands + self.turn()

    def submit(
        self, *specs: JobSpec, request_id: str = "", user: str = "ada", validate_only: bool = False
    ) -> list[str]:
        submission = make(specs, request_id, user, validate_only)
        known = [d.job_id for each in specs for d in each.dependencies]
        ended = {record.job_id: record for record in self.store.get_jobs(known)}
        ids = self.engine.submit(submission, ended)
        self.turn()
        return ids

    def submit_one(self, **values: Any) -> str:
        return self.submit(spec(**values))[0]

    def running(self, **values: Any) -> str:
        """A job that has been launched and has started."""
        job_id = self.submit_one(**values)
        self.east.started(job_id)
        return job_id

    def cancel(self, *job_ids: str, reason: str = "") -> list[AgentCommand]:
        self.engine.cancel(job_ids, "ada", reason)
        return self.turn()

    def quota(self, institution: str = "north", project: str = "", cpu: int = -1, jobs: int = -1) -> None:
        tenants.set_quota(self.engine.state, QuotaRecord(institution, project, cpu, -1, -1, jobs))
        self.turn()

    def job(self, job_id: str) -> JobRecord:
        """As the store has it."""
        (record,) = self.store.get_jobs([job_id])
        return record

    def state(self, job_id: str) -> JobState:
        return JobState(self.job(job_id).state)

    def reason(self, job_id: str) -> tuple[JobState, str]:
        return self.state(job_id), self.job(job_id).reason

    def events(self, job_id: str) -> list[EventRecord]:
        return [e for e in self.store.events(EventQuery(0, 1_000_000)) if e.job_id == job_id]

    def ledger(self, job_id: str = "") -> list[LedgerRecord]:
        return self.store.ledger(LedgerQuery(job_id=job_id, limit=1_000_000))


def make(specs: Sequence[JobSpec], request_id: str = "", user: str = "ada", validate_only: bool = False) -> Submission:
    body = hashlib.sha256(b"".join(each.encoded for each in specs)).digest()
    return Submission(user, specs, request_id, body, validate_only)


def only(kind: type[T], commands: Sequence[AgentCommand]) -> list[T]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def launches(commands: Sequence[AgentCommand]) -> list[str]:
    return [command.ref.job_id for command in only(Launch, commands)]


def stops(commands: Sequence[AgentCommand]) -> list[tuple[str, AttemptOutcome]]:
    return [(command.ref.job_id, command.outcome) for command in only(Stop, commands)]
