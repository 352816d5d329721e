"""Virtual time: a heap of things to do, and the one source of chance."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

EPOCH_MS = 1_792_800_000_000
"""2026-10-24, so that a simulated week crosses the end of a month."""


class Kernel:
    """Runs actions in the order of their times; everything random comes from ``rng``, so one seed is one history."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self._now_ms = EPOCH_MS
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.steps = 0

    def now_ms(self) -> int:
        """The virtual wall clock."""
        return self._now_ms

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._heap, (self._now_ms + max(0, delay_ms), self._count, action))

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self.rng.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return self.rng.randint(low, high)

    def step(self) -> None:
        """Do the next thing."""
        at, _, action = heapq.heappop(self._heap)
        self._now_ms = max(self._now_ms, at)
        self.steps += 1
        action()


class SimulatedIds:
    """Ids from the kernel's chance."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._count = 0

    def job_id(self, now_ms: int) -> str:
        """Rising and unique, over restarts too: the object outlives the service."""
        self._count += 1
        return f"j{self._count:06d}"

    def token(self, size_bytes: int) -> bytes:
        """Bytes of chance."""
        return self._kernel.rng.randbytes(size_bytes)
