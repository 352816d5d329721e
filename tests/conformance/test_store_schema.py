"""The schema: what the migrations build is what the code expects, and two processes may build it at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select

from scheduler.domain.states import TERMINAL, AttemptState
from scheduler.service.ports import CommitBatch, EventQuery, JobQuery, LedgerQuery, Store, UsageQuery
from scheduler.store import migrate, schema
from scheduler.store.sql import SqlStore
from tests.conformance.conftest import Disk
from tests.support import rows
from tests.support.postgres import PostgresServer

_MIGRATE = "import sys; from scheduler.store.sql import SqlStore; SqlStore(sys.argv[1]).migrate()"


def test_the_migrations_build_the_tables_of_the_schema(sql_disk: Disk) -> None:
    store: Any = sql_disk.open()

    with store._engines.read.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.METADATA)

        keys = {name: inspect(connection).get_pk_constraint(name) for name in schema.METADATA.tables}

    assert differences == []
    for name, table in schema.METADATA.tables.items():
        assert keys[name]["constrained_columns"] == [column.name for column in table.primary_key], name


def test_every_list_of_a_commit_has_its_table() -> None:
    assert set(schema.TABLES) == set(CommitBatch.__slots__) - {"gone_nodes", "gone_holdings"}


def test_the_indexes_know_which_states_are_live() -> None:
    assert min(TERMINAL) == schema.LIVE_STATES_END
    assert f"state < {int(AttemptState.ENDED)}" == schema.LIVE_ATTEMPT


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_that_start_together_migrate_once(kind: str, tmp_path: Path, postgres: PostgresServer) -> None:
    url = f"sqlite:///{tmp_path}/new/suanli.db" if kind == "sqlite" else postgres.url("together")
    argv = [sys.executable, "-c", _MIGRATE, url]
    processes = [subprocess.Popen(argv, cwd=Path(__file__).parents[2]) for _ in range(3)]

    assert [process.wait(60) for process in processes] == [0, 0, 0]

    store = SqlStore(url)
    store.migrate()
    with store._engines.read.connect() as connection:
        assert connection.execute(select(schema.LEADER.c.epoch)).all() == [(0,)]
    assert store.load().jobs == []
    if kind == "sqlite":
        assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").iterdir()} == {"0o600"}
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_of_the_first_release_is_upgraded_with_what_it_holds(
    kind: str, tmp_path: Path, postgres: PostgresServer
) -> None:
    url = f"sqlite:///{tmp_path}/old.db" if kind == "sqlite" else postgres.url("upgraded")
    store = SqlStore(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    with store._engines.write.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO institutions VALUES ('tongji', 'Tongji', 1, 'east', 5)")

    store.migrate()

    state = store.load()
    assert (state.institutions, state.policy) == ([rows.institution(create_ms=5)], None)
    lease = store.acquire_leadership("test", 60_000)
    assert lease is not None
    store.commit(lease.epoch, 1, CommitBatch(policies=[rows.policy(1)]))
    assert store.load().policy == rows.policy(1)
    store.close()


QUESTIONS: dict[str, tuple[Callable[[Store], object], str]] = {
    "an institution's jobs": (lambda store: store.list_jobs(JobQuery(institution="a")), "jobs_by_institution"),
    "a project's jobs": (lambda store: store.list_jobs(JobQuery(institution="a", project="b")), "jobs_by_project"),
    "an array's tasks": (lambda store: store.list_jobs(JobQuery(array_id="a")), "jobs_by_array"),
    "everyone's jobs": (lambda store: store.list_jobs(JobQuery(before_job_no=9)), "PRIMARY KEY"),
    "live jobs": (lambda store: store.load(), "jobs_live"),
    "live attempts": (lambda store: store.load(), "attempts_live"),
    "the newest requests": (lambda store: store.load(), "requests_by_age"),
    "the newest policy": (lambda store: store.load(), "policies"),
    "versions of the policy": (lambda store: store.list_policies(9, 9), "PRIMARY KEY"),
    "a job's attempts": (lambda store: store.attempts_of("a", 9), "PRIMARY KEY"),
    "the newest runtimes": (lambda store: store.recent_runtimes(9), "SCAN attempts"),
    "an institution's events": (lambda store: store.events(EventQuery(1, 9, institution="a")), "events_by_institution"),
    "a job's events": (lambda store: store.events(EventQuery(1, 9, ("j0000000001",))), "events_by_job"),
    "an array's events": (lambda store: store.events(EventQuery(1, 9, ("j0000000001",))), "events_by_array"),
    "a month's ledger": (lambda store: store.ledger(LedgerQuery(period="a")), "ledger_by_period"),
    "how much was posted to a month": (lambda store: store.count_posted("a"), "ledger_by_period"),
    "an institution's month": (
        lambda store: store.ledger(LedgerQuery(institution="a", period="b", after=9)),
        "ledger_by_institution_period",
    ),
    "a page of the ledger": (lambda store: store.ledger_after(9, 9), "PRIMARY KEY"),
    "records of jobs": (lambda store: store.ledger_of(["a"]), "sqlite_autoindex_ledger_1"),
    "an institution's job": (
        lambda store: store.ledger(LedgerQuery(institution="a", job_id="b", period="c")),
        "sqlite_autoindex_ledger_1",
    ),
    "some jobs' records": (lambda store: store.ledger_of(["a", "b"]), "sqlite_autoindex_ledger_1"),
    "what budgets have spent": (lambda store: store.budget_spending(), "budget_spending"),
    "a page of attempts": (lambda store: store.attempts_after(9, 1, 9), "PRIMARY KEY"),
    "every sum": (lambda store: store.usage_sums(UsageQuery()), "usage_by_month"),
    "a tenant's sums": (lambda store: store.usage_sums(UsageQuery("a", "b", period="c")), "PRIMARY KEY"),
    "costs": (lambda store: store.usage_sums(UsageQuery(group_by=schema.COSTED)), "usage_by_month"),
    "an institution's costs": (lambda store: store.usage_sums(UsageQuery("a", group_by=schema.COSTED)), "PRIMARY KEY"),
    "some days": (lambda store: store.usage_days("a", "b", "c"), "PRIMARY KEY"),
    "a price list": (lambda store: store.find_price_list(1), "PRIMARY KEY"),
    "an institution's notices": (lambda store: store.list_budget_notices("a", "", 9, 9), "notices_by_institution"),
    "a budget's notices": (lambda store: store.list_budget_notices("", "b", 9, 9), "notices_by_budget"),
    "everyone's notices": (lambda store: store.list_budget_notices("", "", 9, 9), "PRIMARY KEY"),
    "the newest record": (lambda store: store.load(), "ledger"),
    "the newest notice": (lambda store: store.load(), "budget_notices"),
    "an institution's ledger": (lambda store: store.ledger(LedgerQuery(institution="a")), "ledger_by_institution"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_a_page_is_read_by_an_index_without_a_sort(new_disk: Callable[[str], Disk], case: str) -> None:
    store: Any = new_disk("sqlite").open()
    lease = store.acquire_leadership("test", 60_000)
    store.commit(lease.epoch, 1, CommitBatch(new_jobs=[rows.job(1)]))
    ask, index = QUESTIONS[case]
    plans: list[str] = []

    def explain(connection: sqlite3.Connection) -> None:
        def traced(statement: str) -> None:
            if statement.startswith("SELECT"):
                plans.append(statement)

        connection.set_trace_callback(traced)

    with store._engines.read.connect() as connection:
        explain(connection.connection.driver_connection)
    ask(store)
    with store._engines.read.connect() as connection:
        connection.connection.driver_connection.set_trace_callback(None)
        steps = [" ".join(str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {q}")) for q in plans]

    used = [plan for plan in steps if index in plan]
    assert used, steps
    assert not any("TEMP B-TREE" in plan for plan in used)


def test_rows_of_the_first_schema_are_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/suanli.db"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in (("jobs", rows.job(1)), ("attempts", rows.attempt(1))):
            values = row[: {"jobs": 33, "attempts": 27}[table]]
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    engine.dispose()

    store = SqlStore(url)
    store.migrate()
    state = store.load()
    store.close()

    assert (state.jobs, state.attempts) == ([rows.job(1)], [rows.attempt(1)])
