"""Snapshots that stay as they are while the live ones go on, and queues that change without changing them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from scheduler.planning.types import GroupKey, PendingJob, PendingQueue, Snapshot

MAX_JOBS = 20_000
"""So many jobs of a queue are copied; each line keeps at least ``LEAST_OF_LINE``."""
LEAST_OF_LINE = 2
MAX_OF_OWN_LINE = 10_000


class FrozenQueue:
    """A copy of the heads of all lines. ``cut`` counts the jobs that were left out."""

    def __init__(self, lines: Mapping[GroupKey, Sequence[PendingJob]], cut: int) -> None:
        self._lines = lines
        self.cut = cut

    def holds(self, key: GroupKey, job: PendingJob) -> bool:
        """Whether a job is among those copied."""
        line = self._lines.get(key, ())
        at = bisect_left(line, job[:2])
        return at < len(line) and line[at][:2] == job[:2]

    def groups(self) -> Sequence[GroupKey]:
        """See ``PendingQueue``."""
        return list(self._lines)

    def head(self, key: GroupKey) -> PendingJob:
        """See ``PendingQueue``."""
        return self._lines[key][0]

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """See ``PendingQueue``."""
        return iter(self._lines[key])

    def size(self, key: GroupKey) -> int:
        """See ``PendingQueue``."""
        return len(self._lines.get(key, ()))


def freeze(snapshot: Snapshot, job: tuple[GroupKey, PendingJob]) -> Snapshot:
    """A copy of the snapshot for one job's forecast. The views are shared, as they never change; long lines are cut, the job's own
    no nearer than behind the job."""
    queue = snapshot.queue
    groups = queue.groups()
    left = MAX_JOBS
    lines: dict[GroupKey, list[PendingJob]] = {}
    cut = 0
    for number, key in enumerate(groups):
        fair = max(LEAST_OF_LINE, left // (len(groups) - number))
        line = _first(queue, key, fair)
        if key == job[0] and job[1] not in line:
            line = _upto(queue, key, job[1])
        lines[key] = line
        cut += queue.size(key) - len(line)
        left -= len(line)
    return replace(
        snapshot,
        pools={pool: dict(views) for pool, views in snapshot.pools.items()},
        queue=FrozenQueue(lines, cut),
        institutions=dict(snapshot.institutions),
        projects=dict(snapshot.projects),
        users=dict(snapshot.users),
        running=dict(snapshot.running),
        pool_use=dict(snapshot.pool_use),
        evictions=dict(snapshot.evictions),
        claims=dict(snapshot.claims),
        changes=None,
    )


def _first(queue: PendingQueue, key: GroupKey, count: int) -> list[PendingJob]:
    return list(islice(queue.jobs(key), count))


def _upto(queue: PendingQueue, key: GroupKey, job: PendingJob) -> list[PendingJob]:
    line: list[PendingJob] = []
    for each in queue.jobs(key):
        line.append(each)
        if each.job_no == job.job_no or len(line) >= MAX_OF_OWN_LINE:
            break
    return line


class _Line:
    """A line that is read from its source as far as somebody looks."""

    __slots__ = ("_key", "_line_of", "_source", "read", "size")

    def __init__(self, key: GroupKey, source: Iterator[PendingJob], size: int, line_of: dict[int, GroupKey]) -> None:
        self._key, self._source, self._line_of = key, source, line_of
        self.read: list[PendingJob] = []
        self.size = size

    def jobs(self) -> Iterator[PendingJob]:
        at = 0
        while at < len(self.read) or self._more():
            yield self.read[at]
            at += 1

    def _more(self) -> bool:
        job = next(self._source, None)
        if job is not None:
            self.read.append(job)
            self._line_of[job.job_no] = self._key
        return job is not None

    def take(self, job_no: int) -> PendingJob:
        for at, job in enumerate(self.jobs()):
            if job.job_no == job_no:
                if job.tasks > 1:
                    self.read[at] = job._replace(tasks=job.tasks - 1)
                else:
                    del self.read[at]
                    self.size -= 1
                return job
        raise KeyError(job_no)

    def put(self, job: PendingJob) -> None:
        while (not self.read or self.read[-1] < job) and self._more():
            pass
        at = bisect_left(self.read, job)
        if at < len(self.read) and self.read[at][:2] == job[:2]:
            self.read[at] = job._replace(tasks=self.read[at].tasks + job.tasks)
        else:
            insort(self.read, job)
            self._line_of[job.job_no] = self._key
            self.size += 1


class ReplayQueue:
    """A queue over another, which it leaves alone."""

    def __init__(self, queue: PendingQueue) -> None:
        self._queue = queue
        self._line_of: dict[int, GroupKey] = {}
        self._lines = {key: _Line(key, queue.jobs(key), queue.size(key), self._line_of) for key in queue.groups()}
        self.cut: int = queue.cut if isinstance(queue, FrozenQueue) else 0

    def groups(self) -> Sequence[GroupKey]:
        """See ``PendingQueue``."""
        return [key for key, line in self._lines.items() if line.size]

    def head(self, key: GroupKey) -> PendingJob:
        """See ``PendingQueue``."""
        return next(self._lines[key].jobs())

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """See ``PendingQueue``."""
        return self._lines[key].jobs()

    def size(self, key: GroupKey) -> int:
        """See ``PendingQueue``."""
        line = self._lines.get(key)
        return line.size if line is not None else 0

    def line_of(self, job_no: int) -> GroupKey:
        """The line in which a job stands, or stood, that has been looked at."""
        return self._line_of[job_no]

    def take(self, key: GroupKey, job_no: int) -> PendingJob:
        """One task of a job leaves; returns the job as it stood."""
        return self._lines[key].take(job_no)

    def put(self, key: GroupKey, job: PendingJob) -> None:
        """A job comes, or a task of an array comes back."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, iter(()), 0, self._line_of)
        line.put(job)
