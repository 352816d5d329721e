"""Both spools keep the same promises; the one on disk keeps them when the process dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from workers.core_types import (
    AppendEvent,
    AttemptRecord,
    DropEvents,
    Durable,
    ForgetAttempt,
    PutAttempt,
    PutMeta,
    ResetEvents,
)
from workers.spool import MemorySpool, Spool, SpoolError, SqliteSpool

Reopen = Callable[[], Spool]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Gives the same spool again, as a new start of the agent would find it."""
    memory = MemorySpool("s")
    open_ones: list[Spool] = []

    def again() -> Spool:
        if request.param == "memory":
            return memory
        while open_ones:
            open_ones.pop().close()
        open_ones.append(SqliteSpool(tmp_path / "state" / "spool.db"))
        return open_ones[-1]

    return again


def record(job: str, attempt: int = 1, finished: bool = False, body: str = "{}") -> AttemptRecord:
    return AttemptRecord(job, attempt, 7, 9, finished, 1_700_000_000_000, body)


def commit(spool: Spool, *durable: Durable) -> None:
    spool.commit(durable)


def test_a_new_spool_is_empty_and_keeps_its_name(reopen: Reopen) -> None:
    first = reopen().load()
    assert (first.acked_seq, first.events, first.attempts, first.meta) == (0, (), (), {})
    assert first.spool_id
    assert reopen().load().spool_id == first.spool_id


def test_what_was_committed_is_found_again_in_order(reopen: Reopen) -> None:
    spool = reopen()
    commit(spool, AppendEvent(1, b"one"), AppendEvent(2, b"\x00two"), PutMeta("a", "1"))
    commit(spool, AppendEvent(3, b""), PutAttempt(record("j2")), PutAttempt(record("j1", 2)), PutMeta("a", "2"))
    commit(spool, PutAttempt(record("j2", finished=True, body="")))
    state = reopen().load()
    assert state.events == (AppendEvent(1, b"one"), AppendEvent(2, b"\x00two"), AppendEvent(3, b""))
    assert state.attempts == (record("j1", 2), record("j2", finished=True, body=""))
    assert state.meta == {"a": "2"}


def test_dropped_events_are_gone_and_the_count_goes_on(reopen: Reopen) -> None:
    spool = reopen()
    commit(spool, *(AppendEvent(seq, b"x") for seq in range(1, 6)), DropEvents(3))
    assert [event.seq for event in spool.load().events] == [4, 5]
    commit(spool, DropEvents(5))
    assert (reopen().load().acked_seq, reopen().load().events) == (5, ())


def test_reset_starts_the_count_elsewhere(reopen: Reopen) -> None:
    spool = reopen()
    commit(spool, AppendEvent(1, b"a"), AppendEvent(2, b"b"))
    commit(spool, ResetEvents(40), AppendEvent(41, b"a"))
    state = reopen().load()
    assert (state.acked_seq, state.events) == (40, (AppendEvent(41, b"a"),))


def test_a_forgotten_attempt_is_gone(reopen: Reopen) -> None:
    spool = reopen()
    commit(spool, PutAttempt(record("j1")), PutAttempt(record("j1", 2)))
    commit(spool, ForgetAttempt("j1", 1), ForgetAttempt("j9", 1))
    assert reopen().load().attempts == (record("j1", 2),)


@pytest.mark.parametrize("bad", [AppendEvent(1, b"again"), PutMeta("spool_id", "x"), PutMeta("acked_seq", "9")])
def test_a_commit_is_made_whole_or_not_at_all(reopen: Reopen, bad: Durable) -> None:
    spool = reopen()
    commit(spool, AppendEvent(1, b"one"), PutAttempt(record("j1")))
    before = spool.load()
    with pytest.raises(SpoolError):
        commit(
            spool,
            AppendEvent(2, b"two"),
            ForgetAttempt("j1", 1),
            PutMeta("a", "1"),
            DropEvents(1),
            AppendEvent(1, b"x"),
            bad,
            bad,
        )
    assert spool.load() == before
    assert reopen().load() == before


def test_a_second_agent_is_kept_out_with_a_sentence(tmp_path: Path) -> None:
    first = SqliteSpool(tmp_path / "spool.db")
    with pytest.raises(SpoolError, match="another agent"):
        SqliteSpool(tmp_path / "spool.db", wait_s=0.05)
    first.close()
    SqliteSpool(tmp_path / "spool.db").close()


def test_a_spool_of_a_newer_version_or_of_rubbish_is_refused(tmp_path: Path) -> None:
    SqliteSpool(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SpoolError, match="newer version"):
        SqliteSpool(tmp_path / "new.db")
    (tmp_path / "bad.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SpoolError, match="cannot open"):
        SqliteSpool(tmp_path / "bad.db")


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    SqliteSpool(tmp_path / "state" / "spool.db").close()
    assert (tmp_path / "state" / "spool.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


CRASH = """
import os, signal, sys, pathlib
from workers.core_types import AppendEvent
from workers.spool import SqliteSpool
spool = SqliteSpool(pathlib.Path(sys.argv[1]))
for seq in range(1, 21):
    spool.commit([AppendEvent(seq, b'x')])
    print(seq, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_commit_survives_kill_9(tmp_path: Path) -> None:
    arguments: Sequence[str] = [sys.executable, "-c", CRASH, str(tmp_path / "spool.db")]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=60)
    assert found.returncode == -signal.SIGKILL, found.stderr
    spool = SqliteSpool(tmp_path / "spool.db")
    assert [event.seq for event in spool.load().events] == [int(line) for line in found.stdout.split()]
    spool.close()
