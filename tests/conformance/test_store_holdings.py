"""Who holds what in the artifact store, the same from each kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from scheduler.domain.holdings import HoldingKind, StorageMark, StoredRecord
from scheduler.domain.records import JobRecord
from scheduler.domain.states import JobState
from scheduler.service.ports import Store
from scheduler.service.storage_ports import HoldingQuery
from scheduler.store import migrate
from scheduler.store.sql import SqlStore
from tests.conformance.conftest import Writer
from tests.support import rows
from tests.support.postgres import PostgresServer
from tests.support.rows import T0_MS, held_by_job, holding

LOG, CHECKPOINT, UPLOAD = HoldingKind.LOG, HoldingKind.CHECKPOINT, HoldingKind.UPLOAD


def test_holdings_come_back_are_replaced_and_go(store: Store, writer: Writer) -> None:
    a, b = holding("sha256:a"), holding("sha256:b", size_bytes=2**62, user="教学 'x' \\")
    result = held_by_job(1, size_bytes=-1)
    writer.commit(
        holdings=[a, b, result],
        stored=[StoredRecord("tongji", "default", 3, 2**62 + 100)],
        storage_marks=[StorageMark("x", "1"), StorageMark("y", "2")],
    )
    assert sorted(store.holdings_after(None, 9)) == sorted([a, b, result])
    writer.commit(
        holdings=[result._replace(size_bytes=7)],
        gone_holdings=[a.key],
        stored=[StoredRecord("tongji", "default", 2, 2**62 + 7), StoredRecord("tongji", "nlp", 0, 0)],
        storage_marks=[StorageMark("x", "3")],
    )
    assert sorted(store.holdings_after(None, 9)) == sorted([b, result._replace(size_bytes=7)])
    assert store.get_holdings([a.key, b.key, result.key, b.key]) in (
        [b, result._replace(size_bytes=7)],
        [result._replace(size_bytes=7), b],
    )
    state = store.load()
    assert state.stored == [StoredRecord("tongji", "default", 2, 2**62 + 7), StoredRecord("tongji", "nlp", 0, 0)]
    assert state.storage_marks == [StorageMark("x", "3"), StorageMark("y", "2")]


def test_what_unfinished_jobs_hold_is_loaded(store: Store, writer: Writer) -> None:
    ended = int(JobState.SUCCEEDED)
    writer.commit(
        new_jobs=[rows.job(1, attempt=1), rows.job(2, attempt=1, state=ended), rows.job(3)],
        holdings=[held_by_job(1), held_by_job(1, CHECKPOINT), held_by_job(2), holding("sha256:u")],
    )
    assert store.load().holdings == sorted([held_by_job(1), held_by_job(1, CHECKPOINT)])


def test_a_query_gives_what_it_asks_for_in_pages(store: Store, writer: Writer) -> None:
    held = [
        holding("sha256:a", since_ms=T0_MS + 1, size_bytes=5),
        holding("sha256:b", since_ms=T0_MS + 2, size_bytes=9, project="nlp", user="wang"),
        held_by_job(3, since_ms=T0_MS + 3, size_bytes=7),
        held_by_job(4, LOG, since_ms=T0_MS + 4, size_bytes=7, user="wang"),
        holding("sha256:a", institution="fudan"),
    ]
    writer.commit(holdings=held)

    def asked(**values: Any) -> list[int]:
        every = store.list_holdings(HoldingQuery("tongji", **values))
        paged, after = [], None
        while page := store.list_holdings(HoldingQuery("tongji", **values, after=after, limit=1)):
            paged += page
            last = page[-1]
            after = (
                last.size_bytes if values.get("by_size") else last.since_ms,
                last.project,
                last.kind,
                last.item,
            )
        assert paged == every
        return [held.index(row) for row in every]

    assert asked() == [3, 2, 1, 0]
    assert asked(by_size=True) == [1, 3, 2, 0]
    assert asked(project="nlp") == [1]
    assert asked(user="wang") == [3, 1]
    assert asked(user="li", projects=("nlp",)) == [2, 1, 0]
    assert asked(kinds=(int(UPLOAD),)) == [1, 0]
    assert asked(job_ids=("j0000000003", "j0000000009")) == [2]
    assert asked(job_ids=("j0000000004",), arrays=("j0000000003", "a_b")) == [3]
    task = held_by_job(5, job_id="a_b.7", item="a_b.7", institution="other")
    writer.commit(holdings=[task, held_by_job(6, job_id="aab.7", item="aab.7", institution="other")])
    assert store.list_holdings(HoldingQuery("other", arrays=("a_b",))) == [task]
    assert asked(digests=("sha256:a",)) == [0]
    assert asked(before_ms=T0_MS + 3) == [1, 0]
    assert store.find_holdings(["sha256:a", "sha256:z"], "tongji") == [held[0]]
    assert sorted(store.find_holdings(["sha256:a"], None)) == sorted([held[0], held[4]])
    assert store.find_holdings(["sha256:a"], "") == []


def test_those_without_a_size_and_all_of_them_page_by_page(store: Store, writer: Writer) -> None:
    held = sorted(holding(f"sha256:{n}", project=f"p{n % 3}", size_bytes=-(n % 2)) for n in range(20))
    writer.commit(holdings=held)
    for read, expected in (
        (store.holdings_after, held),
        (store.unmeasured_holdings, [row for row in held if row.size_bytes < 0]),
    ):
        found: list[Any] = []
        while page := read(found[-1].key if found else None, 3):
            found += page
        assert found == expected


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> Any:
    name = f"held_{request.function.__name__[-20:]}"
    store = SqlStore(f"sqlite:///{tmp_path}/old.db" if request.param == "sqlite" else postgres.url(name))
    yield store
    store.close()
    if request.param == "postgres":
        postgres.drop(name)


def test_what_jobs_left_before_is_entered_for_them(old: Any) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    jobs: list[JobRecord] = [
        rows.job(1, results="sha256:r1", checkpoint="sha256:c1", end_ms=T0_MS + 9, state=int(JobState.SUCCEEDED)),
        rows.job(2, checkpoint="sha256:c2", project="nlp", attempt=1),
        rows.job(3),
    ]
    attempts = [rows.attempt(1, logs="sha256:l1", end_ms=T0_MS + 8, state=3), rows.attempt(2)]
    with old._engines.write.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        for table, records in (("jobs", jobs), ("attempts", attempts)):
            marks = ", ".join([mark] * len(records[0]))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", [tuple(each) for each in records])
        connection.exec_driver_sql("INSERT INTO institutions VALUES ('tongji', 'Tongji', 1, 'east', 5)")
        connection.exec_driver_sql("INSERT INTO quotas VALUES ('tongji', '', 1, 2, 3, 4)")
        connection.exec_driver_sql("UPDATE leader SET job_no = 3")

    old.migrate()

    unknown: dict[str, Any] = {"size_bytes": -1}
    assert old.holdings_after(None, 99) == sorted(
        [
            held_by_job(1, digest="sha256:r1", since_ms=T0_MS + 9, **unknown),
            held_by_job(1, CHECKPOINT, digest="sha256:c1", since_ms=T0_MS + 9, **unknown),
            held_by_job(2, CHECKPOINT, digest="sha256:c2", since_ms=T0_MS + 2, project="nlp", **unknown),
            held_by_job(1, LOG, digest="sha256:l1", since_ms=T0_MS + 8, **unknown),
        ]
    )
    state = old.load()
    assert state.stored == [StoredRecord("tongji", "default", 3, 0), StoredRecord("tongji", "nlp", 1, 0)]
    assert [each.job_id for each in state.holdings] == ["j0000000002"]
    assert state.storage_marks == [StorageMark("adopt_until", "3")]
    assert [quota.stored_mib for quota in state.quotas] == [-1]


def test_each_question_has_an_index(new_disk: Callable[[str], Any]) -> None:
    store: Any = new_disk("sqlite").open()
    questions = {
        "holdings_by_age": HoldingQuery("a"),
        "holdings_by_size": HoldingQuery("a", by_size=True),
        "holdings_by_job": HoldingQuery("a", job_ids=("j",)),
    }
    for index, query in questions.items():
        assert index in _plans(store, lambda query=query: store.list_holdings(query)), index
    assert "holdings_by_digest" in _plans(store, lambda: store.find_holdings(["sha256:a"], "a"))
    assert "holdings_unmeasured" in _plans(store, lambda: store.unmeasured_holdings(None, 9))
    assert "USING PRIMARY KEY" in _plans(store, lambda: store.holdings_after(holding("x").key, 9))


def _plans(store: Any, ask: Callable[[], object]) -> str:
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(store._engines.read, "before_cursor_execute", note)
    ask()
    event.remove(store._engines.read, "before_cursor_execute", note)
    with store._engines.read.begin() as connection:
        return "\n".join(
            str(row)
            for statement, parameters in seen
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        )
