"""The planner's rules written down as plainly as possible: every step looks at everything again, replicas are tried one by one.

Slow and, one hopes, obviously right; the fast planner must answer the same. Nothing is stopped for anybody here: eviction has
its own tests. How nodes are compared is a parameter (``Scoring``), so that another scorer needs another class and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import Policy, PoolPolicy
from scheduler.planning.types import GroupKey, PendingJob, Plan, PoolKey, Reservation, Snapshot, Start
from tests.property.reference_rooms import Node, Room, Scoring, SiteId, Worth
from tests.property.reference_tenants import WHOLE, Tenants

LAST = 1 << 30


class Reference:
    def __init__(self, snapshot: Snapshot, policy: Policy, now_ms: int, scoring: Scoring) -> None:
        self.snapshot, self.policy, self.now_ms, self.scoring = snapshot, policy, now_ms, scoring
        views = [view for nodes in snapshot.pools.values() for view in nodes.values()]
        self.nodes = sorted((Node(view, snapshot) for view in views), key=lambda each: (each.site, each.id))
        self.tenants = Tenants(snapshot, policy, self.nodes)
        self.waiting = {
            key: [job for job in snapshot.queue.jobs(key) for _ in range(job.tasks)] for key in snapshot.queue.groups()
        }
        self.out: set[GroupKey] = set()
        self.full: set[tuple[Shape, str, bool]] = set()
        self.served: set[int] = set()
        self.starts: list[Start] = []
        self.reservations: list[Reservation] = []
        self.kept_until = 0
        self.tried = 0
        self.truncated = False

    # --- places -------------------------------------------------------------------------------------------------------

    def home(self, key: GroupKey) -> str:
        return self.snapshot.institutions[key.institution].home_region

    def kind(self, key: GroupKey) -> tuple[Shape, str, bool]:
        return (key.shape, self.home(key), key.preemptible)

    def sites(self, key: GroupKey) -> dict[SiteId, list[Node]]:
        """All nodes of the sites the rules let the job stand on."""
        shape, policy = key.shape, self.policy
        found: dict[SiteId, list[Node]] = {}
        for node in self.nodes:
            region, pool, accelerator, has_gpus = node.site
            full_name = f"{region}/{pool}"
            bound = [policy.data_sets[name].allowed_regions for name in shape.data_sets if name in policy.data_sets]
            if (
                region in self.snapshot.online_regions
                and (not shape.required_regions or region in shape.required_regions)
                and all(not regions or region in regions for regions in bound)
                and (not shape.pools or pool in shape.pools or full_name in shape.pools)
                and (key.preemptible or not policy.pools.get(full_name, PoolPolicy()).spot)
                and (not shape.accelerators or accelerator in shape.accelerators)
                and (shape.accelerators or not shape.request.gpu_milli or has_gpus)
            ):
                found.setdefault(node.site, []).append(node)
        return found

    def cost(self, site: SiteId, key: GroupKey) -> int:
        region, pool, accelerator, _ = site
        weights, policy, total = self.policy.score, self.policy, key.shape.total
        home = self.home(key)
        away = weights.home if home and home != region else 0
        move_ms = 0
        for name in key.shape.data_sets:
            data = policy.data_sets.get(name)
            if data and data.regions and region not in data.regions:
                speeds = policy.bandwidth_mib_s
                each = [data.size_mib * 1000 // speeds.get(f"{a}/{region}", speeds.get("", 100)) for a in data.regions]
                move_ms += min(each)
        prices = policy.pools.get(f"{region}/{pool}", PoolPolicy())
        per_hour = total.cpu_milli * prices.cpu_core_hour + total.gpu_milli * prices.gpu_hour
        slowness = 1_000_000 // policy.speed_milli.get(accelerator, 1000) - 1000 if accelerator else 0
        return (
            away
            + weights.locality * move_ms // 3_600_000
            + weights.price * per_hour // 100_000
            + weights.speed * slowness // 1000
        )

    def chosen(self, nodes: list[Node], shape: Shape, rooms: dict[str, int]) -> tuple[int, list[Node]] | None:
        """Of a site, the nodes on which the job should stand, and in how many domains they are."""
        inside = [node for node in nodes if rooms[node.id]]
        if sum(rooms.values()) < shape.replicas:
            return None
        if not shape.pack or shape.replicas == 1:
            return (0, inside)
        order = list(dict.fromkeys(node.domain(shape.pack) for node in nodes))
        has = {name: sum(rooms[node.id] for node in nodes if node.domain(shape.pack) == name) for name in order}
        picked: list[str] = []
        missing = shape.replicas
        while True:
            enough = [name for name in order if name not in picked and has[name] >= missing]
            if enough:
                picked.append(min(enough, key=lambda name: (has[name], order.index(name))))
                break
            if shape.pack_required:
                return None
            most = max((name for name in order if name not in picked), key=lambda name: (has[name], -order.index(name)))
            picked.append(most)
            missing -= has[most]
        return len(picked), [node for node in inside if node.domain(shape.pack) in picked]

    def now_on(self, nodes: list[Node], shape: Shape) -> tuple[int, list[Node]] | None:
        rooms = {n.id: n.room.count(shape.request, shape.replicas) if n.carries(shape) else 0 for n in nodes}
        return self.chosen(nodes, shape, rooms)

    def usable_empty(self, key: GroupKey) -> dict[SiteId, list[Node]]:
        """The sites that could hold the job if they were empty, best first; GPU nodes only if there are no others."""
        shape, found = key.shape, {}
        for site, nodes in sorted(self.sites(key).items(), key=lambda each: (self.preference(each[0], key), each[0])):
            rooms = {}
            for node in nodes:
                empty = Room(node.view.capacity, [GPU_UNIT] * len(node.view.gpu_free))
                rooms[node.id] = empty.count(shape.request, shape.replicas) if node.carries(shape) else 0
            if self.chosen(nodes, shape, rooms) is not None:
                found[site] = nodes
        if shape.request.gpu_milli == 0 and any(not site[3] for site in found):
            return {site: nodes for site, nodes in found.items() if not site[3]}
        return found

    def preference(self, site: SiteId, key: GroupKey) -> tuple[int, ...]:
        shape = key.shape

        def position(name: str, names: tuple[str, ...]) -> int:
            return names.index(name) if name in names else LAST

        return (
            int(site[3] and not shape.request.gpu_milli),
            position(site[0], shape.preferred_regions),
            self.cost(site, key),
            position(site[2], shape.accelerators) if self.policy.score.accelerator_order else 0,
        )

    def place(self, key: GroupKey) -> tuple[SiteId, tuple[ReplicaPlacement, ...]] | None:
        shape, request = key.shape, key.shape.request
        options = []
        barred = False
        for site, nodes in self.sites(key).items():
            standing = self.tenants.standing(key, PoolKey(site[0], site[1]))
            barred = barred or standing == 2
            found = self.now_on(nodes, shape)
            if standing == 2 or found is None:
                continue
            best = min((self.score(n, request), n.id) for n in nodes if self.one_fits(n, shape))
            spare, region, cost, accelerator = self.preference(site, key)
            options.append(((spare, region, standing, cost, accelerator, found[0], best, site), site, found[1]))
        if not options:
            if not barred:
                self.full.add(self.kind(key))
            return None
        _, site, nodes = min(options, key=lambda each: each[0])
        placed = []
        for _ in range(shape.replicas):
            fitting = [(self.score(n, request), n.id, n) for n in nodes if self.one_fits(n, shape)]
            placed.append(min(fitting, key=lambda each: each[:2])[2].place(request, self.scoring))
        return site, tuple(placed)

    def score(self, node: Node, request: Resources) -> int:
        return self.scoring.score(node.view, node.room.free, node.room.gpus, request)

    def one_fits(self, node: Node, shape: Shape) -> bool:
        return node.carries(shape) and node.room.fits(shape.request)

    def one_fits_somewhere(self, key: GroupKey) -> bool:
        return any(self.one_fits(node, key.shape) for nodes in self.sites(key).values() for node in nodes)

    # --- reservations -------------------------------------------------------------------------------------------------

    def may_stand(self, key: GroupKey) -> dict[SiteId, list[Node]]:
        sites = self.usable_empty(key)
        return {
            site: nodes for site, nodes in sites.items() if self.tenants.standing(key, PoolKey(site[0], site[1])) < 2
        }

    def earliest(self, nodes: list[Node], shape: Shape) -> tuple[int, list[Node]] | None:
        """The first time at which a site has room, and a node for each replica: as rooms come, by time and node id."""
        usable = [node for node in nodes if node.carries(shape) and node.real is None]
        comes: list[tuple[int, str, Node]] = []
        for node in usable:
            had = 0
            for time_ms in sorted({0, *(end_ms for end_ms, _, _ in node.releases)}):
                then = node.room_at(time_ms) if time_ms else node.room
                room = then.count(shape.request, shape.replicas)
                comes += [(time_ms, node.id, node)] * (room - had)
                had = room
        comes.sort(key=lambda each: each[:2])
        if shape.pack and shape.replicas > 1:
            count: dict[str, int] = {}
            for at, (_, _, node) in enumerate(comes):
                name = node.domain(shape.pack)
                # All that a node gains at one time comes at once.
                last_of_its_kind = at + 1 == len(comes) or comes[at + 1][:2] != comes[at][:2]
                count[name] = count.get(name, 0) + 1
                if count[name] >= shape.replicas and last_of_its_kind:
                    comes = [each for each in comes if each[2].domain(shape.pack) == name]
                    break
            else:
                if shape.pack_required:
                    return None
        if len(comes) < shape.replicas:
            return None
        chosen = comes[: shape.replicas]
        return max(self.now_ms, chosen[-1][0]), [node for _, _, node in chosen]

    def reserve(
        self, key: GroupKey, job: PendingJob, sites: dict[SiteId, list[Node]], by_ms: int | None = None
    ) -> SiteId | None:
        best: tuple[int, list[Node], SiteId] | None = None
        for site, nodes in sites.items():
            found = self.earliest(nodes, key.shape)
            if found is not None and (best is None or found[0] < best[0]):
                best = (*found, site)
        if best is None or (by_ms is not None and best[0] > by_ms):
            return None
        start_ms, chosen, site = best
        for node in {node.id: node for node in chosen}.values():
            node.keep(key.shape.request, chosen.count(node), start_ms)
        self.kept_until = max(self.kept_until, start_ms)
        self.reservations.append(Reservation(job.job_no, *site[:3], tuple(node.id for node in chosen), start_ms))
        return site

    def squeeze(self, key: GroupKey) -> bool:
        """Start the line's first job if it is gone before the reservations in whose place it stands begin."""
        job, shape = self.waiting[key][0], key.shape
        end_ms = self.now_ms + job.limit_ms + job.grace_ms
        if len(self.starts) >= self.policy.max_starts_per_round or job.job_no in self.served:
            return False
        for site, nodes in self.may_stand(key).items() if self.tenants.within_quota(key) else ():
            room = {
                n.id: n.real.count(shape.request, shape.replicas)
                for n in nodes
                if n.real is not None and n.until_ms > end_ms and n.carries(shape)
            }
            eligible = sorted((n for n in nodes if room.get(n.id)), key=lambda n: (n.until_ms, n.id))
            if not eligible or (shape.pack and shape.replicas > 1):
                continue
            others = [n for n in nodes if n not in eligible and n.carries(shape)] if shape.replicas > 1 else []
            placed: list[ReplicaPlacement] = []
            if sum(n.room.count(shape.request, shape.replicas) for n in others) + sum(room.values()) < shape.replicas:
                continue
            for node in others:
                while len(placed) < shape.replicas and node.room.fits(shape.request):
                    placed.append(node.place(shape.request, self.scoring))
            for node in eligible:
                while len(placed) < shape.replicas and node.real and node.real.fits(shape.request):
                    placed.append(node.place_before_reservation(shape.request))
            self.started(key, job, site, tuple(placed))
            self.waiting[key].pop(0)
            return True
        return False

    # --- the round ----------------------------------------------------------------------------------------------------

    def below_fair_part(self, key: GroupKey) -> bool:
        levels = len(self.policy.order.fair_levels)
        mine, everybody = 1, 1
        for depth in range(1, levels + 1):
            path = key.path(depth)
            known = {(i,) for i in self.snapshot.institutions} | set(self.snapshot.projects) | set(self.snapshot.users)
            asking = {line.path(depth) for line in self.waiting_at_first}
            peers = {p for p in known | asking if len(p) == depth and p[:-1] == path[:-1]}
            active = [p for p in peers if p in asking or any(self.tenants.held.get(p, ZERO))]
            mine *= self.tenants.weight(path)
            everybody *= sum(self.tenants.weight(p) for p in active)
            if self.tenants.dominant(self.tenants.held.get(path, ZERO)) * everybody >= WHOLE * mine:
                return False
        return True

    def started(self, key: GroupKey, job: PendingJob, site: SiteId, replicas: tuple[ReplicaPlacement, ...]) -> None:
        self.starts.append(Start(job.job_no, *site[:3], replicas))
        self.tenants.charge(key, PoolKey(site[0], site[1]))
        for replica in replicas:
            (node,) = (each for each in self.nodes if (each.site, each.id) == (site, replica.node_id))
            end_ms = self.now_ms + job.limit_ms + job.grace_ms
            node.releases.append((end_ms, key.shape.request, replica.gpu_indexes))

    def start(self, key: GroupKey, job: PendingJob) -> bool:
        found = self.place(key)
        if found is not None:
            self.started(key, job, *found)
        return found is not None

    def serve(self, key: GroupKey, job: PendingJob, *, claims: bool) -> None:
        bounded = len(self.starts) >= self.policy.max_starts_per_round
        if not bounded and self.start(key, job):
            if self.waiting[key][0].job_no == job.job_no:
                self.waiting[key].pop(0)
                return
            self.truncated = self.truncated or job.tasks > 1
        else:
            self.truncated = self.truncated or bounded
            site = self.reserve(key, job, self.may_stand(key))
            if claims and site is not None:
                self.tenants.charge(key, PoolKey(site[0], site[1]))
        self.served.add(job.job_no)

    def claims_and_overdue(self) -> None:
        self.waiting_at_first = dict(self.waiting)
        for job_no, key in sorted(self.snapshot.claims.items()):
            job = next((each for each in self.snapshot.queue.jobs(key) if each.job_no == job_no), None)
            if job is not None and self.tenants.within_quota(key):
                self.serve(key, job, claims=True)
        heads = [(job.rank, job.job_no, key, job) for key in self.waiting_at_first for job in [self.head(key)]]
        until = self.now_ms - self.policy.max_passed_over_ms
        for rank, job_no, key, job in sorted(heads, key=lambda each: each[:2]):
            runs = self.tenants.within_quota(key) and self.may_stand(key)
            if rank <= until and runs and (not self.policy.order.fair_levels or self.below_fair_part(key)):
                if job_no not in self.served and all(start.job_no != job_no for start in self.starts):
                    self.serve(key, job, claims=False)
                return

    def head(self, key: GroupKey) -> PendingJob:
        return next(iter(self.snapshot.queue.jobs(key)))

    def order(self, key: GroupKey) -> tuple[Any, ...]:
        place: list[Any] = []
        for depth in range(1, len(self.policy.order.fair_levels) + 1):
            if depth == 1:
                place.append(self.tenants.borrowed(key.institution))
            place += [self.tenants.share(key.path(depth)), key.path(depth)[-1]]
        job = self.waiting[key][0]
        return (*place, job.rank, job.job_no)

    def blocked(self, key: GroupKey) -> None:
        def waits() -> bool:
            return bool(self.waiting[key])

        if self.kept_until > self.now_ms:
            while waits() and self.squeeze(key):
                pass
        if not waits() or not self.tenants.within_quota(key):
            return
        if self.tried < self.policy.backfill.reservations:
            self.tried += 1
            by_ms = self.now_ms + self.policy.backfill.horizon_ms
            self.reserve(key, self.waiting[key][0], self.may_stand(key), by_ms)
        if self.kept_until > self.now_ms:
            self.skip(key)
            for _ in range(self.policy.backfill.look):
                if waits() and not self.squeeze(key):
                    self.skip(key)

    def skip(self, key: GroupKey) -> None:
        first = self.waiting[key][0]
        while self.waiting[key] and self.waiting[key][0] is first:
            self.waiting[key].pop(0)

    def run(self) -> Plan:
        self.claims_and_overdue()
        while lines := [key for key, jobs in self.waiting.items() if jobs and key not in self.out]:
            key = min(lines, key=self.order)
            job = self.waiting[key][0]
            if job.job_no in self.served:
                self.skip(key)
            elif not self.tenants.within_quota(key):
                self.out.add(key)
            elif len(self.starts) < self.policy.max_starts_per_round:
                if self.start(key, job):
                    self.waiting[key].pop(0)
                else:
                    self.blocked(key)
                    self.out.add(key)
            elif self.kind(key) in self.full or not self.one_fits_somewhere(key):
                self.out.add(key)
            else:
                self.truncated = True
                break
        return Plan(tuple(self.starts), self.truncated, (), tuple(self.reservations))


def reference_plan(
    snapshot: Snapshot, policy: Policy, now_ms: int, scoring: Callable[[Snapshot, Policy], Scoring] = Worth
) -> Plan:
    if not snapshot.queue.groups() or not any(snapshot.pools.values()) or policy.max_starts_per_round < 1:
        return Plan()
    return Reference(snapshot, policy, now_ms, scoring(snapshot, policy)).run()
