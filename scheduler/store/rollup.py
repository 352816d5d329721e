"""Sums of ledger records by ``UsageKey`` and by day, exactly, the same way in every store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import lru_cache

from scheduler.domain.errors import Internal, InvalidArgument
from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.segments import month_of
from scheduler.service.ports import DaySum, LedgerQuery, UsageKey, UsageQuery, UsageSum

_DAY_MS = 86_400_000
_FIRST_DAY = date(1970, 1, 1).toordinal()
_USAGE, _CREDIT = int(EntryKind.USAGE), int(EntryKind.CREDIT)
# A key's fields where they are summed over.
EMPTY_KEY = UsageKey("", "", "", "", "", "", "", "", 0, 0, 0, "", 0, 0, 0)
# A record beyond it is a defect (a million cores held for a thousand years are less than 2^75), and would bring the sums
# near what two columns of 64 bits hold, where SQLite goes on in floating point without a word.
_LARGEST = 1 << 80


@lru_cache(maxsize=1024)
def _month_of_day(day: int) -> str:
    return month_of(day * _DAY_MS)


@lru_cache(maxsize=1024)
def _day_text(day: int) -> str:
    return str(date.fromordinal(_FIRST_DAY + day))


def usage_key(record: LedgerRecord) -> UsageKey:
    """The sum a segment belongs to. Raises ``Internal`` for one that ends before it starts or lies in two months."""
    month = _month_of_day(record.start_ms // _DAY_MS)
    if record.end_ms < record.start_ms or (
        record.end_ms > record.start_ms and _month_of_day((record.end_ms - 1) // _DAY_MS) != month
    ):
        raise _bad(record, "is not within one UTC month")
    return UsageKey(
        record.institution,
        record.project,
        record.user,
        record.region,
        record.pool,
        record.accelerator,
        month,
        record.period,
        record.kind,
        record.priority,
        record.preemptible,
        record.purpose,
        record.price_list,
        record.rate,
        record.discount_bp,
    )


def _bad(record: LedgerRecord, why: str) -> Internal:
    text = f"segment {record.segment} of attempt {record.attempt} of job {record.job_id} {why}"
    return Internal(text, reason="BAD_SEGMENT")


def sum_usage(records: Iterable[LedgerRecord]) -> list[UsageSum]:
    """One exact sum for each key among the records.

    Raises ``Internal`` for a segment that ``usage_key`` refuses, and for one that is too large to be summed. Only what was
    metered is counted, and an attempt where its segment 0 is, so that counts add up over months as the amounts do.
    """
    sums: dict[UsageKey, list[int]] = {}
    for record in records:
        key = usage_key(record)
        held_ms = record.end_ms - record.start_ms
        amounts = (
            record.cpu_milli * held_ms,
            record.memory_mib * held_ms,
            record.gpu_milli * held_ms,
            record.cpu_used_ms * 1000,
            record.peak_memory_mib * held_ms,
            record.gpu_used_milli_ms,
        )
        if max(amounts) > _LARGEST or min(amounts) < -_LARGEST:
            raise _bad(record, "is too large to be summed")
        metered = record.kind == _USAGE
        into = sums.setdefault(key, [0] * 8)
        for at, amount in enumerate(amounts):
            into[at] += amount
        into[6] += metered
        into[7] += metered and record.segment == 0
    return [UsageSum(key, *into) for key, into in sums.items()]


def sum_days(records: Iterable[LedgerRecord]) -> list[DaySum]:
    """What was held in each day: the records but the credits, each cut where a UTC day ends."""
    sums: dict[tuple[str, str, str, str], list[int]] = {}
    for record in records:
        if record.kind == _CREDIT:
            continue
        start_ms = record.start_ms
        while start_ms < record.end_ms:
            day = start_ms // _DAY_MS
            end_ms = min(record.end_ms, (day + 1) * _DAY_MS)
            into = sums.setdefault((_day_text(day), record.institution, record.region, record.pool), [0, 0, 0])
            into[0] += record.cpu_milli * (end_ms - start_ms)
            into[1] += record.memory_mib * (end_ms - start_ms)
            into[2] += record.gpu_milli * (end_ms - start_ms)
            start_ms = end_ms
    return [DaySum(*key, *into) for key, into in sums.items()]


def grouped_fields(query: UsageQuery) -> frozenset[str]:
    """The fields of a key that a query groups by. Raises ``InvalidArgument`` for one that is none."""
    unknown = set(query.group_by) - set(UsageKey._fields)
    if unknown:
        raise InvalidArgument(f"Usage is not kept by {min(unknown)!r}.", field="group_by")
    return frozenset(query.group_by or UsageKey._fields)


def record_is_asked(record: LedgerRecord, query: LedgerQuery) -> bool:
    """Whether a query is about this record, its page aside."""
    return (
        query.institution in ("", record.institution)
        and query.project in ("", record.project)
        and query.job_id in ("", record.job_id)
        and query.period in ("", record.period)
        and (not query.from_ms or record.end_ms > query.from_ms)
        and (not query.to_ms or record.start_ms < query.to_ms)
    )


def is_asked(key: UsageKey, query: UsageQuery) -> bool:
    """Whether a query is about sums of this key."""
    return (
        query.institution in ("", key.institution)
        and query.project in ("", key.project)
        and query.user in ("", key.user)
        and query.period in ("", key.period)
        and query.from_month <= key.month
        and (not query.to_month or key.month <= query.to_month)
    )


def reduced(key: UsageKey, fields: frozenset[str]) -> UsageKey:
    """The key with only these fields; the others are empty."""
    return UsageKey._make(
        value if name in fields else none for name, value, none in zip(UsageKey._fields, key, EMPTY_KEY, strict=True)
    )
