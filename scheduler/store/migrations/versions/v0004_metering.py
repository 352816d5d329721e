"""A ledger with kinds, prices and a chain of hashes; price lists, closed months and budgets.

The ledger is written anew, record by record in its order, and its sums are made again from it: what was a record is one
of kind "usage" of the month it lies in, without a price. The old table is dropped when the new one holds every row.

Revision ID: 0004
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from itertools import chain
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TYPES: dict[str, Any] = {"int": INT, "text": sa.Text(), "bytes": sa.LargeBinary()}

LEDGER = (
    "sequence:int institution:text project:text user:text job_id:text attempt:int segment:int region:text pool:text "
    "accelerator:text start_ms:int end_ms:int cpu_milli:int memory_mib:int gpu_milli:int outcome:int kind:int revision:int "
    "priority:int preemptible:int purpose:text price_list:int rate:int discount_bp:int period:text posted_ms:int cpu_used_ms:int "
    "peak_memory_mib:int gpu_used_milli_ms:int gpu_peak_memory_mib:int reference:int reason:text author:text hash:bytes"
)
MONTH_KEY = (
    "institution:text project:text user:text region:text pool:text accelerator:text month:text period:text kind:int priority:int "
    "preemptible:int purpose:text price_list:int rate:int discount_bp:int"
)
MONTH_ORDER = "institution kind price_list rate discount_bp project user region pool accelerator month period priority preemptible purpose"
MONTH_SUMS = "cpu_milli_ms memory_mib_ms gpu_milli_ms cpu_used_milli_ms memory_peak_mib_ms gpu_used_milli_ms"
DAY_KEY = "day:text institution:text region:text pool:text"
DAY_SUMS = "cpu_milli_ms memory_mib_ms gpu_milli_ms"
BASE = 10**9
DAY_MS = 86_400_000
USAGE, NORMAL, NO_RATE = 1, 2, -1
# Records read, hashed and written at once: a few megabytes, however long the ledger is.
AT_ONCE = 1_000
# SQLite bounds the parameters of a statement.
_ROWS_A_STATEMENT = 400

# What an attempt used is known of it as a whole: it is put to its last segment.
OLD = """
SELECT l.sequence, l.institution, l.project, l."user", l.job_id, l.attempt, l.segment, l.region, l.pool, l.accelerator,
  l.start_ms, l.end_ms, l.cpu_milli, l.memory_mib, l.gpu_milli, l.outcome, j.priority,
  CASE WHEN n.segment IS NULL THEN a.cpu_used_ms END, CASE WHEN n.segment IS NULL THEN a.peak_memory_mib END
FROM (SELECT * FROM ledger_0003 WHERE sequence > :after ORDER BY sequence LIMIT :at_once) l
LEFT JOIN jobs j ON j.job_id = l.job_id
LEFT JOIN attempts a ON a.job_no = j.job_no AND a.attempt = l.attempt
LEFT JOIN ledger_0003 n ON n.job_id = l.job_id AND n.attempt = l.attempt AND n.segment = l.segment + 1
ORDER BY l.sequence
"""


def _columns(text: str) -> list[sa.Column[Any]]:
    pairs = (column.split(":") for column in text.split())
    return [sa.Column(name, TYPES[kind], nullable=False) for name, kind in pairs]


def _table(name: str, columns: str, key: str, *parts: Any, rowid: bool = True) -> None:
    primary = sa.PrimaryKeyConstraint(*key.split(), name=f"{name}_pkey")
    op.create_table(name, *_columns(columns), primary, *parts, sqlite_with_rowid=rowid)


def _halves(sums: str) -> str:
    return " ".join(f"{name}_{part}:int" for name in sums.split() for part in ("high", "low"))


def _on_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _make_append_only(table: str, has_function: bool = False) -> None:
    """Have the database itself refuse to change or delete a row."""
    if _on_sqlite():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    if not has_function:
        op.execute(
            f"CREATE FUNCTION {table}_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_append_only()"
    )


def hash_of(before: bytes, fields: Sequence[Any]) -> bytes:
    """The hash of a record, of its fields but the hash.

    As ``scheduler.metering.chain`` defined it at this revision: what was written then must not follow later changes.
    """
    return hashlib.sha256(before + json.dumps(fields, separators=(",", ":")).encode()).digest()


@lru_cache(maxsize=4096)
def _day(number: int) -> str:
    return str(date.fromordinal(date(1970, 1, 1).toordinal() + number))


def _new_records() -> Iterator[list[tuple[Any, ...]]]:
    """The old records as they are to be, some thousand at a time."""
    after, posted_ms, before = -(1 << 62), 0, b""
    while rows := op.get_bind().execute(sa.text(OLD), {"after": after, "at_once": AT_ONCE}).all():
        records = []
        for row in rows:
            *old, priority, cpu_used_ms, peak_memory_mib = row
            start_ms, end_ms = old[10], old[11]
            posted_ms = max(posted_ms, end_ms)
            priced = (0, NO_RATE, 0, _day(start_ms // DAY_MS)[:7], posted_ms)
            used = (cpu_used_ms or 0, peak_memory_mib or 0, 0, 0)
            fields = (*old, USAGE, 0, priority or NORMAL, 0, "", *priced, *used, 0, "", "")
            before = hash_of(before, fields)
            records.append((*fields, before))
        after = rows[-1][0]
        yield records


def _sums(records: Iterable[tuple[Any, ...]]) -> tuple[dict[Any, list[int]], dict[Any, list[int]]]:
    """What the records add to the sums by month, and to those by day."""
    months: dict[Any, list[int]] = {}
    days: dict[Any, list[int]] = {}
    for record in records:
        institution, project, user, region, pool, accelerator = (*record[1:4], *record[7:10])
        start_ms, end_ms, *held = record[10:15]
        month, priority = record[24], record[18]
        key = (
            institution,
            project,
            user,
            region,
            pool,
            accelerator,
            month,
            month,
            USAGE,
            priority,
            0,
            "",
            0,
            NO_RATE,
            0,
        )
        ms = end_ms - start_ms
        used = (record[26] * 1000, record[27] * ms, 0)
        _add(months, key, (*(amount * ms for amount in held), *used, 1, int(record[6] == 0)))
        while start_ms < end_ms:
            day = start_ms // DAY_MS
            cut = min(end_ms, (day + 1) * DAY_MS)
            _add(days, (_day(day), institution, region, pool), [amount * (cut - start_ms) for amount in held])
            start_ms = cut
    return months, days


def _add(sums: dict[Any, list[int]], key: Any, amounts: Sequence[int]) -> None:
    into = sums.setdefault(key, [0] * len(amounts))
    for at, amount in enumerate(amounts):
        into[at] += amount


def _adding(table: str, key: str, sums: str, counts: str = "") -> str:
    """The end of an INSERT that adds to the sums that are there, with a carry from the low half to the high one."""
    changes = [f"{name} = {table}.{name} + excluded.{name}" for name in counts.split()]
    for name in sums.split():
        low = f"{table}.{name}_low + excluded.{name}_low"
        carried = f"CASE WHEN {low} >= {BASE} THEN 1 ELSE 0 END"
        changes.append(f"{name}_low = {low} - {BASE} * {carried}")
        changes.append(f"{name}_high = {table}.{name}_high + excluded.{name}_high + {carried}")
    names = ", ".join(f'"{column.split(":")[0]}"' for column in key.split())
    return f"ON CONFLICT ({names}) DO UPDATE SET {', '.join(changes)}"


def _insert(table: str, rows: Sequence[tuple[Any, ...]], end: str = "") -> None:
    """Insert rows whose values stand in the order of the columns, each database the way it is fast at."""
    connection = op.get_bind()
    if not rows:
        return
    if _on_sqlite():
        one = f"({', '.join('?' * len(rows[0]))})"
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            part = rows[start : start + _ROWS_A_STATEMENT]
            sql = " ".join(("INSERT INTO", table, "VALUES", ", ".join([one] * len(part)), end))
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(part)))
    elif end:
        marks = ", ".join(["%s"] * len(rows[0]))
        connection.exec_driver_sql(" ".join(("INSERT INTO", table, f"VALUES ({marks})", end)), list(rows))
    else:
        cursor = connection.connection.cursor()
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.close()


def _split(amounts: Iterable[int]) -> Iterator[int]:
    return (half for amount in amounts for half in divmod(amount, BASE))


def _rewrite_ledger() -> None:
    """Exchange the ledger and its sums for new ones that hold the same."""
    op.rename_table("ledger", "ledger_0003")
    op.drop_index("ledger_by_institution", "ledger_0003")
    op.drop_table("usage_by_month")
    if not _on_sqlite():
        for name in ("ledger_pkey", "ledger_once"):
            op.execute(f"ALTER TABLE ledger_0003 RENAME CONSTRAINT {name} TO {name}_0003")
    once = sa.UniqueConstraint("job_id", "attempt", "segment", "revision", "kind", name="ledger_once")
    _table("ledger", LEDGER, "sequence", once)
    columns = f"{MONTH_KEY} {_halves(MONTH_SUMS)} segments:int attempts:int"
    _table("usage_by_month", columns, MONTH_ORDER, rowid=False)
    _table("usage_by_day", f"{DAY_KEY} {_halves(DAY_SUMS)}", "day institution region pool", rowid=False)
    add_months = _adding("usage_by_month", MONTH_KEY, MONTH_SUMS, "segments attempts")
    add_days = _adding("usage_by_day", DAY_KEY, DAY_SUMS)
    for records in _new_records():
        _insert("ledger", records)
        months, days = _sums(records)
        _insert("usage_by_month", [(*key, *_split(sums[:6]), *sums[6:]) for key, sums in months.items()], add_months)
        _insert("usage_by_day", [(*key, *_split(sums)) for key, sums in days.items()], add_days)
    op.drop_table("ledger_0003")
    op.create_index("ledger_by_institution", "ledger", ["institution", "sequence"])
    op.create_index("ledger_by_period", "ledger", ["period", "sequence"])
    op.create_index("ledger_by_institution_period", "ledger", ["institution", "period", "sequence"])
    _make_append_only("ledger", has_function=True)


def _create_prices_and_months() -> None:
    _table(
        "price_lists",
        "version:int document:text effective:text name:text currency:text from_ms:int to_ms:int comment:text author:text create_ms:int",
        "version",
    )
    _make_append_only("price_lists")
    _table(
        "months",
        "month:text close_ms:int author:text ledger_sequence:int head_hash:bytes digest:bytes records:int",
        "month",
    )
    _make_append_only("months")


def _create_budgets() -> None:
    _table(
        "budgets",
        "budget:text institution:text projects:text unit:int amount:int from_ms:int to_ms:int hard:int thresholds:text title:text "
        "author:text create_ms:int closed:int",
        "budget",
        sa.ForeignKeyConstraint(["institution"], ["institutions.institution"], name="budgets_institution"),
    )
    _table(
        "budget_spending",
        "budget:text spent:text threshold:int",
        "budget",
        sa.ForeignKeyConstraint(["budget"], ["budgets.budget"], name="budget_spending_budget"),
    )
    _table(
        "budget_notices",
        "number:int budget:text institution:text threshold:int time_ms:int spent:int amount:int unit:int",
        "number",
    )
    op.create_index("budget_notices_by_institution", "budget_notices", ["institution", "number"])
    op.create_index("budget_notices_by_budget", "budget_notices", ["budget", "number"])
    _make_append_only("budget_notices")


def upgrade() -> None:
    """Add the tables and columns, and carry the ledger over."""
    if not _on_sqlite():
        # Millions of records take longer than any statement of a running service may.
        op.execute("SET LOCAL statement_timeout = 0")
    for name in (
        "gpu_used_milli_ms",
        "gpu_peak_memory_mib",
        "metered_ms",
        "metered_segments",
        "metered_cpu_used_ms",
        "metered_gpu_used_milli_ms",
    ):
        op.add_column("attempts", sa.Column(name, INT, nullable=False, server_default="0"))
    _rewrite_ledger()
    _create_prices_and_months()
    _create_budgets()
