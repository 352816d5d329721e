"""The queue in memory: jobs that wait for a place, in lines of one user, priority and shape.

Only what may start stands here: an array at its limit of parallel tasks steps out until one of them ends. Adding and removing
cost O(log n) of the line; a round never walks the whole queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter

from sortedcontainers import SortedKeyList

from scheduler.planning.types import GroupKey, PendingJob
from scheduler.service.job import Job, place_of

_PLACE = attrgetter("place")


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


class Line:
    """One line, sorted by place; ``changed`` since the planner looked last."""

    __slots__ = ("changed", "jobs", "key")

    def __init__(self, key: GroupKey, jobs: Iterable[Job] = ()) -> None:
        self.key = key
        self.jobs: SortedKeyList[Job] = SortedKeyList(jobs, key=_PLACE)
        self.changed = False


class Queue:
    """Implements ``scheduler.planning.types.PendingQueue`` over live jobs."""

    def __init__(self) -> None:
        self._lines: dict[GroupKey, Line] = {}
        self._changed: list[Line] = []
        self.size_total = 0

    def add(self, job: Job) -> bool:
        """Put a job in its line; True when it is the first there (so that a planning round may find something new)."""
        key = job.group
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        line.jobs.add(job)
        job.line = line
        self.size_total += 1
        self._note(line)
        return line.jobs[0] is job

    def remove(self, job: Job) -> None:
        """Take a job out of its line; no error when it does not stand there."""
        line = job.line
        if line is not None:
            line.jobs.remove(job)
            job.line = None
            self.size_total -= 1
            self._note(line)
            if not line.jobs:
                del self._lines[line.key]

    def changed(self, job: Job) -> None:
        """How many of its tasks may start has changed, of an array that stands in its line."""
        if job.line is not None:
            self._note(job.line)

    def _note(self, line: Line) -> None:
        if not line.changed:
            line.changed = True
            self._changed.append(line)

    def take_changed(self) -> set[GroupKey]:
        """The lines that somebody joined or left, or in which an array changed, since the last call."""
        changed, self._changed = self._changed, []
        for line in changed:
            line.changed = False
        return {line.key for line in changed}

    def rank_anew(self, rank: Callable[[Job], None]) -> None:
        """Give every job that waits another rank, and put the lines in order again."""
        for line in self._lines.values():
            jobs = list(line.jobs)
            for job in jobs:
                rank(job)
            line.jobs = SortedKeyList(jobs, key=_PLACE)

    def __contains__(self, job: Job) -> bool:
        return job.line is not None

    def groups(self) -> Sequence[GroupKey]:
        """All lines with somebody in them."""
        return list(self._lines)

    def head(self, key: GroupKey) -> PendingJob:
        """The first of a line."""
        return pending(self._lines[key].jobs[0])

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """A line from its first on."""
        return map(pending, self._lines[key].jobs)

    def size(self, key: GroupKey) -> int:
        """How many stand in a line; none in one that nobody has joined."""
        line = self._lines.get(key)
        return len(line.jobs) if line is not None else 0

    def before(self, key: GroupKey, rank: int, job_no: int) -> int:
        """How many stand in a line before (rank, job_no)."""
        line = self._lines.get(key)
        return line.jobs.bisect_key_left(place_of(rank, job_no)) if line is not None else 0
