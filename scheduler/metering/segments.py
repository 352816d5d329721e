"""Cutting an allocation's time into ledger segments: none straddles the end of a UTC day, nor a change of prices."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from scheduler.metering.prices import PriceBook, PriceList

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def _at(time_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=time_ms)


def month_of(time_ms: int) -> str:
    """The UTC calendar month an instant lies in, as in "2026-10"."""
    return _month_of_day(time_ms // DAY_MS)


@lru_cache(maxsize=4096)
def _month_of_day(day: int) -> str:
    at = _at(day * DAY_MS)
    return f"{at.year:04d}-{at.month:02d}"


def day_of(time_ms: int) -> str:
    """The UTC day an instant lies in, as in "2026-10-09"."""
    return _day_text(time_ms // DAY_MS)


@lru_cache(maxsize=4096)
def _day_text(day: int) -> str:
    return _at(day * DAY_MS).date().isoformat()


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
    return month_start_ms(next_month(month_of(time_ms)))


def segments(start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
    """Tile [start_ms, end_ms) with half-open intervals, each within one UTC day. Nothing when it is empty."""
    while start_ms < end_ms:
        cut = min(end_ms, start_ms - start_ms % DAY_MS + DAY_MS)
        yield start_ms, cut
        start_ms = cut


def priced_segments(start_ms: int, end_ms: int, prices: PriceBook) -> Iterator[tuple[int, int, PriceList | None]]:
    """The same, cut also where another price list comes into force, each with the list that is in force."""
    for from_ms, to_ms, one in prices.windows(start_ms, end_ms):
        for cut_from_ms, cut_to_ms in segments(from_ms, to_ms):
            yield cut_from_ms, cut_to_ms, one
