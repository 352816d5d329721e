"""What goes wrong under a store, and what is left of it: nothing lost, nothing twice, nothing in part."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scheduler.domain.errors import Internal, InvalidArgument, Unavailable
from scheduler.service.ports import CommitBatch, EventQuery, JobQuery, LedgerQuery, Store, UsageQuery
from scheduler.store import engines, schema
from scheduler.store.sql import SqlStore
from tests.conformance.conftest import Disk, WallClock, Writer
from tests.support import rows
from tests.support.postgres import running_postgres

DEADLINE_S = 30
BATCH = 25


def _leader(store: Store) -> Writer:
    lease = store.acquire_leadership("test", 3_600_000)
    assert lease is not None
    return Writer(store, lease.epoch)


def _lost_connection(kind: str) -> Exception:
    if kind == "postgres":
        return psycopg.OperationalError("the connection is lost")
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = 10
    return error


@contextlib.contextmanager
def _failing_commit(store: Any, kind: str, when: str) -> Any:
    """Have the database go away just before, or just after, it commits."""
    if kind == "memory":
        store.fail_next_commit(when)
        yield
        return
    dialect = store._engines.write.dialect
    original = dialect.do_commit

    def fail(connection: Any) -> None:
        if when == "after":
            original(connection)
        raise _lost_connection(kind)

    dialect.do_commit = fail
    yield
    dialect.do_commit = original


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_of_unknown_fate_is_repeated_and_made_once(disk: Disk, when: str) -> None:
    store = disk.open()
    writer = _leader(store)
    writer.commit(new_jobs=[rows.job(1)])
    batch = {"new_jobs": [rows.job(2)], "events": [rows.event(1)], "ledger": [rows.segment(1)]}

    with _failing_commit(store, disk.kind, when), pytest.raises(Unavailable):
        writer.commit(**batch)

    assert len(store.load().jobs) == (2 if when == "after" else 1)
    writer.commit(**batch)
    writer.commit(jobs=[rows.job(2, name="changed")])
    assert store.load().jobs == [rows.job(1), rows.job(2, name="changed")]
    assert store.usage_sums(UsageQuery())[0].segments == 1


def test_a_memory_store_that_is_away_answers_nothing(new_disk: Callable[[str], Disk]) -> None:
    store: Any = new_disk("memory").open()
    writer = _leader(store)
    store.set_away(True)

    calls: list[Callable[[], object]] = [
        store.migrate,
        store.load,
        store.last_sequences,
        lambda: store.usage_sums(UsageQuery()),
        lambda: store.acquire_leadership("x", 1),
        lambda: store.renew_leadership(1, 1),
        lambda: store.list_jobs(JobQuery()),
        lambda: writer.commit(new_jobs=[rows.job(1)]),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()

    store.set_away(False)
    writer.commit(new_jobs=[rows.job(1)])
    assert len(store.load().jobs) == 1


@pytest.mark.parametrize("table", ["ledger", "policies", "price_lists", "months", "budget_notices"])
def test_the_database_itself_keeps_what_is_append_only(sql_disk: Disk, table: str) -> None:
    store: Any = sql_disk.open()
    writer = _leader(store)
    writer.commit(
        ledger=[rows.segment(1)],
        policies=[rows.policy(1)],
        price_lists=[rows.price_list(1)],
        months=[rows.month()],
        budget_notices=[rows.budget_notice(1)],
    )
    column = schema.TABLES[table].columns.keys()[-1]
    changes = [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"]

    for change in (*changes, f"TRUNCATE {table}") if sql_disk.kind == "postgres" else changes:
        with pytest.raises(Exception, match="append-only"), store._engines.write.begin() as connection:
            connection.exec_driver_sql(change)

    assert (store.ledger(LedgerQuery()), store.load().months) == ([rows.segment(1)], [rows.month()])
    assert (store.find_policy(1), store.find_price_list(1)) == (rows.policy(1), rows.price_list(1))
    assert store.list_budget_notices("", "", 0, 9) == [rows.budget_notice(1)]


def test_readers_see_whole_commits_and_do_not_wait(disk: Disk) -> None:
    store = disk.open()
    writer = _leader(store)
    reading = disk.open()
    done = threading.Event()
    seen: list[tuple[int, int]] = []

    def read() -> None:
        while not done.is_set():
            jobs = len(reading.list_jobs(JobQuery(limit=10_000)))
            seen.append((jobs % BATCH, len(reading.events(EventQuery(after=0, limit=10_000))) - jobs))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(20):
            numbers = range(1 + number * BATCH, 1 + (number + 1) * BATCH)
            writer.commit(new_jobs=[rows.job(n) for n in numbers], events=[rows.event(n, n) for n in numbers])
    finally:
        done.set()
        thread.join(DEADLINE_S)

    assert seen
    assert all(part == 0 and later >= 0 for part, later in seen)


def test_a_new_leader_waits_for_the_old_ones_last_commit(sql_disk: Disk) -> None:
    store: Any = sql_disk.open()
    lease = store.acquire_leadership("old", 0)
    within, go_on = threading.Event(), threading.Event()
    write = store._write

    def slowly(connection: object, name: str, records: list[Any]) -> None:
        write(connection, name, records)
        within.set()
        assert go_on.wait(DEADLINE_S)

    store._write = slowly
    old = threading.Thread(target=store.commit, args=(lease.epoch, 1, CommitBatch(new_jobs=[rows.job(1)])))
    loaded: list[int] = []

    def take_over() -> None:
        assert store.acquire_leadership("new", 60_000) is not None
        loaded.append(len(store.load().jobs))

    new = threading.Thread(target=take_over)
    old.start()
    assert within.wait(DEADLINE_S)
    new.start()
    new.join(0.2)
    assert not loaded, "took over within another's transaction"
    go_on.set()
    old.join(DEADLINE_S)
    new.join(DEADLINE_S)

    assert loaded == [1]


_COMMIT_FOR_EVER = f"""
import sys
from scheduler.service.ports import CommitBatch
from scheduler.store.sql import SqlStore
from tests.support import rows

store = SqlStore(sys.argv[1])
epoch = store.acquire_leadership("victim", 3_600_000).epoch
number = store.load().last_commit_no
while True:
    numbers = range(1 + number * {BATCH}, 1 + (number + 1) * {BATCH})
    number += 1
    jobs = [rows.job(n) for n in numbers]
    store.commit(epoch, number, CommitBatch(
        new_jobs=jobs, events=[rows.event(n, n) for n in numbers], ledger=[rows.segment(n) for n in numbers],
    ))
    print(number, flush=True)
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_kill_9_leaves_whole_commits_and_every_acknowledged_one(new_disk: Callable[[str], Disk], kind: str) -> None:
    disk = new_disk(kind)
    store = disk.open()
    for acknowledged in (3, 11):
        command = [sys.executable, "-c", _COMMIT_FOR_EVER, disk.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as victim:
            assert victim.stdout is not None
            try:
                for _ in range(acknowledged):
                    last = int(victim.stdout.readline())
            finally:
                os.kill(victim.pid, signal.SIGKILL)
            last = max([last, *map(int, victim.stdout.read().split())])

        # Its lease had an hour to run. On one host its death is known, so nobody has to wait for it.
        if kind == "sqlite":
            lease = store.acquire_leadership("next", 1000)
            assert lease is not None
            store.release_leadership(lease.epoch)
        else:
            assert store.acquire_leadership("next", 1000) is None
            _end_lease(store)
        state = store.load()
        assert last <= state.last_commit_no <= last + 1
        assert [job.job_no for job in state.jobs] == list(range(1, 1 + state.last_commit_no * BATCH))
        assert len(store.events(EventQuery(after=0, limit=100_000))) == len(state.jobs)
        assert sum(total.segments for total in store.usage_sums(UsageQuery())) == len(state.jobs)
        assert state.last_event_seq == state.last_ledger_seq == state.last_job_no == len(state.jobs)


def _end_lease(store: Any) -> None:
    with store._engines.write.begin() as connection:
        connection.exec_driver_sql("UPDATE leader SET expire_ms = 0")


def test_a_crash_of_postgres_is_unavailable_and_then_over() -> None:
    with running_postgres() as server:
        store = SqlStore(server.url("crash"))
        store.migrate()
        writer = _leader(store)
        writer.commit(new_jobs=[rows.job(1)])

        server.stop()
        with pytest.raises(Unavailable):
            writer.commit(new_jobs=[rows.job(2)])
        with pytest.raises(Unavailable):
            store.load()
        server.start()

        writer.commit(new_jobs=[rows.job(2)])
        assert store.load().jobs == [rows.job(1), rows.job(2)]
        store.close()


def test_a_backend_that_dies_within_a_commit(new_disk: Callable[[str], Disk]) -> None:
    store: Any = new_disk("postgres").open()
    writer = _leader(store)
    write = store._write

    def then_die(connection: Any, name: str, records: list[Any]) -> None:
        write(connection, name, records)
        info = connection.connection.driver_connection.info
        with psycopg.connect(info.dsn, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (info.backend_pid,))

    store._write = then_die
    with pytest.raises(Unavailable):
        writer.commit(new_jobs=[rows.job(n) for n in range(1, 101)], events=[rows.event(1)])
    store._write = write

    assert store.load().jobs == []
    writer.commit(new_jobs=[rows.job(1)])
    assert len(store.load().jobs) == 1


def test_a_locked_sqlite_is_unavailable(new_disk: Callable[[str], Disk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SQLITE_BUSY_MS", 20)
    disk = new_disk("sqlite")
    store = disk.open()
    writer = _leader(store)
    other = sqlite3.connect(disk.url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable, match="locked"):
        writer.commit(new_jobs=[rows.job(1)])
    assert store.load().jobs == []

    other.execute("ROLLBACK")
    other.close()
    writer.commit(new_jobs=[rows.job(1)])
    assert store.load().jobs == [rows.job(1)]


def test_a_full_disk_is_unavailable_until_there_is_room(new_disk: Callable[[str], Disk]) -> None:
    store: Any = new_disk("sqlite").open()
    writer = _leader(store)

    def limit_pages(pages: int) -> None:
        connection = store._engines.write.raw_connection()
        connection.cursor().execute(f"PRAGMA max_page_count={pages}").fetchone()
        connection.close()

    limit_pages(1)  # SQLite raises it to what the file has now.
    big = {"new_jobs": [rows.job(n, spec=bytes(4000)) for n in range(1, 200)]}
    with pytest.raises(Unavailable, match="full"):
        writer.commit(**big)
    assert store.load().jobs == []

    limit_pages(10**9)
    writer.commit(**big)
    assert len(store.load().jobs) == 199


def test_what_a_column_cannot_hold_is_a_defect(sql_disk: Disk) -> None:
    store = sql_disk.open()
    writer = _leader(store)

    for many in (1, 100):
        bad = [rows.job(n, failures=2**70) for n in range(1, 1 + many)]
        with pytest.raises(Internal):
            writer.commit(new_jobs=bad)
        with pytest.raises(Internal):
            writer.commit(new_jobs=[rows.job(n, name="\ud800") for n in range(1, 1 + many)])

    writer.commit(new_jobs=[rows.job(1)])
    assert store.load().jobs == [rows.job(1)]


def test_commits_are_durable_whatever_the_server_is_set_to(new_disk: Callable[[str], Disk]) -> None:
    store: Any = new_disk("sqlite").open()
    with store._engines.write.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    postgres: Any = new_disk("postgres").open()
    with postgres._engines.write.begin() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    postgres._engines.write.dispose()
    with postgres._engines.write.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://root@localhost/x", "sqlite://", "sqlite:///:memory:", "sqlite:////a?mode=ro"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SqlStore(url)

    assert caught.value.field == "database_url"


def test_the_fake_is_on_a_clock_of_its_own(new_disk: Callable[[str], Disk]) -> None:
    store: Any = new_disk("memory").open()
    clock: WallClock = store._clock
    assert store.acquire_leadership("one", 100) is not None

    clock.ms += 99
    assert store.acquire_leadership("two", 100) is None
    clock.ms += 1
    assert store.acquire_leadership("two", 100) is not None
