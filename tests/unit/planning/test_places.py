"""Where jobs may go, and where they go first: packing, spot pools, residency, and the terms of a pool's cost."""

from __future__ import annotations

import pytest

from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.fit import SiteKey, move_ms, site_cost
from scheduler.planning.plan import plan
from scheduler.planning.policy import DataSet, OrderPolicy, Policy, PoolPolicy, ScorePolicy
from scheduler.planning.rank import gpu_equivalents_milli, rank_of, service_ms, weighed_size_milli
from scheduler.planning.shares import Account, Scale
from scheduler.planning.types import TenantView
from tests.unit.planning.builders import World, node, shape

EAST = SiteKey("east", "gpu", "A100", True)
WEST = SiteKey("west", "gpu", "H20", True)
RACKS = {"n1": "r", "n2": "r", "n3": "s", "n4": "s", "n5": "s", "n6": "t", "n7": "t"}


def where(world: World, policy: Policy | None = None) -> list[str]:
    starts = plan(world.snapshot(), policy or Policy(), 0).starts
    return [replica.node_id for start in starts for replica in start.replicas]


class TestPacking:
    """Gangs of four on nodes of two CPUs each, in two racks of two and one of three."""

    def world(self, **cpus: int) -> World:
        return World([node(name, cpu=cpus.get(name, 2000), labels=(("rack", rack),)) for name, rack in RACKS.items()])

    def test_takes_the_rack_that_it_fills_best(self):
        world = self.world()
        world.add("a", shape(1000, replicas=4, pack="rack"))
        assert set(where(world)) == {"n1", "n2"}

    def test_takes_few_racks_when_no_single_one_will_do(self):
        world = self.world()
        world.add("a", shape(1000, replicas=10, pack="rack"))
        assert set(where(world)) == {"n1", "n2", "n3", "n4", "n5"}

    def test_waits_for_one_rack_when_it_is_required(self):
        world = self.world()
        world.add("a", shape(1000, replicas=7, pack="rack", pack_required=True))
        assert where(world) == []

    def test_one_node_may_be_asked_for(self):
        world = self.world(n5=8000)
        world.add("a", shape(1000, replicas=4, pack="node", pack_required=True))
        assert where(world) == ["n5"] * 4

    def test_nodes_without_the_label_are_alone(self):
        world = World([node("n1", cpu=2000), node("n2", cpu=2000)])
        world.add("a", shape(1000, replicas=3, pack="rack", pack_required=True))
        assert where(world) == []


@pytest.mark.parametrize(("preemptible", "expected"), [(True, ["n1"]), (False, [])])
def test_spot_pools_take_only_what_may_be_stopped(preemptible, expected):
    world = World([node("n1", "east/spot")])
    world.add("a", shape(), preemptible=preemptible)
    assert where(world, Policy(pools={"east/spot": PoolPolicy(spot=True)})) == expected


def test_data_is_processed_only_where_all_of_it_may_be():
    sets = {
        "school": DataSet(1, ("east",), ("east", "west")),
        "health": DataSet(10_000_000, ("west",), ("west", "north")),
        "open": DataSet(10_000_000, ("north",)),
    }
    for names, expected in ((("school",), "e"), (("school", "health"), "w"), (("open",), "n"), (("health",), "w")):
        world = World([node("e", "east/cpu"), node("w", "west/cpu"), node("n", "north/cpu")])
        world.add("a", shape(data_sets=names))
        assert where(world, Policy(data_sets=sets)) == [expected]


class TestCost:
    """The terms of what a pool costs a job, one by one."""

    def cost(
        self, site: SiteKey, home_region: str = "", gpu: int = 0, sets: tuple[str, ...] = (), **weights: int
    ) -> int:
        score = ScorePolicy(**{"home": 0, "locality": 0, **weights})
        policy = Policy(
            score=score,
            pools={"east/gpu": PoolPolicy(cpu_core_hour=10, gpu_hour=500)},
            data_sets={"d": DataSet(360_000, ("east", "north"))},
            speed_milli={"A100": 2000, "H20": 500},
            bandwidth_mib_s={"east/west": 50, "north/west": 100},
        )
        return site_cost(site, shape(2000, gpu=gpu, replicas=2, data_sets=sets), home_region, policy)

    def test_home(self):
        assert (self.cost(WEST, "east", home=700), self.cost(EAST, "east", home=700), self.cost(WEST, home=700)) == (
            700,
            0,
            0,
        )

    def test_an_hour_of_moving_data_from_the_nearest_copy(self):
        assert (self.cost(WEST, sets=("d",), locality=1000), self.cost(EAST, sets=("d",), locality=1000)) == (1000, 0)
        assert move_ms("west", shape(data_sets=("d",)), Policy(data_sets={"d": DataSet(100, ("east",))})) == 1000

    def test_price_in_major_units_an_hour(self):
        # 4 CPU cores at 0.10 and 2 GPUs at 5.00.
        assert (self.cost(EAST, gpu=1000, price=1000), self.cost(WEST, gpu=1000, price=1000)) == (10_400, 0)

    def test_speed(self):
        assert (self.cost(EAST, speed=1000), self.cost(WEST, speed=1000)) == (-500, 1000)


class TestRank:
    """A job's static place in line."""

    def test_class_is_a_head_start(self):
        order = OrderPolicy(class_head_start_ms=100)
        ranks = [rank_of(order, 1000, each, Resources(1000), 5) for each in PriorityClass]
        assert ranks == [1100, 1000, 900, 800]

    def test_short_jobs_go_before_long_ones_as_far_as_the_factor_says(self):
        order = OrderPolicy(shortness_milli=2000, class_head_start_ms=0, class_factor=4)
        gpus = Resources(1000, 1024, 2000)
        assert service_ms(gpus, 3000) == 5409
        ranks = [rank_of(order, 0, each, gpus, 3000) for each in PriorityClass]
        assert ranks == [43_272, 10_818, 2704, 676]

    @pytest.mark.parametrize(
        ("gpu_milli", "expected"), [(250, 250), (1000, 1000), (2000, 1803), (3000, 2526), (4000, 3249), (8000, 5856)]
    )
    def test_size_counts_a_little_less_than_in_proportion(self, gpu_milli, expected):
        assert weighed_size_milli(Resources(1, 1, gpu_milli)) == expected
        assert abs(expected - 1000 * min(gpu_milli / 1000, (gpu_milli / 1000) ** 0.85)) < 25

    @pytest.mark.parametrize(
        ("total", "expected"),
        [((8000, 0, 0), 1000), ((0, 131_072, 0), 2000), ((8000, 0, 3000), 3000), ((1, 1, 0), 1)],
    )
    def test_size_is_the_largest_part_of_a_gpu_with_what_stands_beside_it(self, total, expected):
        assert gpu_equivalents_milli(Resources(*total)) == expected


class TestPast:
    """What was held counts as far as the policy says."""

    def test_a_share_mixes_what_is_held_with_what_was(self):
        scale = Scale(Resources(1000, 1000, 0))
        view = TenantView(1, in_use=Resources(200, 0, 0), past=Resources(0, 600, 0))
        shares = [Account(view, scale, milli).share for milli in (0, 250, 500, 1000)]
        of_one = scale.dominant_share(Resources(1000))
        assert [round(share * 1000 / of_one) for share in shares] == [200_000, 150_000, 300_000, 600_000]

    def test_who_used_more_in_the_past_goes_later(self):
        world = World([node("n1", cpu=1000)])
        used, new = world.add("a", shape()), world.add("z", shape())
        world.institutions["a"] = TenantView(1, past=Resources(4000, 0, 0))
        for past_milli, expected in ((0, used), (500, new)):
            policy = Policy(order=OrderPolicy(past_milli=past_milli))
            assert [start.job_no for start in plan(world.snapshot(), policy, 0).starts] == expected
