"""Amounts of computing resources, in integers: milli-cores, MiB, milli-GPUs."""

from __future__ import annotations

from typing import NamedTuple

GPU_UNIT = 1000
"""Milli-GPUs in one whole GPU."""


class Resources(NamedTuple):
    """What a replica asks for, what a node offers, or what somebody holds."""

    cpu_milli: int = 0
    memory_mib: int = 0
    gpu_milli: int = 0

    def plus(self, other: Resources) -> Resources:
        """The sum, resource by resource."""
        return Resources(
            self.cpu_milli + other.cpu_milli, self.memory_mib + other.memory_mib, self.gpu_milli + other.gpu_milli
        )

    def minus(self, other: Resources) -> Resources:
        """The difference, resource by resource; may be negative."""
        return Resources(
            self.cpu_milli - other.cpu_milli, self.memory_mib - other.memory_mib, self.gpu_milli - other.gpu_milli
        )

    def times(self, count: int) -> Resources:
        """``count`` times each amount."""
        return Resources(self.cpu_milli * count, self.memory_mib * count, self.gpu_milli * count)

    def fits(self, room: Resources) -> bool:
        """Whether each amount is at most that of ``room``."""
        return (
            self.cpu_milli <= room.cpu_milli and self.memory_mib <= room.memory_mib and self.gpu_milli <= room.gpu_milli
        )


ZERO = Resources()
