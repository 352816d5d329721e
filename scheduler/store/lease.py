"""Who may write: the leader's row, by the database's clock, and on SQLite a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, literal_column, update

from scheduler.domain.errors import Deposed
from scheduler.store.schema import INT, LEADER

# Milliseconds since 1970 UTC. SQLite's 'now' is the host's clock: all its processes are on one host.
SQLITE_NOW_MS = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"
POSTGRES_NOW_MS = "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)"


def deposed(epoch: int) -> Deposed:
    """The error of a leader whose time has passed."""
    return Deposed(f"Leader epoch {epoch} has ended; another process may have taken over.")


class FileLock:
    """An advisory lock on a file beside the database. The kernel frees it when the process that holds it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0

    def acquire(self, wait: bool = False) -> bool:
        """Take the lock. Without ``wait``, False when another holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give it back; nothing when it is not held. The file stays: removing it would let two hold "the" lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Hold the lock for a block, waiting for it first."""
        self.acquire(wait=True)
        try:
            yield
        finally:
            self.release()


class Lease:
    """The statements on the leader's row; ``now_ms`` is the database's clock in SQL."""

    def __init__(self, now_ms: str) -> None:
        self._now: ColumnElement[int] = literal_column(now_ms, INT)

    def acquire(self, connection: Connection, holder: str, ttl_ms: int, holder_is_dead: bool) -> int | None:
        """The new epoch, or None while another's lease is live. ``holder_is_dead``: known, so its lease is not."""
        statement = update(LEADER).values(epoch=LEADER.c.epoch + 1, holder=holder, expire_ms=self._now + ttl_ms)
        if not holder_is_dead:
            statement = statement.where(LEADER.c.expire_ms <= self._now)
        epoch: int | None = connection.execute(statement.returning(LEADER.c.epoch)).scalar_one_or_none()
        return epoch

    def renew(self, connection: Connection, epoch: int, ttl_ms: int) -> None:
        """Extend the lease; raises ``Deposed``."""
        statement = update(LEADER).values(expire_ms=self._now + ttl_ms)
        if connection.execute(statement.where(LEADER.c.epoch == epoch, LEADER.c.holder != "")).rowcount != 1:
            raise deposed(epoch)

    def release(self, connection: Connection, epoch: int) -> None:
        """End the lease if it is still this epoch's."""
        connection.execute(update(LEADER).values(expire_ms=0, holder="").where(LEADER.c.epoch == epoch))
