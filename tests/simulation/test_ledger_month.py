"""The ledger under all that may happen to it; and whoever tampers with it is found."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.store.sql import SqlStore
from tests.simulation.ledger_month import Months


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Months, Path]:
    path = tmp_path_factory.mktemp("months") / "suanli.db"
    store = SqlStore(f"sqlite:///{path}")
    store.migrate()
    months = Months(store, seed=7, institutions=6)
    months.play(1500)
    return months, path


def test_every_figure_is_what_the_allocations_held(played: tuple[Months, Path]) -> None:
    found = played[0].check()
    # A month in which one of these did not happen would show nothing.
    for name in ("reverse", "credit", "replace", "restarts", "deposed commits", "price lists", "months closed"):
        assert found[name], name
    assert set(found["by itself"]) == {"usage", "reversal", "credit"}  # type: ignore[call-overload]


def _swap(database: sqlite3.Connection) -> int:
    """Two neighbours change places."""
    for before, after in ((100, -1), (101, 100), (-1, 101)):
        database.execute("UPDATE ledger SET sequence = ? WHERE sequence = ?", (after, before))
    return 100


def _change(column: str, value: str) -> Callable[[sqlite3.Connection], int]:
    def change(database: sqlite3.Connection) -> int:
        database.execute(f"UPDATE ledger SET {column} = {value} WHERE sequence = 123")
        return 123

    return change


def _delete(number: str) -> Callable[[sqlite3.Connection], int]:
    def delete(database: sqlite3.Connection) -> int:
        (gone,) = database.execute(f"SELECT {number} FROM ledger").fetchone()
        database.execute("DELETE FROM ledger WHERE sequence = ?", (gone,))
        return int(gone)

    return delete


@pytest.mark.parametrize(
    "tamper",
    [
        _swap,
        _change("cpu_milli", "cpu_milli + 1"),
        _change("end_ms", "end_ms - 1"),
        _change("institution", "'uni-99'"),
        _change("discount_bp", "discount_bp + 1"),
        _change("hash", "zeroblob(32)"),
        _change("author", "'somebody'"),
        _delete("200"),
        _delete("MIN(sequence)"),
        _delete("MAX(sequence)"),
    ],
)
def test_the_first_bad_record_is_named(
    played: tuple[Months, Path], tamper: Callable[[sqlite3.Connection], int]
) -> None:
    months, path = played
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TRIGGER IF EXISTS ledger_no_update")
    database.execute("DROP TRIGGER IF EXISTS ledger_no_delete")
    database.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM ledger")
    try:
        bad = tamper(database)
        assert months.faults()[0].sequence == bad
    finally:
        database.execute("DELETE FROM ledger")
        database.execute("INSERT INTO ledger SELECT * FROM kept")
    assert months.faults() == []


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE usage_by_month SET cpu_milli_ms_low = cpu_milli_ms_low + 1", "ROLLUP_DIFFERS"),
        ("UPDATE usage_by_day SET gpu_milli_ms_high = gpu_milli_ms_high + 1", "ROLLUP_DIFFERS"),
        ("UPDATE budget_spending SET spent = '1'", "BUDGET_DIFFERS"),
        ("UPDATE attempts SET end_ms = end_ms + 1 WHERE end_ms > grant_ms", "GAP"),
        ("UPDATE attempts SET cpu_milli = cpu_milli + 1 WHERE end_ms > grant_ms", "NOT_HELD"),
    ],
)
def test_what_does_not_follow_from_the_records_is_named(played: tuple[Months, Path], statement: str, code: str) -> None:
    months, path = played
    table = statement.split()[1]
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"CREATE TABLE kept_{code} AS SELECT * FROM {table}")
    try:
        database.execute(statement)
        assert code in {each.code for each in months.faults()}
    finally:
        database.execute(f"DELETE FROM {table}")
        database.execute(f"INSERT INTO {table} SELECT * FROM kept_{code}")
        database.execute(f"DROP TABLE kept_{code}")
