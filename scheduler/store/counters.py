"""The counters a commit moves on: the highest number of each kind among its records."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from scheduler.service.ports import CommitBatch

_JOB_NO = attrgetter("job_no")
_SEQUENCE = attrgetter("sequence")
_LAUNCH_SEQ = attrgetter("launch_seq")
_TIME = attrgetter("time_ms")
_END = attrgetter("end_ms")
_POSTED = attrgetter("posted_ms")


class Counters(NamedTuple):
    """The last value of each counter; 0 before the first."""

    job_no: int = 0
    event_seq: int = 0
    ledger_seq: int = 0
    launch_seq: int = 0
    time_ms: int = 0

    def merged(self, other: Counters) -> Counters:
        """The higher of each."""
        return Counters(*map(max, self, other))


def _highest(rows: Sequence[Any], key: attrgetter[int]) -> int:
    return max(map(key, rows), default=0)


def counters_of(batch: CommitBatch) -> Counters:
    """The highest numbers in a batch; 0 for a kind it has none of."""
    return Counters(
        job_no=max(_highest(batch.new_jobs, _JOB_NO), _highest(batch.jobs, _JOB_NO)),
        event_seq=_highest(batch.events, _SEQUENCE),
        ledger_seq=_highest(batch.ledger, _SEQUENCE),
        launch_seq=max(_highest(batch.new_attempts, _LAUNCH_SEQ), _highest(batch.attempts, _LAUNCH_SEQ)),
        time_ms=max(
            _highest(batch.events, _TIME),
            _highest(batch.ledger, _END),
            _highest(batch.ledger, _POSTED),
            _highest(batch.audit, _TIME),
        ),
    )
