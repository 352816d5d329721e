"""The queue in memory: jobs that wait for a place, in lines of one user, priority and shape.

Only what may start stands here: an array at its limit of parallel tasks steps out until one of them ends. Adding and removing
cost O(log n) of the line; a round never walks the whole queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sortedcontainers import SortedList

from scheduler.planning.types import GroupKey, PendingJob
from scheduler.service.model import Job


def pending(job: Job) -> PendingJob:
    """A waiting job as planning sees it."""
    spec = job.spec
    return PendingJob(
        job.rank,
        job.job_no,
        job.startable_tasks,
        job.submit_ms,
        job.expected_ms,
        spec.max_runtime_ms,
        spec.grace_ms,
    )


class Queue:
    """Implements ``scheduler.planning.types.PendingQueue`` over live jobs.

    The lines hold the jobs themselves, which compare by their ranks: a job's rank must not change while it stands in a line.
    """

    def __init__(self) -> None:
        self._lines: dict[GroupKey, SortedList[Job]] = {}
        self._changed: set[GroupKey] = set()
        self.size_total = 0

    def add(self, job: Job) -> bool:
        """Put a job in its line; True when it is the first there (so that a planning round may find something new)."""
        key = job.group
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = SortedList()
        line.add(job)
        self.size_total += 1
        self._changed.add(key)
        return line[0] is job

    def remove(self, job: Job) -> None:
        """Take a job out of its line; no error when it does not stand there."""
        key = job.group
        line = self._lines.get(key)
        if line is not None and job in line:
            line.remove(job)
            self.size_total -= 1
            self._changed.add(key)
            if not line:
                del self._lines[key]

    def changed(self, job: Job) -> None:
        """How many of its tasks may start has changed, of an array that stands in its line."""
        self._changed.add(job.group)

    def take_changed(self) -> set[GroupKey]:
        """The lines that somebody joined or left, or in which an array changed, since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def rank_anew(self, rank: Callable[[Job], None]) -> None:
        """Give every job that waits another rank, and put the lines in order again."""
        for key, line in self._lines.items():
            jobs = list(line)
            for job in jobs:
                rank(job)
            self._lines[key] = SortedList(jobs)

    def __contains__(self, job: Job) -> bool:
        line = self._lines.get(job.group)
        return line is not None and job in line

    def groups(self) -> Sequence[GroupKey]:
        """All lines with somebody in them."""
        return list(self._lines)

    def head(self, key: GroupKey) -> PendingJob:
        """The first of a line."""
        return pending(self._lines[key][0])

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """A line from its first on."""
        return map(pending, self._lines[key])

    def size(self, key: GroupKey) -> int:
        """How many stand in a line; none in one that nobody has joined."""
        return len(self._lines.get(key, ()))
