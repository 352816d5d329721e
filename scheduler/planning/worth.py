"""The inner loops of scoring, compiled: what a node is still worth to the mix, and what a placement costs of it.

``scoring`` says what is computed and why, and computes the same plainly; the property tests hold the two to each other. Everything
is a 64-bit integer, so that equal input gives equal scores on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.compiled import compiled

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DOES_NOT_FIT = 1 << 62
"""The score of a node that the request does not fit."""
NO_GPU = -1
"""Stands for "no GPU index": the request has no share of a GPU, or does not fit."""

HOST_BITS = 10
"""Numbers of replicas are counted in 1/1024."""
RATE_BITS = 24
"""How many more bits than that a rate (replicas per milli-core or MiB) has."""
SHARE_BITS = 20
"""Parts of the demand are counted in 1/1048576."""
MAX_HOSTED = 1 << 20
"""More replicas than a node holds; bounds every sum below 2^63."""
MICRO = 1_000_000


class Mix(NamedTuple):
    """The mix as arrays; M types of job, K kinds of node.

    ``gap[r]``: value of r idle milli-GPUs of one GPU, in millionths. ``shares[r, m]``: how many replicas of type m such a gap takes
    (0 unless m is a share). ``whole[g, m]``: how many replicas of type m take g idle GPUs (0 for shares; no limit without GPUs).
    ``cpu_rate[m]``, ``memory_rate[m]``: replicas per milli-core and MiB, in 1/2^34. ``value[m]``: the GPU value of a replica, in
    millionths. ``room[k, m]``: the weight of room for type m on nodes of kind k; the weights of a whole mix sum to about a million.
    ``reach[k, m]``: the part of the demand for GPUs that type m is, in 1/2^20; 0 where it may not run.
    """

    gap: Ints
    shares: npt.NDArray[np.int32]
    whole: npt.NDArray[np.int32]
    cpu_rate: Ints
    memory_rate: Ints
    value: Ints
    room: Ints
    reach: Ints


class Weights(NamedTuple):
    """How much each term counts, in thousandths (``scoring`` names the terms)."""

    gap: int = 8000
    room: int = 1000
    reach: int = 2000
    best_fit: int = 10


class Nodes(NamedTuple):
    """What is free on N nodes with at most G GPUs, kept by the planner.

    ``kind``: index of the node's kind in the mix; ``free[n]``: CPU, memory, milli-GPUs; ``gpus[n, g]``: milli-GPUs free per index, 0
    where there is no such GPU. ``worth`` is derived, and wrong as long as ``stale``. ``most``: the largest capacity of any node: CPU,
    memory, milli-GPUs, each at least 1.
    """

    kind: Ints
    free: Ints
    gpus: Ints
    worth: Ints
    stale: Bools
    most: Ints


@compiled
def worth_of(kind: int, cpu: int, memory: int, gpus: Ints, mix: Mix, weights: Weights, count: Ints) -> int:
    """What a node with this much free is worth, in billionths of a GPU. ``count`` is a work space, one entry a type."""
    types = len(mix.value)
    idle = 0
    gap = 0
    for each in range(types):
        count[each] = 0
    for gpu in range(len(gpus)):
        free = gpus[gpu]
        if free >= GPU_UNIT:
            idle += 1
        elif free > 0:
            gap += mix.gap[free]
            for each in range(types):
                count[each] += mix.shares[free, each]
    gap += idle * mix.gap[GPU_UNIT]
    room = 0
    reach = 0
    for each in range(types):
        by_gpu = count[each] + idle * mix.shares[GPU_UNIT, each] + mix.whole[idle, each]
        by_rest = min(cpu * mix.cpu_rate[each], memory * mix.memory_rate[each]) >> RATE_BITS
        by_rest = min(by_rest, MAX_HOSTED << HOST_BITS)
        room += mix.room[kind, each] * min(by_gpu << HOST_BITS, by_rest)
        reach += mix.reach[kind, each] * min(gap, (by_rest * mix.value[each]) >> HOST_BITS)
    worth: int = weights.gap * gap + weights.room * (room >> HOST_BITS) + weights.reach * (reach >> SHARE_BITS)
    return worth


@compiled
def share_gpu(gpus: Ints, share: int, gap: Ints) -> int:
    """The GPU a share costs least of (to a thousandth of a GPU), the fullest and lowest of equals; -1: none has room."""
    chosen = -1
    least = 0
    for gpu in range(len(gpus)):
        free = gpus[gpu]
        if free >= share:
            lost = (gap[free] - gap[free - share] + 500) // 1000
            if chosen < 0 or lost < least or (lost == least and free < gpus[chosen]):
                chosen = gpu
                least = lost
    return chosen


@compiled
def take_gpus(gpus: Ints, request: Resources, gpu: int) -> bool:
    """Take the GPUs of one replica: ``gpu`` for a share, else the lowest idle indexes; False (and no meaning) when too few."""
    if request.gpu_milli == 0:
        return True
    if request.gpu_milli < GPU_UNIT:
        if gpu < 0:
            return False
        gpus[gpu] -= request.gpu_milli
        return True
    wanted = request.gpu_milli // GPU_UNIT
    for each in range(len(gpus)):
        if wanted > 0 and gpus[each] >= GPU_UNIT:
            gpus[each] -= GPU_UNIT
            wanted -= 1
    return wanted == 0 and request.gpu_milli % GPU_UNIT == 0


@compiled
def score_node(
    nodes: Nodes, index: int, request: Resources, mix: Mix, weights: Weights, count: Ints, gpus: Ints
) -> tuple[int, int]:
    """The score of one node and the GPU index for a share. ``count`` and ``gpus`` are work spaces (M and G entries)."""
    cpu = nodes.free[index, 0] - request.cpu_milli
    memory = nodes.free[index, 1] - request.memory_mib
    if cpu < 0 or memory < 0 or nodes.free[index, 2] < request.gpu_milli:
        return DOES_NOT_FIT, NO_GPU
    for each in range(len(gpus)):
        gpus[each] = nodes.gpus[index, each]
    gpu = NO_GPU
    if 0 < request.gpu_milli < GPU_UNIT:
        gpu = share_gpu(gpus, request.gpu_milli, mix.gap)
    if not take_gpus(gpus, request, gpu):
        return DOES_NOT_FIT, NO_GPU
    kind = nodes.kind[index]
    if nodes.stale[index]:
        nodes.worth[index] = worth_of(
            kind, nodes.free[index, 0], nodes.free[index, 1], nodes.gpus[index], mix, weights, count
        )
        nodes.stale[index] = False
    left = cpu * MICRO // nodes.most[0] + memory * MICRO // nodes.most[1] + gpus.sum() * MICRO // nodes.most[2]
    after = worth_of(kind, cpu, memory, gpus, mix, weights, count)
    return nodes.worth[index] - after + weights.best_fit * left, gpu


@compiled
def rescore(
    nodes: Nodes, indexes: Ints, request: Resources, mix: Mix, weights: Weights, scores: Ints, gpus_chosen: Ints
) -> None:
    """Score these nodes anew (lower is better, ``DOES_NOT_FIT``), with the GPU index for a share, each at its own place."""
    count = np.zeros(len(mix.value), dtype=np.int64)
    gpus = np.zeros(nodes.gpus.shape[1], dtype=np.int64)
    for index in indexes:
        scores[index], gpus_chosen[index] = score_node(nodes, index, request, mix, weights, count, gpus)
