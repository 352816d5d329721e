"""Sums of ledger records by ``UsageKey``, exactly, the same way in every store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from scheduler.domain.errors import Internal
from scheduler.domain.records import LedgerRecord
from scheduler.service.ports import UsageKey, UsageSum

_MONTHS_KEPT = 1024
_months: dict[int, str] = {}
_DAY_MS = 86_400_000


def month_of(instant_ms: int) -> str:
    """The UTC month an instant lies in, as in "2026-10"."""
    day = instant_ms // _DAY_MS
    month = _months.get(day)
    if month is None:
        if len(_months) >= _MONTHS_KEPT:
            _months.clear()
        month = _months[day] = datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m")
    return month


def usage_key(record: LedgerRecord) -> UsageKey:
    """The sum a segment belongs to. Raises ``Internal`` for one that ends before it starts or lies in two months."""
    month = month_of(record.start_ms)
    if record.end_ms < record.start_ms or (record.end_ms > record.start_ms and month_of(record.end_ms - 1) != month):
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
