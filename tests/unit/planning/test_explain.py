"""What a researcher is told about a job that waits, and about one that is refused."""

from __future__ import annotations

from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.explain import explain
from scheduler.planning.feasible import Infeasible, UnknownPlace, could_ever_fit
from scheduler.planning.policy import Policy
from scheduler.planning.types import Explanation, PoolKey, TenantView
from tests.unit.planning.builders import World, node, shape

GIB = 1024


def told(world: World, job_no: int, now_ms: int = 0, **policy: int) -> Explanation:
    (found,) = [(key, job) for key, jobs in world.lines.items() for job in jobs if job.job_no == job_no]
    return explain(world.snapshot(), Policy(**policy), now_ms, found)


def test_a_full_pool_says_how_many_nodes_lack_what_and_the_nearest_miss():
    nodes = [node(f"n{i:02}", free=Resources(8000, (12 if i < 3 else 32) * GIB, 0)) for i in range(3)]
    world = World(nodes)
    (job,) = world.add("a", shape(memory=16 * GIB))
    answer = told(world, job)
    (pool,) = answer.pools
    assert (answer.code, pool.code, pool.nodes_total, pool.nodes_fit_now, pool.nodes_fit_empty) == (
        "FIT",
        "BUSY",
        3,
        0,
        3,
    )
    assert pool.nodes_lacking == {"memory": 3}
    assert pool.message == "3 of 3 nodes lack 16 GiB of free memory; the nearest, n00, is 4 GiB of memory short"
    assert pool.message in answer.message


def test_each_pool_has_its_own_reason():
    world = World(
        [
            node("a", "east/cpu"),
            node("b", "east/gpu", gpus=4, accelerator="A100", labels=(("zone", "z1"),)),
            node("c", "east/small", gpus=1, accelerator="H20"),
            node("d", "east/drained", gpus=4, accelerator="H20", labels=(("zone", "z1"),), draining=True),
            node("e", "east/two", gpus=2, accelerator="H20", labels=(("zone", "z1"),)),
            node("f", "north/gpu", gpus=4, accelerator="H20", labels=(("zone", "z1"),)),
            node("g", "south/gpu", gpus=4, accelerator="H20", labels=(("zone", "z1"),)),
        ],
        offline=frozenset({"north"}),
    )
    names = ("cpu", "gpu", "small", "drained")
    wanted = shape(
        gpu=3000,
        accelerators=("H20",),
        required_regions=("east", "north"),
        node_selector=(("zone", "z1"),),
        pools=(*names, "east/two"),
    )
    (job,) = world.add("a", wanted)
    codes = {str(pool.pool): pool.code for pool in told(world, job).pools}
    assert codes == {
        "east/cpu": "ACCELERATOR_MISMATCH",
        "east/gpu": "ACCELERATOR_MISMATCH",
        "east/small": "SELECTOR_MISMATCH",
        "east/drained": "DRAINING",
        "east/two": "TOO_SMALL",
        "north/gpu": "REGION_OFFLINE",
        "south/gpu": "REGION_NOT_ALLOWED",
    }
    (elsewhere,) = world.add("a", shape(pools=("cpu",)))
    assert {pool.code for pool in told(world, elsewhere).pools if pool.pool.pool != "cpu"} == {"POOL_NOT_ALLOWED"}


def test_a_gang_says_how_many_replicas_would_fit():
    world = World([node("n1", free=Resources(3000, 9 * GIB, 0)), node("n2", free=Resources(1000, 9 * GIB, 0))])
    (job,) = world.add("a", shape(2000, replicas=2))
    (pool,) = told(world, job).pools
    assert pool.code == "GANG_DOES_NOT_FIT"
    assert pool.message.startswith("1 of the 2 replicas would fit now, on 1 node")


def test_gpus_free_in_sum_but_not_whole_count_as_lacking():
    world = World([node("g", gpus=2, accelerator="A", free=Resources(8000, 9 * GIB, 1000), gpu_free=(500, 500))])
    (job,) = world.add("a", shape(gpu=1000))
    (pool,) = told(world, job).pools
    assert (pool.code, pool.nodes_lacking) == ("BUSY", {"gpu": 1})


def test_a_quota_says_what_has_to_be_released():
    world = World([node("n1")])
    (job,) = world.add("a", shape(16_000))
    world.institutions["a"] = TenantView(1, in_use=Resources(90_000), quota=Resources(100_000, 1 << 40, 0))
    answer = told(world, job)
    assert answer.code == "QUOTA"
    assert answer.message == (
        "institution a holds 90 CPU cores of a quota of 100 CPU cores, and this job needs 16 CPU cores; "
        "it can start when 6 CPU cores are released or the quota is raised"
    )


def test_who_goes_first_and_how_many_they_are():
    world = World([node("n1")])
    (older,) = world.add("b", shape(), submit_ms=1)
    (younger,) = world.add("b", shape(2000), submit_ms=2)
    assert (told(world, older).code, told(world, older).position) == ("FAIR_SHARE", 0)
    assert "is next" in told(world, older).message
    assert (told(world, younger).code, told(world, younger).position) == ("FAIR_SHARE", 1)
    world.add("b", shape(500), 3, priority=PriorityClass.HIGH)
    assert (told(world, older).code, told(world, older).position) == ("PRIORITY", 3)
    # Two of a's one-core jobs start before a holds more than b will, when its three half-core jobs have started.
    world.add("a", shape(), 9, submit_ms=5)
    assert told(world, older).position == 5


def test_a_pool_kept_free_is_named_with_the_wait():
    world = World([node("n1", free=Resources(3000, 9000, 0))])
    world.add("b", shape(8000), submit_ms=0)
    (small,) = world.add("a", shape(), submit_ms=10)
    answer = told(world, small, now_ms=45 * 60_000)
    assert answer.code == "FAIR_SHARE"
    assert "east/cpu has room but is kept free for a larger job that has waited for 45 minutes" in answer.message


class TestFeasible:
    """Refusal at submit."""

    NODES = (
        node("c", "west/cpu", cpu=4000, up=False),
        node("g", "east/gpu-a100", cpu=64_000, gpus=4, accelerator="A100"),
    )

    def judge(self, wanted: Shape) -> Infeasible | UnknownPlace | None:
        return could_ever_fit(World(list(self.NODES)).snapshot().pools, wanted)

    def test_nodes_out_of_service_count(self):
        assert self.judge(shape(4000, required_regions=("west",))) is None

    def test_the_nearest_pool_and_what_it_lacks(self):
        answer = self.judge(shape(gpu=8000))
        assert isinstance(answer, Infeasible)
        assert (answer.pool, answer.lacking) == (PoolKey("east", "gpu-a100"), {"gpu": 4000})
        assert answer.message == (
            "no pool can hold 1 replica with 1 CPU core, 1 GiB of memory and 8 GPUs: the nearest is east/gpu-a100, "
            "whose largest node has 4 GPUs"
        )

    def test_a_gang_too_big(self):
        answer = self.judge(shape(gpu=2000, replicas=3))
        assert isinstance(answer, Infeasible)
        assert answer.message.endswith("the nearest is east/gpu-a100, which holds 2 of them at once")

    def test_gpus_that_cannot_be_divided(self):
        answer = self.judge(shape(gpu=1500))
        assert isinstance(answer, Infeasible)
        assert answer.message.endswith("whose GPUs cannot be divided so")

    def test_wrong_accelerator_and_labels(self):
        answer = self.judge(shape(gpu=1000, accelerators=("H20",)))
        assert isinstance(answer, Infeasible)
        assert "A100" in answer.message
        assert isinstance(self.judge(shape(node_selector=(("zone", "x"),))), Infeasible)

    def test_places_nobody_knows(self):
        region, pool = self.judge(shape(required_regions=("nort",))), self.judge(shape(pools=("gpu",)))
        assert isinstance(region, UnknownPlace)
        assert region.message == "no node is known in region nort; known regions are east and west"
        assert isinstance(pool, UnknownPlace)
        assert pool.names == ("gpu",)

    def test_without_any_node_nothing_is_refused_but_named_places(self):
        assert could_ever_fit({}, shape(gpu=64_000)) is None
        assert isinstance(could_ever_fit({}, shape(pools=("east/cpu",))), UnknownPlace)
