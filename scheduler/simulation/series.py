"""Figures over time, from what was metered: exact step functions, averaged over equal parts of a window for drawing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scheduler.domain.records import LedgerRecord
from scheduler.domain.resources import Resources
from scheduler.simulation.outcome import Outcome


class Steps:
    """A function of time that is 0 at first and changes by whole numbers at instants."""

    def __init__(self) -> None:
        self._changes: dict[int, int] = {}

    def add(self, at_ms: int, change: int) -> None:
        """From ``at_ms`` on it is this much more."""
        self._changes[at_ms] = self._changes.get(at_ms, 0) + change

    def span(self, start_ms: int, end_ms: int, amount: int) -> None:
        """In [start_ms, end_ms) it is this much more."""
        self.add(start_ms, amount)
        self.add(end_ms, -amount)

    def merge(self, other: Steps, sign: int = 1) -> None:
        """Add another such function, or with ``sign`` -1 take it off."""
        for at_ms, change in other._changes.items():
            self.add(at_ms, sign * change)

    def integral(self, from_ms: int, to_ms: int) -> int:
        """The sum of value times milliseconds over [from_ms, to_ms)."""
        return self.integrals([from_ms, to_ms])[0]

    def integrals(self, edges: Sequence[int]) -> list[int]:
        """The integral between each edge and the next; edges ascend."""
        changes = sorted(self._changes.items())
        totals = []
        value = at = 0
        for start_ms, end_ms in pairwise(edges):
            total, now_ms = 0, start_ms
            while at < len(changes) and changes[at][0] < end_ms:
                when_ms, change = changes[at]
                if when_ms > now_ms:
                    total += value * (when_ms - now_ms)
                    now_ms = when_ms
                value += change
                at += 1
            totals.append(total + value * (end_ms - now_ms))
        return totals

    def means(self, edges: Sequence[int]) -> list[float]:
        """The average between each edge and the next."""
        widths = [end - start for start, end in pairwise(edges)]
        return [total / width if width else 0.0 for total, width in zip(self.integrals(edges), widths, strict=True)]

    def peak(self) -> int:
        """Its greatest value."""
        value = greatest = 0
        for _, change in sorted(self._changes.items()):
            value += change
            greatest = max(greatest, value)
        return greatest


def bins(from_ms: int, to_ms: int, parts: int) -> list[int]:
    """The edges of ``parts`` parts of a window, as equal as whole milliseconds allow."""
    return [from_ms + (to_ms - from_ms) * number // parts for number in range(parts + 1)]


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn, by the middles of the parts of the window: of each pool the part of its capacity in use, of each institution the
    jobs waiting and its dominant share, Jain's index of fairness (None while fewer than two want anything), and jobs
    running."""

    middles_ms: tuple[int, ...]
    utilisation: Mapping[str, tuple[float, ...]]
    waiting: Mapping[str, tuple[float, ...]]
    share: Mapping[str, tuple[float, ...]]
    jain: tuple[float | None, ...]
    running: tuple[float, ...]


def pool_resource(capacity: Iterable[tuple[int, str, Resources]], pool: str) -> int:
    """The index of the resource by which a pool's use is told: GPUs where there are any, else cores."""
    return 2 if any(amount.gpu_milli for _, name, amount in capacity if name == pool) else 0


def series(outcome: Outcome, weights: Mapping[str, int], from_ms: int, to_ms: int, parts: int = 480) -> Series:
    """All that is drawn of one simulation."""
    edges = bins(from_ms, to_ms, parts)
    middles = tuple((start + end) // 2 for start, end in pairwise(edges))
    capacity = capacity_steps(outcome.capacity, from_ms)
    held = held_steps(outcome.ledger)
    utilisation = {}
    for pool in sorted({name for name, _ in capacity}):
        index = pool_resource(outcome.capacity, pool)
        whole = capacity[pool, index].integrals(edges)
        used = held.of_pool[pool, index].integrals(edges) if (pool, index) in held.of_pool else [0] * parts
        utilisation[pool] = tuple(part / all_ if all_ else 0.0 for part, all_ in zip(used, whole, strict=True))
    waiting = {name: tuple(steps.means(edges)) for name, steps in waiting_steps(outcome, held.jobs).items()}
    share = _shares(held, capacity, edges)
    for name in waiting:
        share.setdefault(name, (0.0,) * parts)
    running = Steps()
    for steps in held.jobs.values():
        running.merge(steps)
    return Series(
        middles, utilisation, waiting, share, tuple(_jain(share, waiting, weights, parts)), tuple(running.means(edges))
    )


@dataclass(slots=True)
class Held:
    """What was held: by pool and resource, by institution and resource, and how many jobs of each institution held something."""

    of_pool: dict[tuple[str, int], Steps]
    of_institution: dict[tuple[str, int], Steps]
    jobs: dict[str, Steps]


def held_steps(ledger: Iterable[LedgerRecord]) -> Held:
    """What was held, over time."""
    held = Held({}, {}, {})
    for record in ledger:
        held.jobs.setdefault(record.institution, Steps()).span(record.start_ms, record.end_ms, 1)
        pool = f"{record.region}/{record.pool}"
        for index, amount in enumerate((record.cpu_milli, record.memory_mib, record.gpu_milli)):
            held.of_pool.setdefault((pool, index), Steps()).span(record.start_ms, record.end_ms, amount)
            key = record.institution, index
            held.of_institution.setdefault(key, Steps()).span(record.start_ms, record.end_ms, amount)
    return held


def capacity_steps(capacity: Sequence[tuple[int, str, Resources]], from_ms: int) -> dict[tuple[str, int], Steps]:
    """Each pool's capacity, by pool and resource, over time. What is there at the first instant has been since ``from_ms``."""
    found: dict[tuple[str, int], Steps] = {}
    had: dict[str, Resources] = {}
    for at_ms, pool, amounts in capacity:
        since_ms = min(at_ms, from_ms) if at_ms == capacity[0][0] else at_ms
        for index, amount in enumerate(amounts):
            found.setdefault((pool, index), Steps()).add(since_ms, amount - had.get(pool, Resources())[index])
        had[pool] = amounts
    return found


def waiting_steps(outcome: Outcome, holding: Mapping[str, Steps]) -> dict[str, Steps]:
    """How many jobs of each institution waited: those submitted and not ended, less those that held something."""
    found: dict[str, Steps] = {}
    for each in outcome.jobs:
        if not each.refused:
            steps = found.setdefault(each.job.institution, Steps())
            steps.add(each.job.submit_ms, 1)
            if each.ended:
                steps.add(each.end_ms, -1)
    for institution, steps in holding.items():
        found.setdefault(institution, Steps()).merge(steps, -1)
    return dict(sorted(found.items()))


def _shares(
    held: Held, capacity: Mapping[tuple[str, int], Steps], edges: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """Each institution's dominant share of all pools together: the largest part it held of any resource."""
    wholes: dict[int, list[int]] = {}
    for (_, index), steps in capacity.items():
        of_pool = steps.integrals(edges)
        so_far = wholes.get(index, [0] * len(of_pool))
        wholes[index] = [one + two for one, two in zip(so_far, of_pool, strict=True)]
    found: dict[str, tuple[float, ...]] = {}
    for (institution, index), steps in sorted(held.of_institution.items()):
        parts = [
            used / whole if whole else 0.0
            for used, whole in zip(steps.integrals(edges), wholes.get(index, [0] * (len(edges) - 1)), strict=True)
        ]
        known = found.get(institution, (0.0,) * len(parts))
        found[institution] = tuple(map(max, known, parts))
    return found


def jain_index(values: Sequence[float]) -> float:
    """(Σx)² / (n Σx²): 1 when all are equal, 1/n when one has all (Jain, Chiu and Hawe, DEC-TR-301, 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _jain(
    share: Mapping[str, Sequence[float]],
    waiting: Mapping[str, Sequence[float]],
    weights: Mapping[str, int],
    parts: int,
) -> Iterable[float | None]:
    """Jain's index over the weighted shares of the institutions whose jobs waited, and of those that held more than they.

    Who holds little because it wants little is no sign of unfairness, so that only the waiting are compared, with
    one another and with whoever holds more for its weight.
    """
    names = sorted(share)
    for part in range(parts):
        weighted = {name: share[name][part] / max(1, weights.get(name, 1000)) for name in names}
        wanting = [name for name in names if name in waiting and waiting[name][part] > 0]
        if not wanting:
            yield None
            continue
        least = min(weighted[name] for name in wanting)
        compared = [weighted[name] for name in names if name in wanting or weighted[name] > least]
        yield jain_index(compared) if len(compared) > 1 else None
