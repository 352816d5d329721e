"""Which node a replica is best put on: the one that loses least of its worth to the workload.

What a node is still worth to the mix of jobs that the cluster sees is a pure function of what is free on it, in GPUs:

    worth = gap * A + room * R + reach * E        (weights: ``Weights``, in thousandths)

    A = sum over GPUs of value(idle part)                                     value: ``gaps``, the prices of cutting stock
    R = sum over types m of w_m * min(replicas by GPU, by CPU, by memory)     w_m: ``mix``, by the root of m's count
    E = sum over types m of d_m * min(A, v_m * min(by CPU, by memory))        d_m: m's part of the demand, v_m: value of a replica

A keeps shares where they waste no gap; R keeps nodes able to take many kinds of job, those with several whole GPUs among them; E
keeps GPUs, CPU and memory in the proportion that jobs use them, long before a node runs out of one. The score of a node is

    score = worth before - worth after + best_fit * what is left (parts of the largest node's CPU, memory and GPUs)

and the lowest score wins, of equals the lowest index. Scores compare nodes with GPUs with each other, and nodes without: which of
the two a job without GPUs goes to is for the caller to say. ``docs/explanation/placement.md`` compares it with FGD and BestFit.

This module builds the arrays; ``kernels`` computes on them: ``refresh`` once, then ``best_node`` and ``take`` for each replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.kernels import Nodes, Ranking


def nodes_of(
    kinds: Sequence[int],
    capacities: Sequence[Resources],
    frees: Sequence[Resources],
    gpu_frees: Sequence[Sequence[int]],
) -> Nodes:
    """The arrays for these nodes: index of the kind in the mix, capacity, what is free, and milli-GPUs free per GPU index.

    ``worth`` is 0 until ``kernels.refresh`` has been called for all of them with the mix.
    """
    count = len(kinds)
    gpu_free = np.zeros((count, max((len(gpus) for gpus in gpu_frees), default=0)), dtype=np.int64)
    for index, gpus in enumerate(gpu_frees):
        gpu_free[index, : len(gpus)] = gpus
    free = np.array(frees, dtype=np.int64).reshape(count, 3)
    capacity = np.array(capacities, dtype=np.int64).reshape(count, 3)
    return Nodes(
        kind=np.array(kinds, dtype=np.int64),
        free_cpu=free[:, 0].copy(),
        free_memory=free[:, 1].copy(),
        gpu_free=gpu_free,
        worth=np.zeros(count, dtype=np.int64),
        version=np.zeros(count, dtype=np.int64),
        most=capacity.max(axis=0, initial=1),
    )


def max_gpus(nodes: Nodes) -> int:
    """How many GPU indexes the arrays have: what a mix for these nodes has to be made for."""
    return int(nodes.gpu_free.shape[1])


def unranked(nodes: Nodes) -> Ranking:
    """A ranking that has seen no node yet."""
    count = len(nodes.kind)
    return Ranking(
        score=np.zeros(count, dtype=np.int64),
        gpu=np.zeros(count, dtype=np.int64),
        seen=np.full(count, -1, dtype=np.int64),
    )


def indexes_taken(request: Resources, gpu: int, gpu_free: Sequence[int]) -> tuple[int, ...]:
    """The GPU indexes that ``kernels.take`` takes for a replica, given what was free before."""
    if request.gpu_milli == 0:
        return ()
    if request.gpu_milli < GPU_UNIT:
        return (gpu,)
    idle = (index for index, free in enumerate(gpu_free) if free >= GPU_UNIT)
    return tuple(index for index, _ in zip(idle, range(request.gpu_milli // GPU_UNIT), strict=False))
