"""Cutting an allocation's time into ledger segments, so that none straddles the end of a UTC calendar month."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def _at(time_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=time_ms)


def month_of(time_ms: int) -> str:
    """The UTC calendar month an instant lies in, as in "2026-10"."""
    at = _at(time_ms)
    return f"{at.year:04d}-{at.month:02d}"


def month_start_ms(month: str) -> int:
    """The first instant of a month written as in "2026-10". ``ValueError`` for what is not one."""
    if len(month) != 7:
        raise ValueError(month)
    return (datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC) - _EPOCH) // _MS


def next_month(month: str) -> str:
    """The month after this one."""
    year, number = int(month[:4]), int(month[5:])
    return f"{year + number // 12:04d}-{number % 12 + 1:02d}"


def next_month_ms(time_ms: int) -> int:
    """The first instant of the next UTC calendar month."""
    at = _at(time_ms)
    first = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return (first - _EPOCH) // _MS


def segments(start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
    """Tile [start_ms, end_ms) with half-open intervals, each within one UTC month. Nothing when it is empty."""
    while start_ms < end_ms:
        cut = min(end_ms, next_month_ms(start_ms))
        yield start_ms, cut
        start_ms = cut
