"""The artifact store: content in and out, what is refused, what is noticed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import ArtifactError, ArtifactStore, Entry, FileCache, Part, is_safe_path
from artifacts import store as store_module


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "scratch")


def tree(base: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    return base


def read(base: Path) -> dict[str, bytes]:
    return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}


def test_a_folder_comes_back_as_it_was(store: ArtifactStore, tmp_path: Path) -> None:
    files = {"a": b"1", "d/e/f": b"", "d/g": b"x" * 3_000_000}
    source = tree(tmp_path / "in", files)
    (source / "a").chmod(0o700)
    stored = store.put_tree(Part(source))
    assert (stored.files, stored.size, stored.left_out) == (3, 3_000_001, ())
    assert stored.ref is not None
    assert store.fetch_tree(stored.ref, tmp_path / "out") == 3_000_001
    assert read(tmp_path / "out") == files
    assert os.access(tmp_path / "out/a", os.X_OK)
    assert not os.access(tmp_path / "out/d/g", os.X_OK)
    assert store.put_tree(Part(source)).ref == stored.ref


def test_nothing_is_stored_for_an_empty_folder(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    assert store.put_tree(Part(tmp_path / "in"), Part(tmp_path / "missing")).ref is None


def test_bounds_are_kept_and_told(store: ArtifactStore, tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {f"f{i}": b"12345" for i in range(5)})
    by_count = store.put_tree(Part(source), max_files=2)
    assert by_count.files == 2
    assert len(by_count.left_out) == 3
    assert "more than 2 files" in by_count.left_out[0]
    by_size = store.put_tree(Part(source), max_bytes=12)
    assert (by_size.files, by_size.size) == (2, 10)


def test_links_and_special_files(store: ArtifactStore, tmp_path: Path) -> None:
    source = tree(tmp_path / "in", {"a": b"1"})
    (tmp_path / "secret").write_bytes(b"s")
    (source / "inside").symlink_to("a")
    (source / "outside").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path)
    (source / "broken").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    stored = store.put_tree(Part(source))
    assert stored.ref is not None
    assert [entry.path for entry in store.manifest(stored.ref)] == ["a", "inside"]
    assert len(stored.left_out) == 4


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a//b", "./a", "a\\..\\b", "a\0b", "x" * 300])
def test_paths_that_leave_the_folder_are_refused(store: ArtifactStore, tmp_path: Path, path: str) -> None:
    blob = store.put_bytes(b"evil")
    ref = store.put_manifest([Entry(path, blob.removeprefix("sha256:"), 4, 0o644)])
    assert not is_safe_path(path)
    with pytest.raises(ArtifactError, match="unsafe path"):
        store.fetch_tree(ref, tmp_path / "out")


def test_nothing_is_written_through_a_link(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "f").symlink_to(tmp_path / "elsewhere" / "f")
    blob = store.put_bytes(b"x").removeprefix("sha256:")
    with pytest.raises(ArtifactError, match="through a link"):
        store.fetch_tree(store.put_manifest([Entry("d/x", blob, 1, 0o644)]), tmp_path / "out")
    store.fetch_tree(store.put_manifest([Entry("f", blob, 1, 0o644)]), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_and_a_folder_of_one_name(store: ArtifactStore, tmp_path: Path) -> None:
    blob = store.put_bytes(b"x").removeprefix("sha256:")
    ref = store.put_manifest([Entry("a", blob, 1, 0o644), Entry("a/b", blob, 1, 0o644)])
    with pytest.raises(ArtifactError, match="not a folder"):
        store.fetch_tree(ref, tmp_path / "out")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff", b'{"files":[{}]}', b'{"files":3}'])
def test_what_is_not_a_manifest(store: ArtifactStore, content: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a manifest"):
        store.manifest(store.put_bytes(content))


@pytest.mark.parametrize("ref", ["", "sha256:", "sha256:" + "g" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 64 + "\n"])
def test_what_is_not_a_reference(store: ArtifactStore, ref: str) -> None:
    with pytest.raises(ArtifactError, match="not an artifact reference"):
        store.get_bytes(ref, 10)


def test_missing_too_large_and_wrong_size(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not in the store"):
        store.get_bytes("sha256:" + "0" * 64, 10)
    ref = store.put_bytes(b"12345")
    with pytest.raises(ArtifactError, match="larger than the 4 bytes"):
        store.get_bytes(ref, 4)
    for size in (4, 6):
        lying = store.put_manifest([Entry("a", ref.removeprefix("sha256:"), size, 0o644)])
        with pytest.raises(ArtifactError, match="damaged"):
            store.fetch_tree(lying, tmp_path / "out")
    assert read(tmp_path / "out") == {}


def test_the_manifest_is_canonical(store: ArtifactStore, tmp_path: Path) -> None:
    ref = store.put_tree(Part(tree(tmp_path / "in", {"b": b"", "a": b""}))).ref
    assert ref is not None
    text = store.get_bytes(ref, 10_000).decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert [one["path"] for one in json.loads(text)["files"]] == ["a", "b"]


def test_the_cache_serves_verified_content_and_stays_within_bounds(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://cache-{tmp_path.name}", tmp_path / "scratch")
    cache = FileCache(tmp_path / "cache", 250)
    refs = [store.put_tree(Part(tree(tmp_path / f"in{i}", {"a": bytes([i]) * 100}))).ref for i in range(4)]
    for ref in refs:
        assert ref is not None
        store.fetch_tree(ref, tmp_path / "out", cache)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 250
    # A job that changes its own copy changes nobody else's, and a damaged cache is put right.
    last = refs[-1]
    assert last is not None
    (tmp_path / "out/a").write_bytes(b"changed")
    store.fetch_tree(last, tmp_path / "out2", cache)
    assert (tmp_path / "out2/a").read_bytes() == b"\3" * 100
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"?" * 100)
    store.fetch_tree(last, tmp_path / "out3", cache)
    assert (tmp_path / "out3/a").read_bytes() == b"\3" * 100


def test_manifests_merge_unless_they_contradict(store: ArtifactStore, tmp_path: Path) -> None:
    refs = [
        store.put_tree(Part(tree(tmp_path / f"in{number}", files), prefix)).ref or ""
        for number, (files, prefix) in enumerate([({"a": b"1"}, ""), ({"a": b"2"}, "rank-1"), ({"a": b"3"}, "")])
    ]
    assert [entry.path for entry in store.manifest(store.merge(refs[:2]))] == ["a", "rank-1/a"]
    with pytest.raises(ArtifactError, match="different file 'a'"):
        store.merge(refs)


def test_a_folder_swapped_for_a_link_while_it_is_stored_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "d").mkdir(parents=True)
    outside.mkdir()
    (inside / "d" / "f").write_text("own")
    (outside / "f").write_text("secret")
    walk = store_module._walk

    def swapping(part: Part) -> Iterator[tuple[str, str, str | None]]:
        for found in walk(part):
            (inside / "d").rename(tmp_path / "away")
            (inside / "d").symlink_to(outside)
            yield found

    monkeypatch.setattr(store_module, "_walk", swapping)
    stored = ArtifactStore(str(tmp_path / "store")).put_tree(Part(inside))
    assert stored.ref is None
    assert "not in this folder any more" in stored.left_out[0]
