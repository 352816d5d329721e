"""Connections: how each database is opened so that a commit is durable and nothing waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from scheduler.domain.errors import InvalidArgument

READERS = 4
_WAIT_S = 30
# A writer that waits this long for another process's lock gives up: the caller may repeat its commit.
_SQLITE_BUSY_MS = 10_000

# All connections: a peer that vanished is noticed, and no statement or lock is waited for without end. A transaction left
# open (the process was stopped, the network cut) is ended by the server, so that a standby can take the lease.
_POSTGRES_OPTIONS = (
    "-c statement_timeout=60000 -c lock_timeout=20000 -c idle_in_transaction_session_timeout=15000 -c timezone=UTC"
    " -c client_min_messages=warning"
)
_POSTGRES_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "suanli",
}


class Engines(NamedTuple):
    """The writer's connections and the readers'. ``path`` is the SQLite file, or None."""

    write: Engine
    read: Engine
    path: Path | None


def open_engines(url: str) -> Engines:
    """Engines for ``sqlite:///path`` (or ``sqlite:////absolute/path``) or ``postgresql://…``; connects to nothing yet.

    Raises ``InvalidArgument`` for any other URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        # The URL itself may hold a password: not in the message.
        raise InvalidArgument("The database URL cannot be read.", field="database_url") from error
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return _open_sqlite(parsed)
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return _open_postgres(parsed.set(drivername="postgresql+psycopg"))
    raise InvalidArgument(
        f"No store for {parsed.drivername!r}: use sqlite:////path/to/file or postgresql://user@host/name.",
        field="database_url",
    )


def _open_sqlite(url: URL) -> Engines:
    if not url.database or url.database == ":memory:" or url.query:
        raise InvalidArgument("SQLite needs a plain file path, as in sqlite:////path/to/file.", field="database_url")
    path = Path(url.database).absolute()
    url = url.set(database=str(path))
    # One writer: threads that come together wait in the pool rather than for SQLite's lock, which is not fair.
    write = create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=_WAIT_S)
    read = create_engine(url, poolclass=QueuePool, pool_size=READERS, max_overflow=0, pool_timeout=_WAIT_S)
    for engine, begin in ((write, "BEGIN IMMEDIATE"), (read, "BEGIN")):
        _prepare_sqlite(engine, begin, read_only=engine is read)
    return Engines(write, read, path)


def _prepare_sqlite(engine: Engine, begin: str, read_only: bool) -> None:
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # The driver begins no transactions of its own: "begun" does.
        for pragma in (
            f"busy_timeout={_SQLITE_BUSY_MS}",
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
            "cache_size=-65536",
            "wal_autocheckpoint=4000",
            "journal_size_limit=67108864",
            f"query_only={'ON' if read_only else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _open_postgres(url: URL) -> Engines:
    arguments = {**_POSTGRES_ARGUMENTS, "options": f"{url.query.get('options', '')} {_POSTGRES_OPTIONS}".strip()}
    common: dict[str, Any] = {"paramstyle": "format", "pool_pre_ping": True, "pool_timeout": _WAIT_S}
    try:
        # Two: a renewal of the lease may come while a commit is under way.
        write = create_engine(url, pool_size=2, max_overflow=0, connect_args=arguments, **common)
        read_only = {**arguments, "options": f"{arguments['options']} -c default_transaction_read_only=on"}
        read = create_engine(url, pool_size=READERS, max_overflow=0, connect_args=read_only, **common)
    except (ImportError, NoSuchModuleError) as error:
        raise InvalidArgument(
            "PostgreSQL needs its driver: install suanli[postgres].", field="database_url", reason="NO_DRIVER"
        ) from error

    def connected(connection: Any, _record: object) -> None:
        # An acknowledged commit must survive: a server set to acknowledge before it has flushed is overruled.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    event.listen(write, "connect", connected)
    return Engines(write, read, None)
