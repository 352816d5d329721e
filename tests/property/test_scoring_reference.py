"""Whatever the nodes, the mix and the request: the kernels score as the plain reference, and never where a request does not fit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.fit import replicas_on
from scheduler.planning.gaps import MICRO, gap_values
from scheduler.planning.mix import JobType, NodeKind, mix_of
from scheduler.planning.worth import DOES_NOT_FIT, Weights, rescore
from tests.property.reference_scoring import nodes_of, score, worth

KINDS = (NodeKind("", False), NodeKind("A100", True), NodeKind("T4", True))
GPU_MILLI = st.one_of(
    st.sampled_from((0, 0, 250, 500, 810, 1000, 1000, 2000, 4000)), st.integers(1, 999), st.just(1500)
)
requests = st.builds(Resources, st.integers(0, 20_000), st.integers(0, 70_000), GPU_MILLI)
weights = st.one_of(st.just(Weights()), st.builds(Weights, *[st.integers(0, 10_000)] * 4))


@st.composite
def clusters(draw):
    """Kinds, what is free, and free GPUs of a few nodes; capacities are what is free or more."""
    nodes = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.integers(0, 2))
        count = draw(st.integers(1, 4)) if kind else 0
        gpus = [draw(st.one_of(st.sampled_from((0, 190, GPU_UNIT)), st.integers(0, 1000))) for _ in range(count)]
        free = Resources(draw(st.integers(0, 64_000)), draw(st.integers(0, 200_000)), sum(gpus))
        nodes.append((kind, free, gpus, Resources(64_000, 200_000, count * GPU_UNIT)))
    kinds, free, gpus, capacity = zip(*nodes, strict=True)
    return nodes_of(kinds, capacity, free, gpus)


@st.composite
def mixes(draw):
    types = st.builds(JobType, requests, st.sampled_from(((), ("A100",), ("T4",), ("A100", "T4"))))
    counts = draw(st.dictionaries(types, st.integers(0, 1000), max_size=12))
    return mix_of(counts, KINDS, 4, draw(st.sampled_from((0, 1000, 4000))))


def state(nodes, index):
    return int(nodes.free[index, 0]), int(nodes.free[index, 1]), nodes.gpus[index].tolist()


def padded(mix, nodes):
    """The nodes, with the four GPU indexes that the mix is made for."""
    assert nodes.gpus.shape[1] <= 4
    assert mix.whole.shape[0] == 5
    return nodes


@settings(max_examples=150, deadline=None)
@given(clusters(), mixes(), requests, weights)
def test_kernels_score_as_the_reference(nodes, mix, request, terms):
    count = len(nodes.kind)
    scores, chosen = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    rescore(padded(mix, nodes), np.arange(count), request, mix, terms, scores, chosen)
    for index in range(count):
        kind, free = int(nodes.kind[index]), state(nodes, index)
        if not nodes.stale[index]:
            assert int(nodes.worth[index]) == worth(kind, *free, mix, terms)
        expected = score(kind, free, Resources(*nodes.most.tolist()), request, mix, terms)
        assert (int(scores[index]), int(chosen[index])) == (expected or (DOES_NOT_FIT, -1))
        fits = replicas_on(request, Resources(free[0], free[1], sum(free[2])), free[2]) > 0
        assert (scores[index] < DOES_NOT_FIT) == fits


def first_fit_decreasing(demand: dict[int, int]) -> int:
    """How many GPUs a simple packing of all shares needs."""
    bins: list[int] = []
    for size in sorted(demand, reverse=True):
        for _ in range(demand[size]):
            place = next((index for index, free in enumerate(bins) if free >= size), None)
            if place is None:
                bins.append(GPU_UNIT)
                place = len(bins) - 1
            bins[place] -= size
    return len(bins)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.integers(1, 999), st.integers(1, 20), min_size=1, max_size=16))
def test_gap_values_are_the_prices_of_the_cutting_stock_problem(demand):
    """Feasible prices (no pattern is worth more than a GPU), and best: no less than the volume, no more than a packing."""
    values = gap_values(demand)
    assert values[0] == 0
    assert values[GPU_UNIT] == MICRO
    assert (np.diff(values) >= 0).all()
    for size in demand:
        assert (values[size:] >= values[: GPU_UNIT + 1 - size] + values[size] - 3).all()
    priced = sum(count * int(values[size]) for size, count in demand.items())
    slack = sum(demand.values()) + 1
    assert sum(count * size for size, count in demand.items()) * MICRO // GPU_UNIT - slack <= priced
    assert priced <= first_fit_decreasing(demand) * MICRO + slack
