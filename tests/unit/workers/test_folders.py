"""Folders that are used again only when nobody can tell."""

import os
from pathlib import Path

import pytest

from workers.executor.folders import PARTS, Folders
from workers.executor.types import AttemptKey


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path)
    made.clear()
    return made


def test_an_untouched_folder_serves_the_next_attempt(folders: Folders) -> None:
    first, second = folders.of(AttemptKey("a", 1)), folders.of(AttemptKey("b", 1))
    folders.make(first)
    inode = first.stat().st_ino
    assert folders.take_back(first)
    assert not first.exists()
    folders.make(second)
    assert second.stat().st_ino == inode
    assert sorted(path.name for path in second.iterdir()) == sorted(PARTS)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "results" / "x").touch(),
        lambda f: (f / "stdout.log").touch(),
        lambda f: (f / "work").rmdir(),
        lambda f: (f / "home").chmod(0o777),
        lambda f: ((f / "tmp").rmdir(), (f / "tmp").symlink_to("/etc")),
        lambda f: ((f / "tmp").rmdir(), (f / "tmp").touch()),
        lambda f: os.mkdir(f / "data"),
    ],
)
def test_a_folder_that_was_changed_in_any_way_is_not_taken_back(folders: Folders, spoil: object) -> None:
    folder = folders.of(AttemptKey("a", 1))
    folders.make(folder)
    spoil(folder)  # type: ignore[operator]
    assert not folders.take_back(folder)
    assert folder.exists()


def test_names_of_attempts_never_meet(folders: Folders) -> None:
    keys = [AttemptKey(job, a, r) for job in ("j1", "j1.1", "j1.1.1") for a in (1, 11) for r in (0, 1, 10)]
    assert len({folders.of(key) for key in keys}) == len(keys)


def test_what_is_gone_already_counts_as_taken_back(folders: Folders) -> None:
    assert folders.take_back(folders.of(AttemptKey("a", 1)))
