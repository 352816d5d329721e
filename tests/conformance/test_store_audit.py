"""The audit log, the same from each kind of store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.domain.errors import SuanliError
from scheduler.service.ports import AuditQuery, Store
from tests.conformance.conftest import Disk, Writer
from tests.support.audit import T0_MS, head_of, log_of, record

NOBODY = {"actor": "", "role": 0, "on_behalf_of": "", "before": "", "after": "", "key_prefix": "", "calls": 2**40}


def test_records_and_heads_come_back_as_they_were_given(store: Store, writer: Writer) -> None:
    assert (store.load().audit_newest, store.load().audit_head_newest) == (None, None)
    assert store.audit(AuditQuery()) == []
    assert store.audit_heads(0, 9) == []
    log = [*log_of(3), record(4, target="教学 'x' \\ \n", hash=bytes(range(256))), record(5, **NOBODY)]

    writer.commit(audit=log[:2])
    writer.commit(audit=log[2:], audit_heads=[head_of(log[1]), head_of(log[4])])

    assert store.audit(AuditQuery()) == log
    assert store.audit_heads(0, 9) == [head_of(log[1]), head_of(log[4])]
    assert store.audit_heads(2, 9) == [head_of(log[4])]
    assert store.audit_heads(0, 1) == [head_of(log[1])]
    state = store.load()
    assert (state.audit_newest, state.audit_head_newest) == (log[4], head_of(log[4]))
    assert state.last_time_ms == log[4].time_ms


def test_a_query_gives_what_it_asks_for(store: Store, writer: Writer) -> None:
    log = [
        record(1, actor="ann", institution="uni-a", on_behalf_of="uni-a", action="SetQuota"),
        record(2, actor="op", on_behalf_of="uni-a", action="PutUser", outcome=3),
        record(3, actor="bob", institution="uni-b", on_behalf_of="", outcome=2),
        record(4, actor="bob", institution="uni-b", on_behalf_of="uni-a", outcome=2),
    ]
    writer.commit(audit=log)

    def asked(**values: Any) -> list[int]:
        query = AuditQuery(**values)
        found = [each.sequence for each in store.audit(query)]
        newest = [each.sequence for each in store.audit(replace(query, newest_first=True))]
        if query.limit > len(log):
            assert newest == found[::-1]
        return found

    assert asked(actor="bob") == [3, 4]
    assert asked(institution="uni-a") == [1, 2, 4]
    assert asked(institution="uni-b") == [3, 4]
    assert asked(institution="uni-a", actor="bob") == [4]
    assert asked(action="PutUser") == [2]
    assert asked(outcome=2) == [3, 4]
    assert asked(from_ms=T0_MS + 2, to_ms=T0_MS + 4) == [2, 3]
    assert asked(after=1, before=4) == [2, 3]
    assert asked(after=1, limit=1) == [2]
    assert [each.sequence for each in store.audit(AuditQuery(before=4, newest_first=True, limit=2))] == [3, 2]


@pytest.mark.parametrize("name", ["audit", "audit_heads"])
def test_a_number_is_given_once(store: Store, writer: Writer, name: str) -> None:
    log = log_of(2)
    rows: dict[str, list[Any]] = {"audit": list(log), "audit_heads": [head_of(each) for each in log]}
    writer.commit(**{name: rows[name][:1]})

    with pytest.raises(SuanliError):
        writer.commit(**{name: rows[name]})

    writer.commit(**{name: rows[name][1:]})
    found: list[Any] = store.audit(AuditQuery()) if name == "audit" else list(store.audit_heads(0, 9))
    assert found == rows[name]


@pytest.mark.parametrize("table", ["audit", "audit_heads"])
def test_the_database_itself_changes_and_deletes_nothing(sql_disk: Disk, table: str) -> None:
    store: Any = sql_disk.open()
    lease = store.acquire_leadership("test", 60_000)
    log = log_of(2)
    Writer(store, lease.epoch).commit(audit=log, audit_heads=[head_of(log[1])])

    for change in (f"UPDATE {table} SET time_ms = 1", f"DELETE FROM {table}"):
        with pytest.raises(Exception, match="append-only"), store._engines.write.begin() as connection:
            connection.exec_driver_sql(change)

    assert (store.audit(AuditQuery()), store.audit_heads(0, 9)) == (log, [head_of(log[1])])
