"""A job as it would be if it asked for something else, and a queue in which it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.policy import Policy
from scheduler.planning.rank import rank_of
from scheduler.planning.types import GroupKey, PendingJob, PendingQueue

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """What a job would ask for instead; None: as it is. Amounts are those of ``Resources``, per replica."""

    cpu_milli: int | None = None
    memory_mib: int | None = None
    gpu_milli: int | None = None
    replicas: int | None = None
    accelerators: tuple[str, ...] | None = None
    required_regions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    max_runtime_ms: int | None = None
    preemptible: bool | None = None
    priority: PriorityClass | None = None
    pack: str | None = None
    pack_required: bool | None = None

    def __bool__(self) -> bool:
        return self != Change()


def changed(key: GroupKey, job: PendingJob, change: Change, policy: Policy) -> tuple[GroupKey, PendingJob]:
    """The job, and the line it would stand in. Its expected runtime stays what it was, as far as the limit lets it."""
    shape, request = key.shape, key.shape.request
    wanted = replace(
        shape,
        request=Resources(
            _or(change.cpu_milli, request.cpu_milli),
            _or(change.memory_mib, request.memory_mib),
            _or(change.gpu_milli, request.gpu_milli),
        ),
        replicas=_or(change.replicas, shape.replicas),
        accelerators=_or(change.accelerators, shape.accelerators),
        required_regions=_or(change.required_regions, shape.required_regions),
        pools=_or(change.pools, shape.pools),
        pack=_or(change.pack, shape.pack),
        pack_required=_or(change.pack_required, shape.pack_required),
    )
    priority = _or(change.priority, key.priority)
    line = key._replace(shape=wanted, priority=priority, preemptible=_or(change.preemptible, key.preemptible))
    limit_ms = _or(change.max_runtime_ms, job.limit_ms)
    expected_ms = min(job.expected_ms, limit_ms)
    before = rank_of(policy.order, job.submit_ms, key.priority, shape.total, job.expected_ms)
    after = rank_of(policy.order, job.submit_ms, priority, wanted.total, expected_ms)
    return line, job._replace(rank=job.rank + after - before, limit_ms=limit_ms, expected_ms=expected_ms)


def _or(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


class ChangedQueue:
    """A queue in which one job has left its line, if it stood in one, and another has come."""

    def __init__(
        self, queue: PendingQueue, gone: tuple[GroupKey, int] | None, come: tuple[GroupKey, PendingJob]
    ) -> None:
        self._queue = queue
        self._gone = gone
        self._come = come

    def groups(self) -> Sequence[GroupKey]:
        """See ``PendingQueue``."""
        known = list(self._queue.groups())
        if self._gone is not None and not self.size(self._gone[0]):
            known.remove(self._gone[0])
        return known if self._old_size(self._come[0]) else [*known, self._come[0]]

    def head(self, key: GroupKey) -> PendingJob:
        """See ``PendingQueue``."""
        return next(self.jobs(key))

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """See ``PendingQueue``."""
        gone = self._gone[1] if self._gone is not None and self._gone[0] == key else 0
        come = self._come[1] if self._come[0] == key else None
        for job in self._queue.jobs(key) if self._old_size(key) else ():
            if come is not None and (come.rank, come.job_no) < (job.rank, job.job_no):
                yield come
                come = None
            if job.job_no != gone:
                yield job
        if come is not None:
            yield come

    def size(self, key: GroupKey) -> int:
        """See ``PendingQueue``."""
        gone = self._gone is not None and self._gone[0] == key
        return self._old_size(key) - gone + (self._come[0] == key)

    def _old_size(self, key: GroupKey) -> int:
        return self._queue.size(key)
