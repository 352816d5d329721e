"""What a simulation found, and the figures that are usually asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.domain.records import LedgerRecord
from scheduler.domain.resources import Resources
from scheduler.simulation.workload import SimJob


@dataclass(slots=True)
class JobOutcome:
    """What became of a job. ``start_ms`` is its first start; both are -1 as long as it has not come to that.

    ``held_ms`` is how long it held an allocation, over all attempts; ``refused``: why it was not even accepted.
    """

    job: SimJob
    start_ms: int = -1
    end_ms: int = -1
    held_ms: int = 0
    evictions: int = 0
    region: str = ""
    refused: str = ""

    @property
    def completion_ms(self) -> int:
        """From submission to end."""
        return self.end_ms - self.job.submit_ms

    @property
    def wait_ms(self) -> int:
        """Time from submission to end in which it held nothing."""
        return self.completion_ms - self.held_ms

    @property
    def ended(self) -> bool:
        """Whether it came to its end."""
        return self.end_ms >= 0


def percentile(ordered: Sequence[int], thousandths: int) -> int:
    """The value at index int(n x part) of an ascending sequence; -1 when it is empty."""
    return ordered[min(len(ordered) - 1, len(ordered) * thousandths // 1000)] if ordered else -1


@dataclass(slots=True)
class Outcome:
    """All that a simulation found. ``capacity`` are (time, region/pool, amount) whenever a pool's capacity changed; ``ledger`` is what
    the engine metered; ``rounds`` how often it planned."""

    jobs: list[JobOutcome] = field(default_factory=list)
    ledger: list[LedgerRecord] = field(default_factory=list)
    capacity: list[tuple[int, str, Resources]] = field(default_factory=list)
    rounds: int = 0
    events: int = 0
    end_ms: int = 0

    def capacity_ms(self, amount: Callable[[Resources], int], until_ms: int, pool: str = "") -> int:
        """Capacity times milliseconds from time 0, or the first change, to ``until_ms``, of one pool or of all."""
        total = 0
        now: dict[str, tuple[int, int]] = {}
        for at_ms, name, resources in self.capacity:
            if not pool or name == pool:
                since_ms, had = now.get(name, (at_ms, 0))
                total += had * (min(at_ms, until_ms) - min(since_ms, until_ms))
                now[name] = (at_ms, amount(resources))
        return total + sum(had * max(0, until_ms - since_ms) for since_ms, had in now.values())

    def used_ms(self, amount: Callable[[LedgerRecord], int], until_ms: int) -> int:
        """What the ledger says was held until then, times milliseconds."""
        return sum(
            amount(each) * (min(each.end_ms, until_ms) - each.start_ms)
            for each in self.ledger
            if each.start_ms < until_ms
        )

    def gpu_utilisation(self) -> float:
        """The part of all GPU time up to the last end that was held; of CPU time where there are no GPUs."""
        end_ms = max((each.end_ms for each in self.jobs), default=0)
        whole = self.capacity_ms(lambda each: each.gpu_milli, end_ms)
        if whole:
            return self.used_ms(lambda each: each.gpu_milli, end_ms) / whole
        whole = self.capacity_ms(lambda each: each.cpu_milli, end_ms)
        return self.used_ms(lambda each: each.cpu_milli, end_ms) / whole if whole else 0.0
