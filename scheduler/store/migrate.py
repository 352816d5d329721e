"""Bring a database's schema to the newest revision, once, however many processes start together."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from scheduler.store.engines import Engines
from scheduler.store.lease import FileLock

_SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x5355414E4C49  # "SUANLI"
# Alembic keeps what it is doing in its modules.
_one_at_a_time = threading.Lock()


def migrate(engines: Engines) -> None:
    """Run every revision that is missing, in one transaction. Waits for another process that is at it."""
    with _one_at_a_time:
        if engines.path is None:
            with engines.write.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
                _upgrade(connection)
            return
        engines.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(engines.path.with_name(engines.path.name + ".migrating")).waiting():
            # It holds every tenant's jobs: nobody else's to read. SQLite gives the files beside it the same rights.
            engines.path.touch(mode=0o600)
            _use_write_ahead_log(engines)
            with engines.write.begin() as connection:
                _upgrade(connection)


def _use_write_ahead_log(engines: Engines) -> None:
    """Readers then do not wait for the writer. The file remembers it; it cannot be set within a transaction."""
    connection = engines.write.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        connection.close()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
