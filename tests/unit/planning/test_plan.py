"""The planner's rules, one by one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.plan import plan
from scheduler.planning.policy import LEVELS, BackfillPolicy, OrderPolicy, Policy
from scheduler.planning.types import Start, TenantView
from tests.unit.planning.builders import World, node, shape

FAIR = OrderPolicy(LEVELS)
NO_BACKFILL = BackfillPolicy(reservations=0)


def started(world: World, now_ms: int = 0, **policy: int) -> list[int]:
    return [
        start.job_no
        for start in plan(world.snapshot(), Policy(order=FAIR, backfill=NO_BACKFILL, **policy), now_ms).starts
    ]


def where(world: World) -> list[str]:
    return [replica.node_id for start in plan(world.snapshot(), Policy(), 0).starts for replica in start.replicas]


def test_institutions_take_turns_by_weight():
    world = World([node("n1", cpu=8000)])
    heavy = world.add("heavy", shape(), 8)
    light = world.add("light", shape(), 8)
    world.institutions["heavy"] = TenantView(3)
    chosen = started(world)
    assert len(chosen) == 8
    assert [len(set(chosen) & set(jobs)) for jobs in (heavy, light)] == [6, 2]


def test_the_dominant_resource_counts():
    # The two users of section 4.1 of the DRF paper: 9 CPUs and 18 GB, demands <1, 4> and <3, 1>: 3 tasks and 2 tasks.
    world = World([node("n1", cpu=9000, memory=18)])
    a = world.add("a", shape(1000, 4), 10)
    b = world.add("b", shape(3000, 1), 10)
    chosen = set(started(world))
    assert (len(chosen & set(a)), len(chosen & set(b))) == (3, 2)


def test_projects_share_what_their_institution_gets():
    world = World([node("n1", cpu=8000)])
    jobs = [world.add(i, shape(), 8, project=p) for i, p in (("a", "p"), ("a", "q"), ("b", "p"))]
    chosen = set(started(world))
    assert [len(chosen & set(each)) for each in jobs] == [2, 2, 4]


def test_in_a_project_class_goes_before_age_and_age_before_number():
    world = World([node("n1")])
    late, early = world.add("a", shape(1000), submit_ms=9), world.add("a", shape(2000), submit_ms=5)
    low = world.add("a", shape(1000), submit_ms=1, priority=PriorityClass.LOW)
    high = world.add("a", shape(1000), submit_ms=9, priority=PriorityClass.HIGH)
    assert started(world) == high + early + late + low


def test_lines_of_one_class_are_merged_by_age():
    world = World([node("n1")])
    for submit_ms in range(6):
        world.add("a", shape(1000 + submit_ms % 2), submit_ms=submit_ms)
    assert started(world) == [1, 2, 3, 4, 5, 6]


def test_what_does_not_fit_is_passed_over():
    world = World([node("n1", cpu=4000)])
    world.add("a", shape(5000))
    small = world.add("a", shape(1000))
    assert started(world) == small


@pytest.mark.parametrize("tenant", ["institution", "project"])
def test_a_quota_stops_its_tenant_and_nobody_else(tenant: str):
    world = World([node("n1")])
    limited = TenantView(1, quota=Resources(2500, 1 << 20, 0))
    a, b = world.add("a", shape(), 4), world.add("b", shape(), 4)
    if tenant == "institution":
        world.institutions["a"] = limited
    else:
        world.projects["a", "default"] = limited
    assert sorted(started(world)) == a[:2] + b


def test_a_quota_passed_in_one_resource_does_not_stop_jobs_without_it():
    world = World([node("n1")])
    jobs = world.add("a", shape())
    world.institutions["a"] = TenantView(1, in_use=Resources(0, 0, 4000), quota=Resources(9000, 99_999, 1000))
    assert started(world) == jobs


def test_an_array_starts_as_many_tasks_as_it_may():
    world = World([node("n1")])
    (array,) = world.add("a", shape(), tasks=3)
    (other,) = world.add("a", shape())
    assert started(world) == [array] * 3 + [other]


def test_a_round_is_bounded_and_says_when_more_would_start():
    world = World([node("n1", cpu=3000)])
    world.add("a", shape(), 5)
    assert plan(world.snapshot(), Policy(max_starts_per_round=2), 0).truncated
    full = plan(world.snapshot(), Policy(max_starts_per_round=3), 0)
    assert (len(full.starts), full.truncated) == (3, False)


def test_best_fit_keeps_large_room_whole():
    world = World([node("big", cpu=16_000), node("small", cpu=4000)])
    world.add("a", shape(2000), 3)
    assert where(world) == ["small", "small", "big"]


def test_regions_are_preferred_in_order_then_home():
    nodes = [node("e", "east/cpu", 1000), node("h", "home/cpu", 1000), node("w", "west/cpu", 1000)]
    world = World(nodes)
    world.add("a", shape(preferred_regions=("west",)), 3)
    world.institutions["a"] = TenantView(1, home_region="home")
    assert where(world) == ["w", "h", "e"]


def test_accelerators_are_a_rule_and_a_preference():
    world = World([node(kind, f"east/{kind.lower()}", 1000, gpus=1, accelerator=kind) for kind in ("A", "B", "C")])
    world.add("a", shape(gpu=1000, accelerators=("C", "A")), 3)
    assert where(world) == ["C", "A"]


def test_a_job_without_gpus_uses_gpu_nodes_only_when_no_other_fits():
    world = World([node("c", "east/cpu", 2000), node("g", "west/gpu", 8000, gpus=1, accelerator="A")])
    world.add("a", shape(preferred_regions=("west",)), 3)
    assert where(world) == ["c", "c", "g"]


def test_pools_and_labels_are_rules():
    nodes = [node("e", "east/cpu"), node("w", "west/cpu"), node("x", "east/other", labels=(("zone", "a"),))]
    for wanted, expected in (
        ({"pools": ("west/cpu",)}, "w"),
        ({"pools": ("other",)}, "x"),
        ({"node_selector": (("zone", "a"),)}, "x"),
        ({"required_regions": ("west",)}, "w"),
    ):
        world = World(nodes)
        world.add("a", shape(**wanted))
        assert where(world) == [expected]


def test_nodes_out_of_service_and_regions_away_take_nothing():
    world = World([node("d", draining=True), node("x", up=False), node("w", "west/cpu")], offline=frozenset({"west"}))
    world.add("a", shape())
    assert where(world) == []


def test_a_gang_stands_in_one_pool_whole_or_not_at_all():
    world = World([node("e1", "east/cpu", 2000), node("w1", "west/cpu", 2000), node("w2", "west/cpu", 2000)])
    world.add("a", shape(replicas=5))
    assert where(world) == []
    world.add("a", shape(replicas=4))
    assert sorted(where(world)) == ["w1", "w1", "w2", "w2"]


def test_a_gang_that_found_no_place_gives_everything_back():
    # In sum there is room for it when the round begins; the first job takes some of it.
    world = World([node("n1", cpu=2000), node("n2", cpu=2000)])
    first = world.add("a", shape(1000), submit_ms=1)
    world.add("a", shape(1000, replicas=4), submit_ms=2)
    rest = world.add("a", shape(1000, memory=2048), 3, submit_ms=3)
    assert started(world) == first + rest


def test_shares_of_a_gpu_fill_the_fullest_and_whole_gpus_need_whole_ones():
    view = node("g", "east/gpu", gpus=4, accelerator="A")
    view = replace(view, gpu_free=(1000, 400, 700, 1000), free=view.free._replace(gpu_milli=3100))
    world = World([view])
    world.add("a", shape(gpu=400), 2, submit_ms=1)
    world.add("a", shape(gpu=2000), submit_ms=2)
    plans = plan(world.snapshot(), Policy(), 0).starts
    assert [start.replicas for start in plans] == [
        (ReplicaPlacement("g", (1,)),),
        (ReplicaPlacement("g", (2,)),),
        (ReplicaPlacement("g", (0, 3)),),
    ]


def test_the_snapshot_is_not_changed_and_the_answer_is_the_same_again():
    world = World([node("n1", gpus=2, accelerator="A")])
    world.add("a", shape(gpu=500, replicas=2), 3)
    snapshot = world.snapshot()
    first = plan(snapshot, Policy(), 0)
    assert first == plan(snapshot, Policy(), 0)
    assert len(first.starts) == 2


def test_nothing_to_place_on_or_nothing_to_place_is_an_empty_plan():
    world = World([])
    world.add("a", shape())
    assert started(world) == []
    assert started(World([node("n1")])) == []


class TestOverdue:
    """A job that has waited too long."""

    def world(self) -> tuple[World, list[int], list[int]]:
        world = World([node("n1", cpu=4000, free=Resources(3000, 9000, 0)), node("w1", "west/cpu", cpu=2000)])
        small = world.add("a", shape(), 9, submit_ms=90)
        gang = world.add("b", shape(replicas=4), submit_ms=10)
        held = world.add("c", shape(1000, 23_768), limit_ms=1_000_000)
        world.run(Start(held[0], "east", "cpu", "", (ReplicaPlacement("n1"),)), next(reversed(world.lines)), 1_000_000)
        del world.lines[next(reversed(world.lines))]
        return world, small, gang

    def test_keeps_free_the_pools_it_could_use(self):
        world, small, _ = self.world()
        assert len(started(world, now_ms=100, max_passed_over_ms=91)) == 5
        world.nodes.sort(key=lambda each: each.node_id)
        assert started(world, now_ms=100, max_passed_over_ms=90) == small[:2]

    def test_goes_first_when_it_fits(self):
        world, _, gang = self.world()
        world.nodes[0] = node("n1", cpu=4000)
        assert started(world, now_ms=100, max_passed_over_ms=90)[0] == gang[0]
        assert gang[0] not in started(world, now_ms=100, max_passed_over_ms=91, max_starts_per_round=1)

    def test_holds_nobody_back_by_its_own_quota(self):
        world, small, _ = self.world()
        world.institutions["b"] = TenantView(1, quota=Resources(3000, 1 << 30, 0))
        assert started(world, now_ms=100, max_passed_over_ms=90) == small[:5]

    def test_holds_nobody_back_when_it_could_not_run_even_on_empty_nodes(self):
        world, small, _ = self.world()
        world.nodes[0] = replace(world.nodes[0], capacity=Resources(3000, 32_768, 0))
        assert started(world, now_ms=100, max_passed_over_ms=90) == small[:5]

    def test_holds_nobody_back_for_a_tenant_above_its_fair_part(self):
        world, small, _ = self.world()
        world.institutions["b"] = TenantView(1, in_use=Resources(4000, 0, 0))
        assert started(world, now_ms=100, max_passed_over_ms=90) == small[:5]


def test_thousands_of_small_starts_take_well_under_a_second():
    world = World([node(f"n{i}", cpu=1_000_000, memory=10_000_000) for i in range(10)])
    world.add("a", shape(1000), 5000)
    world.add("b", shape(1000), 5000)
    snapshot = world.snapshot()
    before = time.process_time()
    made = plan(snapshot, Policy(max_starts_per_round=10_000), 0)
    # 0.2 s on a slow core: the bound leaves room for a busy machine, and none for a scan of the queue at every start.
    assert time.process_time() - before < 2
    assert len(made.starts) == 10_000
