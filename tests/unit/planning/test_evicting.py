"""Who is stopped for whom: each rule with its condition, the cheapest victims, gangs, budgets, notice, and what comes after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.plan import plan
from scheduler.planning.policy import Guarantee, OrderPolicy, Policy, PreemptionPolicy
from scheduler.planning.types import GroupKey, Plan, Start
from tests.unit.planning.builders import World, node, shape

NOW_MS = 3_600_000
NONE = PreemptionPolicy(reclaim=False, priority=False, min_runtime_ms=0)
PRIORITY = replace(NONE, priority=True)
HIGH, LOW = PriorityClass.HIGH, PriorityClass.LOW


def run(
    world: World,
    institution: str,
    wanted: Shape,
    nodes: str | list[str] = "n1",
    *,
    priority: PriorityClass = PriorityClass.NORMAL,
    preemptible: bool = True,
    ran_ms: int = NOW_MS,
    grace_ms: int = 0,
    left_ms: int = NOW_MS,
) -> int:
    """An attempt that runs; answers its launch number."""
    key = GroupKey(institution, "default", "someone", priority, preemptible, wanted)
    world.add(institution, wanted)
    world.lines.popitem()
    pool, gpus = "cpu", ()
    names = [nodes] if isinstance(nodes, str) else nodes
    start = Start(world.next_no - 1, "east", pool, "", tuple(ReplicaPlacement(each, gpus) for each in names))
    world.hold(start, key, 1)
    view = world.run(start, key, left_ms, grace_ms)
    world.running[view.launch_seq] = replace(
        view, start_ms=NOW_MS - ran_ms, saved_ms=NOW_MS - ran_ms, limit_end_ms=NOW_MS + left_ms
    )
    return view.launch_seq


def planned(world: World, rules: PreemptionPolicy, **changes: object) -> Plan:
    policy = replace(Policy(order=OrderPolicy(), preemption=rules), **changes)  # type: ignore[arg-type]
    return plan(world.snapshot(), policy, NOW_MS)


def stopped(world: World, rules: PreemptionPolicy, **changes: object) -> list[tuple[int, str]]:
    return [(each.launch_seq, each.rule) for each in planned(world, rules, **changes).evictions]


def full(cpu: int = 4000, count: int = 1) -> World:
    return World([node(f"n{i + 1}", cpu=cpu) for i in range(count)], now_ms=NOW_MS)


@pytest.mark.parametrize(
    ("running", "waiting", "expected"), [(LOW, HIGH, True), (HIGH, HIGH, False), (HIGH, LOW, False)]
)
def test_a_higher_class_stops_a_lower_one_of_its_institution_and_never_an_equal(running, waiting, expected):
    world = full()
    victim = run(world, "a", shape(4000), priority=running)
    world.add("a", shape(4000), priority=waiting)
    assert stopped(world, PRIORITY) == ([(victim, "PRIORITY")] if expected else [])


@pytest.mark.parametrize(
    "change", [{"preemptible": False}, {"ran_ms": 599_999}], ids=["not preemptible", "has just begun"]
)
def test_who_may_not_be_stopped_is_not(change):
    world = full()
    run(world, "a", shape(4000), priority=LOW, **change)
    world.add("a", shape(4000), priority=HIGH)
    assert stopped(world, replace(PRIORITY, min_runtime_ms=600_000)) == []


def test_another_institution_is_not_stopped_by_class():
    world = full()
    run(world, "b", shape(4000), priority=LOW)
    world.add("a", shape(4000), priority=HIGH)
    assert stopped(world, PRIORITY) == []


@pytest.mark.parametrize(("expected_ms", "stops"), [(NOW_MS // 2, True), (NOW_MS // 2 + 2, False)])
def test_a_job_stops_one_that_has_twice_its_service_left(expected_ms, stops):
    world = full()
    victim = run(world, "a", shape(4000, 1024))
    world.add("a", shape(4000, 1024), expected_ms=expected_ms)
    rules, order = replace(NONE, shorter_milli=2000), OrderPolicy((), shortness_milli=10_000)
    assert stopped(world, rules, order=order) == ([(victim, "SHORTER")] if stops else [])


@pytest.mark.parametrize(("held", "stops"), [(2, False), (3, True)])
def test_an_institution_that_stays_below_the_other_stops_one_of_its_jobs(held, stops):
    # After the exchange 1 CPU against held - 1.
    world = full(held * 1000)
    for _ in range(held):
        run(world, "b", shape(1000))
    world.add("a", shape(1000))
    assert [rule for _, rule in stopped(world, replace(NONE, fair_share=True))] == (["FAIR_SHARE"] if stops else [])


def test_fairness_takes_nothing_that_is_guaranteed():
    world = full()
    for _ in range(4):
        run(world, "b", shape(1000))
    world.add("a", shape(1000))
    own = Guarantee("b", "east/cpu", Resources(4000, 1 << 20, 0))
    assert stopped(world, replace(NONE, fair_share=True), guarantees=(own,)) == []


class TestReclaim:
    """An owner and who has borrowed from it."""

    GUARANTEES = (Guarantee("a", "east/cpu", Resources(4000, 1 << 20, 0)),)
    RULES = replace(NONE, reclaim=True, min_runtime_ms=10**9)

    def test_takes_back_also_what_has_just_begun(self):
        world = full()
        victim = run(world, "b", shape(4000), ran_ms=0)
        world.add("a", shape(4000))
        assert stopped(world, self.RULES, guarantees=self.GUARANTEES) == [(victim, "RECLAIM")]

    def test_takes_no_more_than_is_guaranteed(self):
        world = full(8000)
        run(world, "b", shape(8000))
        world.add("a", shape(5000))
        assert stopped(world, self.RULES, guarantees=self.GUARANTEES) == []

    def test_counts_what_was_claimed_before(self):
        world = full(1000, 8)
        for at in range(8):
            run(world, "b", shape(1000), f"n{at + 1}")
        for memory in range(1, 7):
            world.add("a", shape(1000, memory))
        assert len(stopped(world, self.RULES, guarantees=self.GUARANTEES)) == 4

    def test_leaves_a_borrower_what_is_its_own(self):
        world = full(8000)
        for _ in range(8):
            run(world, "b", shape(1000))
        world.add("a", shape(4000))
        guarantees = (*self.GUARANTEES, Guarantee("b", "east/cpu", Resources(6000, 1 << 20, 0)))
        assert stopped(world, self.RULES, guarantees=guarantees) == []

    def test_chooses_among_all_that_was_borrowed(self):
        # The four cheapest are spread over both nodes; a whole node is wanted.
        world = full(4000, 2)
        for at in range(8):
            run(world, "b", shape(1000, 1), f"n{at % 2 + 1}", ran_ms=at * 1000)
        world.add("a", shape(4000, 1))
        guarantees = (*self.GUARANTEES, Guarantee("b", "east/cpu", Resources(4000, 4, 0)))
        found = planned(world, self.RULES, guarantees=guarantees)
        places = {world.running[each.launch_seq].replicas[0].node_id for each in found.evictions}
        assert (len(found.evictions), len(places)) == (4, 1)

    def test_gives_the_notice_asked_for_but_no_more_than_the_policy_has_time_for(self):
        world = full()
        run(world, "b", shape(4000), grace_ms=300_000)
        world.add("a", shape(4000))
        found = planned(world, self.RULES, guarantees=self.GUARANTEES, reclaim_within_ms=60_000)
        assert [each.grace_ms for each in found.evictions] == [60_000]
        assert [each.start_ms for each in found.reservations] == [NOW_MS + 60_000]


def test_the_cheapest_go_and_as_few_as_will_do():
    world = full(4000)
    run(world, "a", shape(2000), priority=LOW, ran_ms=NOW_MS)
    young = run(world, "a", shape(2000), priority=LOW, ran_ms=60_000)
    world.add("a", shape(2000), priority=HIGH)
    assert stopped(world, PRIORITY) == [(young, "PRIORITY")]


def test_a_gang_is_stopped_whole_and_counts_whole():
    # Two single jobs of the gang's age cost as much as the gang, and the gang is one eviction on both nodes.
    world = full(2000, 2)
    gang = run(world, "a", shape(2000, replicas=2), ["n1", "n2"], priority=LOW)
    world.add("a", shape(2000, replicas=2), priority=HIGH)
    assert stopped(world, PRIORITY) == [(gang, "PRIORITY")]


def test_a_gang_that_would_free_more_than_needed_is_spared_for_a_single_job():
    world = full(2000, 3)
    run(world, "a", shape(2000, replicas=2), ["n1", "n2"], priority=LOW)
    single = run(world, "a", shape(2000), "n3", priority=LOW)
    world.add("a", shape(2000), priority=HIGH)
    assert stopped(world, PRIORITY) == [(single, "PRIORITY")]


@pytest.mark.parametrize(("per_hour", "lost", "count"), [(2, 0, 2), (2, 1, 0), (1, 0, 0), (3, 1, 2)])
def test_an_institution_loses_no_more_than_its_budget_also_for_one_job(per_hour, lost, count):
    world = full()
    for _ in range(2):
        run(world, "a", shape(2000), priority=LOW)
    world.add("a", shape(4000), priority=HIGH)
    policy = Policy(preemption=replace(PRIORITY, per_hour=per_hour))
    snapshot = replace(world.snapshot(), evictions={"a": lost})
    assert len(plan(snapshot, policy, NOW_MS).evictions) == count


def test_a_round_stops_no_more_than_its_bound():
    world = full(1000, 8)
    for at in range(8):
        run(world, "a", shape(1000), f"n{at + 1}", priority=LOW)
    for memory in range(1, 6):
        world.add("a", shape(1000, memory), priority=HIGH)
    assert len(stopped(world, replace(PRIORITY, per_round=3))) == 3


def test_a_quota_counts_the_victims_until_they_have_gone():
    world = World([node("n1", cpu=4000), node("n2", cpu=4000)], now_ms=NOW_MS)
    run(world, "a", shape(4000), "n1", priority=LOW, grace_ms=30_000)
    (urgent,) = world.add("a", shape(2000, pools=("east/cpu",), node_selector=(("only", "n1"),)), priority=HIGH)
    world.add("a", shape(4000))
    world.nodes[0] = replace(world.nodes[0], labels=(("only", "n1"),))
    world.institutions["a"] = replace(world.institutions["a"], quota=Resources(6000, 1 << 20, 0))
    found = planned(world, PRIORITY)
    assert [each.for_job_no for each in found.evictions] == [urgent]
    assert found.starts == ()


def test_what_is_freed_is_kept_for_the_job_until_it_starts():
    world = full()
    victim = run(world, "a", shape(4000), priority=LOW, grace_ms=30_000)
    (urgent,) = world.add("a", shape(4000), priority=HIGH)
    world.add("b", shape(1000), 4)
    by_rank = OrderPolicy(())
    (eviction,) = planned(world, PRIORITY, order=by_rank).evictions
    assert (eviction.launch_seq, eviction.for_job_no, eviction.grace_ms) == (victim, urgent, 30_000)
    world.claims = {urgent: next(key for key in world.lines if key.priority is HIGH)}
    world.running[victim] = replace(world.running[victim], stopped_by_ms=NOW_MS + 30_000, for_job_no=urgent)
    again = planned(world, PRIORITY, order=by_rank)
    assert (again.starts, again.evictions) == ((), ())
    assert (again.reservations[0].job_no, again.reservations[0].start_ms) == (urgent, NOW_MS + 30_000)
    world.end(victim)
    assert [start.job_no for start in planned(world, PRIORITY, order=by_rank).starts] == [urgent]


def test_a_job_with_a_claim_starts_once_also_when_it_is_overdue():
    world = full(8000)
    (number,) = world.add("a", shape(1000))
    world.claims = {number: next(iter(world.lines))}
    assert [start.job_no for start in planned(world, PRIORITY, max_passed_over_ms=0).starts] == [number]


def test_claims_and_the_overdue_keep_to_the_bound_of_a_round():
    world = full(8000)
    for number in world.add("a", shape(1000), 3):
        world.claims[number] = next(iter(world.lines))
    found = planned(world, PRIORITY, max_starts_per_round=1, max_passed_over_ms=0)
    assert (len(found.starts), found.truncated) == (1, True)
