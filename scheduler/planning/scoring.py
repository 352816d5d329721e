"""How well a replica would stand on a node: lower is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.planning.fit import choose_gpus
from scheduler.planning.kernels import Ints, compiled, room_on

if TYPE_CHECKING:
    from scheduler.planning.sites import Site

NO_FIT = np.iinfo(np.int64).max


class Scorer:
    """Scores nodes for requests. ``version`` rises when all scores have to be made anew."""

    def __init__(self) -> None:
        self.version = 0

    def rescore(self, site: Site, request: Resources, numbers: Ints, scores: Ints) -> None:
        """Set ``scores`` of these nodes."""
        _best_fit(site.free, site.gpus, numbers, *request, scores)

    def gpu_for(self, site: Site, number: int, request: Resources) -> int:
        """The GPU index a share of a GPU would take on a node; -1 when there is none."""
        chosen = choose_gpus(request.gpu_milli, site.gpus[number].tolist())
        return chosen[0] if chosen and request.gpu_milli < GPU_UNIT else -1


@compiled
def _best_fit(free: Any, gpus: Any, numbers: Any, cpu: int, memory: int, gpu: int, scores: Any) -> None:
    for at in range(numbers.shape[0]):
        node = numbers[at]
        if room_on(free[node], gpus[node], cpu, memory, gpu) == 0:
            scores[node] = NO_FIT
            continue
        on_gpu = 0
        if 0 < gpu < 1000:
            on_gpu = 1000
            for index in range(gpus.shape[1]):
                if gpus[node, index] >= gpu:
                    on_gpu = min(on_gpu, gpus[node, index] - gpu)
        left_gpu = min(free[node, 2] - gpu, (1 << 16) - 1)
        left_cpu = min((free[node, 0] - cpu) >> 4, (1 << 17) - 1)
        left_memory = min((free[node, 1] - memory) >> 8, (1 << 17) - 1)
        scores[node] = (((on_gpu << 16) + left_gpu << 17) + left_cpu << 17) + left_memory
