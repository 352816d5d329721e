"""What holds of every plan, with all the policy can ask for: reservations, evictions, guarantees, under presets and random policies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings

from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.board import end_at_latest_ms
from scheduler.planning.plan import plan
from scheduler.planning.policy import PRESETS, BackfillPolicy, Guarantee, OrderPolicy, Policy, PreemptionPolicy
from scheduler.planning.rank import rank_of, service_ms
from scheduler.planning.types import Eviction, GroupKey, Plan, PoolKey, Snapshot, TenantView
from tests.property.planning_play import Play
from tests.property.planning_worlds import (
    INSTITUTIONS,
    MINUTE_MS,
    NOW_MS,
    queue_some,
    random_policy,
    random_shape,
    random_world,
    run_something,
    seeds,
)
from tests.property.reference_rooms import Node, Room
from tests.property.reference_tenants import Tenants
from tests.unit.planning.builders import ListQueue, World, node, shape


def evictable_world(seed: int) -> tuple[World, Policy, Snapshot]:
    """Few nodes, much that runs, and much that waits."""
    rng = Random(seed)
    policy = random_policy(rng, preemption=True)
    world = random_world(rng, policy)
    shapes = [random_shape(rng) for _ in range(2)] + [shape(1000, 256), shape(2000, 256), shape(500, 256, 500)]
    for _ in range(15 if world.nodes else 0):
        run_something(rng, world, shapes, NOW_MS)
    queue_some(rng, world, shapes, policy.order, 6, NOW_MS)
    snapshot = world.snapshot()
    return world, policy, replace(snapshot, evictions={name: rng.choice((0, 1)) for name in INSTITUTIONS})


def plain(snapshot: Snapshot, policy: Policy) -> Tenants:
    views = [view for nodes in snapshot.pools.values() for view in nodes.values()]
    return Tenants(snapshot, policy, [Node(view, snapshot) for view in views])


@settings(max_examples=250)
@given(seeds)
def test_starts_keep_to_capacity_quotas_guarantees_and_the_bound(seed):
    world, policy, snapshot = evictable_world(seed)
    waiting = {job.job_no: (key, job) for key, jobs in world.lines.items() for job in jobs}
    made = plan(snapshot, policy, NOW_MS)
    assert len(made.starts) <= policy.max_starts_per_round
    tenants = plain(snapshot, policy)
    for start in made.starts:
        key, _ = waiting[start.job_no]
        assert tenants.within_quota(key)
        assert tenants.standing(key, PoolKey(start.region, start.pool)) < 2
        tenants.charge(key, PoolKey(start.region, start.pool))
        world.start(start)  # Asserts capacity, per GPU too, and that the gang is whole.
    times = Counter(start.job_no for start in made.starts)
    assert all(count <= waiting[number][1].tasks for number, count in times.items())
    done = {number for number, count in times.items() if count == waiting[number][1].tasks}
    kept = [(each.region, node_id) for each in made.reservations for node_id in set(each.nodes)]
    assert len(kept) == len(set(kept)), "a node is kept for one job at most"
    assert not done & {each.job_no for each in made.reservations}, "nothing is kept for who has started"
    assert not done & {each.for_job_no for each in made.evictions}, "nobody is stopped for who has started"


@settings(max_examples=250)
@given(seeds)
def test_evictions_keep_to_the_rules(seed):
    world, policy, snapshot = evictable_world(seed)
    waiting = {job.job_no: (key, job) for key, jobs in world.lines.items() for job in jobs}
    made = plan(snapshot, policy, NOW_MS)
    rules, tenants, after = policy.preemption, plain(snapshot, policy), plain(snapshot, policy)
    for start in made.starts:
        after.charge(waiting[start.job_no][0], PoolKey(start.region, start.pool))
    assert len(made.evictions) <= rules.per_round
    assert len({each.launch_seq for each in made.evictions}) == len(made.evictions)
    lost: Counter[str] = Counter()
    over = {}
    for each in made.evictions:
        victim = snapshot.running[each.launch_seq]
        key, job = waiting[each.for_job_no]
        mine = victim.group.institution == key.institution
        assert victim.group.preemptible
        assert not victim.stopped_by_ms
        pool = PoolKey(victim.region, victim.pool)
        if each.rule == "RECLAIM":
            assert rules.reclaim
            assert not mine
            assert tenants.standing(key, pool) == 0, "the owner is within its guarantee"
            assert tenants.of_pool(pool)[key.institution]
            over.setdefault((victim.group.institution, pool), []).append(victim.group.shape.total)
            assert each.grace_ms == min(victim.grace_ms, policy.reclaim_within_ms)
            continue
        lost[victim.group.institution] += 1
        assert each.grace_ms == victim.grace_ms
        assert NOW_MS - victim.start_ms >= rules.min_runtime_ms
        if each.rule == "PRIORITY":
            assert rules.priority
            assert mine
            assert victim.group.priority < key.priority
        elif each.rule == "SHORTER":
            remaining = service_ms(victim.group.shape.total, max(1, victim.limit_end_ms - NOW_MS))
            assert mine
            assert victim.group.priority <= key.priority
            assert remaining * 1000 >= service_ms(key.shape.total, job.expected_ms) * rules.shorter_milli > 0
        else:
            assert each.rule == "FAIR_SHARE"
            assert rules.fair_share
            assert not mine

            # What the round has started meanwhile may have been started before or after.
            mine_then = share(tenants, key.institution, key.shape.total)
            theirs_then = share(after, victim.group.institution, ZERO.minus(victim.group.shape.total))
            assert mine_then < theirs_then, "equals do not stop each other"
    for name, count in lost.items():
        assert snapshot.evictions[name] + count <= rules.per_hour
    for (name, pool), totals in over.items():
        own = tenants.of_pool(pool).get(name)
        beyond = tenants.use[name, pool].held.minus(own.amount if own else ZERO)
        without_largest = ZERO
        for total in sorted(totals)[:-1]:
            without_largest = without_largest.plus(total)
        assert any(b > w for b, w in zip(beyond, without_largest, strict=True)), "no more than it borrows, but for one"


def share(tenants: Tenants, name: str, change: Resources) -> int:
    return tenants.dominant(tenants.held[name,].plus(change)) // tenants.weight((name,))


@settings(max_examples=250)
@given(seeds)
def test_no_victim_could_be_spared(seed):
    """When a job is the only one that has others stopped and nothing is kept for anybody else."""
    _, policy, snapshot = evictable_world(seed)
    policy = replace(policy, backfill=BackfillPolicy(0, 0), max_passed_over_ms=10**12)
    snapshot = replace(snapshot, claims={})
    made = plan(snapshot, policy, NOW_MS)
    if len({each.for_job_no for each in made.evictions}) != 1:
        return
    (place,) = made.reservations
    key = next(k for k in snapshot.queue.groups() for job in snapshot.queue.jobs(k) if job.job_no == place.job_no)
    wanted = key.shape
    for spared in made.evictions:
        enough = fits(snapshot, made, wanted, place, spared.launch_seq)
        assert not (enough and may_stand(snapshot, policy, made, key, place, spared)), "one victim fewer would do"
    assert fits(snapshot, made, wanted, place, 0), "all of them make room"


def may_stand(snapshot: Snapshot, policy: Policy, made: Plan, key: GroupKey, place, spared: Eviction) -> bool:
    """Whether its institution's guarantee lets the job start on the site when one of its victims stays."""
    tenants, pool = plain(snapshot, policy), PoolKey(place.region, place.pool)
    keys = {job.job_no: each for each in snapshot.queue.groups() for job in snapshot.queue.jobs(each)}
    for start in made.starts:
        tenants.charge(keys[start.job_no], PoolKey(start.region, start.pool))
    for each in made.evictions:
        if each is not spared:
            tenants.release(snapshot.running[each.launch_seq].group, pool)
    return tenants.standing(key, pool) < 2


def fits(snapshot: Snapshot, made: Plan, wanted, place, spared: int) -> bool:
    """Whether the job has room on the site once its victims, but for one, have gone and the round's starts stand."""
    waiting = {job.job_no: (key.shape, job) for key in snapshot.queue.groups() for job in snapshot.queue.jobs(key)}
    rooms: dict[str, Room] = {}
    domains: Counter[str] = Counter()
    for view in snapshot.pools[PoolKey(place.region, place.pool)].values():
        one = Node(view, snapshot)
        if view.accelerator == place.accelerator and one.carries(wanted):
            # What ends by itself before the notice is over makes room, too, once the victims go.
            rooms[view.node_id] = one.room if spared else one.room_at(place.start_ms)
    for each in made.evictions:
        victim = snapshot.running[each.launch_seq]
        ends = end_at_latest_ms(victim) <= place.start_ms and not spared
        for replica in victim.replicas if each.launch_seq != spared and not ends else ():
            if replica.node_id in rooms:
                rooms[replica.node_id].give(victim.group.shape.request, replica.gpu_indexes)
    for start in made.starts:
        wants, job = waiting[start.job_no]
        in_between = NOW_MS + job.limit_ms + job.grace_ms < place.start_ms
        for replica in () if in_between else start.replicas:
            if start.region == place.region and replica.node_id in rooms:
                rooms[replica.node_id].give(wants.request, replica.gpu_indexes, -1)
    for view in snapshot.pools[PoolKey(place.region, place.pool)].values():
        if view.node_id in rooms:
            packed = wanted.pack_required and wanted.replicas > 1
            name = Node(view, snapshot).domain(wanted.pack) if packed else ""
            domains[name] += rooms[view.node_id].count(wanted.request, wanted.replicas)
    return any(count >= wanted.replicas for count in domains.values())


@settings(max_examples=120)
@given(seeds)
def test_the_order_in_which_things_are_stored_does_not_matter(seed):
    _, policy, one = evictable_world(seed)
    rng = Random(seed)

    def shuffled(mapping):
        items = list(mapping.items())
        rng.shuffle(items)
        return dict(items)

    other = Snapshot(
        shuffled({pool: shuffled(members) for pool, members in one.pools.items()}),
        ListQueue(shuffled(one.queue.lines)),
        *(shuffled(each) for each in (one.institutions, one.projects)),
        one.online_regions,
        *(shuffled(each) for each in (one.users, one.running, one.pool_use, one.evictions, one.claims)),
    )
    assert plan(one, policy, NOW_MS) == plan(other, policy, NOW_MS) == plan(one, policy, NOW_MS)


# --- rounds in sequence -------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(seeds)
def test_the_first_reservation_is_never_delayed(seed):
    """In a fixed order, without arrivals, and when everybody runs to its limit: who is first in line starts by the time it was told.

    Of those behind it this holds only as long as nobody before them chooses another place: a round knows nothing of the last one's
    reservations.
    """
    rng = Random(seed)
    stop_none = PreemptionPolicy(reclaim=False, priority=False)
    policy = Policy(
        order=OrderPolicy(()),
        preemption=stop_none,
        backfill=BackfillPolicy(rng.choice((1, 2, 16)), 16),
        max_passed_over_ms=rng.choice((0, 10**12)),
    )
    world = random_world(rng, policy)
    world.institutions = {name: TenantView(1, view.in_use) for name, view in world.institutions.items()}
    world.projects = {key: TenantView(1, view.in_use) for key, view in world.projects.items()}
    world.claims, world.offline = {}, frozenset()
    shapes = [random_shape(rng) for _ in range(3)]
    for _ in range(8 if world.nodes else 0):
        run_something(rng, world, shapes, NOW_MS)
    queue_some(rng, world, shapes, policy.order, 6, NOW_MS)
    world.lines = {key: [job._replace(tasks=1) for job in jobs] for key, jobs in world.lines.items()}
    play = Play(world, policy)
    play.until(NOW_MS)
    promised: dict[int, int] = {}
    for _ in range(60):
        made = play.round()
        for each in made.reservations[:1]:
            assert each.start_ms <= promised.setdefault(each.job_no, each.start_ms), "a reservation was moved back"
        for start in made.starts:
            assert world.now_ms <= promised.get(start.job_no, world.now_ms), "a reservation was not kept"
        late = [number for number, by_ms in promised.items() if by_ms < world.now_ms and number not in play.started_ms]
        assert not late
        next_ms = play.next_end_ms()
        if next_ms is None:
            break
        play.until(max(next_ms, world.now_ms + (0 if next_ms > world.now_ms else 1)))


@settings(max_examples=80)
@given(seeds)
def test_without_arrivals_and_ends_everything_comes_to_rest(seed):
    """No thrash: after some rounds nobody is stopped any more, and by one rule alone nobody is stopped twice for the same job."""
    world, policy, _ = evictable_world(seed)
    policy = replace(
        policy,
        preemption=replace(policy.preemption, min_runtime_ms=0, per_hour=10**6),
        max_passed_over_ms=10**12,
        max_starts_per_round=512,
    )
    world.lines = {
        key: [job._replace(expected_ms=job.limit_ms, tasks=1) for job in jobs] for key, jobs in world.lines.items()
    }
    play = Play(world, policy, endless=True)
    calm = 0
    for _ in range(80):
        made = play.round()
        calm = 0 if made.starts or made.evictions or world_is_stopping(world) else calm + 1
        if calm == 2:
            break
        play.until(world.now_ms + 40_000)
    assert calm == 2, "it never comes to rest"
    pairs = Counter((each.job_no, each.for_job_no, each.rule) for each in play.evictions)
    if len({each.rule for each in play.evictions}) == 1:
        assert max(pairs.values()) == 1, pairs


def world_is_stopping(world: World) -> bool:
    return any(each.stopped_by_ms for each in world.running.values())


@settings(max_examples=80)
@given(seeds)
def test_an_owner_gets_its_guarantee_back_in_time(seed):
    """Whatever others have borrowed: who is within its guarantee, and fits when all that is reclaimable has gone, starts in time."""
    rng = Random(seed)
    size = rng.randint(1, 3)
    world = World([node(f"n{i}", cpu=8000, memory=16_384) for i in range(size)], now_ms=NOW_MS)
    guarantees = (
        Guarantee("owner", "east/cpu", Resources(4000 * size, 8192 * size, 0), None, None),
        Guarantee("b", "east/cpu", Resources(2000 * size, 4096 * size, 0), None, None),
    )
    policy = replace(PRESETS[rng.choice(sorted(PRESETS))], guarantees=guarantees)
    for name in ("b", "c"):
        for _ in range(3):
            preemptible = rng.random() < 0.8
            wanted = shape(rng.choice((1000, 2000, 3000)), 256, replicas=rng.choice((1, 1, 2)))
            world.add(name, wanted, rng.randint(1, 6), preemptible=preemptible, grace_ms=rng.choice((0, 300_000)))
    play = Play(world, policy, endless=True)
    for _ in range(3):
        play.round()
        play.until(world.now_ms + MINUTE_MS)
    wanted = shape(rng.choice((1000, 4000, 8000)), 256, replicas=rng.choice((1, 1, 2)))
    if wanted.total.cpu_milli > 4000 * size:
        return
    (number,) = world.add("owner", wanted, submit_ms=world.now_ms, limit_ms=MINUTE_MS)
    # Of b, what is within its own guarantee stays; the test is of those cases in which that does not matter.
    rooms = {view.node_id: Room(view.free, ()) for view in world.nodes}
    for running in world.running.values():
        if running.group.preemptible and running.group.institution == "c":
            for replica in running.replicas:
                rooms[replica.node_id].give(running.group.shape.request, ())
    if sum(each.count(wanted.request, wanted.replicas) for each in rooms.values()) < wanted.replicas:
        return
    asked_ms = world.now_ms
    while number not in play.started_ms and world.now_ms <= asked_ms + policy.reclaim_within_ms:
        play.round()
        play.until(world.now_ms + policy.reclaim_within_ms // 4)
    assert play.started_ms.get(number, 1 << 60) <= asked_ms + policy.reclaim_within_ms


@settings(max_examples=25)
@given(seeds)
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_nobody_starves_while_small_short_and_urgent_jobs_never_cease(preset, seed):
    rng = Random(seed)
    policy = PRESETS[preset]
    policy = replace(policy, order=replace(policy.order, class_head_start_ms=30 * MINUTE_MS))
    world = World([node(f"n{i}", cpu=2000) for i in range(3)], now_ms=0)
    kind = rng.choice(("gang", "long", "low"))
    owner = rng.choice(("a", "m", "z"))
    wanted = shape(2000, 1024, replicas=rng.randint(2, 3)) if kind == "gang" else shape(1000)
    priority = PriorityClass.LOW if kind == "low" else PriorityClass.NORMAL
    limit_ms = (120 if kind == "long" else 5) * MINUTE_MS
    short_ms = rng.choice((1, 3)) * MINUTE_MS
    for _ in range(6):
        world.add("m", shape(1000), priority=PriorityClass.HIGH, limit_ms=rng.randint(1, 5) * MINUTE_MS)
    rank = rank_of(policy.order, 0, priority, wanted.total, limit_ms)
    (number,) = world.add(
        owner, wanted, project="big", priority=priority, rank=rank, expected_ms=limit_ms, limit_ms=limit_ms
    )
    play = Play(world, policy)
    # Its own term and the others' head start, the patience for the overdue, and the time in which all that runs and waits then ends.
    bound_ms = rank + 30 * MINUTE_MS + policy.max_passed_over_ms + 10 * MINUTE_MS + 6 * short_ms
    while number not in play.started_ms and world.now_ms <= bound_ms:
        waiting = sum(len(jobs) for key, jobs in world.lines.items() if key.priority is PriorityClass.HIGH)
        for _ in range(6 - waiting):
            short = shape(1000)
            rank = rank_of(policy.order, world.now_ms, PriorityClass.HIGH, short.total, short_ms)
            world.add("m", short, priority=PriorityClass.HIGH, submit_ms=world.now_ms, rank=rank, limit_ms=short_ms)
        play.round()
        play.until(world.now_ms + MINUTE_MS)
    assert number in play.started_ms
