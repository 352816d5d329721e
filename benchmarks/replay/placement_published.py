"""The published policies FGD and BestFit, exactly as their authors ran them, rounding included (the trace's README is the protocol).

F is Weng et al.'s expected fragmentation: the idle GPU that a pod drawn from the typical pods could not use. FGD takes the node
where F grows least; its score is cut to an integer 0..100, and it is the ties that this makes which order placements well.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.replay.placement_trace import Trace
from scheduler.planning.compiled import compiled

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BEST_FIT_CPU_MILLI, BEST_FIT_GPU_MILLI = 128_000.0, 8_000.0
"""What the published BestFit divides by, whatever the cluster."""


class Typical(NamedTuple):
    """The typical pods: request, share of the pods, and on which nodes they may run (``allowed[node, pod]``)."""

    cpu: Ints
    gpu_milli: Ints
    num_gpu: Ints
    part: npt.NDArray[np.float64]
    allowed: Bools


def typical_pods(trace: Trace) -> Typical:
    """The fewest groups that cover 95 % of the pods of the trace, most frequent first, of equals the larger first."""
    groups: Counter[tuple[int, int, int, str]] = Counter()
    for number, count in enumerate(np.bincount(trace.pods, minlength=len(trace.shapes)).tolist()):
        shape = trace.shapes[number]
        groups[(shape.cpu_milli, shape.gpu_milli, shape.num_gpu, trace.specs[number])] += count
    ordered = sorted(groups.items(), key=lambda group: (group[1], group[0]), reverse=True)
    kept, covered = [], 0
    for group, count in ordered:
        kept.append((group, count))
        covered += count
        if covered >= 0.95 * len(trace.pods):
            break
    specs = [frozenset(filter(None, spec.split("|"))) for (_, _, _, spec), _ in kept]
    columns = np.array([group[:3] for group, _ in kept], dtype=np.int64)
    return Typical(
        columns[:, 0].copy(),
        columns[:, 1].copy(),
        columns[:, 2].copy(),
        np.array([count / covered for _, count in kept]),
        np.array([[not spec or model in spec for spec in specs] for model in trace.models], dtype=np.bool_),
    )


@compiled
def fragmentation(cpu: int, gpus: Ints, allowed: Bools, typical: Typical) -> float:
    """F of one node, in milli-GPUs. Summed by cause first, as the authors do: the rounding decides ties."""
    total = gpus.sum()
    lack_both = lack_gpu = lack_cpu = cpu_only = cpu_only_lacks = no_access = 0.0
    for pod in range(len(typical.cpu)):
        part = typical.part[pod]
        enough_cpu = cpu >= typical.cpu[pod]
        if typical.num_gpu[pod] == 0:
            if enough_cpu:
                cpu_only += part * total
            else:
                cpu_only_lacks += part * total
            continue
        if not allowed[pod]:
            no_access += part * total
            continue
        fitting = 0
        small = 0
        for gpu in gpus:
            if gpu >= typical.gpu_milli[pod]:
                fitting += 1
            else:
                small += gpu
        if fitting < typical.num_gpu[pod]:
            if enough_cpu:
                lack_gpu += part * total
            else:
                lack_both += part * total
        elif enough_cpu:
            lack_gpu += part * small
        else:
            lack_cpu += part * total
    return lack_both + lack_gpu + lack_cpu + cpu_only + cpu_only_lacks + no_access


@compiled
def _steps(before: float, after: float) -> int:
    return int(100 / (1 + math.exp(-(before - after) / 1000)))


@compiled
def _fgd(cpu: int, gpus: Ints, shape: Ints, allowed: Bools, typical: Typical) -> tuple[int, int]:
    """FGD's score (higher is better) and the GPU for a share."""
    before = fragmentation(cpu, gpus, allowed, typical)
    cpu_left = cpu - shape[0]
    if shape[3] == 1 and shape[2] < 1000:
        score = -1
        chosen = -1
        for gpu in range(len(gpus)):
            if gpus[gpu] >= shape[2]:
                gpus[gpu] -= shape[2]
                steps = _steps(before, fragmentation(cpu_left, gpus, allowed, typical))
                gpus[gpu] += shape[2]
                if steps > score:
                    score = steps
                    chosen = gpu
        return score, chosen
    left = gpus.copy()
    take_gpus(left, shape, -1)
    return _steps(before, fragmentation(cpu_left, left, allowed, typical)), -1


@compiled
def _best_fit(cpu: int, gpus: Ints, shape: Ints) -> tuple[int, int]:
    """BestFit's score (higher is better) and, for a share, the fullest GPU that has room."""
    chosen = -1
    if shape[3] == 1 and shape[2] < 1000:
        for gpu in range(len(gpus)):
            if gpus[gpu] >= shape[2] and (chosen < 0 or gpus[gpu] < gpus[chosen]):
                chosen = gpu
    cpu_part = (cpu - shape[0]) / BEST_FIT_CPU_MILLI
    gpu_part = (gpus.sum() - shape[2] * shape[3]) / BEST_FIT_GPU_MILLI
    return int(100 * (1 - 0.5 * cpu_part - 0.5 * gpu_part)), chosen


@compiled
def take_gpus(gpus: Ints, shape: Ints, gpu: int) -> None:
    """Take what a pod asks for: ``gpu`` for a share, else the lowest idle indexes."""
    if gpu >= 0:
        gpus[gpu] -= shape[2]
        return
    wanted = shape[3]
    for each in range(len(gpus)):
        if wanted > 0 and gpus[each] >= 1000:
            gpus[each] -= 1000
            wanted -= 1


@compiled
def replay(
    fgd: bool,
    free: tuple[Ints, Ints, Ints, Ints],
    rank: Ints,
    order: Ints,
    shapes: Ints,
    allowed: Bools,
    typical: Typical,
) -> Bools:
    """Which arrivals are placed. ``free``: CPU, memory, GPUs (nodes x index), number of GPUs; changed in place.

    ``shapes``: CPU, memory, milli of each GPU, GPUs. A score is kept until its node changes (``seen`` is not ``version``).
    """
    cpu, memory, gpus, count = free
    nodes = len(cpu)
    version = np.zeros(nodes, dtype=np.int64)
    seen = np.full((len(shapes), nodes), -1, dtype=np.int64)
    scores = np.full((len(shapes), nodes), -(1 << 30), dtype=np.int64)
    chosen = np.full((len(shapes), nodes), -1, dtype=np.int64)
    placed = np.zeros(len(order), dtype=np.bool_)
    for place in range(len(order)):
        kind = order[place]
        shape = shapes[kind]
        best = -1
        for node in range(nodes):
            if seen[kind, node] != version[node]:
                seen[kind, node] = version[node]
                mine = gpus[node, : count[node]]
                fits = cpu[node] >= shape[0] and memory[node] >= shape[1] and allowed[kind, node]
                if not fits or (mine >= shape[2]).sum() < shape[3]:
                    scores[kind, node] = -(1 << 30)
                elif fgd:
                    scores[kind, node], chosen[kind, node] = _fgd(
                        cpu[node], mine, shape, typical.allowed[node], typical
                    )
                else:
                    scores[kind, node], chosen[kind, node] = _best_fit(cpu[node], mine, shape)
            score = scores[kind, node]
            if score > -(1 << 30) and (
                best < 0 or score > scores[kind, best] or (score == scores[kind, best] and rank[node] < rank[best])
            ):
                best = node
        if best >= 0:
            placed[place] = True
            version[best] += 1
            cpu[best] -= shape[0]
            memory[best] -= shape[1]
            take_gpus(gpus[best], shape, chosen[kind, best])
    return placed
