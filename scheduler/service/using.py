"""Usage as of an instant: the ledger's sums and what running allocations have held so far."""

from __future__ import annotations

from scheduler.domain.records import LedgerRecord
from scheduler.metering.segments import month_of, segments
from scheduler.service.ports import UsageKey, UsageSum
from scheduler.service.state import State, ledger_record


def accrued(state: State, institution: str, project: str, as_of_ms: int) -> list[LedgerRecord]:
    """The segments open allocations would have if they ended now. They have no sequence numbers."""
    records = []
    for attempt in state.attempts.values():
        spec = attempt.job.spec
        if (institution and spec.institution != institution) or (project and spec.project != project):
            continue
        for number, (start_ms, end_ms) in enumerate(segments(attempt.grant_ms, max(attempt.grant_ms, as_of_ms))):
            records.append(ledger_record(attempt, 0, number, start_ms, end_ms))
    return records


def without_late(sums: list[UsageSum], late: list[LedgerRecord]) -> list[UsageSum]:
    """The sums as they were before these records were added."""
    if not late:
        return sums
    by_key = {row.key: row for row in sums}
    for record in late:
        key = UsageKey(
            record.institution,
            record.project,
            record.user,
            record.region,
            record.pool,
            record.accelerator,
            month_of(record.start_ms),
        )
        row = by_key[key]
        ms = record.end_ms - record.start_ms
        by_key[key] = UsageSum(
            key,
            row.cpu_milli_ms - record.cpu_milli * ms,
            row.memory_mib_ms - record.memory_mib * ms,
            row.gpu_milli_ms - record.gpu_milli * ms,
            row.segments - 1,
            row.attempts - (record.segment == 0),
        )
    return [row for row in by_key.values() if row.segments]
