"""Random worlds and policies for the property tests of planning: small, crowded, and with something of everything."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.fit import choose_gpus, replicas_on, site_of
from scheduler.planning.mix import JobType
from scheduler.planning.policy import (
    LEVELS,
    PRESETS,
    BackfillPolicy,
    DataSet,
    Guarantee,
    OrderPolicy,
    Policy,
    PoolPolicy,
    PreemptionPolicy,
    ScorePolicy,
)
from scheduler.planning.rank import rank_of
from scheduler.planning.types import GroupKey, NodeView, PendingJob, Snapshot, Start, TenantView
from tests.unit.planning.builders import World, node, shape

NOW_MS = 100_000
POOLS = ("east/cpu", "east/gpu", "west/gpu", "west/mixed")
INSTITUTIONS = ("a", "b", "c")
MINUTE_MS = 60_000


def random_node(rng: Random, number: int) -> NodeView:
    pool = rng.choice(POOLS)
    gpus = {"cpu": 0, "gpu": rng.choice((1, 2, 4)), "mixed": rng.choice((0, 2))}[pool.split("/")[1]]
    return node(
        f"n{number}",
        pool,
        rng.choice((4000, 8000, 8000)),
        rng.choice((8192, 16_384)),
        gpus,
        rng.choice(("A100", "H20")) if gpus else "",
        labels=(("rack", rng.choice("rs")), ("zone", rng.choice("yz")))[: rng.choice((1, 2, 2))],
        up=rng.random() < 0.95,
        draining=rng.random() < 0.05,
    )


def random_shape(rng: Random) -> Shape:
    replicas = rng.choice((1, 1, 1, 2, 3, 5))
    pack = rng.choice(("", "", "node", "rack", "zone"))
    return shape(
        rng.choice((500, 1000, 2000, 4000)),
        rng.choice((256, 1024, 4096)),
        rng.choice((0, 0, 250, 400, 1000, 1000, 2000)),
        replicas,
        accelerators=rng.choice(((), (), (), ("A100",), ("H20", "A100"))),
        preferred_regions=rng.choice(((), (), ("west",))),
        required_regions=rng.choice(((), (), (), ("east",))),
        pools=rng.choice(((), (), (), ("gpu", "east/cpu", "mixed"))),
        node_selector=rng.choice(((), (), (), (("rack", "r"),))),
        data_sets=rng.choice(((), (), ("local",), ("bound", "local"))),
        pack=pack if replicas > 1 else "",
        pack_required=bool(pack) and replicas > 1 and rng.random() < 0.5,
    )


def random_tenant(rng: Random, *, top: bool) -> TenantView:
    return TenantView(
        rng.choice((500, 1000, 1000, 3000)),
        quota=Resources(12_000, 40_000, 4000) if rng.random() < 0.25 else TenantView(1).quota,
        home_region=rng.choice(("", "east", "west")) if top else "",
        past=Resources(rng.choice((0, 3000)), rng.choice((0, 5000)), rng.choice((0, 1000))),
    )


def random_key(rng: Random, shapes: list[Shape]) -> GroupKey:
    return GroupKey(
        rng.choice(INSTITUTIONS),
        rng.choice("pq"),
        rng.choice("uv"),
        rng.choice((PriorityClass.LOW, PriorityClass.NORMAL, PriorityClass.NORMAL, PriorityClass.HIGH)),
        rng.random() < 0.6,
        rng.choice(shapes),
    )


def random_job(rng: Random, world: World, key: GroupKey, order: OrderPolicy, now_ms: int) -> PendingJob:
    """The next job of a line, not yet in it."""
    limit_ms = rng.choice((1, 2, 5, 30)) * MINUTE_MS
    expected_ms = max(1, limit_ms // rng.choice((1, 2, 10)))
    submit_ms = now_ms - rng.randrange(NOW_MS)
    rank = rank_of(order, submit_ms, key.priority, key.shape.total, expected_ms)
    number = world.next_no
    world.next_no += 1
    tasks = rng.choice((1, 1, 1, 3))
    return PendingJob(rank, number, tasks, submit_ms, expected_ms, limit_ms, rng.choice((0, 10_000, 30_000)))


def queue_some(rng: Random, world: World, shapes: list[Shape], order: OrderPolicy, lines: int, now_ms: int) -> None:
    for _ in range(lines):
        key = random_key(rng, shapes)
        line = world.lines.setdefault(key, [])
        line.extend(random_job(rng, world, key, order, now_ms) for _ in range(rng.choice((1, 2, 4))))


def run_something(rng: Random, world: World, shapes: list[Shape], now_ms: int) -> None:
    """Let an attempt run, somewhere it fits, if it fits at all where it is tried; rules of pools are not looked at."""
    key = random_key(rng, shapes)
    site = site_of(rng.choice(world.nodes))
    placed: list[ReplicaPlacement] = []
    request = key.shape.request
    free = {view.node_id: (view.free, list(view.gpu_free)) for view in world.nodes if site_of(view) == site}
    for node_id in sorted(free, key=lambda _: rng.random()):
        while len(placed) < key.shape.replicas and replicas_on(request, *free[node_id]):
            gpus = choose_gpus(request.gpu_milli, free[node_id][1])
            assert gpus is not None
            for index in gpus:
                free[node_id][1][index] -= min(request.gpu_milli, GPU_UNIT)
            free[node_id] = (free[node_id][0].minus(request), free[node_id][1])
            placed.append(ReplicaPlacement(node_id, gpus))
    if len(placed) < key.shape.replicas:
        return
    start = Start(world.next_no, site.region, site.pool, site.accelerator, tuple(placed))
    world.next_no += 1
    world.hold(start, key, 1)
    started_ms = now_ms - rng.choice((0, 1, 15)) * MINUTE_MS
    limit_ms = now_ms - started_ms + rng.choice((0, 1, 2, 5, 30)) * MINUTE_MS
    view = world.run(start, key, limit_ms, rng.choice((0, 10_000)))
    world.running[view.launch_seq] = replace(
        view, start_ms=started_ms, saved_ms=started_ms, limit_end_ms=started_ms + limit_ms
    )


def random_world(rng: Random, policy: Policy, now_ms: int = NOW_MS) -> World:
    world = World([random_node(rng, number) for number in range(rng.choice((0, 1, 2, 3, 4, 6, 8)))], now_ms=now_ms)
    world.institutions = {name: random_tenant(rng, top=True) for name in INSTITUTIONS}
    world.projects = {(name, project): random_tenant(rng, top=False) for name in INSTITUTIONS for project in "pq"}
    world.users = {(*key, "u"): random_tenant(rng, top=False) for key in world.projects}
    shapes = [random_shape(rng) for _ in range(rng.randint(1, 5))]
    for _ in range(rng.choice((0, 2, 6, 12)) if world.nodes else 0):
        run_something(rng, world, shapes, now_ms)
    queue_some(rng, world, shapes, policy.order, rng.choice((0, 3, 6, 9, 12)), now_ms)
    if rng.random() < 0.2:
        world.offline = frozenset({rng.choice(("east", "west"))})
    if rng.random() < 0.2:
        # What nobody accounts for: no reservation can count on its end.
        world.nodes = [
            replace(view, free=view.free._replace(cpu_milli=view.free.cpu_milli // 2)) if rng.random() < 0.5 else view
            for view in world.nodes
        ]
    if rng.random() < 0.2:
        waiting = [(job.job_no, key) for key, jobs in world.lines.items() for job in jobs]
        world.claims = dict(rng.sample(waiting, min(2, len(waiting))))
    return world


def random_guarantees(rng: Random) -> tuple[Guarantee, ...]:
    found = []
    for pool in POOLS:
        for institution in INSTITUTIONS:
            if rng.random() < 0.5:
                some = Resources(rng.choice((0, 4000)), rng.choice((0, 8192)), rng.choice((0, 1000)))
                limits = [None, None, Resources(), some]
                amount = Resources(rng.choice((0, 4000, 8000)), rng.choice((4096, 16_384)), rng.choice((0, 2000)))
                found.append(Guarantee(institution, pool, amount, rng.choice(limits), rng.choice(limits)))
    return tuple(found)


def random_policy(rng: Random, *, preemption: bool = False) -> Policy:
    """Any policy, or a preset; without preemption unless asked for."""
    order = OrderPolicy(
        LEVELS[: rng.randint(0, 3)],
        shortness_milli=rng.choice((0, 0, 10_000)),
        class_head_start_ms=rng.choice((0, 50_000)),
        past_milli=rng.choice((0, 0, 500, 1000)),
    )
    stop_none = PreemptionPolicy(reclaim=False, priority=False)
    stop_some = PreemptionPolicy(
        reclaim=rng.random() < 0.7,
        fair_share=rng.random() < 0.5,
        priority=rng.random() < 0.7,
        shorter_milli=rng.choice((0, 2000)),
        min_runtime_ms=rng.choice((0, 5 * MINUTE_MS)),
        per_hour=rng.choice((0, 1, 2, 60)),
        per_round=rng.choice((1, 3, 64)),
    )
    weights = (0, 0, 1000, 3000)
    made = Policy(
        order=order,
        guarantees=random_guarantees(rng) if rng.random() < 0.5 else (),
        preemption=stop_some if preemption else stop_none,
        backfill=BackfillPolicy(rng.choice((0, 0, 1, 3, 16)), rng.choice((0, 2, 16)), rng.choice((3 * 60_000, 10**10))),
        score=ScorePolicy(
            fragmentation=rng.choice((0, 1000)),
            best_fit=rng.choice((0, 1000)),
            accelerator_order=rng.random() < 0.7,
            home=rng.choice(weights),
            locality=rng.choice(weights),
            price=rng.choice(weights),
            speed=rng.choice(weights),
        ),
        pools={"west/mixed": PoolPolicy(True, 5, 100), "east/gpu": PoolPolicy(False, 10, 300)},
        data_sets={
            "local": DataSet(1_000_000, ("east",)),
            "bound": DataSet(10, ("west",), rng.choice((("west",), ("east", "west")))),
        },
        speed_milli={"A100": rng.choice((1000, 2000)), "H20": 500},
        bandwidth_mib_s=rng.choice(({}, {"": 50}, {"east/west": 10, "": 1000})),
        max_starts_per_round=rng.choice((1, 3, 512, 512)),
        max_passed_over_ms=rng.choice((0, 30_000, 10**9)),
    )
    if rng.random() < 0.3:
        preset = PRESETS[rng.choice(sorted(PRESETS))]
        preset = preset if preemption else replace(preset, preemption=stop_none)
        return replace(preset, guarantees=made.guarantees, pools=made.pools, data_sets=made.data_sets)
    return made


def with_mix(rng: Random, snapshot: Snapshot) -> Snapshot:
    """The workload seen is about that which waits, or unknown."""
    counts: dict[JobType, int] = {}
    for key in snapshot.queue.groups() if rng.random() < 0.7 else ():
        kind = JobType(key.shape.request, tuple(sorted(key.shape.accelerators)))
        counts[kind] = counts.get(kind, 0) + rng.randint(1, 20)
    return replace(snapshot, mix=counts)


seeds = st.integers(0, (1 << 62) - 1)
"""Seeds of ``random.Random``. Drawn one by one, the choices made above would lean to the simplest, and worlds would be empty."""
