"""The live objects in memory beside jobs: attempts, nodes, regions and tenants, with their way to and from the store's records."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from scheduler.domain.agent import AttemptRef, AttemptUsage, Finished, NodeReport, ReplicaPlacement
from scheduler.domain.isolation import is_enforced
from scheduler.domain.records import (
    AttemptRecord,
    NodeRecord,
    RegionRecord,
)
from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import Shape
from scheduler.domain.states import AttemptOutcome, AttemptState
from scheduler.planning.types import UNLIMITED, NodeView, PoolKey, RunningView
from scheduler.planning.usage import NEVER_HELD, Average
from scheduler.service.job import Job


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """An attempt that holds an allocation. ``told_ms``: when its launch or stop was last sent (0: not in this session).

    When a stop was ordered, ``stop_grace_ms`` is the notice given, ``stopped_by_ms`` when it will have taken effect, and ``for_job_no``
    the waiting job it was ordered for (0: none). They are not stored: after a restart the job's own grace counts, from then on.
    """

    job: Job
    number: int
    lease_epoch: int
    launch_seq: int
    region: str
    pool: str
    accelerator: str
    replicas: tuple[ReplicaPlacement, ...]
    grant_ms: int
    state: AttemptState = AttemptState.STARTING
    start_ms: int = 0
    end_ms: int = 0
    outcome: AttemptOutcome | None = None
    exit_code: int = 0
    exit_signal: int = 0
    message: str = ""
    cpu_used_ms: int = 0
    peak_memory_mib: int = 0
    stop_outcome: AttemptOutcome | None = None
    logs: str = ""
    saved_ms: int = 0
    gpu_used_milli_ms: int = 0
    gpu_peak_memory_mib: int = 0
    metered_ms: int = 0
    metered_segments: int = 0
    metered_cpu_used_ms: int = 0
    metered_gpu_used_milli_ms: int = 0
    told_ms: int = 0
    stop_grace_ms: int = 0
    stopped_by_ms: int = 0
    for_job_no: int = 0

    def __repr__(self) -> str:
        return f"<Attempt {self.job.job_id}/{self.number} {self.state.name} in {self.region}>"

    @property
    def ref(self) -> AttemptRef:
        """Its exact name."""
        return AttemptRef(self.job.job_id, self.number, self.lease_epoch)

    @property
    def view(self) -> RunningView:
        """The immutable view for planning."""
        job, spec = self.job, self.job.spec
        start_ms = self.start_ms or self.grant_ms
        return RunningView(
            self.launch_seq,
            job.job_no,
            job.group,
            spec.name,
            self.region,
            self.pool,
            self.accelerator,
            self.replicas,
            start_ms,
            start_ms + spec.max_runtime_ms,
            max(start_ms, self.saved_ms),
            spec.grace_ms,
            self.stopped_by_ms,
            self.for_job_no,
            job.submit_ms,
        )

    def has_used(self, used: AttemptUsage | Finished) -> None:
        """Take in what it has used so far, or in all: totals that never go back, so the greater of each figure counts."""
        self.cpu_used_ms = max(self.cpu_used_ms, used.cpu_used_ms)
        self.peak_memory_mib = max(self.peak_memory_mib, used.peak_memory_mib)
        self.gpu_used_milli_ms = max(self.gpu_used_milli_ms, used.gpu_used_milli_ms)
        self.gpu_peak_memory_mib = max(self.gpu_peak_memory_mib, used.gpu_peak_memory_mib)

    def record(self) -> AttemptRecord:
        """The row to store."""
        spec = self.job.spec
        total = spec.shape.total
        placement = json.dumps([[r.node_id, list(r.gpu_indexes)] for r in self.replicas], separators=(",", ":"))
        return AttemptRecord(
            self.job.job_no,
            self.number,
            self.job.job_id,
            self.lease_epoch,
            self.launch_seq,
            spec.institution,
            spec.project,
            self.job.user,
            self.region,
            self.pool,
            self.accelerator,
            placement,
            total.cpu_milli,
            total.memory_mib,
            total.gpu_milli,
            int(self.state),
            self.grant_ms,
            self.start_ms,
            self.end_ms,
            int(self.outcome or 0),
            self.exit_code,
            self.exit_signal,
            self.message,
            self.cpu_used_ms,
            self.peak_memory_mib,
            int(self.stop_outcome or 0),
            self.logs,
            self.saved_ms,
            self.gpu_used_milli_ms,
            self.gpu_peak_memory_mib,
            self.metered_ms,
            self.metered_segments,
            self.metered_cpu_used_ms,
            self.metered_gpu_used_milli_ms,
        )

    @staticmethod
    def from_record(record: AttemptRecord, job: Job) -> Attempt:
        """The live object of a stored row."""
        return Attempt(
            job=job,
            number=record.attempt,
            lease_epoch=record.lease_epoch,
            launch_seq=record.launch_seq,
            region=record.region,
            pool=record.pool,
            accelerator=record.accelerator,
            replicas=tuple(ReplicaPlacement(node, tuple(gpus)) for node, gpus in json.loads(record.placement)),
            grant_ms=record.grant_ms,
            state=AttemptState(record.state),
            start_ms=record.start_ms,
            stop_outcome=AttemptOutcome(record.stop_outcome) if record.stop_outcome else None,
            saved_ms=record.saved_ms,
            cpu_used_ms=record.cpu_used_ms,
            peak_memory_mib=record.peak_memory_mib,
            gpu_used_milli_ms=record.gpu_used_milli_ms,
            gpu_peak_memory_mib=record.gpu_peak_memory_mib,
            metered_ms=record.metered_ms,
            metered_segments=record.metered_segments,
            metered_cpu_used_ms=record.metered_cpu_used_ms,
            metered_gpu_used_milli_ms=record.metered_gpu_used_milli_ms,
            stop_grace_ms=job.spec.grace_ms,
        )


@dataclass(slots=True, eq=False)
class Node:
    """A node: its immutable view, replaced at every change, and the launch numbers of the attempts on it."""

    view: NodeView
    attempts: set[int] = field(default_factory=set)

    @property
    def pool(self) -> PoolKey:
        """The pool it belongs to."""
        return PoolKey(self.view.region, self.view.pool)

    def take(self, shape: Shape, gpu_indexes: tuple[int, ...], sign: int) -> None:
        """Hold (sign 1) or give back (sign -1) one replica's resources."""
        view = self.view
        gpu_free = view.gpu_free
        if gpu_indexes:
            per_gpu = min(shape.request.gpu_milli, GPU_UNIT) * sign
            gpu_free = tuple(free - per_gpu if i in gpu_indexes else free for i, free in enumerate(gpu_free))
        held = shape.request
        free = Resources(
            view.free.cpu_milli - sign * held.cpu_milli,
            view.free.memory_mib - sign * held.memory_mib,
            view.free.gpu_milli - sign * held.gpu_milli,
        )
        self.view = replace(view, free=free, gpu_free=gpu_free)

    def has_room(self, shape: Shape, gpu_indexes: tuple[int, ...]) -> bool:
        """Whether one replica with these GPUs fits beside what is held now."""
        view = self.view
        request = shape.request
        if not request.fits(view.free):
            return False
        if request.gpu_milli == 0:
            return not gpu_indexes
        per_gpu = min(request.gpu_milli, GPU_UNIT)
        if len(set(gpu_indexes)) != max(1, request.gpu_milli // GPU_UNIT) or len(gpu_indexes) != len(set(gpu_indexes)):
            return False
        return all(0 <= i < len(view.gpu_free) and view.gpu_free[i] >= per_gpu for i in gpu_indexes)

    def record(self) -> NodeRecord:
        """The row to store."""
        view = self.view
        return NodeRecord(
            view.region,
            view.node_id,
            view.name,
            view.pool,
            view.accelerator,
            view.capacity.cpu_milli,
            view.capacity.memory_mib,
            view.capacity.gpu_milli,
            json.dumps(dict(view.labels), sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            int(view.up),
            int(view.draining),
        )

    @staticmethod
    def from_record(record: NodeRecord) -> Node:
        """The live object of a stored row, with nothing held on it yet."""
        labels = tuple(sorted(json.loads(record.labels).items()))
        capacity = Resources(record.cpu_milli, record.memory_mib, record.gpu_milli)
        return Node(
            NodeView(
                region=record.region,
                node_id=record.node_id,
                name=record.name,
                pool=record.pool,
                accelerator=record.accelerator,
                labels=labels,
                capacity=capacity,
                free=capacity,
                gpu_free=(GPU_UNIT,) * (capacity.gpu_milli // GPU_UNIT),
                up=bool(record.up),
                draining=bool(record.draining),
                isolated=is_enforced(labels),
            )
        )

    def is_as(self, report: NodeReport) -> bool:
        """Whether a report says nothing new of the node."""
        view = self.view
        return view.up and (view.capacity, view.pool, view.name, view.accelerator, view.labels) == (
            report.capacity,
            report.pool,
            report.name,
            report.accelerator,
            report.labels,
        )

    @staticmethod
    def from_report(region: str, report: NodeReport, before: Node | None) -> Node:
        """A node as reported; what its attempts hold is not taken from it yet."""
        view = NodeView(
            region=region,
            node_id=report.node_id,
            name=report.name,
            pool=report.pool,
            accelerator=report.accelerator,
            labels=report.labels,
            capacity=report.capacity,
            free=report.capacity,
            gpu_free=(GPU_UNIT,) * (report.capacity.gpu_milli // GPU_UNIT),
            up=True,
            draining=before.view.draining if before else False,
            isolated=is_enforced(report.labels),
        )
        return Node(view, before.attempts if before else set())


@dataclass(slots=True, eq=False)
class Region:
    """A region and its agent's session. ``event_seq`` is the newest spool event accepted.

    ``session`` is 0 while no agent is connected; ``report_seq`` the newest report seen in the agent's boot; ``heard_ms`` when the
    agent was last heard by this process (its start, when never): leases are judged by it, so that a restart only lengthens them.
    """

    region: str
    create_ms: int
    spool_id: str = ""
    event_seq: int = 0
    agent_version: str = ""
    last_seen_ms: int = 0
    heard_ms: int = 0
    session: int = 0
    reported: bool = False
    report_seq: int = 0
    attempts: dict[int, Attempt] = field(default_factory=dict)
    """Active attempts by launch number, so the first is the oldest."""

    @property
    def online(self) -> bool:
        """Connected, and its nodes reported in this session."""
        return self.session != 0 and self.reported

    def record(self) -> RegionRecord:
        """The row to store."""
        return RegionRecord(
            self.region, self.spool_id, self.event_seq, self.agent_version, self.last_seen_ms, self.create_ms
        )


@dataclass(slots=True, eq=False)
class Tenant:
    """What an institution, a project or a user holds now, against its weight and quota, and what it held on average.

    ``live_jobs`` counts arrays by task, and is not kept for users.
    """

    weight: int
    home_region: str = ""
    in_use: Resources = ZERO
    quota: Resources = UNLIMITED
    max_live_jobs: int = -1
    live_jobs: int = 0
    average: Average = NEVER_HELD
