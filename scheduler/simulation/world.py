"""The engine on a virtual clock, with machines that do as they are told.

Each instant: what is due happens (submissions, checkpoints, ends, changes of the fleet), then the engine plans, and its commands are
carried out, until it has nothing more to say; then the clock goes on to the next instant at which anything is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.domain.agent import (
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
from scheduler.domain.errors import SuanliError
from scheduler.domain.records import InstitutionRecord, LedgerRecord, ProjectRecord, QuotaRecord
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import Dependency, JobSpec, PartitionPolicy, Workload
from scheduler.domain.states import PLATFORM_OUTCOMES, AttemptOutcome
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.contract import Submission
from scheduler.service.engine import Engine
from scheduler.service.ports import RuntimePredictor, StoredState
from scheduler.service.state import Settings
from scheduler.simulation.oracle import Oracle
from scheduler.simulation.outcome import JobOutcome, Outcome
from scheduler.simulation.progress import REFERENCE_SPEED, Progress
from scheduler.simulation.workload import FleetChange, Scenario, SimJob

_FOREVER_MS = 1 << 50
_SETTINGS = Settings(heartbeat_interval_ms=_FOREVER_MS, lease_ttl_ms=_FOREVER_MS)
_EVENTS_BETWEEN_WORDS = 500
_CHECKPOINT = "sha256:" + "0" * 64


class Clock:
    """Stands still until it is set. ``ahead_ms``: the engine's time less the scenario's, as 0 means "not yet" to the engine."""

    def __init__(self) -> None:
        self.at_ms = 0
        self.ahead_ms = 0

    def now_ms(self) -> int:
        """See ``scheduler.service.ports.Clock``."""
        return self.at_ms + self.ahead_ms


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
    """A job that was accepted: its outcome so far, its work, and where its attempt runs if it has one."""

    outcome: JobOutcome
    progress: Progress
    name: str
    nodes: frozenset[str] = frozenset()


class _Due(NamedTuple):
    """Something an attempt will do: end, with this outcome; or save its work, with None."""

    job_id: str
    attempt: int
    outcome: AttemptOutcome | None


class _Ripe(NamedTuple):
    """An attempt may be evicted from now on, so that whoever waits may have a place."""

    job_id: str
    attempt: int


class _Round:
    """Time alone may have changed who goes next."""


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
    """Runs a scenario under a policy. Deterministic: the same input gives the same outcome.

    ``predictor`` says how long jobs will run (None: to their limits); with ``known_runtimes``, an oracle says it instead.
    ``round_every_ms``: how often planning is done while jobs wait though nothing happens, 0 for never: the live server plans
    every few seconds then, which only matters where time alone changes who goes next. ``notice_milli``: the part of its grace,
    in thousandths, that a stopped attempt takes to save its work; it holds its allocation until then.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        predictor: RuntimePredictor | None = None,
        *,
        known_runtimes: bool = False,
        round_every_ms: int = 0,
        notice_milli: int = 0,
    ) -> None:
        self.scenario = scenario
        self.policy = policy
        self.clock = Clock()
        self._oracle = Oracle(lambda: self.clock.at_ms) if known_runtimes else None
        self.engine = Engine(self.clock, Ids(), Codec(), policy, _SETTINGS, predictor=self._oracle or predictor)
        self.outcome = Outcome()
        self.ended = 0
        self._round_every_ms = round_every_ms
        self._notice_milli = notice_milli
        self._ripens = _evicts_only_what_is_ripe(policy)
        self._round_due = False
        self._runs: dict[str, _Run] = {}
        self._regions: dict[str, _Region] = {}
        self._due: list[tuple[int, int, object]] = []
        self._due_no = 0
        self._events: dict[str, list[tuple[AttemptRef, int, Started | Finished | Checkpointed]]] = {}
        self._pools: dict[str, set[str]] = {}

    def run(self, until_ms: int = _FOREVER_MS, tell: Callable[[int], None] | None = None) -> Outcome:
        """Play everything that happens up to ``until_ms``; ``tell`` hears, from time to time, how many jobs have come to an end.

        A simulation is run once.
        """
        begin_ms = min((job.submit_ms for job in self.scenario.jobs), default=0)
        self.clock.at_ms = begin_ms
        self.clock.ahead_ms = max(0, 1 - begin_ms)
        self.engine.rebuild(_nothing_stored(self.clock.now_ms()), 1)
        self._settle_in()
        for number, job in enumerate(self.scenario.jobs):
            self.outcome.jobs.append(JobOutcome(job))
            self._at(job.submit_ms, number)
        for change in self.scenario.changes:
            self._at(max(begin_ms, change.at_ms), change)
        self._settle()
        told = 0
        while self._due and self._due[0][0] <= until_ms:
            self.clock.at_ms = self._due[0][0]
            happened = False
            while self._due and self._due[0][0] == self.clock.at_ms:
                happened |= self._happen(heapq.heappop(self._due)[2])
                self.outcome.events += 1
            if not happened:
                continue
            if self.engine.state.queue.size_total:
                # Time alone matters to nobody else; looking at everybody's past at every instant would be most of the work.
                self.engine.tick()
            self._settle()
            self._plan_again_later()
            if tell is not None and self.outcome.events - told >= _EVENTS_BETWEEN_WORDS:
                told = self.outcome.events
                tell(self.ended)
        self.outcome.end_ms = self.clock.at_ms
        return self.outcome

    def _plan_again_later(self) -> None:
        """While somebody waits, and something is still going to happen, plan again after a while."""
        waits = self._round_every_ms and self.engine.state.queue.size_total
        if waits and self._due and not self._round_due:
            self._round_due = True
            self._at(self.clock.at_ms + self._round_every_ms, _Round())

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

    def _happen(self, what: object) -> bool:
        """Let it happen; returns whether the engine need think of it."""
        if isinstance(what, int):
            self._submit(what)
        elif isinstance(what, FleetChange):
            self._change(what)
        elif isinstance(what, _Due):
            run = self._runs.get(what.job_id)
            if run is None or run.progress.attempt != what.attempt:
                return False
            if what.outcome is None:
                return self._save(what, run)
            self._finish(what.job_id, run, what.outcome)
        else:
            return self._plan_for(what)
        return True

    def _plan_for(self, what: object) -> bool:
        """Let the engine plan though nothing has happened, if that can make a difference."""
        if isinstance(what, _Ripe):
            run = self._runs.get(what.job_id)
            if run is None or run.progress.attempt != what.attempt:
                return False
        else:
            self._round_due = False
        waits = self.engine.state.queue.size_total > 0
        self.engine.state.round_needed |= waits
        return waits

    def _submit(self, number: int) -> None:
        outcome = self.outcome.jobs[number]
        job = outcome.job
        progress = Progress.of(job)
        name = job.name
        if self._oracle is not None:
            name = str(number)
            self._oracle.introduce(name, progress)
        try:
            (job_id,) = self.engine.submit(Submission(job.user, [_spec(job, name)]), {})
        except SuanliError as error:
            outcome.refused = str(error)
            self.ended += 1
            return
        self._runs[job_id] = _Run(outcome, progress, name)

    def _change(self, change: FleetChange) -> None:
        region = self._regions[change.region]
        gone = {node.node_id for node in region.nodes} - {node.node_id for node in change.nodes}
        lost = [ref for job_id, ref in region.held.items() if not gone.isdisjoint(self._runs[job_id].nodes)]
        for ref in lost:
            self._finish(ref.job_id, self._runs[ref.job_id], AttemptOutcome.NODE_LOST)
        # The ends are told first, so that the engine forgets nodes on which nothing is held any more.
        self._deliver()
        for ref in lost:
            # One that was lost too often is not tried again.
            if ref.job_id not in self.engine.state.jobs:
                self._ended(ref.job_id)
        region.nodes = change.nodes
        self._report(region)

    def _save(self, due: _Due, run: _Run) -> bool:
        """An attempt has saved its work, unless it is stopping; the engine hears of it."""
        if run.progress.stop_ms >= 0:
            return False
        self._tell(self._regions[run.outcome.region], due.job_id, Checkpointed(_CHECKPOINT))
        self._save_later(due, run.progress)
        return True

    def _save_later(self, due: _Due, progress: Progress) -> None:
        every_ms = progress.job.checkpoint_ms
        if every_ms and progress.job.preemptible and self.clock.at_ms + every_ms < progress.end_ms:
            self._at(self.clock.at_ms + every_ms, due._replace(outcome=None))

    def _finish(self, job_id: str, run: _Run, outcome: AttemptOutcome) -> None:
        """An attempt ends."""
        region = self._regions[run.outcome.region]
        progress = run.progress
        run.outcome.held_ms += self.clock.at_ms - progress.start_ms
        if outcome in PLATFORM_OUTCOMES:
            run.outcome.evictions += outcome is AttemptOutcome.PREEMPTED
            saved_ms = progress.interrupted(self.clock.at_ms, outcome is AttemptOutcome.PREEMPTED)
            if saved_ms > progress.start_ms or progress.job.checkpoint_ms:
                self._tell(region, job_id, Checkpointed(_CHECKPOINT), self.clock.at_ms - saved_ms)
        else:
            self._ended(job_id)
        self._tell(region, job_id, Finished(outcome))
        del region.held[job_id]

    def _ended(self, job_id: str) -> None:
        run = self._runs.pop(job_id)
        run.progress.attempt = 0
        run.outcome.end_ms = self.clock.at_ms
        self.ended += 1
        if self._oracle is not None:
            self._oracle.forget(run.name)

    def _tell(self, region: _Region, job_id: str, event: Started | Finished | Checkpointed, age_ms: int = 0) -> None:
        self._events.setdefault(region.name, []).append((region.held[job_id], age_ms, event))

    # --- the engine's turn --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let the engine hear, plan and command until nothing more follows at this instant."""
        engine = self.engine
        while True:
            self._deliver()
            self.outcome.rounds += engine.state.round_needed
            engine.round()
            turn = engine.take_turn()
            self._meter(turn.batch.ledger)
            for _, _, command in turn.commands:
                if isinstance(command, Launch):
                    self._launch(command)
                elif isinstance(command, Stop):
                    self._stop(command)
            if not self._events and not engine.state.round_needed:
                return

    def _meter(self, records: list[LedgerRecord]) -> None:
        ahead_ms = self.clock.ahead_ms
        if ahead_ms:
            records = [
                each._replace(start_ms=each.start_ms - ahead_ms, end_ms=each.end_ms - ahead_ms) for each in records
            ]
        self.outcome.ledger += records

    def _deliver(self) -> None:
        events, self._events = self._events, {}
        for name, of_region in events.items():
            region = self._regions[name]
            numbered = []
            for ref, age_ms, event in of_region:
                region.event_seq += 1
                numbered.append(AttemptEvent(region.event_seq, ref, age_ms, event))
            self.engine.receive(name, region.session, AttemptEvents(tuple(numbered)))

    def _launch(self, launch: Launch) -> None:
        job_id = launch.ref.job_id
        run = self._runs[job_id]
        attempt = self.engine.state.jobs[job_id].live
        assert attempt is not None
        region = self._regions[attempt.region]
        region.held[job_id] = launch.ref
        run.outcome.region = attempt.region
        run.nodes = frozenset(replica.node_id for replica in launch.replicas)
        if run.outcome.start_ms < 0:
            run.outcome.start_ms = self.clock.at_ms
        self._tell(region, job_id, Started())
        speed_milli = self.policy.speed_milli.get(launch.accelerator, REFERENCE_SPEED) or REFERENCE_SPEED
        due = _Due(job_id, launch.ref.attempt, run.progress.begin(launch.ref.attempt, self.clock.at_ms, speed_milli))
        self._at(run.progress.end_ms, due)
        self._save_later(due, run.progress)
        if self._ripens and run.outcome.job.preemptible:
            self._at(self.clock.at_ms + self.policy.preemption.min_runtime_ms, _Ripe(job_id, launch.ref.attempt))

    def _stop(self, stop: Stop) -> None:
        """A stopped attempt saves its work, and ends when it has."""
        run = self._runs.get(stop.ref.job_id)
        if run is None or run.progress.attempt != stop.ref.attempt or run.progress.stop_ms >= 0:
            return
        run.progress.stop_ms = self.clock.at_ms
        takes_ms = stop.grace_ms * self._notice_milli // 1000
        if takes_ms:
            self._at(self.clock.at_ms + takes_ms, _Due(stop.ref.job_id, stop.ref.attempt, stop.outcome))
        else:
            self._finish(stop.ref.job_id, run, stop.outcome)


def _evicts_only_what_is_ripe(policy: Policy) -> bool:
    """Whether an attempt may be evicted from some time after its start on, so that planning is due then."""
    rules = policy.preemption
    return rules.min_runtime_ms > 0 and (rules.fair_share or rules.priority or rules.shorter_milli > 0 or rules.move)


def _spec(job: SimJob, name: str) -> JobSpec:
    return JobSpec(
        institution=job.institution,
        project=job.project,
        name=name,
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
        price_lists=[],
        months=[],
        budgets=[],
        budget_spending=[],
        last_budget_notice=0,
        data_sets=[],
        grants=[],
        holdings=[],
        stored=[],
        storage_marks=[],
        ledger_hash=b"",
        audit_newest=None,
        audit_head_newest=None,
        last_job_no=0,
        last_event_seq=0,
        last_ledger_seq=0,
        last_launch_seq=0,
        last_commit_no=0,
        last_time_ms=now_ms,
    )
