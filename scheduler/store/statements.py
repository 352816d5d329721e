"""What a commit executes, compiled once: SQL whose parameters stand in the order of a record's fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Table,
    and_,
    bindparam,
    case,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from scheduler.store.counters import Counters
from scheduler.store.schema import HOLDINGS, INSERT_ONLY, INT, LEADER, NODES, ROLLUPS, SUM_BASE, TABLES

_Row = TypeVar("_Row")

# Rows in one statement: few lengths, so that each is prepared once; the longest times 34 columns is within SQLite's bound.
_PART_ROWS = (512, 64, 8, 1)


def parts(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """The rows in order, cut into as few parts of the lengths above as they take."""
    start = 0
    for size in _PART_ROWS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


class Statements:
    """The statements of one database dialect (positional parameters)."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._many: dict[tuple[str, int], str] = {}
        self._upsert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
        self.write = {
            name: self._sql(insert(table) if name in INSERT_ONLY else self._replace(table))
            for name, table in TABLES.items()
        }
        quote = dialect.identifier_preparer.quote
        self.copy = {
            name: f"COPY {TABLES[name].name} ({', '.join(quote(column.name) for column in TABLES[name].columns)}) FROM STDIN"
            for name in INSERT_ONLY
        }
        self.write |= {name: self._sql(self._add(table)) for name, table in ROLLUPS.items()}
        self.delete_node = self._sql(_delete(NODES))
        self.delete_holding = self._sql(_delete(HOLDINGS))
        self.fence = self._sql(_fence())
        self._fence_order = _fence().compile(dialect=dialect).positiontup or []
        self.leader = self._sql(select(LEADER.c.epoch, LEADER.c.commit_no))

    def write_many(self, name: str, count: int) -> str:
        """The statement that writes ``count`` rows at once (SQLite), their values one after another."""
        known = self._many.get((name, count))
        if known is None:
            one = f"({', '.join('?' * len((TABLES | ROLLUPS)[name].columns))})"
            head, tail = self.write[name].split(f"VALUES {one}")
            known = self._many[name, count] = f"{head}VALUES {', '.join([one] * count)}{tail}"
        return known

    def fence_values(self, epoch: int, commit_no: int, counters: Counters) -> tuple[int, ...]:
        """The parameters of ``fence`` in its order."""
        values = {"epoch_is": epoch, "new_commit_no": commit_no, "last_commit_no": commit_no - 1}
        for name, value in counters._asdict().items():
            values[f"{name}_seen"] = values[f"{name}_new"] = value
        return tuple(values[name] for name in self._fence_order)

    def _sql(self, statement: Any) -> str:
        return str(statement.compile(dialect=self._dialect))

    def _replace(self, table: Table) -> Any:
        """Insert, or replace all other columns of the row with the same primary key."""
        statement = self._upsert(table)
        key = [column.name for column in table.primary_key]
        rest = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in key}
        return statement.on_conflict_do_update(index_elements=key, set_=rest)

    def _add(self, table: Table) -> Any:
        """Insert sums, or add them to those of the same key with a carry from the low column to the high one."""
        statement = self._upsert(table)
        new = statement.excluded
        key = [column.name for column in table.primary_key]
        rest = [column.name for column in table.columns if column.name not in key]
        sums: dict[str, ColumnElement[Any]] = {name: table.c[name] + new[name] for name in rest}
        base, one, zero = (literal_column(str(number), INT) for number in (SUM_BASE, 1, 0))
        for low in rest:
            if low.endswith("_low"):
                high, total = low.replace("_low", "_high"), sums[low]
                carried = total >= base
                sums[low] = case((carried, total - base), else_=total)
                sums[high] = sums[high] + case((carried, one), else_=zero)
        return statement.on_conflict_do_update(index_elements=key, set_=sums)


def _delete(table: Table) -> Any:
    """Delete the row of a primary key, whose columns are the parameters in the key's order."""
    return delete(table).where(*(column == bindparam(f"key_{column.name}") for column in table.primary_key))


def _fence() -> Any:
    """Advance the commit number and the counters if epoch and commit number are right; else change no row."""
    values: dict[str, ColumnElement[Any]] = {"commit_no": bindparam("new_commit_no")}
    for name in Counters._fields:
        column = LEADER.c[name]
        values[name] = case((column < bindparam(f"{name}_seen"), bindparam(f"{name}_new")), else_=column)
    return (
        update(LEADER)
        .values(values)
        .where(and_(LEADER.c.epoch == bindparam("epoch_is"), LEADER.c.commit_no == bindparam("last_commit_no")))
    )
