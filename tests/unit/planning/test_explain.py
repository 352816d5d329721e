"""What a researcher is told about a job that waits, and about one that is refused."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.classification import Classification
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.explain import explain, explain_changed
from scheduler.planning.explanation import ExpectedStart, Explanation
from scheduler.planning.feasible import Infeasible, UnknownPlace, could_ever_fit
from scheduler.planning.plan import Planner, plan
from scheduler.planning.policy import DataSet, Guarantee, Policy, PoolPolicy
from scheduler.planning.types import Changes, PoolKey, Reservation, Start, TenantView
from scheduler.planning.what_if import Change
from tests.unit.planning.builders import World, node, shape

GIB = 1024
MINUTE_MS = 60_000


def told(world: World, job_no: int, now_ms: int = 0, **policy: object) -> Explanation:
    (found,) = [(key, job) for key, jobs in world.lines.items() for job in jobs if job.job_no == job_no]
    return explain(Planner(), world.snapshot(), Policy(**policy), now_ms, found)


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


def test_the_next_one_is_told_so():
    world = World([node("n1")])
    (job,) = world.add("b", shape())
    answer = told(world, job, now_ms=7)
    assert (answer.code, answer.position, answer.position_is_exact, answer.blockers) == ("NEXT", 0, True, ())
    assert answer.message == "there is room in east/cpu and the job is next; it starts with the next planning round"
    assert (answer.expected.at_ms, answer.expected.confidence, answer.expected.basis) == (7, "HIGH", "PLAN")


def test_who_goes_first_and_how_many_they_are():
    world = World([node("n1", cpu=4000)])
    world.add("b", shape(2000), submit_ms=1, rank=1)
    world.add("b", shape(2000), submit_ms=9, priority=PriorityClass.HIGH, rank=2)
    world.add("b", shape(1000), submit_ms=9, rank=3, user="other")
    (job,) = world.add("b", shape(1000), submit_ms=4, rank=4)
    answer = told(world, job)
    assert (answer.code, answer.position, answer.position_is_exact) == ("PRIORITY", 3, True)
    assert answer.message == (
        "there is room in east/cpu, but 3 jobs of institution b go first: 1 of a higher priority class, 1 submitted earlier and "
        "1 expected to be shorter, or urgent"
    )
    assert answer.blockers[0].numbers == {"higher_class": 1, "older": 1, "shorter": 1}


def test_other_institutions_go_first_while_they_hold_less():
    world = World([node("n1", cpu=4000)])
    world.institutions["b"] = TenantView(1, in_use=Resources(2000))
    (job,) = world.add("b", shape(2000), submit_ms=1)
    world.add("a", shape(), 9, submit_ms=5)
    answer = told(world, job)
    # Three of a's one-core jobs start before a holds more than b.
    assert (answer.code, answer.position, answer.position_is_exact) == ("FAIR_SHARE", 3, False)
    assert answer.message == (
        "there is room in east/cpu, but about 3 jobs are planned first: 3 of institutions that hold less of their share"
    )


def running(
    world: World, wanted: Shape, limit_ms: int, node_id: str = "n1", institution: str = "z", **rest: bool
) -> None:
    """Let a job run on a node until its limit."""
    (number,) = world.add(institution, wanted, **rest)
    key = next(key for key, jobs in world.lines.items() if any(job.job_no == number for job in jobs))
    start = Start(number, "east", "cpu", "", (ReplicaPlacement(node_id, ()),))
    world.hold(start, key, 1)
    world.run(start, key, limit_ms)
    del world.lines[key]


def test_room_that_is_kept_for_another_job_is_named_with_the_wait_and_the_limit():
    world = World([node("n1")])
    running(world, shape(5000), 45 * MINUTE_MS)
    (big,) = world.add("b", shape(8000), submit_ms=0, rank=0)
    (small,) = world.add("b", shape(), submit_ms=10, rank=1, limit_ms=120 * MINUTE_MS)
    answer = told(world, small)
    assert answer.code == "RESERVATION"
    assert answer.message == (
        "there is room in east/cpu, but it is kept for another job, which will start in 45 minutes at the latest; this job could start "
        "first only if it were sure to end by then, and its limit is 2 hours"
    )
    assert answer.blockers[0].numbers == {
        "until_ms": 45 * MINUTE_MS,
        "limit_ms": 120 * MINUTE_MS,
        "for_job_no": big,
    }
    assert [pool.code for pool in answer.pools] == ["RESERVED"]
    (remedy,) = [each for each in answer.remedies if each.code == "SHORTER"]
    assert remedy.change == Change(max_runtime_ms=45 * MINUTE_MS)
    assert remedy.message == (
        "lower its longest runtime to 45 minutes: it could start in east/cpu before the job for which room is kept there"
    )
    assert told(world, big).reservation == Reservation(big, "east", "cpu", "", ("n1",), 45 * MINUTE_MS)
    assert told(world, big).expected == ExpectedStart(45 * MINUTE_MS, 0, 45 * MINUTE_MS, "MEDIUM", "RESERVATION")


def test_less_is_proposed_where_it_would_start_now():
    nodes = [node(f"n{i}", free=Resources(8000, (12 if i else 4) * GIB, 0)) for i in range(4)]
    world = World(nodes)
    (job,) = world.add("a", shape(memory=16 * GIB, replicas=1))
    (remedy,) = told(world, job).remedies
    assert remedy.message == (
        "ask for 12 GiB of memory instead of 16 GiB of memory: 3 nodes in east/cpu would take it now"
    )
    assert (remedy.code, remedy.change, remedy.now) == ("LESS_MEMORY", Change(memory_mib=12 * GIB), True)


def test_fewer_replicas_another_region_and_other_pools():
    world = World([node("n1"), node("w1", "west/cpu", cpu=64_000)])
    (job,) = world.add("a", shape(2000, replicas=6, required_regions=("east",)))
    found = {each.code: each.message for each in told(world, job).remedies}
    assert found == {
        "LESS_CPU": "ask for 1 CPU core instead of 2 CPU cores: 1 node in east/cpu would take it now",
        "FEWER_REPLICAS": (
            "ask for fewer replicas: 4 replicas with 2 CPU cores and 1 GiB of memory each fit in east/cpu now"
        ),
        "ANY_REGION": "drop the required region: west/cpu would take it now",
    }


def test_a_spot_pool_takes_preemptible_jobs_only():
    world = World([node("n1", "east/spot")])
    (job,) = world.add("a", shape())
    answer = told(world, job, pools={"east/spot": PoolPolicy(spot=True)})
    assert answer.code == "SPOT"
    assert answer.message == (
        "no pool can take the job now; the nearest is east/spot: it is a spot pool, which takes preemptible jobs only"
    )
    assert [each.message for each in answer.remedies] == ["make it preemptible: east/spot would take it now"]


def test_data_that_may_not_leave_its_region():
    world = World([node("n1")])
    (job,) = world.add("a", shape(data_sets=("census",)))
    answer = told(world, job, data_sets={"census": DataSet(1, ("west",), ("west",))})
    assert answer.code == "DATA_RESIDENCY"
    assert answer.message.endswith("east/cpu: data set census may be processed in region west only")


def test_data_goes_only_into_pools_that_are_trusted_with_it():
    world = World([node("n1")])
    (job,) = world.add("a", shape(data_sets=("census",)))
    census = {"census": DataSet(1, level=Classification.SENSITIVE)}
    answer = told(world, job, data_sets=census)
    assert answer.code == "DATA_RESIDENCY"
    assert answer.message.endswith("east/cpu: it is not trusted with data as closely kept as the job's")
    found = could_ever_fit(world.snapshot().pools, shape(data_sets=("census",)), Policy(data_sets=census))
    assert isinstance(found, Infeasible)
    assert "not trusted" in found.message
    trusted = {"east/cpu": PoolPolicy(trust=Classification.SENSITIVE)}
    assert told(world, job, data_sets=census, pools=trusted).code == "NOT_ISOLATED"


def test_sensitive_data_goes_only_to_nodes_that_keep_jobs_apart():
    census = {"census": DataSet(1, level=Classification.SENSITIVE)}
    trusted = {"east/cpu": PoolPolicy(trust=Classification.SENSITIVE)}
    policy = Policy(data_sets=census, pools=trusted)
    open_world = World([node("n1")])
    (job,) = open_world.add("a", shape(data_sets=("census",)))
    answer = told(open_world, job, data_sets=census, pools=trusted)
    assert answer.code == "NOT_ISOLATED"
    assert answer.message.endswith("east/cpu: none of its nodes keeps jobs apart, as the job's data demands")
    found = could_ever_fit(open_world.snapshot().pools, shape(data_sets=("census",)), policy)
    assert isinstance(found, Infeasible)
    assert "keeps jobs apart" in found.message
    # A roomier node beside it does not help; only the walled one counts.
    world = World([node("n1", cpu=64_000), node("n2", cpu=2_000, isolated=True)])
    (small,) = world.add("a", shape(cpu=2_000, data_sets=("census",)))
    assert told(world, small, data_sets=census, pools=trusted).code == "NEXT"
    found = could_ever_fit(world.snapshot().pools, shape(cpu=4_000, data_sets=("census",)), policy)
    assert isinstance(found, Infeasible)
    assert found.lacking == {"cpu": 2_000}
    assert could_ever_fit(world.snapshot().pools, shape(cpu=4_000), policy) is None


def test_no_rack_holds_all_replicas():
    racks = [node(f"n{i}", labels=(("rack", "r1" if i < 2 else "r2"),)) for i in range(4)]
    world = World(racks)
    (never,) = world.add("a", shape(8000, replicas=3, pack="rack", pack_required=True))
    answer = told(world, never)
    assert answer.code == "TOPOLOGY"
    assert answer.pools[0].message == (
        "no single rack holds all 3 replicas even when empty; the roomiest holds 2, and the job must not be spread over several"
    )
    assert "SPREAD" in {each.code for each in answer.remedies}


def test_guarantees_of_others_bar_a_job_that_cannot_be_stopped():
    guarantees = (
        Guarantee("a", "east/cpu", Resources(2000, 8192)),
        Guarantee("b", "east/cpu", Resources(6000, 8192)),
    )
    world = World([node("n1")])
    (job,) = world.add("a", shape(4000, 1024))
    answer = told(world, job, guarantees=guarantees)
    assert answer.code == "BORROWING"
    assert answer.pools[0].message == (
        "institution a holds 0 CPU cores of the 2 CPU cores it is guaranteed here, and this job needs 4 CPU cores: what else "
        "there is, is guaranteed to others, and only preemptible jobs may stand on it"
    )
    assert {"PREEMPTIBLE", "LESS_CPU"} <= {each.code for each in answer.remedies}


def test_others_that_are_being_stopped_for_it():
    world = World([node("n1")])
    running(world, shape(8000), 45 * MINUTE_MS, preemptible=True)
    (job,) = world.add("a", shape(8000))
    (seq,) = world.running
    world.running[seq] = replace(world.running[seq], stopped_by_ms=90_000, for_job_no=job)
    world.claims[job] = next(iter(world.lines))
    answer = told(world, job, now_ms=30_000)
    assert answer.code == "PREEMPTING"
    assert answer.message == "1 running job is being stopped for it; it starts in 1 minute at the latest"
    assert answer.expected == ExpectedStart(90_000, 30_000, 90_000, "HIGH", "PREEMPTION")


def test_a_change_is_explained_and_leaves_no_trace():
    world = World([node("n1", free=Resources(4000, 9 * GIB, 0))])
    (job,) = world.add("a", shape(6000))
    planner, snapshot = Planner(), world.snapshot()
    ((key, (pending,)),) = world.lines.items()
    less = explain_changed(planner, snapshot, Policy(), 0, (key, pending), Change(cpu_milli=3000))
    assert less.code == "NEXT"
    assert explain(planner, replace(snapshot, changes=Changes()), Policy(), 0, (key, pending)).code == "FIT"
    assert planner.plan(replace(snapshot, changes=Changes()), Policy(), 0) == plan(snapshot, Policy(), 0)
    assert job == pending.job_no


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

    def test_rules_of_the_policy_that_never_change_by_themselves(self):
        policy = Policy(
            pools={"west/cpu": PoolPolicy(spot=True)}, data_sets={"census": DataSet(1, ("east",), ("east",))}
        )
        pools = World(list(self.NODES)).snapshot().pools
        at_west = shape(required_regions=("west",))
        assert could_ever_fit(pools, at_west, policy, preemptible=True) is None
        spot = could_ever_fit(pools, at_west, policy, preemptible=False)
        assert isinstance(spot, Infeasible)
        assert spot.message.endswith("the nearest is west/cpu, a spot pool, which takes preemptible jobs only")
        away = could_ever_fit(pools, replace(at_west, data_sets=("census",)), policy, preemptible=True)
        assert isinstance(away, Infeasible)
        assert away.message.endswith("west/cpu, but data set census may be processed in region east only")

    def test_no_rack_could_ever_hold_the_gang(self):
        racks = World([node(f"n{i}", labels=(("rack", f"r{i // 2}"),)) for i in range(4)]).snapshot().pools
        together = shape(8000, replicas=2, pack="rack", pack_required=True)
        assert could_ever_fit(racks, together) is None
        answer = could_ever_fit(racks, replace(together, replicas=3))
        assert isinstance(answer, Infeasible)
        assert answer.message.endswith("east/cpu, where no single rack holds more than 2 of them")
        assert could_ever_fit(racks, replace(together, replicas=3, pack_required=False)) is None
        alone = could_ever_fit(racks, replace(together, pack="node"))
        assert isinstance(alone, Infeasible)
