"""Reservations, what is let in before them, and what they leave to all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.domain.resources import Resources
from scheduler.domain.spec import Shape
from scheduler.planning.plan import plan
from scheduler.planning.policy import BackfillPolicy, OrderPolicy, Policy, PreemptionPolicy
from scheduler.planning.types import Plan
from tests.unit.planning.builders import World, node, shape

NOW_MS = 1_000_000
HOUR_MS = 3_600_000
BY_RANK = Policy(order=OrderPolicy(()), preemption=PreemptionPolicy(reclaim=False, priority=False))


def planned(world: World, policy: Policy = BY_RANK) -> Plan:
    return plan(world.snapshot(), policy, NOW_MS)


def run(world: World, wanted: Shape, hours: int) -> None:
    """Start a job now that runs for so long, where the planner puts it."""
    world.now_ms = NOW_MS
    (number,) = world.add("x", wanted, submit_ms=-1, limit_ms=hours * HOUR_MS)
    (start,) = [each for each in planned(world).starts if each.job_no == number]
    world.start(start)


def half_full(hours: int = 2) -> World:
    """A node of 4 CPUs of which 2 are held for some hours."""
    world = World([node("n1", cpu=4000)])
    run(world, shape(2000), hours)
    return world


@pytest.mark.parametrize(("limit_ms", "fits"), [(2 * HOUR_MS - 1, True), (2 * HOUR_MS, False)])
def test_what_has_gone_before_a_reservation_begins_is_let_in_and_nothing_longer(limit_ms, fits):
    world = half_full()
    (large,) = world.add("a", shape(4000))
    (small,) = world.add("b", shape(1000), submit_ms=1, limit_ms=limit_ms)
    found = planned(world)
    assert [(each.job_no, each.nodes, each.start_ms) for each in found.reservations][:1] == [
        (large, ("n1",), NOW_MS + 2 * HOUR_MS)
    ]
    assert [start.job_no for start in found.starts] == ([small] if fits else [])


def test_the_notice_counts_to_what_a_job_may_take():
    world = half_full()
    world.add("a", shape(4000))
    world.add("b", shape(1000), submit_ms=1, limit_ms=HOUR_MS, grace_ms=HOUR_MS)
    assert planned(world).starts == ()


def test_what_fits_beside_a_reservation_may_run_for_ever():
    world = half_full()
    world.add("a", shape(3000))
    beside = world.add("b", shape(1000), 2, submit_ms=1, limit_ms=99 * HOUR_MS)
    assert [start.job_no for start in planned(world).starts] == beside[:1]


def test_without_reservations_the_small_go_first_for_ever():
    world = half_full()
    world.add("a", shape(4000))
    small = world.add("b", shape(1000), 2, submit_ms=1, limit_ms=99 * HOUR_MS)
    found = planned(world, replace(BY_RANK, backfill=BackfillPolicy(reservations=0)))
    assert [start.job_no for start in found.starts] == small


def test_a_gang_keeps_all_its_nodes_until_the_last_is_free():
    world = World([node(f"n{number}", cpu=4000) for number in (1, 2, 3)])
    run(world, shape(4000), 1)
    run(world, shape(4000), 3)
    run(world, shape(4000), 2)
    ends = {view.replicas[0].node_id: view.limit_end_ms for view in world.running.values()}
    first, second, _ = sorted(ends, key=lambda name: ends[name])
    world.add("a", shape(4000, replicas=2))
    (kept,) = planned(world).reservations
    assert (set(kept.nodes), kept.start_ms) == ({first, second}, NOW_MS + 2 * HOUR_MS)


def test_two_jobs_do_not_keep_one_node():
    world = World([node("n1", cpu=4000), node("n2", cpu=4000)])
    run(world, shape(4000), 1)
    run(world, shape(4000), 2)
    jobs = world.add("a", shape(3000), 1) + world.add("b", shape(3001), 2, submit_ms=1)
    found = planned(world).reservations
    assert [(each.job_no, each.start_ms - NOW_MS) for each in found] == [(jobs[0], HOUR_MS), (jobs[1], 2 * HOUR_MS)]


def test_a_gang_required_on_one_rack_waits_for_the_rack_that_is_free_first():
    racks = {"n1": "r", "n2": "s", "n3": "s", "n4": "r"}
    world = World([node(name, cpu=4000, labels=(("rack", rack),)) for name, rack in racks.items()])
    for name, hours in (("n1", 1), ("n2", 2), ("n3", 2), ("n4", 3)):
        world.nodes = [replace(view, draining=view.node_id != name) for view in world.nodes]
        run(world, shape(4000), hours)
    world.nodes = [replace(view, draining=False) for view in world.nodes]
    world.add("a", shape(4000, replicas=2, pack="rack", pack_required=True))
    (kept,) = planned(world).reservations
    assert (kept.nodes, kept.start_ms) == (("n2", "n3"), NOW_MS + 2 * HOUR_MS)


def test_gpus_are_counted_one_by_one():
    # Each GPU has 500 milli free, 1000 in sum: a whole one is free only when a half has ended.
    world = World([node("g", "east/gpu", cpu=64_000, memory=1 << 20, gpus=2, accelerator="A")])
    for hours in (1, 2):
        run(world, shape(1000, gpu=600), hours)
    world.add("a", shape(1000, gpu=1000))
    (first,) = world.add("b", shape(1000, gpu=400), 1, submit_ms=1, limit_ms=99 * HOUR_MS)
    found = planned(world)
    assert [each.start_ms for each in found.reservations] == [NOW_MS + HOUR_MS]
    busy_longest = max(world.running.values(), key=lambda view: view.limit_end_ms).replicas[0].gpu_indexes
    assert [(each.job_no, each.replicas[0].gpu_indexes) for each in found.starts] == [(first, busy_longest)]


def test_what_the_round_starts_is_expected_to_end():
    world = World([node("n1", cpu=4000)])
    (short,) = world.add("a", shape(2000), limit_ms=HOUR_MS)
    (large,) = world.add("a", shape(4000), submit_ms=1)
    world.add("b", shape(2000), submit_ms=2, limit_ms=99 * HOUR_MS)
    found = planned(world)
    assert [start.job_no for start in found.starts] == [short]
    assert (found.reservations[0].job_no, found.reservations[0].start_ms) == (large, NOW_MS + HOUR_MS)


def test_a_job_that_runs_before_the_reservations_has_none_itself():
    world = half_full()
    world.add("a", shape(4000))
    (small,) = world.add("b", shape(1000), submit_ms=1, limit_ms=HOUR_MS)
    assert small not in {each.job_no for each in planned(world).reservations}


def test_memory_alone_can_be_what_is_waited_for():
    world = World([node("n1", cpu=64_000, memory=4096)])
    run(world, Shape(Resources(1000, 4096, 0), 1), 1)
    world.add("a", shape(1000, 2048))
    assert [each.start_ms for each in planned(world).reservations] == [NOW_MS + HOUR_MS]
