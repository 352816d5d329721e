"""The stream between an agent and the control plane, with faults no stream of gRPC has, and those it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.faults import Faults
from tests.simulation.kernel import Kernel


class Link:
    """One direction or the other: messages may be dropped, doubled, delayed and overtaken, until the link is cut."""

    def __init__(self, kernel: Kernel, faults: Faults) -> None:
        self._kernel = kernel
        self._faults = faults
        self.alive = True
        self._last_at: dict[str, int] = {}

    def send(self, direction: str, deliver: Callable[[Any], None], message: Any) -> None:
        """Deliver ``message``, perhaps."""
        if not self.alive:
            return
        kernel, faults = self._kernel, self._faults
        copies = 0 if kernel.chance(faults.drop) else 2 if kernel.chance(faults.duplicate) else 1
        for _ in range(copies):
            at = kernel.now_ms() + kernel.between(0, faults.max_delay_ms)
            if not kernel.chance(faults.reorder):
                at = max(at, self._last_at.get(direction, 0))
                self._last_at[direction] = at
            kernel.after(at - kernel.now_ms(), lambda: deliver(message) if self.alive else None)

    def cut(self) -> None:
        """Nothing arrives any more, not even what is under way."""
        self.alive = False
