"""The mix of jobs that nodes are kept useful for: the typical jobs of the workload seen, as arrays for the scorer.

As in FGD (Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX ATC
2023) the few kinds of job that make up nearly all of the workload stand for it. What is computed here changes as slowly as the mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.gaps import MICRO, gap_values
from scheduler.planning.worth import HOST_BITS, MAX_HOSTED, RATE_BITS, SHARE_BITS, Mix

Ints = npt.NDArray[np.int64]

MAX_TYPES = 32
"""How many kinds of job a mix has at most: the cost of scoring a node grows with it."""
COVER_MILLI = 950
"""How much of the jobs, and of the GPUs asked for, the mix stands for when it has room, in thousandths."""
GANGS_MILLI = 4000
"""How much more than by its GPUs a type counts by default that takes several GPUs of one node, in thousandths."""


class JobType(NamedTuple):
    """A kind of job: what a replica asks for, and the accelerator types that will do (sorted; none: any)."""

    request: Resources
    accelerators: tuple[str, ...] = ()


class NodeKind(NamedTuple):
    """What decides which types of job may use a node at all."""

    accelerator: str
    has_gpus: bool


def typical(counts: Mapping[JobType, int]) -> list[tuple[JobType, int]]:
    """The types that stand for the workload, with their counts: those that are most of the jobs or of the demand for GPUs.

    Types are taken in the order of the larger of those two parts, until they cover 95 % of both, and at most 32.
    """
    asked = [(kind, count) for kind, count in counts.items() if count > 0]
    jobs = sum(count for _, count in asked)
    gpus = sum(count * kind.request.gpu_milli for kind, count in asked)

    def part(kind: JobType, count: int) -> int:
        return max(count * max(1, gpus), count * kind.request.gpu_milli * jobs)

    asked.sort(key=lambda pair: (-part(*pair), pair[0]))
    kept: list[tuple[JobType, int]] = []
    covered_jobs = covered_gpus = 0
    for kind, count in asked[:MAX_TYPES]:
        if covered_jobs * 1000 >= COVER_MILLI * jobs and covered_gpus * 1000 >= COVER_MILLI * gpus:
            break
        kept.append((kind, count))
        covered_jobs += count
        covered_gpus += count * kind.request.gpu_milli
    return kept


def mix_of(
    counts: Mapping[JobType, int], kinds: Sequence[NodeKind], max_gpus: int, gangs_milli: int = GANGS_MILLI
) -> Mix:
    """The mix for nodes of these kinds (numbered as listed) with at most ``max_gpus`` GPUs.

    ``counts``: how many jobs of each type the workload seen has. ``gangs_milli``: how much more than by its GPUs a type counts
    that takes several whole GPUs of one node, in thousandths (0: room for them is not kept).
    """
    types = typical(counts)
    sizes: dict[int, int] = {}
    for kind, count in counts.items():
        if kind.request.gpu_milli < GPU_UNIT:
            sizes[kind.request.gpu_milli] = sizes.get(kind.request.gpu_milli, 0) + count
    gap = gap_values(sizes)
    requests = [kind.request for kind, _ in types]
    gpus = np.array([request.gpu_milli for request in requests], dtype=np.int64)
    shares = np.zeros((GPU_UNIT + 1, len(types)), dtype=np.int32)
    whole = np.zeros((max_gpus + 1, len(types)), dtype=np.int32)
    for column, request in enumerate(requests):
        if request.gpu_milli == 0:
            whole[:, column] = MAX_HOSTED
        elif request.gpu_milli < GPU_UNIT:
            shares[:, column] = np.arange(GPU_UNIT + 1) // request.gpu_milli
        else:
            whole[:, column] = np.arange(max_gpus + 1) // (request.gpu_milli // GPU_UNIT)
    value = np.where(gpus < GPU_UNIT, gap[np.minimum(gpus, GPU_UNIT)], gpus * (MICRO // GPU_UNIT))
    return Mix(
        gap,
        shares,
        whole,
        np.array([_rate(request.cpu_milli) for request in requests], dtype=np.int64),
        np.array([_rate(request.memory_mib) for request in requests], dtype=np.int64),
        value,
        _per_kind(types, kinds, _room_weights(types, gangs_milli)),
        _per_kind(types, kinds, _demand(types, value.tolist())),
    )


def _rate(amount: int) -> int:
    """Replicas per unit; a replica that asks for nothing counts as if it asked for one unit."""
    return (1 << (HOST_BITS + RATE_BITS)) // max(1, amount)


def _room_weights(types: list[tuple[JobType, int]], gangs_milli: int) -> list[int]:
    """The square root of the count, so that rare types count too; the types with GPUs sum to a million, and so do the others."""
    weights = []
    for (request, _), count in types:
        weight = isqrt(count * MICRO) * 1000
        if request.gpu_milli > GPU_UNIT:
            weight = weight // 1000 * gangs_milli * (request.gpu_milli // GPU_UNIT)
        weights.append(weight)
    totals = {True: 0, False: 0}
    for (kind, _), weight in zip(types, weights, strict=True):
        totals[kind.request.gpu_milli > 0] += weight
    return [
        weight * MICRO // max(1, totals[kind.request.gpu_milli > 0])
        for (kind, _), weight in zip(types, weights, strict=True)
    ]


def _demand(types: list[tuple[JobType, int]], values: list[int]) -> list[int]:
    """The part of the demand for GPU value that each type of at most one GPU is."""
    demand = [
        count * value if kind.request.gpu_milli <= GPU_UNIT else 0
        for (kind, count), value in zip(types, values, strict=True)
    ]
    return [(part << SHARE_BITS) // max(1, sum(demand)) for part in demand]


def _per_kind(types: list[tuple[JobType, int]], kinds: Sequence[NodeKind], weights: list[int]) -> Ints:
    """A row of weights for each kind of node: nodes with GPUs are kept for jobs with GPUs, the others for those without."""
    rows = np.zeros((len(kinds), len(types)), dtype=np.int64)
    for row, kind in enumerate(kinds):
        for column, (job, _) in enumerate(types):
            allowed = not job.accelerators or kind.accelerator in job.accelerators
            if allowed and kind.has_gpus == (job.request.gpu_milli > 0):
                rows[row, column] = weights[column]
    return rows
