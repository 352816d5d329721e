"""What the service tells whoever measures it. The service calls; it never waits for, and never learns, what becomes of it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Takes durations, in milliseconds (fractions allowed). Calls are cheap, never block and never raise."""

    def wait_ms(self, institution: str, ms: float) -> None:
        """A job of ``institution`` started for the first time, this long after it was submitted."""
        ...

    def round_ms(self, ms: float, starts: int) -> None:
        """One planning round took this long and decided on ``starts`` starts."""
        ...

    def evicted(self, institution: str, rule: str) -> None:
        """An attempt of ``institution`` was told to stop for a waiting job, by this rule of preemption."""
        ...

    def commit_ms(self, ms: float, rows: int) -> None:
        """One transaction of ``rows`` rows took this long, from its hand-over to its durability."""
        ...


class NullObserver:
    """Measures nothing."""

    def wait_ms(self, institution: str, ms: float) -> None:
        """Do nothing."""

    def round_ms(self, ms: float, starts: int) -> None:
        """Do nothing."""

    def evicted(self, institution: str, rule: str) -> None:
        """Do nothing."""

    def commit_ms(self, ms: float, rows: int) -> None:
        """Do nothing."""
