"""Sums of ledger records by ``UsageKey``, exactly, the same way in every store."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from scheduler.domain.errors import Internal
from scheduler.domain.records import LedgerRecord
from scheduler.metering.segments import month_of
from scheduler.service.ports import UsageKey, UsageSum

_DAY_MS = 86_400_000


@lru_cache(maxsize=1024)
def _month_of_day(day: int) -> str:
    return month_of(day * _DAY_MS)


def usage_key(record: LedgerRecord) -> UsageKey:
    """The sum a segment belongs to. Raises ``Internal`` for one that ends before it starts or lies in two months."""
    month = _month_of_day(record.start_ms // _DAY_MS)
    if record.end_ms < record.start_ms or (
        record.end_ms > record.start_ms and _month_of_day((record.end_ms - 1) // _DAY_MS) != month
    ):
        raise Internal(
            f"segment {record.segment} of attempt {record.attempt} of job {record.job_id} is not within one UTC month",
            reason="BAD_SEGMENT",
        )
    return UsageKey(
        record.institution, record.project, record.user, record.region, record.pool, record.accelerator, month
    )


def sum_usage(records: Iterable[LedgerRecord]) -> list[UsageSum]:
    """One exact sum for each key among the records.

    An attempt is counted where its segment 0 is, so that counts add up over months as the amounts do.
    """
    sums: dict[UsageKey, list[int]] = {}
    for record in records:
        key = usage_key(record)
        held_ms = record.end_ms - record.start_ms
        into = sums.setdefault(key, [0, 0, 0, 0, 0])
        into[0] += record.cpu_milli * held_ms
        into[1] += record.memory_mib * held_ms
        into[2] += record.gpu_milli * held_ms
        into[3] += 1
        into[4] += record.segment == 0
    return [UsageSum(key, *into) for key, into in sums.items()]
