"""The queue in memory: jobs that wait for a place, in lines of one project, priority and shape.

Only what may start stands here: an array at its limit of parallel tasks steps out until one of them ends. Adding and removing
cost O(log n) of the line; nothing ever walks the whole queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sortedcontainers import SortedDict

from scheduler.planning.types import GroupKey, PendingJob
from scheduler.service.model import Job

_Place = tuple[int, int, int]


def _place(job: Job) -> _Place:
    """Where a job stands in its line: by submit time and number, a task by its array's.

    A task that is tried again goes before those of its array that were never started: there may be a million of them.
    """
    if job.array is not None:
        return job.submit_ms, job.array.job_no, job.array_index
    return job.submit_ms, job.job_no, job.array_size


def pending(job: Job) -> PendingJob:
    """A waiting job as planning sees it."""
    spec = job.spec
    return PendingJob(
        job.submit_ms,
        job.job_no,
        job.startable_tasks,
        job.submit_ms,
        spec.max_runtime_ms,
        spec.max_runtime_ms,
        spec.grace_ms,
    )


class Queue:
    """Implements ``scheduler.planning.types.PendingQueue`` over live jobs."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, SortedDict[_Place, Job]] = {}
        self.size_total = 0

    def add(self, job: Job) -> bool:
        """Put a job in its line; True when it is the first there (so that a planning round may find something new)."""
        key = job.group
        line = self._groups.get(key)
        if line is None:
            line = self._groups[key] = SortedDict()
        line[_place(job)] = job
        self.size_total += 1
        return len(line) == 1

    def remove(self, job: Job) -> None:
        """Take a job out of its line; no error when it does not stand there."""
        key = job.group
        line = self._groups.get(key)
        if line is not None and line.pop(_place(job), None) is not None:
            self.size_total -= 1
            if not line:
                del self._groups[key]

    def __contains__(self, job: Job) -> bool:
        line = self._groups.get(job.group)
        return line is not None and _place(job) in line

    def groups(self) -> Sequence[GroupKey]:
        """All lines with somebody in them."""
        return list(self._groups)

    def head(self, key: GroupKey) -> PendingJob:
        """The first of a line."""
        return next(self.jobs(key))

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """A line from its first on."""
        for job in self._groups[key].values():
            yield pending(job)

    def size(self, key: GroupKey) -> int:
        """How many stand in a line; none in one that nobody has joined."""
        return len(self._groups.get(key, ()))
