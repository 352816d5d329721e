"""The planner's rules written down as plainly as possible: every step looks at everything again, replicas are tried one by one.

Slow and, one hopes, obviously right; the fast planner must answer the same. Nothing is stopped for anybody here: eviction has
its own tests. How nodes are compared is a parameter (``Score``), so that another scorer needs another function and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import Guarantee, Policy, PoolPolicy
from scheduler.planning.types import (
    GroupKey,
    NodeView,
    PendingJob,
    Plan,
    PoolKey,
    PoolUse,
    Reservation,
    Snapshot,
    Start,
)

SiteId = tuple[str, str, str, bool]
Score = Callable[[Resources, Sequence[int], Resources], Any]
"""How well a replica of a request would stand on a node with so much free, on which it fits: lower is better."""
LAST = 1 << 30
WHOLE = 1 << 60


def gpus_for(milli: int, free: Sequence[int]) -> tuple[int, ...] | None:
    """The fullest GPU with room for a share; the first whole ones else."""
    if milli == 0:
        return ()
    if milli < GPU_UNIT:
        possible = [index for index, left in enumerate(free) if left >= milli]
        return (min(possible, key=lambda index: (free[index], index)),) if possible else None
    whole = [index for index, left in enumerate(free) if left == GPU_UNIT]
    count = milli // GPU_UNIT
    return tuple(whole[:count]) if milli % GPU_UNIT == 0 and len(whole) >= count else None


def best_fit(free: Resources, gpus: Sequence[int], request: Resources) -> tuple[int, ...]:
    """The interim scorer's order, coarse as it is there: 16 milli-cores and 256 MiB are the least that makes a difference."""
    chosen = gpus_for(request.gpu_milli, gpus)
    share = 0 < request.gpu_milli < GPU_UNIT
    on_gpu = gpus[chosen[0]] - request.gpu_milli if share and chosen else 0
    left = free.minus(request)
    most = (1 << 17) - 1
    return (
        on_gpu,
        min(left.gpu_milli, (1 << 16) - 1),
        min(left.cpu_milli // 16, most),
        min(left.memory_mib // 256, most),
    )


class Room:
    """What is free on a node."""

    def __init__(self, free: Resources, gpus: Sequence[int]) -> None:
        self.free, self.gpus = free, list(gpus)

    def copy(self) -> Room:
        return Room(self.free, self.gpus)

    def fits(self, request: Resources) -> bool:
        return request.fits(self.free) and gpus_for(request.gpu_milli, self.gpus) is not None

    def give(self, request: Resources, indexes: Sequence[int], sign: int = 1) -> None:
        self.free = self.free.plus(request.times(sign))
        for index in indexes:
            self.gpus[index] += sign * min(request.gpu_milli, GPU_UNIT)

    def take(self, request: Resources) -> tuple[int, ...]:
        indexes = gpus_for(request.gpu_milli, self.gpus)
        assert indexes is not None
        self.give(request, indexes, -1)
        return indexes

    def count(self, request: Resources, most: int) -> int:
        left, count = self.copy(), 0
        while count < most and left.fits(request):
            left.take(request)
            count += 1
        return count

    def least(self, other: Room) -> Room:
        return Room(
            Resources(*map(min, self.free, other.free)), [min(a, b) for a, b in zip(self.gpus, other.gpus, strict=True)]
        )


class Node:
    """A node: what anybody may have of it (``room``) and, while some is kept for a reservation, what is really free."""

    def __init__(self, view: NodeView, snapshot: Snapshot) -> None:
        self.view = view
        self.id = view.node_id
        self.site: SiteId = (view.region, view.pool, view.accelerator, view.capacity.gpu_milli > 0)
        self.serves = view.up and not view.draining
        self.room = Room(view.free, view.gpu_free)
        self.real: Room | None = None
        self.until_ms = 0
        self.releases = []
        for running in snapshot.running.values():
            end_ms = running.stopped_by_ms or running.limit_end_ms + running.grace_ms
            for replica in running.replicas:
                if (running.region, replica.node_id) == (view.region, view.node_id):
                    self.releases.append((end_ms, running.group.shape.request, replica.gpu_indexes))

    def carries(self, shape: Shape) -> bool:
        return self.serves and set(shape.node_selector) <= set(self.view.labels)

    def domain(self, label: str) -> str:
        values = dict(self.view.labels)
        return f"node {self.id}" if label == "node" or label not in values else f"value {values[label]}"

    def room_at(self, time_ms: int) -> Room:
        """What anybody may have when all that ends by then has ended."""
        then = self.room.copy()
        for end_ms, request, indexes in self.releases:
            if end_ms <= time_ms:
                then.give(request, indexes)
        return then

    def place(self, request: Resources, *, really: bool = False) -> ReplicaPlacement:
        if really:
            assert self.real is not None
            indexes = self.real.take(request)
            self.room = self.room.least(self.real)
        else:
            indexes = self.room.take(request)
            if self.real is not None:
                self.real.give(request, indexes, -1)
        return ReplicaPlacement(self.id, indexes)

    def keep(self, request: Resources, replicas: int, time_ms: int) -> None:
        then = self.room_at(time_ms)
        for _ in range(replicas):
            then.take(request)
        self.real, self.until_ms = self.room.copy(), time_ms
        self.room = self.room.least(then)


class Tenants:
    """Shares, quotas and guarantees, from what is held now."""

    def __init__(self, snapshot: Snapshot, policy: Policy, nodes: list[Node]) -> None:
        self.snapshot, self.policy = snapshot, policy
        self.held: dict[tuple[str, ...], Resources] = {(name,): v.in_use for name, v in snapshot.institutions.items()}
        self.held |= {key: view.in_use for key, view in snapshot.projects.items()}
        self.held |= {key: view.in_use for key, view in snapshot.users.items()}
        self.use = dict(snapshot.pool_use)
        self.capacity: dict[PoolKey, Resources] = {}
        for node in nodes:
            if node.serves and node.view.region in snapshot.online_regions:
                pool = PoolKey(node.view.region, node.view.pool)
                self.capacity[pool] = self.capacity.get(pool, ZERO).plus(node.view.capacity)
        self.whole = ZERO
        for amount in self.capacity.values():
            self.whole = self.whole.plus(amount)

    def view(self, path: tuple[str, ...]) -> Any:
        if len(path) == 1:
            return self.snapshot.institutions[path[0]]
        return self.snapshot.projects[path] if len(path) == 2 else self.snapshot.users.get(path)  # type: ignore[index,call-overload]

    def dominant(self, held: Resources) -> int:
        return max(each * (WHOLE // whole) if whole else 0 for each, whole in zip(held, self.whole, strict=True))

    def weight(self, path: tuple[str, ...]) -> int:
        view = self.view(path)
        return view.weight if view else 1000

    def share(self, path: tuple[str, ...]) -> int:
        view, past = self.view(path), self.policy.order.past_milli
        before = view.past if view else ZERO
        mixed = self.held.get(path, ZERO).times(1000 - past).plus(before.times(past))
        return self.dominant(mixed) // self.weight(path)

    def charge(self, key: GroupKey, pool: PoolKey) -> None:
        total = key.shape.total
        for depth in (1, 2, 3):
            path = key.path(depth)
            self.held[path] = self.held.get(path, ZERO).plus(total)
        use = self.use.get((key.institution, pool), PoolUse(ZERO, ZERO))
        self.use[key.institution, pool] = PoolUse(
            use.held.plus(total), use.firm if key.preemptible else use.firm.plus(total)
        )

    def within_quota(self, key: GroupKey) -> bool:
        for path in (key.path(1), key.path(2)):
            for used, more, most in zip(self.held[path], key.shape.total, self.view(path).quota, strict=True):
                if more and used + more > most:
                    return False
        return True

    # --- guarantees ---------------------------------------------------------------------------------------------------

    def of_pool(self, pool: PoolKey) -> dict[str, Guarantee]:
        return {each.institution: each for each in self.policy.guarantees if each.pool == str(pool)}

    def standing(self, key: GroupKey, pool: PoolKey) -> int:
        """0 within the guarantee, 1 borrowed, 2 not at all."""
        guarantees = self.of_pool(pool)
        if not guarantees:
            return 0
        users = {name for name, where in self.use if where == pool} | set(guarantees)

        def used(name: str) -> PoolUse:
            return self.use.get((name, pool), PoolUse(ZERO, ZERO))

        me, worst = key.institution, 0
        for r, asked in enumerate(key.shape.total):
            amount = {name: guarantees[name].amount[r] if name in guarantees else 0 for name in {*users, me}}
            if not asked or used(me).held[r] + asked <= amount[me]:
                continue
            mine = guarantees.get(me)
            limit = mine.borrowing if mine else None
            free = self.capacity.get(pool, ZERO)[r] - sum(used(name).held[r] for name in users) - asked
            unlent = sum(
                max(0, each.amount[r] - each.lending[r] - used(name).held[r])
                for name, each in guarantees.items()
                if name != me and each.lending is not None
            )
            firm = {name: used(name).firm[r] for name in {*users, me}}
            firm[me] += asked
            for_all = sum(max(amount[name], firm[name]) for name in {*users, me})
            refused = (
                (limit is not None and used(me).held[r] + asked > amount[me] + limit[r])
                or free < unlent
                or (not key.preemptible and for_all > self.capacity.get(pool, ZERO)[r])
            )
            worst = max(worst, 2 if refused else 1)
        return worst

    def borrowed(self, name: str) -> int:
        total = ZERO
        for pool in {PoolKey(*each.pool.split("/")) for each in self.policy.guarantees}:
            own = self.of_pool(pool).get(name)
            held = self.use.get((name, pool), PoolUse(ZERO, ZERO)).held
            over = held.minus(own.amount if own else ZERO)
            total = total.plus(Resources(*(max(0, each) for each in over)))
        return self.dominant(total)


class Reference:
    def __init__(self, snapshot: Snapshot, policy: Policy, now_ms: int, score: Score) -> None:
        self.snapshot, self.policy, self.now_ms, self.score = snapshot, policy, now_ms, score
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
            position(site[2], shape.accelerators),
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
            best = min((self.score(n.room.free, n.room.gpus, request), n.id) for n in nodes if self.one_fits(n, shape))
            spare, region, cost, accelerator = self.preference(site, key)
            options.append(((spare, region, standing, cost, accelerator, found[0], best, site), site, found[1]))
        if not options:
            if not barred:
                self.full.add(self.kind(key))
            return None
        _, site, nodes = min(options, key=lambda each: each[0])
        placed = []
        for _ in range(shape.replicas):
            fitting = [
                (self.score(n.room.free, n.room.gpus, request), n.id, n) for n in nodes if self.one_fits(n, shape)
            ]
            placed.append(min(fitting, key=lambda each: each[:2])[2].place(request))
        return site, tuple(placed)

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

    def reserve(self, key: GroupKey, job: PendingJob, sites: dict[SiteId, list[Node]]) -> SiteId | None:
        best: tuple[int, list[Node], SiteId] | None = None
        for site, nodes in sites.items():
            found = self.earliest(nodes, key.shape)
            if found is not None and (best is None or found[0] < best[0]):
                best = (*found, site)
        if best is None:
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
                    placed.append(node.place(shape.request))
            for node in eligible:
                while len(placed) < shape.replicas and node.real and node.real.fits(shape.request):
                    placed.append(node.place(shape.request, really=True))
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
            near = list(self.snapshot.queue.jobs(key))[: self.policy.backfill.look + 1]
            job = next((each for each in near if each.job_no == job_no), None)
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
            self.reserve(key, self.waiting[key][0], self.may_stand(key))
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


def reference_plan(snapshot: Snapshot, policy: Policy, now_ms: int, score: Score = best_fit) -> Plan:
    if not snapshot.queue.groups() or not any(snapshot.pools.values()) or policy.max_starts_per_round < 1:
        return Plan()
    return Reference(snapshot, policy, now_ms, score).run()
