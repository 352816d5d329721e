"""What the agent must not forget, on disk: unacknowledged events, accepted attempts, tombstones and a few named values.

``Spool`` is the port; ``SqliteSpool`` keeps it in one SQLite file, ``MemorySpool`` in memory (for simulations, where it outlives
the simulated agent). Both pass one conformance suite.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from workers.core_types import (
    AppendEvent,
    AttemptName,
    AttemptRecord,
    DropEvents,
    Durable,
    ForgetAttempt,
    PutAttempt,
    PutMeta,
    ResetEvents,
    SpoolState,
)

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE events (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL) STRICT;
CREATE TABLE attempts (
  job_id TEXT NOT NULL, attempt INTEGER NOT NULL, lease_epoch INTEGER NOT NULL, launch_seq INTEGER NOT NULL,
  finished INTEGER NOT NULL, made_ms INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (job_id, attempt)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"
_SPOOL_ID = "spool_id"
_ACKED_SEQ = "acked_seq"
_OWN = frozenset({_SPOOL_ID, _ACKED_SEQ})


class SpoolError(Exception):
    """The spool cannot be opened or written; the text is a sentence for people."""


class Spool(Protocol):
    """Durable state of one agent. One owner at a time, one call at a time."""

    def load(self) -> SpoolState:
        """Everything it holds: events by rising number, attempts by name."""
        ...

    def commit(self, durable: Sequence[Durable]) -> None:
        """Make all of these durable, in order, or none of them. ``SpoolError`` when they are not: the agent must then stop."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class SqliteSpool:
    """A spool in one SQLite file: write-ahead log, synced at every commit, locked against a second agent.

    It may be used from any thread, though by one at a time. ``wait_s`` is how long an earlier agent gets to let go of it.
    """

    def __init__(self, path: Path, wait_s: float = 2.0) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=wait_s)
            self._open()
        except (OSError, sqlite3.Error) as error:
            hint = "; another agent may be using it" if "locked" in str(error) else ""
            raise SpoolError(f"cannot open the spool {path}: {error}{hint}") from error

    def _open(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.strip().split(";\n"):
                self._db.execute(statement)
            self._db.execute(_PUT_META, (_SPOOL_ID, uuid.uuid4().hex))
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise SpoolError(f"the spool {self._path} was written by a newer version of this program")

    def load(self) -> SpoolState:
        """See ``Spool``."""
        events = tuple(AppendEvent(*row) for row in self._db.execute("SELECT seq, payload FROM events ORDER BY seq"))
        query = "SELECT job_id, attempt, lease_epoch, launch_seq, finished, made_ms, body FROM attempts ORDER BY job_id, attempt"
        attempts = tuple(
            AttemptRecord(job_id, attempt, lease_epoch, launch_seq, bool(finished), made_ms, body)
            for job_id, attempt, lease_epoch, launch_seq, finished, made_ms, body in self._db.execute(query)
        )
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        own = {name: value for name, value in meta.items() if name not in _OWN}
        return SpoolState(meta[_SPOOL_ID], int(meta.get(_ACKED_SEQ, "0")), events, attempts, own)

    def commit(self, durable: Sequence[Durable]) -> None:
        """See ``Spool``."""
        if not durable:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for item in durable:
                    self._apply(item)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise SpoolError(f"cannot write to the spool {self._path}: {error}") from error

    def _apply(self, item: Durable) -> None:
        execute = self._db.execute
        match item:
            case AppendEvent(seq, payload):
                execute("INSERT INTO events (seq, payload) VALUES (?, ?)", (seq, payload))
            case DropEvents(up_to):
                execute("DELETE FROM events WHERE seq <= ?", (up_to,))
                execute(_PUT_META, (_ACKED_SEQ, str(up_to)))
            case ResetEvents(acked_seq):
                execute("DELETE FROM events")
                execute(_PUT_META, (_ACKED_SEQ, str(acked_seq)))
            case PutAttempt(record):
                execute(
                    "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.job_id,
                        record.attempt,
                        record.lease_epoch,
                        record.launch_seq,
                        int(record.finished),
                        record.made_ms,
                        record.body,
                    ),
                )
            case ForgetAttempt(job_id, attempt):
                execute("DELETE FROM attempts WHERE job_id = ? AND attempt = ?", (job_id, attempt))
            case PutMeta(name, value):
                _check_name(name)
                execute(_PUT_META, (name, value))

    def close(self) -> None:
        """See ``Spool``."""
        self._db.close()


class MemorySpool:
    """The same in memory. ``fail_next_commit`` makes the next commit change nothing and raise, as a full disk would."""

    def __init__(self, spool_id: str) -> None:
        self._spool_id = spool_id
        self._acked_seq = 0
        self._events: dict[int, bytes] = {}
        self._attempts: dict[AttemptName, AttemptRecord] = {}
        self._meta: dict[str, str] = {}
        self.fail_next_commit = False

    def load(self) -> SpoolState:
        """See ``Spool``."""
        events = tuple(AppendEvent(seq, self._events[seq]) for seq in sorted(self._events))
        attempts = tuple(self._attempts[name] for name in sorted(self._attempts))
        return SpoolState(self._spool_id, self._acked_seq, events, attempts, dict(self._meta))

    def commit(self, durable: Sequence[Durable]) -> None:
        """See ``Spool``."""
        kept = (self._acked_seq, dict(self._events), dict(self._attempts), dict(self._meta))
        try:
            if self.fail_next_commit:
                self.fail_next_commit = False
                raise SpoolError("cannot write to the spool: told to fail")
            for item in durable:
                self._apply(item)
        except BaseException:
            self._acked_seq, self._events, self._attempts, self._meta = kept
            raise

    def _apply(self, item: Durable) -> None:
        match item:
            case AppendEvent(seq, payload):
                if seq in self._events:
                    raise SpoolError(f"cannot write to the spool: event {seq} is there already")
                self._events[seq] = payload
            case DropEvents(up_to):
                for seq in [seq for seq in self._events if seq <= up_to]:
                    del self._events[seq]
                self._acked_seq = up_to
            case ResetEvents(acked_seq):
                self._events.clear()
                self._acked_seq = acked_seq
            case PutAttempt(record):
                self._attempts[record.job_id, record.attempt] = record
            case ForgetAttempt(job_id, attempt):
                self._attempts.pop((job_id, attempt), None)
            case PutMeta(name, value):
                _check_name(name)
                self._meta[name] = value

    def close(self) -> None:
        """See ``Spool``."""


def _check_name(name: str) -> None:
    if name in _OWN:
        raise SpoolError(f"cannot write to the spool: the name {name} is its own")
