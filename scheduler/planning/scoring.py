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

This module says for which workload; ``worth`` computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from scheduler.domain.resources import Resources
from scheduler.planning.mix import JobType, NodeKind, mix_of
from scheduler.planning.policy import ScorePolicy
from scheduler.planning.worth import DOES_NOT_FIT, Ints, Mix, Nodes, Weights, rescore, share_gpu

NO_FIT = DOES_NOT_FIT
MILLI = 1000


class Scorer:
    """Scores nodes for requests, for one workload and one fleet. ``version`` rises when all scores have to be made anew."""

    def __init__(self) -> None:
        self.version = 0
        self.forgotten = 0
        """Rises whenever a site forgets a ranking, to bound their number."""
        self.most: Ints = np.ones(3, np.int64)
        self._counts: Mapping[JobType, int] = {}
        self._kinds: list[NodeKind] = []
        self._max_gpus = 0
        self._weights = Weights()
        self._mix: Mix = mix_of({}, [], 0)

    def use(self, weights: ScorePolicy, counts: Mapping[JobType, int]) -> None:
        """Score for this policy and this workload: how many jobs of each type were seen."""
        usual = Weights()
        wanted = Weights(
            usual.gap * weights.fragmentation // MILLI,
            usual.room * weights.fragmentation // MILLI,
            usual.reach * weights.fragmentation // MILLI,
            usual.best_fit * weights.best_fit // MILLI,
        )
        if wanted != self._weights or counts is not self._counts:
            self._weights, self._counts = wanted, counts
            self._make_mix()

    def see_fleet(self, kinds: Iterable[NodeKind], largest: Resources, max_gpus: int) -> None:
        """Score on these kinds of node; ``largest`` is the largest capacity of any node, resource by resource."""
        self._kinds = sorted(set(kinds))
        self._max_gpus = max_gpus
        self.most = np.maximum(np.array(largest, np.int64), 1)
        self._make_mix()

    def _make_mix(self) -> None:
        self._mix = mix_of(self._counts, self._kinds, self._max_gpus)
        self.version += 1

    def number_of(self, kind: NodeKind) -> int:
        """The index of a kind of node in the mix."""
        return self._kinds.index(kind)

    def rescore(self, nodes: Nodes, numbers: Ints, request: Resources, scores: Ints, gpus: Ints) -> None:
        """Set the ``scores`` of these nodes, and the GPU that a share would take on each."""
        rescore(nodes, numbers, request, self._mix, self._weights, scores, gpus)

    def gpu_for(self, gpus: Ints, gpu_milli: int) -> int:
        """The GPU index a share takes on a node with so much free on each; -1 when it fits on none."""
        return share_gpu(gpus, gpu_milli, self._mix.gap)
