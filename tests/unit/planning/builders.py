"""Small snapshots for the tests of planning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.policy import OrderPolicy
from scheduler.planning.rank import rank_of
from scheduler.planning.types import (
    GroupKey,
    NodeView,
    PendingJob,
    Plan,
    PoolKey,
    PoolUse,
    RunningView,
    Snapshot,
    Start,
    TenantView,
)


class ListQueue:
    """A queue from plain lists, in any order."""

    def __init__(self, groups: Mapping[GroupKey, Sequence[PendingJob]]) -> None:
        self.lines = {key: sorted(jobs) for key, jobs in groups.items() if jobs}

    def groups(self) -> list[GroupKey]:
        return list(self.lines)

    def head(self, key: GroupKey) -> PendingJob:
        return self.lines[key][0]

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        return iter(self.lines[key])

    def size(self, key: GroupKey) -> int:
        return len(self.lines.get(key, ()))


def node(
    node_id: str,
    pool: str = "east/cpu",
    cpu: int = 8000,
    memory: int = 32_768,
    gpus: int = 0,
    accelerator: str = "",
    **changes: object,
) -> NodeView:
    region, name = pool.split("/")
    capacity = Resources(cpu, memory, gpus * GPU_UNIT)
    view = NodeView(
        region=region,
        node_id=node_id,
        name=node_id,
        pool=name,
        accelerator=accelerator,
        labels=(),
        capacity=capacity,
        free=capacity,
        gpu_free=(GPU_UNIT,) * gpus,
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def shape(cpu: int = 1000, memory: int = 1024, gpu: int = 0, replicas: int = 1, **rest: object) -> Shape:
    return Shape(Resources(cpu, memory, gpu), replicas, **rest)  # type: ignore[arg-type]


@dataclass
class World:
    """Builds a snapshot step by step; every tenant that has a job exists with weight 1 unless set."""

    nodes: list[NodeView]
    lines: dict[GroupKey, list[PendingJob]] = field(default_factory=dict)
    institutions: dict[str, TenantView] = field(default_factory=dict)
    projects: dict[tuple[str, str], TenantView] = field(default_factory=dict)
    offline: frozenset[str] = frozenset()
    users: dict[tuple[str, str, str], TenantView] = field(default_factory=dict)
    running: dict[int, RunningView] = field(default_factory=dict)
    pool_use: dict[tuple[str, PoolKey], PoolUse] = field(default_factory=dict)
    claims: dict[int, GroupKey] = field(default_factory=dict)
    next_no: int = 1
    next_launch: int = 1
    now_ms: int = 0

    def add(
        self,
        institution: str,
        wanted: Shape,
        count: int = 1,
        *,
        project: str = "default",
        priority: PriorityClass = PriorityClass.NORMAL,
        submit_ms: int = 0,
        tasks: int = 1,
        user: str = "someone",
        preemptible: bool = False,
        rank: int | None = None,
        expected_ms: int = 3_600_000,
        limit_ms: int = 86_400_000,
        grace_ms: int = 0,
    ) -> list[int]:
        """Queue ``count`` jobs; answers their numbers."""
        key = GroupKey(institution, project, user, priority, preemptible, wanted)
        numbers = list(range(self.next_no, self.next_no + count))
        self.next_no += count
        self.lines.setdefault(key, []).extend(
            PendingJob(
                rank_of(OrderPolicy(), submit_ms, priority, wanted.total, expected_ms) if rank is None else rank,
                number,
                tasks,
                submit_ms,
                expected_ms,
                limit_ms,
                grace_ms,
            )
            for number in numbers
        )
        self.institutions.setdefault(institution, TenantView(1))
        self.projects.setdefault((institution, project), TenantView(1))
        return numbers

    def snapshot(self) -> Snapshot:
        pools: dict[PoolKey, dict[str, NodeView]] = {}
        for view in self.nodes:
            pools.setdefault(PoolKey(view.region, view.pool), {})[view.node_id] = view
        regions = frozenset(view.region for view in self.nodes) - self.offline
        return Snapshot(
            pools,
            ListQueue(self.lines),
            dict(self.institutions),
            dict(self.projects),
            regions,
            dict(self.users),
            dict(self.running),
            dict(self.pool_use),
            claims=dict(self.claims),
        )

    def apply(self, plan: Plan) -> None:
        """Make the plan true: nodes, tenants and queue. Fails when a start goes over a node's or a GPU's capacity."""
        for start in plan.starts:
            self.start(start)

    def start(self, start: Start) -> RunningView:
        """Make one start true."""
        key = next(key for key, jobs in self.lines.items() if any(job.job_no == start.job_no for job in jobs))
        self.hold(start, key, 1)
        jobs = self.lines[key]
        at = next(i for i, job in enumerate(jobs) if job.job_no == start.job_no)
        self.claims.pop(start.job_no, None)
        running = self.run(start, key, jobs[at].limit_ms, jobs[at].grace_ms)
        jobs[at] = jobs[at]._replace(tasks=jobs[at].tasks - 1)
        if not jobs[at].tasks:
            del jobs[at]
        return running

    def run(self, start: Start, key: GroupKey, limit_ms: int, grace_ms: int = 0) -> RunningView:
        """Note that an attempt runs."""
        view = RunningView(
            self.next_launch,
            start.job_no,
            key,
            "job",
            start.region,
            start.pool,
            start.accelerator,
            start.replicas,
            self.now_ms,
            self.now_ms + limit_ms,
            self.now_ms,
            grace_ms,
        )
        self.running[view.launch_seq] = view
        self.next_launch += 1
        return view

    def end(self, launch_seq: int) -> RunningView:
        """An attempt ends and gives back what it holds."""
        view = self.running.pop(launch_seq)
        self.hold(Start(view.job_no, view.region, view.pool, view.accelerator, view.replicas), view.group, -1)
        return view

    def hold(self, start: Start, key: GroupKey, sign: int) -> None:
        """Take (1) or give back (-1) what a start holds."""
        request = key.shape.request
        assert len(start.replicas) == key.shape.replicas
        for placed in start.replicas:
            (at,) = (
                i for i, view in enumerate(self.nodes) if (view.region, view.node_id) == (start.region, placed.node_id)
            )
            view = self.nodes[at]
            assert (view.pool, view.accelerator) == (start.pool, start.accelerator)
            gpus = list(view.gpu_free)
            assert len(set(placed.gpu_indexes)) == len(placed.gpu_indexes) == -(-request.gpu_milli // GPU_UNIT)
            for index in placed.gpu_indexes:
                gpus[index] -= sign * min(request.gpu_milli, GPU_UNIT)
            free = view.free.minus(request) if sign > 0 else view.free.plus(request)
            assert min(free) >= 0
            assert all(0 <= each <= GPU_UNIT for each in gpus)
            self.nodes[at] = replace(view, free=free, gpu_free=tuple(gpus))
        more = key.shape.total if sign > 0 else Resources().minus(key.shape.total)
        self.charge(key, more)
        pool = PoolKey(start.region, start.pool)
        use = self.pool_use.get((key.institution, pool), PoolUse(Resources(), Resources()))
        firm = use.firm if key.preemptible else use.firm.plus(more)
        self.pool_use[key.institution, pool] = PoolUse(use.held.plus(more), firm)

    def charge(self, key: GroupKey, more: Resources) -> None:
        tenant = self.institutions[key.institution]
        self.institutions[key.institution] = replace(tenant, in_use=tenant.in_use.plus(more))
        project = self.projects[key.institution, key.project]
        self.projects[key.institution, key.project] = replace(project, in_use=project.in_use.plus(more))
        user = self.users.get(key.path(3), TenantView(1000))  # type: ignore[call-overload]
        self.users[key.institution, key.project, key.user] = replace(user, in_use=user.in_use.plus(more))
