"""Looking at blobs and removing old ones: never one that was stored again meanwhile."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import ArtifactError, ArtifactStore, Part, Sweeper
from artifacts import store as store_module
from artifacts.sweeping import PREFIXES


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://sweep-{tmp_path.name}", tmp_path / "scratch")


def everything(sweeper: Sweeper) -> dict[str, int]:
    return {blob.ref: blob.size for prefix in PREFIXES for blob in sweeper.blobs(prefix)}


def now_ms() -> int:
    return int(time.time() * 1000)


def test_every_blob_is_seen_and_old_ones_go(store: ArtifactStore) -> None:
    refs = {store.put_bytes(content): len(content) for content in (b"a", b"bb", b"", b"x" * 1000)}
    sweeper = Sweeper(store)
    assert everything(sweeper) == refs
    first, *rest = refs
    assert not sweeper.remove(first, now_ms() - 60_000)
    assert sweeper.remove(first, now_ms() + 1_000)
    assert not sweeper.remove(first, now_ms() + 1_000)
    assert set(everything(sweeper)) == set(rest)
    with pytest.raises(ArtifactError, match="not in the store"):
        store.get_bytes(first, 10)
    assert store.put_bytes(b"a") == first
    assert store.get_bytes(first, 10) == b"a"


def test_storing_again_makes_young(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RENEWED_AFTER_S", -1)
    sweeper = Sweeper(store)
    ref = store.put_bytes(b"a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_bytes(b"a")
    ages = []
    for again in (lambda: store.put_bytes(b"a"), lambda: store.put_tree(Part(tmp_path / "in"))):
        before = {blob.ref: blob.modified_ms for prefix in PREFIXES for blob in sweeper.blobs(prefix)}[ref]
        deadline = time.monotonic() + 10
        # The clock that file systems write down is a coarser one.
        while now_ms() <= before + 50 and time.monotonic() < deadline:
            pass
        again()
        ages.append({blob.ref: blob.modified_ms for prefix in PREFIXES for blob in sweeper.blobs(prefix)}[ref] - before)
    assert min(ages) > 0


def test_what_is_renewed_between_the_look_and_the_removal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    ref = store.put_bytes(b"a")
    old_s = time.time() - 86_400
    path = store._blob(ref.removeprefix("sha256:"))
    os.utime(path, (old_s, old_s))
    real = os.rename

    def rename(source: str, target: str) -> None:
        if source == path:
            assert store.put_bytes(b"a") == ref
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert not Sweeper(store).remove(ref, now_ms() - 3_600_000)
    assert store.get_bytes(ref, 10) == b"a"


def test_a_sweeper_that_was_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    ref = store.put_bytes(b"a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            Sweeper(store).remove(ref, now_ms() + 1_000)
    assert everything(Sweeper(store)) == {}
    Sweeper(store).recover()
    assert store.get_bytes(ref, 10) == b"a"
    assert list(os.scandir(tmp_path / "store" / "tmp")) == []


def test_a_store_belongs_to_who_claims_it_first(store: ArtifactStore) -> None:
    assert Sweeper(store).owner("platform-1") == "platform-1"
    assert Sweeper(store).owner("platform-2") == "platform-1"


def test_other_files_are_no_blobs(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    folder = tmp_path / "store" / "sha256" / "ab"
    folder.mkdir(parents=True)
    for name in ("ab", "notes.txt", "AB" + "0" * 62, "cd" + "0" * 62):
        (folder / name).write_bytes(b"x")
    found: Iterator[object] = Sweeper(store).blobs("ab")
    assert list(found) == []
