"""One suite, three stores: memory, SQLite and a real PostgreSQL."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.service.ports import CommitBatch, Store
from scheduler.store.memory import MemoryStore
from scheduler.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres

KINDS = ["memory", "sqlite", "postgres"]
SQL_KINDS = ["sqlite", "postgres"]


class WallClock:
    """A clock that a test may move on."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


class Disk:
    """One database: ``open`` gives a handle on it, as each process of ours would have one."""

    def __init__(self, kind: str, open_store: Callable[[], Store], url: str = "") -> None:
        self.kind = kind
        self.url = url
        self._open = open_store
        self._opened: list[Store] = []

    def open(self) -> Store:
        store = self._open()
        self._opened.append(store)
        return store

    def close(self) -> None:
        for store in self._opened:
            store.close()


class Writer:
    """A leader that numbers its commits."""

    def __init__(self, store: Store, epoch: int) -> None:
        self.store = store
        self.epoch = epoch
        self.commit_no = store.load().last_commit_no

    def commit(self, **lists: list[Any]) -> None:
        self.store.commit(self.epoch, self.commit_no + 1, CommitBatch(**lists))
        self.commit_no += 1


_names = itertools.count()


def _nothing() -> None:
    """For a disk that leaves nothing behind."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


def _migrated(url: str) -> str:
    store = SqlStore(url)
    store.migrate()
    store.close()
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "suanli.db"
    _migrated(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    name = f"template_{os.getpid()}"
    _migrated(postgres.url(name))
    return name


@pytest.fixture
def new_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Makes a database of a kind with its schema in place: a copy of one that was migrated, to save time."""
    disks: list[tuple[Disk, Callable[[], None]]] = []

    def make(kind: str) -> Disk:
        name = f"t{os.getpid()}_{next(_names)}"
        forget: Callable[[], None] = _nothing
        if kind == "memory":
            memory = MemoryStore(WallClock())
            disk = Disk(kind, lambda: memory)
        elif kind == "sqlite":
            path = tmp_path / f"{name}.db"
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            disk = Disk(kind, lambda: SqlStore(f"sqlite:///{path}"), f"sqlite:///{path}")
        else:
            server: PostgresServer = request.getfixturevalue("postgres")
            url = server.url(name, template=request.getfixturevalue("postgres_template"))
            forget = functools.partial(server.drop, name)
            disk = Disk(kind, lambda: SqlStore(url), url)
        disks.append((disk, forget))
        return disk

    yield make
    for disk, forget in disks:
        disk.close()
        forget()


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, new_disk: Callable[[str], Disk]) -> Disk:
    return new_disk(request.param)


@pytest.fixture(params=SQL_KINDS)
def sql_disk(request: pytest.FixtureRequest, new_disk: Callable[[str], Disk]) -> Disk:
    return new_disk(request.param)


@pytest.fixture
def store(disk: Disk) -> Store:
    return disk.open()


@pytest.fixture
def writer(store: Store) -> Writer:
    lease = store.acquire_leadership("first", 60_000)
    assert lease is not None
    return Writer(store, lease.epoch)
