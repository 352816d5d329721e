"""Suanli's own placement in the replay: the planner's sites, places and scorer, one pod after the other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from benchmarks.replay.placement_trace import Trace
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.board import Board
from scheduler.planning.mix import JobType
from scheduler.planning.places import Places, PlacesKey
from scheduler.planning.policy import Policy, ScorePolicy
from scheduler.planning.scoring import Scorer
from scheduler.planning.types import NodeView, PoolKey, Snapshot
from scheduler.service.queue import Queue

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
REGION = "trace"


def shapes_of(trace: Trace) -> list[Shape]:
    """The shapes of the trace, as the planner knows them."""
    return [
        Shape(
            Resources(shape.cpu_milli, shape.memory_mib, shape.gpu_milli * shape.num_gpu),
            1,
            tuple(shape.models) if shape.num_gpu else (),
        )
        for shape in trace.shapes
    ]


def workload_of(trace: Trace) -> Counter[JobType]:
    """The workload seen: all pods of the trace, each once, whatever the order of arrival."""
    seen = np.bincount(trace.pods, minlength=len(trace.shapes)).tolist()
    counts: Counter[JobType] = Counter()
    for shape, count in zip(shapes_of(trace), seen, strict=True):
        counts[JobType(shape.request, tuple(sorted(shape.accelerators)))] += count
    return counts


def empty_nodes(trace: Trace, order: Ints) -> Snapshot:
    """The cluster with nothing on it; its nodes are named so that equals are taken in this order."""
    pools: dict[PoolKey, dict[str, NodeView]] = {}
    columns = (trace.cpu_milli.tolist(), trace.memory_mib.tolist(), trace.gpus.tolist())
    for place, node in enumerate(order.tolist()):
        cpu, memory, gpus = (column[node] for column in columns)
        capacity = Resources(cpu, memory, gpus * GPU_UNIT)
        name = f"n{place:07d}"
        view = NodeView(REGION, name, name, "nodes", trace.models[node], (), capacity, capacity, (GPU_UNIT,) * gpus)
        pools.setdefault(PoolKey(REGION, "nodes"), {})[name] = view
    return Snapshot(pools, Queue(), {}, {}, frozenset({REGION}))


class Replay:
    """Places the pods of one trace."""

    def __init__(self, trace: Trace) -> None:
        self._shapes = shapes_of(trace)
        self._workload = workload_of(trace)
        self._trace = trace
        # The allowed models of the trace are a set.
        self._policy = Policy(score=ScorePolicy(accelerator_order=False))

    def place(self, order: Ints, node_order: Ints) -> Bools:
        """Which arrivals (indexes of shapes) are placed on the nodes, of which ``node_order`` says who wins among equals."""
        scorer = Scorer()
        scorer.use(self._policy.score, self._workload)
        board = Board(scorer)
        board.begin(empty_nodes(self._trace, node_order))
        places = [Places(board, self._policy, PlacesKey(shape, "", False)) for shape in self._shapes]
        return np.array([places[number].place(None) is not None for number in order.tolist()], dtype=np.bool_)
