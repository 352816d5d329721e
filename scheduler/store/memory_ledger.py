"""The ledger of ``MemoryStore``, and its sums."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.domain.errors import Internal
from scheduler.domain.records import AuditRecord, LedgerRecord
from scheduler.service.ports import AuditQuery, DaySum, LedgerQuery, UsageKey, UsageQuery, UsageSum
from scheduler.service.sums import grouped_fields, is_asked, record_is_asked, reduced, sum_days, sum_usage


class Sequences:
    """Membership of a sequence number in a sorted list of records whose first field it is."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    def __contains__(self, sequence: int) -> bool:
        at = bisect_left(self._records, sequence, key=_first)
        return at < len(self._records) and bool(self._records[at][0] == sequence)


def _first(record: tuple[Any, ...]) -> Any:
    return record[0]


def after(records: Sequence[Any], sequence: int) -> int:
    """Where in a sorted list the records with higher sequence numbers begin."""
    return bisect_right(records, sequence, key=_first)


def check_new(table: str, keys: Iterable[Any], taken: Any) -> None:
    """Raise ``Internal`` for a key that comes twice or is taken."""
    seen = set()
    for key in keys:
        if key in seen or key in taken:
            raise refused(table, key)
        seen.add(key)


def audit_is_asked(record: AuditRecord, query: AuditQuery) -> bool:
    """Whether a query asks for an audit record."""
    return (
        query.actor in ("", record.actor)
        and query.institution in ("", record.institution, record.on_behalf_of)
        and query.action in ("", record.action)
        and query.outcome in (0, record.outcome)
        and query.from_ms <= record.time_ms
        and (not query.to_ms or record.time_ms < query.to_ms)
        and query.after < record.sequence
        and (not query.before or record.sequence < query.before)
    )


def refused(table: str, key: object) -> Internal:
    """The error of a database whose constraint is violated."""
    return Internal(f"The store refused a row of {table}: {key}", reason="DATABASE_REFUSED")


class MemoryLedger:
    """Records by sequence number, with sums by key and by day."""

    def __init__(self) -> None:
        self._records: list[LedgerRecord] = []
        self._keys: set[tuple[str, int, int, int, int]] = set()
        self._by_job: dict[str, list[LedgerRecord]] = {}
        self._usage: dict[UsageKey, UsageSum] = {}
        self._days: dict[tuple[str, ...], DaySum] = {}

    @property
    def newest_hash(self) -> bytes:
        """The newest record's; empty before the first."""
        return self._records[-1].hash if self._records else b""

    def check(self, records: Sequence[LedgerRecord]) -> None:
        """Raise ``Internal`` for records that a database would refuse."""
        sum_usage(records)
        check_new("ledger", (record.sequence for record in records), Sequences(self._records))
        check_new("ledger", map(_key, records), self._keys)

    def add(self, records: Sequence[LedgerRecord]) -> None:
        """Keep records that were checked."""
        for record in records:
            insort(self._records, record)
            self._keys.add(_key(record))
            self._by_job.setdefault(record.job_id, []).append(record)
        for total in sum_usage(records):
            _add(self._usage, total.key, total, 1)
        for day in sum_days(records):
            _add(self._days, day[:4], day, 4)

    def page(self, query: LedgerQuery) -> list[LedgerRecord]:
        """The records a query asks for."""
        page: list[LedgerRecord] = []
        for at in range(after(self._records, query.after), len(self._records)):
            record = self._records[at]
            if len(page) >= query.limit:
                break
            if record_is_asked(record, query):
                page.append(record)
        return page

    def of_jobs(self, job_ids: Iterable[str]) -> list[LedgerRecord]:
        """All records of these jobs, oldest first."""
        return sorted(record for job_id in dict.fromkeys(job_ids) for record in self._by_job.get(job_id, ()))

    def count_posted(self, period: str) -> int:
        """How many records of an accounting month."""
        return sum(record.period == period for record in self._records)

    def sums(self, query: UsageQuery) -> list[UsageSum]:
        """Sums by key, in its order."""
        fields = grouped_fields(query)
        found: dict[UsageKey, UsageSum] = {}
        for total in self._usage.values():
            if is_asked(total.key, query):
                key = reduced(total.key, fields)
                _add(found, key, total._replace(key=key), 1)
        return sorted(found.values())

    def days(self, institution: str, from_day: str, to_day: str) -> list[DaySum]:
        """Sums of these days, by day."""
        return sorted(
            day
            for day in self._days.values()
            if institution in ("", day.institution) and from_day <= day.day and (not to_day or day.day <= to_day)
        )


def _key(record: LedgerRecord) -> tuple[str, int, int, int, int]:
    return record.job_id, record.attempt, record.segment, record.revision, record.kind


def _add(sums: dict[Any, Any], key: Any, total: Any, width: int) -> None:
    """Add to the sum of this key the amounts that come after its first ``width`` fields."""
    before = sums.get(key)
    if before is not None:
        total = type(total)(*total[:width], *(a + b for a, b in zip(before[width:], total[width:], strict=True)))
    sums[key] = total
