"""Usage as of an instant: the ledger's sums and what running allocations have held so far."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.segments import month_of
from scheduler.service.ports import UsageKey, UsageQuery, UsageSum
from scheduler.service.posting import open_segments
from scheduler.service.state import State

_NOTHING = UsageKey("", "", "", "", "", "", "", "", 0, 0, 0, "", 0, 0, 0)


def accrued(state: State, query: UsageQuery, as_of_ms: int) -> list[LedgerRecord]:
    """The records that what is not in the ledger yet of open allocations would make if they ended now. They have no numbers.

    Of the tenants that are asked for; whatever the month.
    """
    records: list[LedgerRecord] = []
    for attempt in state.attempts.values():
        job = attempt.job
        if (
            query.institution in ("", job.spec.institution)
            and query.project in ("", job.spec.project)
            and query.user in ("", job.user)
        ):
            records += (
                record._replace(period=state.metering.period_of(record.start_ms))
                for record in open_segments(state, attempt, as_of_ms)
            )
    return records


def usage_key(record: LedgerRecord) -> UsageKey:
    """The sum that a record belongs to."""
    month = month_of(record.start_ms)
    return UsageKey._make(month if name == "month" else getattr(record, name) for name in UsageKey._fields)


def grouped(key: UsageKey, group_by: Iterable[str]) -> UsageKey:
    """The key of the sum that it is part of when they are grouped by these fields (none: by all)."""
    kept = set(group_by)
    if not kept:
        return key
    return UsageKey._make(
        value if name in kept else nothing for name, value, nothing in zip(key._fields, key, _NOTHING, strict=True)
    )


def amounts_of(record: LedgerRecord) -> tuple[int, ...]:
    """What a record adds to its sum: the fields of ``UsageSum`` after the key."""
    ms = record.end_ms - record.start_ms
    metered = record.kind == EntryKind.USAGE
    return (
        record.cpu_milli * ms,
        record.memory_mib * ms,
        record.gpu_milli * ms,
        record.cpu_used_ms * 1000,
        record.peak_memory_mib * ms,
        record.gpu_used_milli_ms,
        int(metered),
        int(metered and record.segment == 0),
    )


def is_asked(key: UsageKey, query: UsageQuery) -> bool:
    """Whether a sum is among those that a query chooses."""
    return (
        query.institution in ("", key.institution)
        and query.project in ("", key.project)
        and query.user in ("", key.user)
        and query.period in ("", key.period)
        and query.from_month <= key.month
        and (not query.to_month or key.month <= query.to_month)
    )


def without_late(sums: list[UsageSum], late: Iterable[LedgerRecord], query: UsageQuery) -> list[UsageSum]:
    """The sums as they were before these records were added."""
    by_key: dict[UsageKey, UsageSum] = {}
    for record in late:
        whole = usage_key(record)
        if is_asked(whole, query):
            by_key = by_key or {row.key: row for row in sums}
            key = grouped(whole, query.group_by)
            left = (have - more for have, more in zip(by_key[key][1:], amounts_of(record), strict=True))
            by_key[key] = UsageSum(key, *left)
    return [row for row in by_key.values() if any(row[1:])] if by_key else sums
