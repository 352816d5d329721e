"""Guarantees, borrowing and lending, by the examples with which Kueue's documentation explains nominal quota, borrowing and lending."""

from __future__ import annotations

import pytest

from scheduler.domain.resources import Resources
from scheduler.planning.plan import plan
from scheduler.planning.policy import BackfillPolicy, Guarantee, OrderPolicy, Policy, PreemptionPolicy
from tests.unit.planning.builders import World, node, shape

STOP_NONE = PreemptionPolicy(reclaim=False, priority=False)


def cpus(count: int) -> Resources:
    return Resources(count * 1000, 1 << 20, 0)


def policy(*guarantees: Guarantee) -> Policy:
    order = OrderPolicy(())
    return Policy(order=order, guarantees=guarantees, preemption=STOP_NONE, backfill=BackfillPolicy(0, 0))


def guarantee(institution: str, count: int, borrowing: int | None = None, lending: int | None = None) -> Guarantee:
    limits = (None if each is None else cpus(each) for each in (borrowing, lending))
    return Guarantee(institution, "east/cpu", cpus(count), *limits)


def started(world: World, *guarantees: Guarantee) -> dict[str, int]:
    """How many jobs of each institution start in a pool of 21 CPUs."""
    owner = {job.job_no: key.institution for key, jobs in world.lines.items() for job in jobs}
    found: dict[str, int] = {}
    for start in plan(world.snapshot(), policy(*guarantees), 0).starts:
        found[owner[start.job_no]] = found.get(owner[start.job_no], 0) + 1
    return found


def pool() -> World:
    return World([node("n1", cpu=21_000, memory=1 << 20)])


def test_what_others_do_not_use_can_be_borrowed():
    # Two queues of one cohort, 9 and 12 CPUs: the one may use all 21 as long as the other has nothing.
    world = pool()
    world.add("a", shape(), 30, preemptible=True)
    assert started(world, guarantee("a", 9), guarantee("b", 12)) == {"a": 21}


def test_a_borrowing_limit_bounds_what_is_borrowed():
    # "borrowingLimit: 1": at most 9 + 1 CPUs.
    world = pool()
    world.add("a", shape(), 30, preemptible=True)
    assert started(world, guarantee("a", 9, borrowing=1), guarantee("b", 12)) == {"a": 10}


def test_a_lending_limit_keeps_its_owner_the_rest():
    # "lendingLimit: 1" of 12: others may use 9 + 1.
    world = pool()
    world.add("a", shape(), 30, preemptible=True)
    assert started(world, guarantee("a", 9), guarantee("b", 12, lending=1)) == {"a": 10}


def test_what_the_owner_holds_itself_is_not_kept_twice():
    world = pool()
    world.add("b", shape(), 11)
    world.add("a", shape(), 30, preemptible=True)
    assert started(world, guarantee("a", 9), guarantee("b", 12, lending=1)) == {"a": 10, "b": 11}


def test_who_borrows_nothing_goes_before_who_does():
    world = pool()
    world.add("a", shape(), 30, preemptible=True)
    world.add("b", shape(), 30, preemptible=True)
    fair = policy(guarantee("a", 3), guarantee("b", 12))
    fair = Policy(order=OrderPolicy(), guarantees=fair.guarantees, preemption=STOP_NONE)
    numbers = [start.job_no for start in plan(world.snapshot(), fair, 0).starts]
    assert [sum(number <= 30 for number in numbers), sum(number > 30 for number in numbers)] == [6, 15]


@pytest.mark.parametrize(("preemptible", "expected"), [(True, 21), (False, 9)])
def test_jobs_that_cannot_be_stopped_borrow_nothing_that_is_owed(preemptible: bool, expected: int):
    world = pool()
    world.add("a", shape(), 30, preemptible=preemptible)
    assert started(world, guarantee("a", 9), guarantee("b", 12)) == {"a": expected}


def test_who_has_no_guarantee_may_have_what_is_lent():
    world = pool()
    world.add("c", shape(), 30, preemptible=True)
    assert started(world, guarantee("a", 9, lending=4), guarantee("b", 12, lending=0)) == {"c": 4}


def test_another_pool_is_anybodys():
    world = World([node("w1", "west/cpu", cpu=5000, memory=1 << 20)])
    world.add("c", shape(), 30)
    assert started(world, guarantee("a", 9, lending=0)) == {"c": 5}
