"""The planner's rules written down as plainly as possible: every step looks at everything again, in fractions.

Slow and, one hopes, obviously right; the fast planner must answer the same.
"""

from __future__ import annotations

from fractions import Fraction

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import Policy
from scheduler.planning.types import GroupKey, NodeView, PendingJob, Plan, PoolKey, Snapshot, Start

SiteId = tuple[str, str, str, bool]
FAR = 10**9


class Node:
    def __init__(self, view: NodeView) -> None:
        self.view = view
        self.free = view.free
        self.gpus = list(view.gpu_free)

    @property
    def site(self) -> SiteId:
        view = self.view
        return (view.region, view.pool, view.accelerator, view.capacity.gpu_milli > 0)

    def gpus_for(self, milli: int) -> list[int] | None:
        if milli == 0:
            return []
        if milli < GPU_UNIT:
            possible = [i for i, free in enumerate(self.gpus) if free >= milli]
            return [min(possible, key=lambda i: (self.gpus[i], i))] if possible else None
        whole = [i for i, free in enumerate(self.gpus) if free == GPU_UNIT]
        count = milli // GPU_UNIT
        return whole[:count] if milli % GPU_UNIT == 0 and len(whole) >= count else None

    def left(self, request: Resources) -> tuple[int, int, int, int] | None:
        gpus = self.gpus_for(request.gpu_milli)
        if gpus is None or not request.fits(self.free):
            return None
        share = 0 < request.gpu_milli < GPU_UNIT
        on_gpu = self.gpus[gpus[0]] - request.gpu_milli if share else 0
        left = self.free.minus(request)
        return (on_gpu, left.gpu_milli, left.cpu_milli, left.memory_mib)

    def take(self, request: Resources) -> ReplicaPlacement:
        gpus = self.gpus_for(request.gpu_milli)
        assert gpus is not None
        for index in gpus:
            self.gpus[index] -= min(request.gpu_milli, GPU_UNIT)
        self.free = self.free.minus(request)
        return ReplicaPlacement(self.view.node_id, tuple(gpus))


class Reference:
    def __init__(self, snapshot: Snapshot, policy: Policy, now_ms: int) -> None:
        self.snapshot, self.policy, self.now_ms = snapshot, policy, now_ms
        self.nodes = sorted(
            (
                Node(view)
                for pool, nodes in snapshot.pools.items()
                if pool.region in snapshot.online_regions
                for view in nodes.values()
                if view.up and not view.draining
            ),
            key=lambda node: (node.site, node.view.node_id),
        )
        self.held = {(name, ""): view.in_use for name, view in snapshot.institutions.items()}
        self.held |= {key: view.in_use for key, view in snapshot.projects.items()}
        self.waiting: dict[GroupKey, list[PendingJob]] = {
            key: [job for job in snapshot.queue.jobs(key) for _ in range(job.tasks)] for key in snapshot.queue.groups()
        }
        self.capacity = Resources()
        for node in self.nodes:
            self.capacity = self.capacity.plus(node.view.capacity)
        self.closed: set[SiteId] = set()

    # --- tenants ----------------------------------------------------------------------------------------------------

    def share(self, tenant: tuple[str, str]) -> Fraction:
        pairs = zip(self.held[tenant], self.capacity, strict=True)
        return max((Fraction(held, total) for held, total in pairs if total), default=Fraction(0))

    def weight(self, tenant: tuple[str, str]) -> int:
        institution, project = tenant
        return (self.snapshot.projects[tenant] if project else self.snapshot.institutions[institution]).weight

    def within_quota(self, key: GroupKey) -> bool:
        institution = self.snapshot.institutions[key.institution]
        project = self.snapshot.projects[key.institution, key.project]
        for view, held in (
            (institution, self.held[key.institution, ""]),
            (project, self.held[key.institution, key.project]),
        ):
            for used, more, limit in zip(held, key.shape.total, view.quota, strict=True):
                if more and used + more > limit:
                    return False
        return True

    def charge(self, key: GroupKey) -> None:
        for tenant in ((key.institution, ""), (key.institution, key.project)):
            self.held[tenant] = self.held[tenant].plus(key.shape.total)

    def order(self, key: GroupKey) -> tuple[object, ...]:
        job = self.waiting[key][0]
        upper, lower = (key.institution, ""), (key.institution, key.project)
        return (
            self.share(upper) / self.weight(upper),
            key.institution,
            self.share(lower) / self.weight(lower),
            key.project,
            -key.priority,
            job.submit_ms,
            job.job_no,
        )

    # --- places -----------------------------------------------------------------------------------------------------

    def sites(self, shape: Shape) -> dict[SiteId, list[Node]]:
        found: dict[SiteId, list[Node]] = {}
        for node in self.nodes:
            region, pool, accelerator, has_gpus = node.site
            if shape.required_regions and region not in shape.required_regions:
                continue
            if shape.pools and pool not in shape.pools and str(PoolKey(region, pool)) not in shape.pools:
                continue
            if shape.accelerators and accelerator not in shape.accelerators:
                continue
            if not shape.accelerators and shape.request.gpu_milli and not has_gpus:
                continue
            if set(shape.node_selector) <= set(node.view.labels):
                found.setdefault(node.site, []).append(node)
        return found

    def rank(self, site: SiteId, key: GroupKey) -> tuple[int, ...]:
        region, _, accelerator, has_gpus = site
        shape = key.shape
        home = self.snapshot.institutions[key.institution].home_region

        def position(name: str, names: tuple[str, ...]) -> int:
            return names.index(name) if name in names else FAR

        return (
            int(has_gpus and not shape.request.gpu_milli),
            position(region, shape.preferred_regions),
            int(bool(home) and home != region),
            position(accelerator, shape.accelerators),
        )

    def place(self, key: GroupKey) -> tuple[SiteId, tuple[ReplicaPlacement, ...]] | None:
        request = key.shape.request
        options = []
        for site, nodes in self.sites(key.shape).items():
            if site in self.closed or not gang_fits(nodes, key.shape, empty=False):
                continue
            tightest = min((left, node.view.node_id) for node in nodes if (left := node.left(request)) is not None)
            options.append((self.rank(site, key), tightest, site, nodes))
        if not options:
            return None
        _, _, site, nodes = min(options, key=lambda option: option[:3])
        placed = []
        for _ in range(key.shape.replicas):
            best = min((left, node.view.node_id, node) for node in nodes if (left := node.left(request)) is not None)
            placed.append(best[2].take(request))
        return site, tuple(placed)

    def usable_empty(self, key: GroupKey) -> set[SiteId]:
        sites = {site for site, nodes in self.sites(key.shape).items() if gang_fits(nodes, key.shape, empty=True)}
        if key.shape.request.gpu_milli:
            return sites
        return {site for site in sites if not site[3]} or sites

    # --- the round --------------------------------------------------------------------------------------------------

    def overdue(self) -> GroupKey | None:
        def below_fair_part(key: GroupKey) -> bool:
            active = set(self.waiting)
            upper = {i for i, p in self.held if not p and (any(self.held[i, ""]) or any(i == k[0] for k in active))}
            lower = {
                (i, p)
                for i, p in self.held
                if p and i == key.institution and (any(self.held[i, p]) or any((i, p) == k[:2] for k in active))
            }
            mine = (key.institution, key.project)
            part = Fraction(self.weight((key.institution, "")), sum(self.weight((i, "")) for i in upper))
            if self.share((key.institution, "")) >= part:
                return False
            return self.share(mine) < part * Fraction(self.weight(mine), sum(self.weight(each) for each in lower))

        def could_run(key: GroupKey) -> bool:
            return self.within_quota(key) and bool(self.usable_empty(key))

        candidates = []
        for key, jobs in self.waiting.items():
            higher = [k for k in self.waiting if k[:2] == key[:2] and k.priority > key.priority and could_run(k)]
            old = self.now_ms - jobs[0].submit_ms >= self.policy.max_passed_over_ms
            if old and not higher and could_run(key) and below_fair_part(key):
                candidates.append((jobs[0].submit_ms, jobs[0].job_no, key))
        return min(candidates, key=lambda each: each[:2])[2] if candidates else None

    def start(self, key: GroupKey) -> Start | None:
        placed = self.place(key)
        if placed is None:
            return None
        self.charge(key)
        job = self.waiting[key].pop(0)
        if not self.waiting[key]:
            del self.waiting[key]
        (region, pool, accelerator, _), replicas = placed
        return Start(job.job_no, region, pool, accelerator, replicas)

    def run(self) -> Plan:
        starts: list[Start] = []
        overdue = self.overdue()
        if overdue is not None:
            usable = self.usable_empty(overdue)
            first = self.start(overdue)
            if first is not None:
                starts.append(first)
            else:
                self.closed = usable
                self.waiting.pop(overdue)
        while True:
            for key in sorted(self.waiting, key=self.order):
                started = self.start(key) if self.within_quota(key) else None
                if started is not None:
                    break
            else:
                return Plan(tuple(starts))
            if len(starts) == self.policy.max_starts_per_round:
                return Plan(tuple(starts), truncated=True)
            starts.append(started)


def gang_fits(nodes: list[Node], shape: Shape, *, empty: bool) -> bool:
    """Fill copies of the nodes one by one, each to the brim."""
    missing = shape.replicas
    for node in nodes:
        copy = Node(node.view)
        if empty:
            copy.free = node.view.capacity
            copy.gpus = [GPU_UNIT] * (node.view.capacity.gpu_milli // GPU_UNIT)
        else:
            copy.free, copy.gpus = node.free, list(node.gpus)
        while missing and copy.left(shape.request) is not None:
            copy.take(shape.request)
            missing -= 1
    return not missing


def reference_plan(snapshot: Snapshot, policy: Policy, now_ms: int) -> Plan:
    if not snapshot.queue.groups() or policy.max_starts_per_round < 1:
        return Plan()
    return Reference(snapshot, policy, now_ms).run()
