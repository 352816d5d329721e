"""A ledger of the third schema is carried over whole: every record, every sum, in the chain, on both databases."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from alembic import command, op
from alembic.config import Config
from sqlalchemy import Connection, inspect

from scheduler.domain.errors import SuanliError
from scheduler.domain.records import AttemptRecord, JobRecord, LedgerRecord
from scheduler.domain.states import AttemptState, EntryKind, JobState
from scheduler.metering.chain import FIRST, hash_of
from scheduler.metering.prices import PriceBook
from scheduler.metering.segments import month_of
from scheduler.metering.verifying import LedgerCheck, Totals
from scheduler.service.ports import CommitBatch, LedgerQuery, UsageQuery
from scheduler.store import migrate
from scheduler.store.migrations.versions import v0004_metering as revision
from scheduler.store.sql import SqlStore
from tests.support import rows
from tests.support.postgres import PostgresServer
from tests.support.sums import usage_by, usage_by_day

OLD_LEDGER, OLD_ATTEMPT = 16, 28
OCTOBER_MS, NOVEMBER_MS, DECEMBER_MS = 1_790_812_800_000, 1_793_491_200_000, 1_796_083_200_000
JOBS = 2_000


def _world() -> tuple[list[JobRecord], list[AttemptRecord], list[LedgerRecord]]:
    """Jobs with attempts, some over the end of a month; records of jobs that are not there; sums beyond 64 bits."""
    chance = random.Random(4)
    jobs, attempts, ledger = [], [], []
    for number in range(1, JOBS + 1):
        jobs.append(rows.job(number, priority=chance.randrange(1, 5), state=int(JobState.SUCCEEDED)))
        for attempt in range(1, chance.randrange(1, 4)):
            start_ms = chance.choice([NOVEMBER_MS - chance.randrange(1, 10**9), NOVEMBER_MS + chance.randrange(10**9)])
            end_ms = start_ms + chance.randrange(1, 10**9)
            amounts = {
                "cpu_milli": chance.choice([1000, 2**48]),
                "memory_mib": chance.randrange(2**40),
                "gpu_milli": 500,
            }
            used = {"cpu_used_ms": chance.randrange(2**40), "peak_memory_mib": chance.randrange(2**20)}
            names = {"institution": chance.choice(["tongji", "复旦"]), "pool": chance.choice(["cpu", "gpu"])}
            ended = {"state": int(AttemptState.ENDED), "grant_ms": start_ms, "end_ms": end_ms, "saved_ms": 7}
            attempts.append(rows.attempt(number, attempt, **ended, **names, **amounts, **used))
            cuts = [start_ms, *([NOVEMBER_MS] if start_ms < NOVEMBER_MS < end_ms else []), end_ms]
            for segment, (from_ms, to_ms) in enumerate(itertools.pairwise(cuts)):
                ledger.append(
                    rows.segment(
                        len(ledger) + 1,
                        job_id=jobs[-1].job_id,
                        attempt=attempt,
                        segment=segment,
                        start_ms=from_ms,
                        end_ms=to_ms,
                        outcome=chance.randrange(1, 9),
                        **names,
                        **amounts,
                    )
                )
    ledger.append(rows.segment(len(ledger) + 1, job_id="of an unknown job", end_ms=rows.T0_MS + 5 * revision.DAY_MS))
    return jobs, attempts, ledger


def _expected(jobs: list[JobRecord], attempts: list[AttemptRecord], ledger: list[LedgerRecord]) -> list[LedgerRecord]:
    priorities = {job.job_id: job.priority for job in jobs}
    last = {(each.job_id, each.attempt): each.sequence for each in ledger}
    by_last = {last.get((each.job_id, each.attempt)): each for each in attempts}
    records: list[LedgerRecord] = []
    posted_ms, before = 0, FIRST
    for old in ledger:
        posted_ms = max(posted_ms, old.end_ms)
        attempt = by_last.get(old.sequence)
        record = old._replace(
            kind=int(EntryKind.USAGE),
            priority=priorities.get(old.job_id, 2),
            period=month_of(old.start_ms),
            posted_ms=posted_ms,
            cpu_used_ms=attempt.cpu_used_ms if attempt else 0,
            peak_memory_mib=attempt.peak_memory_mib if attempt else 0,
        )
        before = hash_of(before, record)
        records.append(record._replace(hash=before))
    return records


def _fill(connection: Connection, world: tuple[list[Any], ...]) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "0003")
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for table, records, width in zip(("jobs", "attempts", "ledger"), world, (34, OLD_ATTEMPT, OLD_LEDGER), strict=True):
        marks = ", ".join([mark] * width)
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", [record[:width] for record in records])
    # The sums of old are made again, not read: whatever they were.
    connection.exec_driver_sql(
        "INSERT INTO usage_by_month VALUES ('a', 'b', 'c', 'd', 'e', '', '2026-10', 0, 1, 0, 2, 0, 3, 1, 1)"
    )
    connection.exec_driver_sql(f"UPDATE leader SET ledger_seq = {len(world[2])}, time_ms = {DECEMBER_MS}")


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> Any:
    name = f"old_{request.function.__name__[-20:]}"
    store = SqlStore(f"sqlite:///{tmp_path}/old.db" if request.param == "sqlite" else postgres.url(name))
    yield store
    store.close()
    if request.param == "postgres":
        postgres.drop(name)


def test_a_ledger_of_the_third_schema_is_carried_over(old: Any) -> None:
    world = _world()
    with old._engines.write.begin() as connection:
        _fill(connection, world)

    old.migrate()

    expected = _expected(*world)
    assert len(expected) > 2 * revision.AT_ONCE
    assert old.ledger(LedgerQuery(limit=100_000)) == expected
    assert old.usage_sums(UsageQuery()) == usage_by(expected, UsageQuery())
    assert max(total.cpu_milli_ms for total in old.usage_sums(UsageQuery())) > 2**64
    assert old.usage_days("", "", "") == usage_by_day(expected)
    assert old.attempts_after(0, 0, 100_000) == world[1]
    assert old.load().ledger_hash == expected[-1].hash

    check = LedgerCheck(PriceBook(), (), ())
    for record in old.ledger_after(0, 100_000):
        check.add(record)
    sums = {tuple(each.key): each[1:] for each in old.usage_sums(UsageQuery())}
    days = {tuple(each[:4]): each[4:] for each in old.usage_days("", "", "")}
    check.finish(old.last_sequences()[1], Totals(sums, days, {}))
    assert check.faults == []


def test_the_ledger_goes_on_and_is_append_only_afterwards(old: Any) -> None:
    world = _world()
    with old._engines.write.begin() as connection:
        _fill(connection, world)
    old.migrate()
    lease = old.acquire_leadership("test", 60_000)
    late = rows.segment(len(world[2]) + 1, institution="复旦", job_id="new", hash=b"next")

    old.commit(lease.epoch, 1, CommitBatch(ledger=[late]))

    expected = [*_expected(*world), late]
    assert old.usage_sums(UsageQuery()) == usage_by(expected, UsageQuery())
    assert old.usage_days("", "", "") == usage_by_day(expected)
    again = late._replace(sequence=late.sequence + 1)
    with pytest.raises(SuanliError):
        old.commit(lease.epoch, 2, CommitBatch(ledger=[again]))
    for change in ("UPDATE ledger SET cpu_milli = 0", "DELETE FROM ledger"):
        with pytest.raises(Exception, match="append-only"), old._engines.write.begin() as connection:
            connection.exec_driver_sql(change)


def test_an_upgrade_that_fails_midway_leaves_what_was(old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = _world()
    with old._engines.write.begin() as connection:
        _fill(connection, world)

    def crash(*_: object) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_index", crash)  # When the ledger has been written anew and the old one dropped.
        with pytest.raises(SuanliError, match="power"):
            old.migrate()

    with old._engines.read.begin() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0003"
        found = connection.exec_driver_sql("SELECT * FROM ledger ORDER BY sequence").all()
        assert [tuple(row) for row in found] == [record[:OLD_LEDGER] for record in world[2]]
        assert not {"ledger_0003", "usage_by_day", "months"} & set(inspect(connection).get_table_names())
    with pytest.raises(Exception, match="append-only"), old._engines.write.begin() as connection:
        connection.exec_driver_sql("DELETE FROM ledger")
    old.migrate()
    assert old.ledger(LedgerQuery(limit=100_000)) == _expected(*world)


def test_the_upgrade_hashes_as_the_chain_does() -> None:
    record = rows.segment(1, reason='因为 "x"\\\n', author="li", cpu_milli=-(2**62))

    assert revision.hash_of(FIRST, record[:-1]) == hash_of(FIRST, record)
    assert revision.hash_of(b"\x01" * 32, record[:-1]) == hash_of(b"\x01" * 32, record)
