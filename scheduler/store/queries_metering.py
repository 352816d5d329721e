"""What the store is asked about the ledger, its sums, prices and budgets, as SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Text, func, literal_column, select, tuple_

from scheduler.domain.records import AttemptRecord, BudgetNoticeRecord, LedgerRecord, PriceListRecord
from scheduler.service.ports import DaySum, LedgerQuery, UsageKey, UsageQuery, UsageSum
from scheduler.store.queries import chunks, records_of
from scheduler.store.rollup import grouped_fields, record_is_asked
from scheduler.store.schema import (
    ATTEMPTS,
    BUDGET_NOTICES,
    COUNTS,
    DAY_SUMS,
    DAYS,
    LEDGER,
    PRICE_LISTS,
    SUM_BASE,
    SUMS,
    USAGE,
)


def ledger(connection: Connection, asked: LedgerQuery) -> list[LedgerRecord]:
    """A page, oldest first."""
    if asked.job_id:
        # Its few records by their own index: given an institution as well, a database would go through all of that
        # one's, in order.
        rows = records_of(connection, select(LEDGER).where(LEDGER.c.job_id == asked.job_id), LedgerRecord._make)
        found = (row for row in sorted(rows) if row.sequence > asked.after and record_is_asked(row, asked))
        return list(islice(found, asked.limit))
    query = select(LEDGER).where(LEDGER.c.sequence > asked.after)
    for name in ("institution", "project", "period"):
        value = getattr(asked, name)
        if value:
            query = query.where(LEDGER.c[name] == value)
    if asked.from_ms:
        query = query.where(LEDGER.c.end_ms > asked.from_ms)
    if asked.to_ms:
        query = query.where(LEDGER.c.start_ms < asked.to_ms)
    return records_of(connection, query.order_by(LEDGER.c.sequence).limit(asked.limit), LedgerRecord._make)


def ledger_after(connection: Connection, sequence: int, limit: int) -> list[LedgerRecord]:
    """The next records by number."""
    query = select(LEDGER).where(LEDGER.c.sequence > sequence).order_by(LEDGER.c.sequence).limit(limit)
    return records_of(connection, query, LedgerRecord._make)


def ledger_of(connection: Connection, job_ids: Sequence[str]) -> list[LedgerRecord]:
    """All of these jobs, oldest first."""
    found: list[LedgerRecord] = []
    for ids in chunks(list(dict.fromkeys(job_ids))):
        found += records_of(connection, select(LEDGER).where(LEDGER.c.job_id.in_(ids)), LedgerRecord._make)
    return sorted(found)


def count_posted(connection: Connection, period: str) -> int:
    """How many records of an accounting month."""
    return connection.execute(select(func.count()).where(LEDGER.c.period == period)).scalar_one()


def ledger_hash(connection: Connection) -> bytes:
    """The newest record's; empty before the first."""
    found = connection.execute(select(LEDGER.c.hash).order_by(LEDGER.c.sequence.desc()).limit(1)).scalar()
    return bytes(found or b"")


def attempts_after(connection: Connection, job_no: int, attempt: int, limit: int) -> list[AttemptRecord]:
    """The next attempts by (job, attempt)."""
    key = (ATTEMPTS.c.job_no, ATTEMPTS.c.attempt)
    query = select(ATTEMPTS).where(tuple_(*key) > tuple_(job_no, attempt)).order_by(*key).limit(limit)
    return records_of(connection, query, AttemptRecord._make)


def _key_column(name: str, fields: frozenset[str]) -> ColumnElement[Any]:
    column = USAGE.c[name]
    if name in fields:
        return column
    return literal_column("''", Text) if isinstance(column.type, Text) else literal_column("0", Integer)


def usage_sums(connection: Connection, asked: UsageQuery) -> list[UsageSum]:
    """Sums over the rollup, by key."""
    fields = grouped_fields(asked)
    figures = [USAGE.c[f"{name}_{part}"] for name in SUMS for part in ("high", "low")] + [USAGE.c[n] for n in COUNTS]
    keys = [_key_column(name, fields) for name in UsageKey._fields]
    if asked.group_by:
        query = select(*keys, *map(func.sum, figures)).group_by(
            *(USAGE.c[name] for name in (column.name for column in USAGE.primary_key) if name in fields)
        )
    else:
        query = select(*keys, *figures)  # A row is a sum already.
    for name in ("institution", "project", "user", "period"):
        value = getattr(asked, name)
        if value:
            query = query.where(USAGE.c[name] == value)
    if asked.from_month:
        query = query.where(USAGE.c.month >= asked.from_month)
    if asked.to_month:
        query = query.where(USAGE.c.month <= asked.to_month)
    return sorted(map(_usage_sum, connection.execute(query)))


def _usage_sum(row: Any) -> UsageSum:
    width, counts = len(UsageKey._fields), len(COUNTS)
    return UsageSum(UsageKey._make(row[:width]), *_joined(row[width:-counts]), *map(int, row[-counts:]))


def _joined(halves: Iterable[Any]) -> Iterator[int]:
    """Values of their high and low halves; PostgreSQL's sums are decimals."""
    each = iter(halves)
    return (int(high) * SUM_BASE + int(low) for high, low in zip(each, each, strict=True))


def _split(amounts: Iterable[int]) -> Iterator[int]:
    return (half for amount in amounts for half in divmod(amount, SUM_BASE))


def usage_row(total: UsageSum) -> tuple[str | int, ...]:
    """A sum as ``usage_by_month`` keeps it: each amount split in two."""
    amounts: list[int] = list(total[1:])
    return (*total.key, *_split(amounts[: len(SUMS)]), *amounts[len(SUMS) :])


def usage_days(connection: Connection, institution: str, from_day: str, to_day: str) -> list[DaySum]:
    """Sums of these days."""
    query = select(DAYS).where(DAYS.c.day >= from_day)
    if to_day:
        query = query.where(DAYS.c.day <= to_day)
    if institution:
        query = query.where(DAYS.c.institution == institution)
    width = len(DaySum._fields) - len(DAY_SUMS)
    return sorted(DaySum(*row[:width], *_joined(row[width:])) for row in connection.execute(query))


def day_row(total: DaySum) -> tuple[str | int, ...]:
    """A sum as ``usage_by_day`` keeps it."""
    return (*total[:-3], *_split(total[-3:]))


def find_price_list(connection: Connection, version: int) -> PriceListRecord | None:
    """The version of this number."""
    row = connection.execute(select(PRICE_LISTS).where(PRICE_LISTS.c.version == version)).first()
    return None if row is None else PriceListRecord._make(row)


def last_budget_notice(connection: Connection) -> int:
    """The highest number; 0 before the first."""
    return connection.execute(select(func.max(BUDGET_NOTICES.c.number))).scalar() or 0


def list_budget_notices(
    connection: Connection, institution: str, budget: str, before_number: int, limit: int
) -> list[BudgetNoticeRecord]:
    """A page, newest first."""
    query = select(BUDGET_NOTICES).order_by(BUDGET_NOTICES.c.number.desc()).limit(limit)
    if institution:
        query = query.where(BUDGET_NOTICES.c.institution == institution)
    if budget:
        query = query.where(BUDGET_NOTICES.c.budget == budget)
    if before_number:
        query = query.where(BUDGET_NOTICES.c.number < before_number)
    return records_of(connection, query, BudgetNoticeRecord._make)
