"""The scorer in the plainest form: exact integers of Python, one node at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.domain.resources import Resources
from scheduler.planning.worth import Mix, Nodes, Weights


def nodes_of(
    kinds: Sequence[int],
    capacities: Sequence[Resources],
    frees: Sequence[Resources],
    gpu_frees: Sequence[Sequence[int]],
) -> Nodes:
    """The kernels' arrays for these nodes: index of the kind in the mix, capacity, what is free, milli-GPUs free per GPU index."""
    count = len(kinds)
    gpus = np.zeros((count, max((len(each) for each in gpu_frees), default=0)), dtype=np.int64)
    for index, each in enumerate(gpu_frees):
        gpus[index, : len(each)] = each
    return Nodes(
        np.array(kinds, dtype=np.int64),
        np.array(frees, dtype=np.int64).reshape(count, 3),
        gpus,
        np.zeros(count, dtype=np.int64),
        np.ones(count, dtype=np.bool_),
        np.array(capacities, dtype=np.int64).reshape(count, 3).max(axis=0, initial=1),
    )


def worth(kind: int, cpu: int, memory: int, gpus: Sequence[int], mix: Mix, weights: Weights) -> int:
    """What a node with this much free is worth."""
    gap = sum(int(mix.gap[free]) for free in gpus)
    idle = sum(free == 1000 for free in gpus)
    room = reach = 0
    for m in range(len(mix.value)):
        by_gpu = sum(int(mix.shares[free][m]) for free in gpus) + int(mix.whole[idle][m])
        by_cpu, by_memory = (cpu * int(mix.cpu_rate[m])) >> 24, (memory * int(mix.memory_rate[m])) >> 24
        by_rest = min(by_cpu, by_memory, 1 << 30)
        room += int(mix.room[kind][m]) * min(by_gpu << 10, by_rest)
        reach += int(mix.reach[kind][m]) * min(gap, (by_rest * int(mix.value[m])) >> 10)
    return weights.gap * gap + weights.room * (room >> 10) + weights.reach * (reach >> 20)


def gpus_after(gpus: Sequence[int], request: Resources, mix: Mix) -> tuple[list[int], int] | None:
    """What is left per GPU, and the index a share goes to (-1: none); None: it does not fit."""
    left = list(gpus)
    if request.gpu_milli == 0:
        return left, -1
    if request.gpu_milli < 1000:
        share = request.gpu_milli
        options = [
            ((int(mix.gap[free] - mix.gap[free - share]) + 500) // 1000, free, index)
            for index, free in enumerate(gpus)
            if free >= share
        ]
        if not options:
            return None
        gpu = min(options)[2]
        left[gpu] -= share
        return left, gpu
    wanted, rest = divmod(request.gpu_milli, 1000)
    idle = [index for index, free in enumerate(gpus) if free == 1000]
    if rest or len(idle) < wanted:
        return None
    for index in idle[:wanted]:
        left[index] = 0
    return left, -1


def score(
    kind: int, free: tuple[int, int, Sequence[int]], most: Resources, request: Resources, mix: Mix, weights: Weights
) -> tuple[int, int] | None:
    """The score of a node and the GPU index for a share; None: it does not fit."""
    cpu, memory, gpus = free
    after = gpus_after(gpus, request, mix)
    if after is None or cpu < request.cpu_milli or memory < request.memory_mib:
        return None
    cpu_left, memory_left = cpu - request.cpu_milli, memory - request.memory_mib
    lost = worth(kind, cpu, memory, gpus, mix, weights) - worth(kind, cpu_left, memory_left, after[0], mix, weights)
    parts = zip((cpu_left, memory_left, sum(after[0])), most, strict=True)
    return lost + weights.best_fit * sum(left * 1_000_000 // largest for left, largest in parts), after[1]
