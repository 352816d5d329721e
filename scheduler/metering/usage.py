"""Sums of usage, grouped: exact integers of amount × milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from scheduler.domain.records import LedgerRecord
from scheduler.metering.segments import month_of, segments


class Dimension(IntEnum):
    """What usage can be grouped by; the values are those of ``suanli.v1.UsageDimension``."""

    INSTITUTION = 1
    PROJECT = 2
    USER = 3
    REGION = 4
    POOL = 5
    ACCELERATOR = 6
    MONTH = 7


class UsageRow(NamedTuple):
    """Sums for one value of each dimension asked for, in the order asked."""

    key: tuple[str, ...]
    cpu_milli_ms: int
    memory_mib_ms: int
    gpu_milli_ms: int
    segments: int
    attempts: int


@dataclass(slots=True)
class _Row:
    cpu: int = 0
    memory: int = 0
    gpu: int = 0
    segments: int = 0
    attempts: int = 0
    seen: set[tuple[str, int]] = field(default_factory=set)

    def as_usage(self, key: tuple[str, ...]) -> UsageRow:
        return UsageRow(key, self.cpu, self.memory, self.gpu, self.segments, self.attempts + len(self.seen))


class Aggregation:
    """Takes the store's sums and single segments, in any order; gives rows by key and their total."""

    def __init__(self, group_by: Sequence[Dimension]) -> None:
        self._group_by = tuple(group_by)
        self._by_month = Dimension.MONTH in self._group_by
        self._rows: dict[tuple[str, ...], _Row] = {}
        self._total = _Row()

    def add_sum(
        self, key: Sequence[str], cpu_milli_ms: int, memory_mib_ms: int, gpu_milli_ms: int, segments: int, attempts: int
    ) -> None:
        """Count what was summed already: ``key`` holds one value for each dimension, in the order of ``Dimension``."""
        for row in (self._row(tuple(key[dimension - 1] for dimension in self._group_by)), self._total):
            row.cpu += cpu_milli_ms
            row.memory += memory_mib_ms
            row.gpu += gpu_milli_ms
            row.segments += segments
            row.attempts += attempts

    def add_segment(self, record: LedgerRecord, from_ms: int = 0, to_ms: int = 0) -> None:
        """Count the part of a segment that lies in [from_ms, to_ms), 0 being open; nothing when no part does."""
        start = max(record.start_ms, from_ms)
        end = min(record.end_ms, to_ms) if to_ms else record.end_ms
        parts = segments(start, end) if self._by_month else ((start, end),) if start < end else ()
        for part_start, part_end in parts:
            values = (
                record.institution,
                record.project,
                record.user,
                record.region,
                record.pool,
                record.accelerator,
                month_of(part_start) if self._by_month else "",
            )
            ms = part_end - part_start
            for row in (self._row(tuple(values[dimension - 1] for dimension in self._group_by)), self._total):
                row.cpu += record.cpu_milli * ms
                row.memory += record.memory_mib * ms
                row.gpu += record.gpu_milli * ms
                row.segments += 1
                row.seen.add((record.job_id, record.attempt))

    def _row(self, key: tuple[str, ...]) -> _Row:
        return self._rows.setdefault(key, _Row())

    def rows(self) -> list[UsageRow]:
        """By key."""
        return [row.as_usage(key) for key, row in sorted(self._rows.items())]

    def total(self) -> UsageRow:
        """Over all rows; its key is empty."""
        return self._total.as_usage(())
