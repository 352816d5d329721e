"""The workload the platform has seen lately, as counts of kinds of job: what nodes are kept useful for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scheduler.domain.spec import Shape
from scheduler.planning.mix import JobType
from scheduler.planning.types import NO_MIX

FIRST_SHOWN = 100
"""From so many jobs on there is a workload to speak of."""
REMEMBERED = 200_000
"""When this many have been counted, all counts are halved: older jobs count less and less."""
MAX_TYPES = 10_000


class WorkloadSeen:
    """Counts replicas by kind. ``mix`` is replaced when a quarter of it is new, so that scores are not made anew all the time.

    It is not stored: after a restart it begins with the jobs that have not ended.
    """

    def __init__(self) -> None:
        self.mix: Mapping[JobType, int] = NO_MIX
        self._counts: dict[JobType, int] = {}
        self._total = 0
        self._since_shown = 0

    def add(self, shape: Shape, jobs: int) -> None:
        """So many jobs of this shape were submitted."""
        kind = JobType(shape.request, tuple(sorted(shape.accelerators)))
        count = jobs * shape.replicas
        if kind in self._counts or len(self._counts) < MAX_TYPES:
            self._counts[kind] = self._counts.get(kind, 0) + count
            self._total += count
            self._since_shown += count
        if self._since_shown >= max(FIRST_SHOWN, self._total // 4):
            if self._total > REMEMBERED:
                self._counts = {each: half for each, number in self._counts.items() if (half := number // 2)}
                self._total = sum(self._counts.values())
            self.mix = MappingProxyType(dict(self._counts))
            self._since_shown = 0
