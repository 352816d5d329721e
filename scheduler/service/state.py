"""The control plane's memory, with the few primitive steps that everything else is made of.

All of it is synchronous and deterministic. Every step is journalled: ``take_turn`` hands out what one transaction has to write
together with what may be said once it is durable (commands to agents, events to watchers). Nothing is said before.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduler.domain.agent import AgentCommand
from scheduler.domain.records import (
    ApiKeyRecord,
    EnrolmentRecord,
    EventRecord,
    InstitutionRecord,
    PolicyRecord,
    PriceListRecord,
    ProjectRecord,
    QuotaRecord,
    RequestRecord,
    UserRecord,
)
from scheduler.domain.spec import Shape
from scheduler.domain.states import TERMINAL, JobState, check_transition
from scheduler.planning.plan import Planner
from scheduler.planning.policy import Policy
from scheduler.planning.rank import rank_of
from scheduler.planning.types import Changes, NodeView, PoolKey, RunningView, Snapshot
from scheduler.service.audit_trail import AuditTrail
from scheduler.service.claims import Claims
from scheduler.service.evictions import EvictionCount
from scheduler.service.governance import Governance, governed
from scheduler.service.holdings import Holdings
from scheduler.service.job import Job
from scheduler.service.metering import Metering
from scheduler.service.model import Attempt, Node, Region, Tenant
from scheduler.service.observe import NullObserver, Observer
from scheduler.service.ports import Clock, CommitBatch, IdSource, RuntimePredictor, SpecCodec
from scheduler.service.predicting import LimitPredictor, RunningRuntimes, expected_ms
from scheduler.service.queue import Queue
from scheduler.service.storage import Storage
from scheduler.service.workload import WorkloadSeen

MAX_FEASIBLE = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds and intervals of the service."""

    heartbeat_interval_ms: int = 5_000
    lease_ttl_ms: int = 30_000
    max_losses: int = 20
    """A job lost this often is FAILED: something about it kills nodes. What was ordered to stop is not lost."""
    max_round_gap_ms: int = 5_000
    """While jobs wait, a round is made at least this often: time alone may make an eviction or a start right."""
    max_live_jobs: int = 10_000_000
    max_project_jobs: int = 0
    """Of those, in a project that has no quota of its own; 0: no limit."""
    remembered_requests: int = 200_000
    verify_ledger_every_ms: int = 0
    """So often the leader verifies the whole ledger by itself; 0: never."""


@dataclass(slots=True)
class Turn:
    """One transaction's rows, and what to say when they are durable, in order.

    ``commands`` are (region, session, command).
    """

    batch: CommitBatch
    commands: list[tuple[str, int, AgentCommand]]

    def __bool__(self) -> bool:
        return bool(self.batch) or bool(self.commands)


@dataclass(slots=True)
class Counters:
    """The last number given of each kind."""

    job_no: int = 0
    event_seq: int = 0
    ledger_seq: int = 0
    launch_seq: int = 0


@dataclass(slots=True)
class _Journal:
    """What has changed since the last turn. Live objects are read only when the turn is taken, so steps coalesce."""

    new_jobs: dict[int, Job] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    new_attempts: dict[int, Attempt] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    nodes: dict[tuple[str, str], Node] = field(default_factory=dict)
    gone_nodes: dict[tuple[str, str], None] = field(default_factory=dict)
    rest: CommitBatch = field(default_factory=CommitBatch)
    """Records that are journalled as they are."""
    commands: list[tuple[str, int, AgentCommand]] = field(default_factory=list)


class State:
    """Everything live, and the primitive steps on it."""

    def __init__(
        self,
        clock: Clock,
        ids: IdSource,
        codec: SpecCodec,
        policy: Policy,
        settings: Settings,
        observer: Observer | None = None,
        predictor: RuntimePredictor | None = None,
    ) -> None:
        self.ids = ids
        self.codec = codec
        self.policy = policy
        self.base_policy = policy
        """The policy without what the register of data sets adds to it."""
        self.governance = Governance()
        self.settings = settings
        self.observer = observer or NullObserver()
        self.predictor = predictor or LimitPredictor()
        self.epoch = 0
        self.started_ms = 0
        self.counters = Counters()
        self.jobs: dict[str, Job] = {}
        self.jobs_by_no: dict[int, Job] = {}
        self.queue = Queue()
        self.dependents: dict[str, dict[int, Job]] = {}
        """By the id of a live job, those that wait for its end, by number."""
        self.attempts: dict[int, Attempt] = {}
        self.regions: dict[str, Region] = {}
        self.pools: dict[PoolKey, dict[str, NodeView]] = {}
        self.nodes: dict[tuple[str, str], Node] = {}
        self.institutions: dict[str, InstitutionRecord] = {}
        self.projects: dict[tuple[str, str], ProjectRecord] = {}
        self.users: dict[str, UserRecord] = {}
        self.api_keys: dict[str, ApiKeyRecord] = {}
        self.key_uses: dict[str, int] = {}
        """By a key's prefix, when it was used last; the records say so to the hour."""
        self.enrolments: dict[bytes, EnrolmentRecord] = {}
        self.quotas: dict[tuple[str, str], QuotaRecord] = {}
        self.holdings = Holdings(policy.order.half_life_ms)
        self.running: dict[int, RunningView] = {}
        """The attempts as planning sees them, by launch number."""
        self.evictions = EvictionCount()
        self.policy_record: PolicyRecord | None = None
        """The newest stored version; None before the first."""
        self.metering = Metering()
        self.audit = AuditTrail()
        self.storage = Storage()
        self.price_lists: dict[int, PriceListRecord] = {}
        """By version, without their texts."""
        self.newest_price_list: PriceListRecord | None = None
        """With its texts."""
        self.requests: OrderedDict[tuple[str, str], RequestRecord] = OrderedDict()
        self.requests_complete = True
        self.live_jobs = 0
        self.job_counts: dict[tuple[str, int], int] = {}
        self.timers: list[tuple[int, int, int]] = []
        """A heap of (eligible_ms, job_no, failures) of held retries."""
        self.round_needed = False
        self.last_round_ms = 0
        self.feasible: set[tuple[Shape, bool]] = set()
        """Shapes (and whether preemptible) some pool could hold, by the nodes as they are; see ``remember_feasible``."""
        self.feasible_under: Policy | None = None
        """The policy under which that was found."""
        self._clock = clock
        self._last_ms = 0
        self._journal = _Journal()
        self._runtimes = RunningRuntimes(self.predictor, self.attempts)
        self.planner = Planner()
        self.workload = WorkloadSeen()
        self.claims = Claims()
        self._everything_changed = True
        self._changed_nodes: set[tuple[str, str]] = set()
        self._changed_running: set[int] = set()

    @property
    def tenants(self) -> dict[tuple[str, str], Tenant]:
        """By (institution, project); the institution as a whole has project ""."""
        return self.holdings.tenants

    # --- time -------------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """The present in ms; never goes back, not even over a restart."""
        self._last_ms = max(self._last_ms, self._clock.now_ms())
        return self._last_ms

    def start_time_at(self, not_before_ms: int) -> None:
        """Carry time forward from an earlier process."""
        self._last_ms = max(self._last_ms, not_before_ms)
        self.started_ms = self.now()

    # --- journal ----------------------------------------------------------------------------------------------------

    @property
    def record(self) -> CommitBatch:
        """Where records that are written as they are go (tenants, keys, events, ledger, requests)."""
        return self._journal.rest

    def touch(self, job: Job) -> None:
        """The job's row has to be written."""
        if job.job_no not in self._journal.new_jobs:
            self._journal.jobs[job.job_no] = job

    def touch_attempt(self, attempt: Attempt) -> None:
        """The attempt's row has to be written."""
        if attempt.launch_seq not in self._journal.new_attempts:
            self._journal.attempts[attempt.launch_seq] = attempt

    def touch_region(self, region: Region) -> None:
        """The region's row has to be written."""
        self._journal.regions[region.region] = region

    def touch_node(self, node: Node) -> None:
        """The node's row has to be written."""
        key = (node.view.region, node.view.node_id)
        self.feasible.clear()
        self._journal.gone_nodes.pop(key, None)
        self._journal.nodes[key] = node

    def send(self, region: Region, command: AgentCommand) -> None:
        """Tell the region's agent, when everything journalled so far is durable; nothing when none is connected."""
        if region.session:
            self._journal.commands.append((region.region, region.session, command))

    def take_turn(self) -> Turn:
        """What has been journalled since the last call."""
        journal, self._journal = self._journal, _Journal()
        batch = journal.rest
        batch.new_jobs = [job.record() for job in journal.new_jobs.values()]
        batch.jobs = [job.record() for job in journal.jobs.values()]
        batch.new_attempts = [attempt.record() for attempt in journal.new_attempts.values()]
        batch.attempts = [attempt.record() for attempt in journal.attempts.values()]
        batch.regions = [region.record() for region in journal.regions.values()]
        batch.nodes = [node.record() for node in journal.nodes.values()]
        batch.gone_nodes = list(journal.gone_nodes)
        batch.fair_usage = self.holdings.take_records()
        batch.holdings, batch.gone_holdings, batch.stored, batch.storage_marks = self.storage.take_records()
        batch.budget_spending, batch.budget_notices = self.metering.budgets.take_records()
        return Turn(batch, journal.commands)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def next_job_no(self) -> int:
        """A fresh job number."""
        self.counters.job_no += 1
        return self.counters.job_no

    def add_job(self, job: Job) -> None:
        """A new job, in its first state; journalled as an insert."""
        self.index_job(job)
        self._journal.new_jobs[job.job_no] = job
        weight = 0 if job.array_id else max(1, job.array_size)
        self.count_live(job, weight)

    def index_job(self, job: Job) -> None:
        """Make a job known by id and number and count its state."""
        self.jobs[job.job_id] = job
        self.jobs_by_no[job.job_no] = job
        self._count_state(job, 1)
        self.storage.job_added(job)
        if job.spec.data_sets:
            self.governance.jobs[job.job_no] = job
        if not job.array_id:
            self.workload.add(job.spec.shape, max(1, job.array_size))

    def count_live(self, job: Job, change: int) -> None:
        """Count jobs (arrays by task) that have not ended."""
        self.live_jobs += change
        for tenant in self.tenants_of(job):
            tenant.live_jobs += change

    def tenants_of(self, job: Job) -> Iterable[Tenant]:
        """The institution and the project of a job."""
        spec = job.spec
        return (self.tenants[spec.institution, ""], self.tenants[spec.institution, spec.project])

    def set_state(self, job: Job, state: JobState, reason: str = "", message: str = "", kind: str = "STATE") -> None:
        """Move a job to a state the table allows; keeps queue and counts true and writes the event."""
        check_transition(job.state, state)
        if job.state is JobState.QUEUED and not (job.array_size and state is JobState.RUNNING):
            self.queue.remove(job)
            self.claims.drop(job.job_no)
        self._count_state(job, -1)
        job.state = state
        self._count_state(job, 1)
        job.reason, job.message = reason, message
        if state is JobState.QUEUED:
            self.enqueue(job)
        if state in TERMINAL:
            job.end_ms = self.now()
            self._forget(job)
        self.emit(job, kind)

    def emit(self, job: Job, kind: str) -> None:
        """Write an event of the job as it stands now."""
        self.counters.event_seq += 1
        job.sequence = self.counters.event_seq
        self.touch(job)
        spec, later = job.spec, job.later
        self.record.events.append(
            EventRecord(
                job.sequence,
                job.job_no,
                job.job_id,
                job.array_id,
                spec.institution,
                spec.project,
                self.now(),
                kind,
                int(job.state),
                later.attempt,
                later.region,
                later.pool,
                later.reason,
                later.message,
            )
        )

    def enqueue(self, job: Job) -> None:
        """Let the next rounds see the job; asks for a round when it is the first in its line."""
        self._rank(job)
        if self.queue.add(job):
            self.round_needed = True

    def _rank(self, job: Job) -> None:
        spec = job.spec
        job.expected_ms = expected_ms(self.predictor, job)
        job.stand_at(rank_of(self.policy.order, job.submit_ms, spec.priority, spec.shape.total, job.expected_ms))

    def use_policy(self, policy: Policy) -> None:
        """Plan by this policy from now on: everybody who waits is given a new rank, and the past fades at its half-life."""
        self.base_policy = policy
        self.governance.again = True
        before, self.policy = self.policy, governed(policy, self.governance.register)
        if policy.order != before.order:
            self.holdings.use_half_life(policy.order.half_life_ms, self.now())
            self.queue.rank_anew(self._rank)
        self._everything_changed = True
        self.round_needed = True

    def _forget(self, job: Job) -> None:
        """An ended job leaves memory; the store answers for it from now on."""
        self._count_state(job, -1)
        del self.jobs[job.job_id]
        del self.jobs_by_no[job.job_no]
        self.storage.job_gone(job)
        self.governance.jobs.pop(job.job_no, None)
        if not job.array_size:
            self.count_live(job, -1)

    def _count_state(self, job: Job, change: int) -> None:
        key = (job.spec.institution, int(job.state))
        self.job_counts[key] = self.job_counts.get(key, 0) + change

    # --- allocations ------------------------------------------------------------------------------------------------

    def grant(self, attempt: Attempt) -> None:
        """Give an attempt its allocation; journalled as an insert."""
        self.holdings.settle(attempt.job, self.now())
        self.index_attempt(attempt)
        self._journal.new_attempts[attempt.launch_seq] = attempt

    def index_attempt(self, attempt: Attempt) -> None:
        """Count an allocation as held on its nodes and by its tenants."""
        shape = attempt.job.spec.shape
        region = self.regions[attempt.region]
        self.attempts[attempt.launch_seq] = attempt
        region.attempts[attempt.launch_seq] = attempt
        attempt.job.live = attempt
        for replica in attempt.replicas:
            node = self.nodes.get((attempt.region, replica.node_id))
            if node is not None:
                node.take(shape, replica.gpu_indexes, 1)
                node.attempts.add(attempt.launch_seq)
                self.show_node(node)
        self.holdings.hold(attempt, 1, self.now())
        self.show_running(attempt)

    def release(self, attempt: Attempt) -> None:
        """Take the allocation back. What it held is posted in the same turn: see ``posting``."""
        job = attempt.job
        shape = job.spec.shape
        region = self.regions[attempt.region]
        now = self.now()
        self.holdings.settle(job, now)
        del self.attempts[attempt.launch_seq]
        del self.running[attempt.launch_seq]
        self._changed_running.add(attempt.launch_seq)
        del region.attempts[attempt.launch_seq]
        job.live = None
        for replica in attempt.replicas:
            node = self.nodes.get((attempt.region, replica.node_id))
            if node is not None:
                node.take(shape, replica.gpu_indexes, -1)
                node.attempts.discard(attempt.launch_seq)
                self.show_node(node)
        self.holdings.hold(attempt, -1, now)
        self.round_needed = True
        self.touch_attempt(attempt)

    def remember_feasible(self, shape: Shape, preemptible: bool) -> None:
        """Some pool could hold the shape; true until a node changes. Spares a look at every node at each submission."""
        if len(self.feasible) >= MAX_FEASIBLE:
            self.feasible.clear()
        self.feasible.add((shape, preemptible))

    # --- views ------------------------------------------------------------------------------------------------------

    def show_node(self, node: Node) -> None:
        """Let planning see the node as it is now."""
        key = (node.view.region, node.view.node_id)
        self.nodes[key] = node
        self._changed_nodes.add(key)
        self.pools.setdefault(node.pool, {})[node.view.node_id] = node.view

    def drop_node(self, node: Node) -> None:
        """Forget a node, in memory and in the store."""
        key = (node.view.region, node.view.node_id)
        self.hide_node(node)
        self.feasible.clear()
        del self.nodes[key]
        self._journal.nodes.pop(key, None)
        self._journal.gone_nodes[key] = None

    def hide_node(self, node: Node) -> None:
        """Take the node out of its pool, and the pool away when it was the last."""
        self._changed_nodes.add((node.view.region, node.view.node_id))
        pool = self.pools[node.pool]
        pool.pop(node.view.node_id, None)
        if not pool:
            del self.pools[node.pool]

    def show_tenant(self, institution: str, project: str) -> None:
        """Let planning see what an institution (project "") or project holds and may hold now."""
        self.holdings.show((institution, project, ""), self.now())

    def show_running(self, attempt: Attempt) -> None:
        """Let planning see the attempt as it is now."""
        self.running[attempt.launch_seq] = attempt.view
        self._changed_running.add(attempt.launch_seq)

    def take_changes(self) -> Changes | None:
        """What has changed since the last call; None when everything may have."""
        everything, self._everything_changed = self._everything_changed, False
        changes = Changes(self._changed_nodes, self.queue.take_changed(), self._changed_running)
        self._changed_nodes, self._changed_running = set(), set()
        return None if everything else changes

    def forget_changes(self) -> None:
        """Let the next look be at everything."""
        self.take_changes()
        self._everything_changed = True

    def snapshot(self, changes: Changes | None = None) -> Snapshot:
        """What planning reads. Valid until the next change: the mappings are the live ones, their values immutable."""
        return Snapshot(
            pools=self.pools,
            queue=self.queue,
            institutions=self.holdings.institution_views,
            projects=self.holdings.project_views,
            online_regions=frozenset(r.region for r in self.regions.values() if r.online),
            users=self.holdings.user_views,
            running=self.running,
            pool_use=self.holdings.pool_use,
            evictions=self.evictions.at(self.now()),
            claims=self.claims.lines,
            mix=self.workload.mix,
            runtimes=self._runtimes,
            changes=changes,
        )

    def add_timer(self, job: Job) -> None:
        """Wake the job when its back-off ends."""
        heapq.heappush(self.timers, (job.eligible_ms, job.job_no, job.failures))
