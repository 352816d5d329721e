"""Usage as of an instant: the ledger's sums and what running allocations have held so far."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.records import LedgerRecord
from scheduler.service.ports import UsageKey, UsageQuery, UsageSum
from scheduler.service.posting import open_segments
from scheduler.service.state import State
from scheduler.service.sums import grouped_fields, is_asked, reduced, sum_usage


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


def without_late(sums: list[UsageSum], late: Iterable[LedgerRecord], query: UsageQuery) -> list[UsageSum]:
    """The sums as they were before these records were added."""
    by_key: dict[UsageKey, UsageSum] = {}
    fields = grouped_fields(query)
    for one in sum_usage(late):
        if is_asked(one.key, query):
            by_key = by_key or {row.key: row for row in sums}
            key = reduced(one.key, fields)
            left = (have - more for have, more in zip(by_key[key][1:], one[1:], strict=True))
            by_key[key] = UsageSum(key, *left)
    return [row for row in by_key.values() if any(row[1:])] if by_key else sums
