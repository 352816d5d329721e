"""Where the scorer puts what, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.domain.resources import Resources
from scheduler.planning import compiled as compiling
from scheduler.planning.gaps import MAX_SIZES, gap_values
from scheduler.planning.mix import MAX_TYPES, JobType, NodeKind, mix_of, typical
from scheduler.planning.worth import DOES_NOT_FIT, NO_GPU, Weights, rescore, take_gpus
from tests.property.reference_scoring import nodes_of

CPU, T4, A100 = NodeKind("", False), NodeKind("T4", True), NodeKind("A100", True)
KINDS = [CPU, T4, A100]
LARGE = JobType(Resources(3000, 5600, 810))
WHOLE = JobType(Resources(11_000, 48_000, 1000))
HUNGRY = JobType(Resources(30_000, 48_000, 1000))
SMALL = JobType(Resources(4000, 16_000, 160))
THIRD = JobType(Resources(4000, 16_000, 320))
PLAIN = JobType(Resources(12_000, 56_000, 0))
GANG = JobType(Resources(40_000, 160_000, 4000))


class Cluster:
    """Nodes given as (kind, CPU, memory, GPUs free), with capacity for all of that; places one request at a time."""

    def __init__(self, counts, *nodes, gangs_milli=4000):
        self.mix = mix_of(counts, KINDS, 8, gangs_milli)
        free = [Resources(cpu, memory, sum(gpus)) for _, cpu, memory, gpus in nodes]
        capacity = [Resources(cpu, memory, 1000 * len(gpus)) for _, cpu, memory, gpus in nodes]
        self.nodes = nodes_of([KINDS.index(node[0]) for node in nodes], capacity, free, [node[3] for node in nodes])
        self.allowed = np.ones(len(nodes), dtype=np.bool_)

    def scores(self, request):
        """The scores of all nodes and the GPU a share would take on each."""
        count = len(self.allowed)
        scores, gpus = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        rescore(self.nodes, np.arange(count), request, self.mix, Weights(), scores, gpus)
        return np.where(self.allowed, scores, DOES_NOT_FIT), gpus

    def best(self, kind):
        scores, gpus = self.scores(kind.request)
        node = int(scores.argmin())
        return (node, int(gpus[node])) if scores[node] < DOES_NOT_FIT else (-1, NO_GPU)


def test_the_price_of_a_share_is_what_it_keeps_others_from():
    values = gap_values({810: 100, 470: 100, 160: 5})
    # 810 fills a GPU, two of 470 do, and 160 goes beside either for nothing.
    assert [int(values[size]) for size in (0, 160, 190, 469, 470, 809, 810, 1000)] == [
        *(0, 0, 0, 0, 500_000, 500_000, 1_000_000, 1_000_000),
    ]


def test_without_shares_only_whole_gpus_have_value():
    values = gap_values({0: 5, 1000: 10, 500: 0})
    assert int(values[999]) == 0
    assert int(values[1000]) == 1_000_000


def test_more_sizes_than_looked_at_are_those_asked_for_least():
    demand = dict.fromkeys(range(400, 400 + MAX_SIZES), 1000)
    assert gap_values(demand | {300: 1}).tolist() == gap_values(demand).tolist()


def test_typical_types_cover_the_jobs_and_the_demand_for_gpus():
    rare, common = JobType(Resources(1, 1, 8000)), JobType(Resources(1, 1, 500))
    counts = {common: 960, rare: 20, JobType(Resources(2, 2, 100)): 20}
    # The rare type is 2 % of the jobs, but a quarter of the GPUs.
    assert typical(counts) == [(common, 960), (rare, 20)]
    assert typical({}) == []
    assert len(typical({JobType(Resources(number, 1, 100)): 5 for number in range(200)})) == MAX_TYPES


def test_a_small_share_goes_where_nothing_else_does():
    cluster = Cluster(
        {LARGE: 1000, THIRD: 500, SMALL: 50},
        (T4, 60_000, 200_000, (1000, 1000)),
        (T4, 60_000, 200_000, (320, 1000)),
        (T4, 60_000, 200_000, (1000, 190)),
    )
    assert cluster.best(SMALL) == (2, 1)
    # And a third of a GPU fills a third, rather than break a whole one.
    assert cluster.best(THIRD) == (1, 0)


def test_cpu_and_memory_are_kept_for_the_gpus_beside_them():
    mix = {WHOLE: 800, HUNGRY: 200}
    tight, rich = (T4, 50_000, 200_000, (1000,) * 4), (T4, 200_000, 800_000, (1000,) * 4)
    assert Cluster(mix, tight, rich).best(HUNGRY) == (1, NO_GPU)
    assert Cluster(mix, tight, rich).best(PLAIN) == (1, NO_GPU)
    # What asks for little CPU goes where there is little.
    assert Cluster(mix, tight, rich).best(JobType(Resources(1000, 4000, 1000))) == (0, NO_GPU)


def test_nodes_without_gpus_keep_the_proportion_of_the_jobs_without():
    lean, fat = JobType(Resources(8000, 8000, 0)), JobType(Resources(8000, 64_000, 0))
    nodes = ((CPU, 64_000, 64_000, ()), (CPU, 64_000, 512_000, ()))
    assert Cluster({lean: 100, fat: 100, WHOLE: 900}, *nodes).best(fat) == (1, NO_GPU)
    assert Cluster({lean: 100, fat: 100, WHOLE: 900}, *nodes[::-1]).best(lean) == (1, NO_GPU)


def test_whole_nodes_are_kept_for_those_who_need_them():
    nodes = ((T4, 44_000, 192_000, (1000,) * 4), (T4, 33_000, 144_000, (0, 1000, 1000, 1000)))
    assert Cluster({WHOLE: 500, GANG: 50}, *nodes).best(WHOLE)[0] == 1
    nodes = nodes[::-1]
    assert Cluster({WHOLE: 500, GANG: 50}, *nodes).best(WHOLE)[0] == 0


def test_a_type_in_demand_is_kept_for_the_jobs_that_will_have_no_other():
    picky = JobType(Resources(11_000, 48_000, 1000), ("A100",))
    nodes = ((A100, 44_000, 192_000, (1000,) * 4), (T4, 44_000, 192_000, (1000,) * 4))
    assert Cluster({WHOLE: 100, picky: 100}, *nodes).best(WHOLE)[0] == 1
    assert Cluster({WHOLE: 100, picky: 100}, *nodes[::-1]).best(WHOLE)[0] == 0


def test_equals_go_to_the_lowest_index():
    cluster = Cluster({WHOLE: 10}, *[(T4, 44_000, 192_000, (1000,) * 2)] * 3)
    assert cluster.best(WHOLE) == (0, NO_GPU)
    cluster.allowed[0] = False
    assert cluster.best(WHOLE) == (1, NO_GPU)


def test_without_a_workload_shares_are_packed_and_the_tightest_node_is_best():
    cluster = Cluster({}, (T4, 60_000, 200_000, (1000, 1000)), (T4, 50_000, 200_000, (1000, 400)))
    assert cluster.best(THIRD) == (1, 1)
    assert cluster.best(WHOLE)[0] == 1


@pytest.mark.parametrize(
    "request_",
    [
        Resources(8001, 1, 100),
        Resources(1, 9001, 100),
        Resources(1, 1, 501),
        Resources(1, 1, 1000),
        Resources(1, 1, 1500),
    ],
)
def test_what_does_not_fit_has_no_score(request_):
    cluster = Cluster({SMALL: 1}, (T4, 8000, 9000, (500, 500)))
    score, gpu = cluster.scores(request_)
    assert (int(score[0]), int(gpu[0])) == (DOES_NOT_FIT, NO_GPU)
    assert cluster.best(JobType(request_)) == (-1, NO_GPU)


def test_whole_gpus_are_the_lowest_idle_ones():
    gpus = np.array((500, 1000, 1000, 1000))
    assert take_gpus(gpus, Resources(20_000, 80_000, 2000), NO_GPU)
    assert gpus.tolist() == [500, 0, 0, 1000]


def test_compiles_where_nothing_can_be_kept(monkeypatch):
    compiles = compiling.njit

    def nowhere(*arguments, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compiles(*arguments, **options)

    monkeypatch.setattr(compiling, "njit", nowhere)
    assert compiling.compiled(lambda number: number + 1)(1) == 2
