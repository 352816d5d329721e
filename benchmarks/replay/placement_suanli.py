"""Suanli's own placement in the replay: a loop around the kernels that the planner is made of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from benchmarks.replay.placement_trace import Trace
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.kernels import Mix, Nodes, Weights, best_node, refresh, take
from scheduler.planning.mix import JobType, NodeKind, mix_of
from scheduler.planning.scoring import nodes_of, unranked

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def requests_of(trace: Trace) -> list[Resources]:
    """The shapes of the trace, as the planner knows them."""
    return [Resources(shape.cpu_milli, shape.memory_mib, shape.gpu_milli * shape.num_gpu) for shape in trace.shapes]


def kinds_of(trace: Trace) -> list[NodeKind]:
    """The kinds of node there are."""
    return sorted(set(_kinds(trace)))


def _kinds(trace: Trace) -> list[NodeKind]:
    return [NodeKind(model, gpus > 0) for model, gpus in zip(trace.models, trace.gpus.tolist(), strict=True)]


def mix_of_trace(trace: Trace) -> Mix:
    """The workload seen: all pods of the trace, each once, whatever the order of arrival."""
    seen = np.bincount(trace.pods, minlength=len(trace.shapes)).tolist()
    counts: Counter[JobType] = Counter()
    for request, shape, count in zip(requests_of(trace), trace.shapes, seen, strict=True):
        counts[JobType(request, shape.models)] += count
    return mix_of(counts, kinds_of(trace), int(trace.gpus.max()))


def empty_nodes(trace: Trace, order: Ints) -> Nodes:
    """The cluster with nothing on it, its nodes in this order."""
    kinds, all_kinds = kinds_of(trace), _kinds(trace)
    gpus = trace.gpus[order].tolist()
    columns = (trace.cpu_milli[order].tolist(), trace.memory_mib[order].tolist(), gpus)
    capacity = [Resources(cpu, memory, count * GPU_UNIT) for cpu, memory, count in zip(*columns, strict=True)]
    numbers = [kinds.index(all_kinds[node]) for node in order]
    return nodes_of(numbers, capacity, capacity, [(GPU_UNIT,) * count for count in gpus])


class Line:
    """The pods of one shape: where they may go, what is preferred first, and how the nodes stand for them.

    As in the planner, nodes with GPUs are the last resort of what asks for none.
    """

    def __init__(self, request: Resources, allowed: Bools, has_gpus: Bools, nodes: Nodes) -> None:
        self.request = request
        groups = [allowed] if request.gpu_milli else [allowed & ~has_gpus, allowed & has_gpus]
        self.groups = [(group, unranked(nodes)) for group in groups if group.any()]

    def place(self, nodes: Nodes, mix: Mix, weights: Weights) -> bool:
        """Place one pod, or say that it fits nowhere."""
        for group, ranking in self.groups:
            best = best_node(nodes, group, self.request, mix, weights, ranking)
            if best >= 0:
                take(nodes, best, self.request, ranking.gpu[best], mix, weights)
                return True
        return False


def replay(trace: Trace, nodes: Nodes, order: Ints, node_order: Ints, mix: Mix, weights: Weights) -> Bools:
    """Which arrivals (indexes of shapes) are placed. ``nodes``, in the order ``node_order``, are changed in place."""
    refresh(nodes, np.arange(len(node_order)), mix, weights)
    has_gpus = trace.gpus[node_order] > 0
    lines = [
        Line(request, trace.allowed(shape)[node_order], has_gpus, nodes)
        for request, shape in zip(requests_of(trace), trace.shapes, strict=True)
    ]
    return np.array([lines[number].place(nodes, mix, weights) for number in order.tolist()], dtype=np.bool_)
