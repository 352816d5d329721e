"""The engine on a virtual clock, with machines that do as they are told.

Each instant: what is due happens (submissions, ends, changes of the fleet), then the engine plans, and its commands are carried out,
until it has nothing more to say; then the clock goes on to the next instant at which anything is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduler.domain.agent import (
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    Finished,
    Hello,
    Launch,
    NodeReport,
    Started,
    StateReport,
    Stop,
)
from scheduler.domain.errors import SuanliError
from scheduler.domain.records import InstitutionRecord, ProjectRecord, QuotaRecord
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import Dependency, JobSpec, PartitionPolicy, Workload
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.contract import Submission
from scheduler.service.engine import Engine
from scheduler.service.ports import StoredState
from scheduler.service.state import Settings
from scheduler.simulation.outcome import JobOutcome, Outcome
from scheduler.simulation.workload import FleetChange, Scenario, SimJob

_FOREVER_MS = 1 << 50
_SETTINGS = Settings(heartbeat_interval_ms=_FOREVER_MS, lease_ttl_ms=_FOREVER_MS)
_EVENTS_BETWEEN_WORDS = 500
_CHECKPOINT = "sha256:" + "0" * 64


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.at_ms = 0

    def now_ms(self) -> int:
        """See ``scheduler.service.ports.Clock``."""
        return self.at_ms


class Ids:
    """Counts."""

    def __init__(self) -> None:
        self._last = 0

    def job_id(self, now_ms: int) -> str:
        """See ``scheduler.service.ports.IdSource``."""
        self._last += 1
        return f"sim{self._last:09d}"

    def token(self, size_bytes: int) -> bytes:
        """See ``scheduler.service.ports.IdSource``."""
        self._last += 1
        return self._last.to_bytes(size_bytes, "big")


class Codec:
    """Nothing is stored, so nothing is encoded."""

    def decode(self, encoded: bytes) -> JobSpec:
        """See ``scheduler.service.ports.SpecCodec``."""
        raise NotImplementedError

    def with_dependencies(self, spec: JobSpec, dependencies: tuple[Dependency, ...]) -> JobSpec:
        """See ``scheduler.service.ports.SpecCodec``."""
        raise NotImplementedError


@dataclass(slots=True)
class _Run:
    """A job that was accepted: its outcome so far, what is left of its work, and its attempt if it has one."""

    outcome: JobOutcome
    left_ms: int
    attempt: int = 0
    start_ms: int = 0


class _Region:
    """Stands for a region's agent: its session, and the numbers of its events."""

    def __init__(self, name: str, nodes: Iterable[NodeReport]) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.session = 0
        self.event_seq = 0
        self.report_seq = 0
        self.held: dict[str, AttemptRef] = {}


class Simulation:
    """Runs a scenario under a policy. Deterministic: the same input gives the same outcome."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.scenario = scenario
        self.policy = policy
        self.clock = Clock()
        self.engine = Engine(self.clock, Ids(), Codec(), policy, _SETTINGS)
        self.outcome = Outcome()
        self.ended = 0
        self._runs: dict[str, _Run] = {}
        self._regions: dict[str, _Region] = {}
        self._due: list[tuple[int, int, object]] = []
        self._due_no = 0
        self._events: dict[str, list[tuple[AttemptRef, Started | Finished]]] = {}
        self._pools: dict[str, set[str]] = {}

    def run(self, until_ms: int = _FOREVER_MS, tell: Callable[[int], None] | None = None) -> Outcome:
        """Play everything that happens up to ``until_ms``; ``tell`` hears, from time to time, how many jobs have come to an end."""
        begin_ms = min((job.submit_ms for job in self.scenario.jobs), default=0)
        self.clock.at_ms = begin_ms
        self.engine.rebuild(_nothing_stored(begin_ms), 1)
        self._settle_in()
        for number, job in enumerate(self.scenario.jobs):
            self.outcome.jobs.append(JobOutcome(job))
            self._at(job.submit_ms, number)
        for change in self.scenario.changes:
            self._at(change.at_ms, change)
        self._settle()
        told = 0
        while self._due and self._due[0][0] <= until_ms:
            self.clock.at_ms = self._due[0][0]
            while self._due and self._due[0][0] == self.clock.at_ms:
                self._happen(heapq.heappop(self._due)[2])
                self.outcome.events += 1
            self.engine.tick()
            self._settle()
            if tell is not None and self.outcome.events - told >= _EVENTS_BETWEEN_WORDS:
                told = self.outcome.events
                tell(self.ended)
        self.outcome.end_ms = self.clock.at_ms
        return self.outcome

    # --- what is there from the beginning -----------------------------------------------------------------------------

    def _settle_in(self) -> None:
        state = self.engine.state
        listed = {(each.institution, each.project): each for each in self.scenario.tenants}
        named = [(job.institution, job.project) for job in self.scenario.jobs]
        pairs = dict.fromkeys([*listed, *named])
        for institution in dict.fromkeys(institution for institution, _ in pairs):
            known = listed.get((institution, ""))
            weight, home = (known.weight, known.home_region) if known else (1000, "")
            tenants.put_institution(state, InstitutionRecord(institution, "", weight, home, 0))
        for institution, project in pairs:
            listed_as = listed.get((institution, project))
            if project:
                weight = listed_as.weight if listed_as else 1000
                tenants.put_project(state, ProjectRecord(institution, project, "", weight, 0))
            if listed_as and listed_as.quota is not None:
                tenants.set_quota(state, QuotaRecord(institution, project, *listed_as.quota, -1))
        for name, nodes in self.scenario.regions.items():
            tenants.ensure_region(state, name)
            region = self._regions[name] = _Region(name, nodes)
            region.session = self.engine.open_session()
            self.engine.receive(name, region.session, Hello(name, "simulation", "simulation", ""))
            self._report(region)

    def _report(self, region: _Region) -> None:
        region.report_seq += 1
        report = StateReport(region.report_seq, region.event_seq, region.nodes, tuple(region.held.values()))
        self.engine.receive(region.name, region.session, report)
        pools: dict[str, Resources] = dict.fromkeys(self._pools.get(region.name, ()), ZERO)
        for node in region.nodes:
            name = f"{region.name}/{node.pool}"
            pools[name] = pools.get(name, ZERO).plus(node.capacity)
        self._pools[region.name] = set(pools)
        self.outcome.capacity += [(self.clock.at_ms, name, total) for name, total in sorted(pools.items())]

    # --- what happens -------------------------------------------------------------------------------------------------

    def _at(self, at_ms: int, what: object) -> None:
        self._due_no += 1
        heapq.heappush(self._due, (at_ms, self._due_no, what))

    def _happen(self, what: object) -> None:
        if isinstance(what, int):
            self._submit(self.outcome.jobs[what])
        elif isinstance(what, FleetChange):
            region = self._regions[what.region]
            region.nodes = what.nodes
            self._report(region)
        elif isinstance(what, tuple):
            job_id, attempt, outcome = what
            self._finish(job_id, attempt, outcome)

    def _submit(self, outcome: JobOutcome) -> None:
        job = outcome.job
        try:
            (job_id,) = self.engine.submit(Submission(job.user, [_spec(job)]), {})
        except SuanliError as error:
            outcome.refused = str(error)
            self.ended += 1
            return
        self._runs[job_id] = _Run(outcome, max(1, job.runtime_ms))

    def _finish(self, job_id: str, attempt: int, outcome: AttemptOutcome) -> None:
        """An attempt ends, unless it has ended before."""
        run = self._runs.get(job_id)
        if run is None or run.attempt != attempt:
            return
        region = self._regions[run.outcome.region]
        ran_ms = self.clock.at_ms - run.start_ms
        run.attempt = 0
        run.outcome.held_ms += ran_ms
        if outcome is AttemptOutcome.PREEMPTED:
            job = run.outcome.job
            run.outcome.evictions += 1
            run.left_ms = min(job.runtime_ms, run.left_ms - ran_ms + job.restart_cost_ms)
        else:
            run.outcome.end_ms = self.clock.at_ms
            self.ended += 1
            del self._runs[job_id]
        self._tell(region, region.held.pop(job_id), Finished(outcome, checkpoint=_CHECKPOINT))

    def _tell(self, region: _Region, ref: AttemptRef, event: Started | Finished) -> None:
        self._events.setdefault(region.name, []).append((ref, event))

    # --- the engine's turn --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let the engine hear, plan and command until nothing more follows at this instant."""
        engine = self.engine
        while True:
            self._deliver()
            self.outcome.rounds += engine.state.round_needed
            engine.round()
            turn = engine.take_turn()
            self.outcome.ledger += turn.batch.ledger
            for _, _, command in turn.commands:
                if isinstance(command, Launch):
                    self._launch(command)
                elif isinstance(command, Stop):
                    self._stop(command)
            if not self._events and not engine.state.round_needed:
                return

    def _deliver(self) -> None:
        events, self._events = self._events, {}
        for name, of_region in events.items():
            region = self._regions[name]
            numbered = []
            for ref, event in of_region:
                region.event_seq += 1
                numbered.append(AttemptEvent(region.event_seq, ref, 0, event))
            self.engine.receive(name, region.session, AttemptEvents(tuple(numbered)))

    def _launch(self, launch: Launch) -> None:
        job_id = launch.ref.job_id
        run = self._runs[job_id]
        attempt = self.engine.state.jobs[job_id].live
        assert attempt is not None
        region = self._regions[attempt.region]
        region.held[job_id] = launch.ref
        run.attempt, run.start_ms = launch.ref.attempt, self.clock.at_ms
        run.outcome.region = attempt.region
        if run.outcome.start_ms < 0:
            run.outcome.start_ms = self.clock.at_ms
        self._tell(region, launch.ref, Started())
        job = run.outcome.job
        speed = self.policy.speed_milli.get(launch.accelerator, 1000) or 1000
        left_ms = max(1, run.left_ms * 1000 // speed)
        outcome = AttemptOutcome.SUCCEEDED if job.succeeds else AttemptOutcome.FAILED
        if left_ms > job.limit_ms:
            left_ms, outcome = job.limit_ms, AttemptOutcome.TIMED_OUT
        self._at(self.clock.at_ms + left_ms, (job_id, launch.ref.attempt, outcome))
        if engine_waits_for_ripeness(self.policy):
            self._at(self.clock.at_ms + self.policy.preemption.min_runtime_ms, None)

    def _stop(self, stop: Stop) -> None:
        """A stopped attempt saves its work and ends at once."""
        self._finish(stop.ref.job_id, stop.ref.attempt, stop.outcome)


def engine_waits_for_ripeness(policy: Policy) -> bool:
    """Whether an attempt may be evicted from some time after its start on, so that planning is due then."""
    rules = policy.preemption
    return rules.min_runtime_ms > 0 and (rules.fair_share or rules.priority or rules.shorter_milli > 0)


def _spec(job: SimJob) -> JobSpec:
    return JobSpec(
        institution=job.institution,
        project=job.project,
        name=job.name,
        workload=Workload("command", ("true",)),
        shape=job.shape,
        priority=job.priority,
        preemptible=job.preemptible,
        max_runtime_ms=job.limit_ms,
        grace_ms=job.grace_ms,
        max_retries=0,
        backoff_ms=0,
        partition_policy=PartitionPolicy.WAIT,
        array_size=0,
        array_max_parallel=0,
        encoded=b"",
    )


def _nothing_stored(now_ms: int) -> StoredState:
    return StoredState(
        jobs=[],
        attempts=[],
        requests=[],
        requests_complete=True,
        institutions=[],
        projects=[],
        users=[],
        api_keys=[],
        enrolments=[],
        quotas=[],
        regions=[],
        nodes=[],
        fair_usage=[],
        runtimes=[],
        policy=None,
        last_job_no=0,
        last_event_seq=0,
        last_ledger_seq=0,
        last_launch_seq=0,
        last_commit_no=0,
        last_time_ms=now_ms,
    )
