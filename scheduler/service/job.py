"""The live job. There may be millions of them waiting, so one that has only been queued is kept small."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from scheduler.domain.records import JobRecord
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import JobState
from scheduler.planning.types import GroupKey

if TYPE_CHECKING:
    from scheduler.service.model import Attempt
    from scheduler.service.queue import Line

T = TypeVar("T")
_TASK_BITS, _NUMBER_BITS = 24, 40


@dataclass(slots=True)
class _Later:
    """What happens to a job once it does more than wait for its first start; made when the first of it does."""

    reason: str = ""
    message: str = ""
    start_ms: int = 0
    end_ms: int = 0
    eligible_ms: int = 0
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    cancel_requested: bool = False
    region: str = ""
    pool: str = ""
    exit_code: int = 0
    exit_signal: int = 0
    results: str = ""
    checkpoint: str = ""
    array_index: int = 0
    array_next: int = 0
    array_succeeded: int = 0
    array_failed: int = 0
    array_cancelled: int = 0
    done_ms: int = 0
    array: Job | None = None
    live: Attempt | None = None
    live_tasks: dict[int, Job] | None = None
    waits_for: set[str] | None = None


_NOTHING_YET = _Later()


def place_of(rank: int, number: int) -> int:
    """The first place in line that a job, or an array's tasks, of this rank and number may have."""
    return (rank << _NUMBER_BITS | number) << _TASK_BITS


class _Field(Generic[T]):
    """An attribute of ``Job`` that is kept in its ``_Later``."""

    def __set_name__(self, owner: type[Job], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, job: None, owner: type[Job]) -> _Field[T]: ...
    @overload
    def __get__(self, job: Job, owner: type[Job]) -> T: ...
    def __get__(self, job: Job | None, owner: type[Job]) -> _Field[T] | T:
        if job is None:
            return self
        value: T = getattr(job.later, self._name)
        return value

    def __set__(self, job: Job, value: T) -> None:
        if job.later is _NOTHING_YET:
            if value == getattr(_NOTHING_YET, self._name):
                return
            job.later = _Later()
        setattr(job.later, self._name, value)


class Job:
    """A job, array or task that has not ended. Fields as in ``JobRecord``; a task (``array`` is not None) shares its array's spec.

    ``live_tasks`` (by number, the tasks that were started and have not ended) is kept for arrays, ``waits_for`` (ids) for
    held jobs, ``live`` (the attempt) for active ones; they are derived, not stored. ``expected_ms``, ``place`` and ``line`` are the
    queue's (``place``: see ``stand_at``; ``line``: None while it does not wait).
    """

    __slots__ = (
        "expected_ms",
        "job_id",
        "job_no",
        "later",
        "line",
        "place",
        "sequence",
        "spec",
        "state",
        "submit_ms",
        "user",
    )

    reason = _Field[str]()
    message = _Field[str]()
    start_ms = _Field[int]()
    end_ms = _Field[int]()
    eligible_ms = _Field[int]()
    attempt = _Field[int]()
    failures = _Field[int]()
    losses = _Field[int]()
    cancel_requested = _Field[bool]()
    region = _Field[str]()
    pool = _Field[str]()
    exit_code = _Field[int]()
    exit_signal = _Field[int]()
    results = _Field[str]()
    checkpoint = _Field[str]()
    array_index = _Field[int]()
    array_next = _Field[int]()
    array_succeeded = _Field[int]()
    array_failed = _Field[int]()
    array_cancelled = _Field[int]()
    done_ms = _Field[int]()
    array = _Field["Job | None"]()
    live = _Field["Attempt | None"]()
    live_tasks = _Field["dict[int, Job] | None"]()
    waits_for = _Field["set[str] | None"]()

    def __init__(
        self,
        job_no: int,
        job_id: str,
        spec: JobSpec,
        user: str,
        state: JobState,
        submit_ms: int,
        array: Job | None = None,
        array_index: int = 0,
    ) -> None:
        self.job_no = job_no
        self.job_id = job_id
        self.spec = spec
        self.user = user
        self.state = state
        self.submit_ms = submit_ms
        self.sequence = 0
        self.expected_ms = 0
        self.place = 0
        self.line: Line | None = None
        self.later = _NOTHING_YET
        if array is not None:
            self.array, self.array_index = array, array_index
        elif spec.array_size:
            self.live_tasks = {}

    def __repr__(self) -> str:
        return f"<Job {self.job_id} {self.state.name} {self.reason} attempt {self.attempt}>"

    @property
    def group(self) -> GroupKey:
        """The line of the queue it stands in."""
        spec = self.spec
        return GroupKey(spec.institution, spec.project, self.user, spec.priority, spec.preemptible, spec.shape)

    @property
    def array_id(self) -> str:
        """The id of the array a task belongs to, or ''."""
        return "" if self.array is None else self.array.job_id

    @property
    def array_size(self) -> int:
        """The number of tasks of an array, else 0."""
        return self.spec.array_size if self.array is None else 0

    @property
    def array_ended(self) -> int:
        """How many tasks of the array have ended."""
        return self.array_succeeded + self.array_failed + self.array_cancelled

    @property
    def startable_tasks(self) -> int:
        """How many allocations this place in the queue may be given now.

        A task that waits for another try keeps its place within the array's limit of parallel tasks.
        """
        if not self.array_size:
            return 1
        left = self.array_size - self.array_next
        limit = self.spec.array_max_parallel
        return min(left, limit - len(self.live_tasks or ())) if limit else left

    def stand_at(self, rank: int) -> None:
        """Give it its place among those who wait: by rank and number, a task by its array's number. Not while it stands in a line.

        A task that is tried again goes before those of its array that were never started: there may be a million of them. One
        integer says it all, so that lines compare fast and a place costs little memory.
        """
        number, task = (self.job_no, self.array_size) if self.array is None else (self.array.job_no, self.array_index)
        self.place = place_of(rank, number) | task

    @property
    def rank(self) -> int:
        """The rank it was given when it was queued (``PendingJob``)."""
        return self.place >> _NUMBER_BITS + _TASK_BITS

    def record(self) -> JobRecord:
        """The row to store."""
        spec, later = self.spec, self.later
        array = later.array
        return JobRecord(
            self.job_no,
            self.job_id,
            spec.institution,
            spec.project,
            self.user,
            spec.name,
            int(self.state),
            later.reason,
            later.message,
            int(spec.priority),
            spec.encoded if array is None else b"",
            self.submit_ms,
            later.start_ms,
            later.end_ms,
            later.eligible_ms,
            later.attempt,
            later.failures,
            later.losses,
            int(later.cancel_requested),
            later.region,
            later.pool,
            later.exit_code,
            later.exit_signal,
            later.results,
            later.checkpoint,
            "" if array is None else array.job_id,
            later.array_index,
            spec.array_size if array is None else 0,
            later.array_next,
            later.array_succeeded,
            later.array_failed,
            later.array_cancelled,
            self.sequence,
            later.done_ms,
        )

    @staticmethod
    def from_record(record: JobRecord, spec: JobSpec, array: Job | None) -> Job:
        """The live object of a stored row; ``array`` is that of a task."""
        job = Job(
            record.job_no,
            record.job_id,
            spec,
            record.user,
            JobState(record.state),
            record.submit_ms,
            array,
            record.array_index,
        )
        job.sequence = record.sequence
        values = _stored(record)
        if values != _stored(_NOTHING_YET):
            if job.later is _NOTHING_YET:
                job.later = _Later()
            for name, value in zip(_STORED, values, strict=True):
                setattr(job.later, name, value)
            job.cancel_requested = bool(record.cancel_requested)
        return job


# What a row holds under the same name, beside every job's own.
_STORED = tuple(name for name in _Later.__slots__ if name in JobRecord._fields)
_stored = attrgetter(*_STORED)
