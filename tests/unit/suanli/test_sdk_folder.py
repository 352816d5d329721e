"""Which files of a working folder go along, and their manifest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifacts import ArtifactStore, Part
from suanli import folder as folders
from suanli.errors import FolderError
from suanli.folder import pack, pack_bytes, pack_files


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(folder: Path, tmp: Path) -> list[str]:
    """The paths in the manifest, as the other side reads them."""
    packed = pack(folder)
    store = ArtifactStore(str(tmp / "store"))
    for blob in packed.blobs:
        content = blob.path.read_bytes() if blob.path else blob.content
        assert (store.put_bytes(content), len(content)) == (blob.digest, blob.size)
    found = [entry.path for entry in store.manifest(packed.manifest)]
    assert (packed.files, packed.size) == (len(found), sum(entry.size for entry in store.manifest(packed.manifest)))
    return found


def test_a_folder_has_the_manifest_that_the_store_itself_would_make(tmp_path: Path) -> None:
    source = write(tmp_path / "a", "b/c.txt", "a.py", "空.csv", "same", "run.sh")
    (source / "b" / "again").write_text("same")
    (source / "run.sh").chmod(0o755)
    assert pack(source).manifest == ArtifactStore(str(tmp_path / "s")).put_tree(Part(source)).ref
    assert len(pack(source).blobs) == 6


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("", ["a.py", "data/big.csv", "data/keep/x.csv", "logs/a.log", "sub/logs/b.log"]),
        ("*.csv\n", ["a.py", "logs/a.log", "sub/logs/b.log"]),
        ("# all data\n\ndata/\n", ["a.py", "logs/a.log", "sub/logs/b.log"]),
        ("*.csv\n!x.csv\n", ["a.py", "data/keep/x.csv", "logs/a.log", "sub/logs/b.log"]),
        ("/logs\n", ["a.py", "data/big.csv", "data/keep/x.csv", "sub/logs/b.log"]),
        ("logs/\n", ["a.py", "data/big.csv", "data/keep/x.csv"]),
        ("data/**/x.*\n", ["a.py", "data/big.csv", "logs/a.log", "sub/logs/b.log"]),
        ("data/*.csv\n", ["a.py", "data/keep/x.csv", "logs/a.log", "sub/logs/b.log"]),
        ("[a-b].log\n?.py\n", ["data/big.csv", "data/keep/x.csv"]),
        ("a.py/\n", ["a.py", "data/big.csv", "data/keep/x.csv", "logs/a.log", "sub/logs/b.log"]),
        ("**/logs\n", ["a.py", "data/big.csv", "data/keep/x.csv"]),
    ],
)
def test_an_ignore_file_leaves_out_what_git_would(tmp_path: Path, rules: str, kept: list[str]) -> None:
    source = write(tmp_path / "a", "a.py", "data/big.csv", "data/keep/x.csv", "logs/a.log", "sub/logs/b.log")
    write(source, ".git/config", "sub/__pycache__/a.pyc", ".venv/bin/python")
    (source / ".suanliignore").write_text(rules)
    assert names(source, tmp_path) == sorted([".suanliignore", *kept])


def test_links_are_followed_to_files_and_never_into_folders(tmp_path: Path) -> None:
    source = write(tmp_path / "a", "real.txt")
    write(tmp_path, "outside.txt")
    (source / "file").symlink_to(tmp_path / "outside.txt")
    (source / "round").symlink_to(source)
    (source / "broken").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    assert names(source, tmp_path) == ["file", "real.txt"]


@pytest.mark.parametrize(
    ("bound", "value", "says"), [("MAX_FILES", 2, "more than 2 files"), ("MAX_BYTES", 5, "larger")]
)
def test_a_folder_has_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, says: str
) -> None:
    source = write(tmp_path / "a", "one", "two", "six")
    pack(source)
    monkeypatch.setattr(folders, bound, value)
    with pytest.raises(FolderError, match=says):
        pack(source)


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="not a folder"):
        pack(tmp_path / "none")
    with pytest.raises(FolderError, match="gone"):
        pack_files([("gone", tmp_path / "gone")])
    with pytest.raises(FolderError, match="rename it"):
        pack(write(tmp_path / "a", "tab\there"))
    (write(tmp_path / "b", "x") / ".suanliignore").write_bytes(b"\xff")
    with pytest.raises(FolderError, match="suanliignore"):
        pack(tmp_path / "b")


def test_contents_make_a_folder_too(tmp_path: Path) -> None:
    source = write(tmp_path / "a", "x", "y/z")
    assert pack_bytes({"y/z": b"y/z", "x": b"x"}).manifest == pack(source).manifest
