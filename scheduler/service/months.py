"""Closing accounting months."""

from __future__ import annotations

from collections.abc import Collection

from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.records import MonthRecord
from scheduler.metering.segments import month_of, month_start_ms, next_month
from scheduler.service.auditing import tell
from scheduler.service.posting import post_until
from scheduler.service.state import State


def post_month(state: State, month: str) -> None:
    """Post what running allocations held until the month's end, as far as their regions can be heard."""
    end_ms = month_start_ms(next_month(month))
    for attempt in list(state.attempts.values()):
        if state.regions[attempt.region].online and (attempt.metered_ms or attempt.grant_ms) < end_ms:
            post_until(state, attempt, end_ms)


def check_closable(state: State, month: str, periods: Collection[str]) -> MonthRecord | None:
    """The month's record when it is closed already. ``periods``: the accounting months that have records.

    ``FailedPrecondition``: MONTH_NOT_OVER, or EARLIER_MONTH_OPEN.
    """
    closed = state.metering.months
    if month in closed:
        return closed[month]
    if month >= month_of(state.now()):
        raise FailedPrecondition(
            f"{month} is not over yet (in UTC); close it when it is.", reason="MONTH_NOT_OVER", field="month"
        )
    earlier = sorted(each for each in periods if each < month and each not in closed)
    if earlier:
        raise FailedPrecondition(
            f"{earlier[0]} is still open; close it first.", reason="EARLIER_MONTH_OPEN", field="month"
        )
    return None


def close(state: State, month: str, digest: bytes, records: int, author: str) -> MonthRecord:
    """Close it: from now on what belongs to it is posted to the next month."""
    metering = state.metering
    if month in metering.months:
        # Somebody else has, while this caller's sums were read.
        return metering.months[month]
    record = MonthRecord(month, state.now(), author, state.counters.ledger_seq, metering.head, digest, records)
    metering.months[month] = record
    state.record.months.append(record)
    tell(state, "CloseMonth", month, "", None, record)
    return record
