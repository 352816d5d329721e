"""Sums of ledger records by their definition, to hold those of a store against: slowly, and by none of its code."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.service.ports import DaySum, UsageKey, UsageQuery, UsageSum

DAY_MS = 86_400_000


def _at(time_ms: int, form: str) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime(form)


def usage_by(records: Iterable[LedgerRecord], query: UsageQuery) -> list[UsageSum]:
    """What ``usage_sums`` has to answer."""
    sums: dict[UsageKey, list[int]] = {}
    for record in records:
        month = _at(record.start_ms, "%Y-%m")
        if (
            any(getattr(query, n) not in ("", getattr(record, n)) for n in ("institution", "project", "user", "period"))
            or month < query.from_month
            or month > (query.to_month or "9999")
        ):
            continue
        values = record._asdict() | {"month": month}
        kept = {name: values[name] for name in query.group_by or UsageKey._fields}
        key = UsageKey(**{name: kept.get(name, type(values[name])()) for name in UsageKey._fields})
        ms = record.end_ms - record.start_ms
        metered = record.kind == EntryKind.USAGE
        figures = (
            record.cpu_milli * ms,
            record.memory_mib * ms,
            record.gpu_milli * ms,
            record.cpu_used_ms * 1000,
            record.peak_memory_mib * ms,
            record.gpu_used_milli_ms,
            int(metered),
            int(metered and record.segment == 0),
        )
        sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 8), figures, strict=True)]
    return [UsageSum(key, *figures) for key, figures in sorted(sums.items())]


def usage_by_day(records: Iterable[LedgerRecord]) -> list[DaySum]:
    """What ``usage_days`` has to answer for all days."""
    sums: dict[tuple[str, str, str, str], list[int]] = {}
    for record in records:
        first, last = record.start_ms // DAY_MS, (record.end_ms - 1) // DAY_MS
        if record.kind == EntryKind.CREDIT or record.start_ms == record.end_ms:
            continue
        for day in range(first, last + 1):
            ms = min(record.end_ms, (day + 1) * DAY_MS) - max(record.start_ms, day * DAY_MS)
            key = (_at(day * DAY_MS, "%Y-%m-%d"), record.institution, record.region, record.pool)
            figures = (record.cpu_milli * ms, record.memory_mib * ms, record.gpu_milli * ms)
            sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 3), figures, strict=True)]
    return [DaySum(*key, *held) for key, held in sorted(sums.items())]


def negated(record: LedgerRecord, **changes: Any) -> LedgerRecord:
    """The record with all amounts below zero."""
    names = ("cpu_milli", "memory_mib", "gpu_milli", "cpu_used_ms", "peak_memory_mib", "gpu_used_milli_ms")
    return record._replace(**{name: -getattr(record, name) for name in names})._replace(**changes)
