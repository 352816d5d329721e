"""`suanli artifacts`, and the quota on them."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.tools import Platform


def job_with_folder(platform: Platform, folder: Path, user: str = "ada") -> str:
    folder.mkdir()
    (folder / "a.txt").write_text(f"of {user}, {folder.name}" * 100)
    (folder / "b.txt").write_text("b")
    job = platform.submit("--folder", str(folder), "true", user=user)
    platform.run("wait", job, "--timeout", "20s", user=user)
    return job


def test_what_is_kept_is_listed_measured_and_deleted(platform: Platform, tmp_path: Path) -> None:
    job_with_folder(platform, tmp_path / "f1")
    found = platform.data("artifacts", "list", "--sort", "size", "--kind", "upload")
    sizes = [int(one["size_bytes"]) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert {one["user"] for one in found} == {"ada"}
    table = platform.run("artifacts", "list", "--kind", "upload", "--limit", "1").stdout
    assert "SIZE" in table
    assert found[0]["digest"] in platform.run("artifacts", "list", "-o", "json").stdout
    usage = platform.run("artifacts", "usage").stdout
    assert "uni-a/default" in usage
    assert "no limit" in usage

    assert "Say what to delete" in platform.run("artifacts", "delete", code=2).stderr
    digest = found[0]["digest"]
    tried = platform.data("artifacts", "delete", digest, "--dry-run")
    assert (tried["items"], tried["size_bytes"], tried["dry_run"]) == (1, sizes[0], True)
    assert "--yes" in platform.run("artifacts", "delete", digest, code=6).stderr
    assert platform.data("artifacts", "delete", digest, "--yes")["items"] == 1
    assert "0 things" in platform.run("artifacts", "delete", digest, "--yes").stderr
    assert digest not in platform.run("artifacts", "list", "-o", "json").stdout
    assert platform.data("artifacts", "delete", "--kind", "upload", "--older-than", "1d", "--dry-run")["items"] == 0


def test_others_see_their_own(platform: Platform, tmp_path: Path) -> None:
    job_with_folder(platform, tmp_path / "f2", "bob")
    assert {one["user"] for one in platform.data("artifacts", "list", user="bob")} == {"bob"}
    assert "bob" not in platform.run("artifacts", "list").stdout
    assert "NO_INSTITUTION" not in platform.run("artifacts", "list", user="op", code=2).stderr
    assert platform.data("artifacts", "list", "--institution", "uni-b", user="op")


def test_a_quota_on_storage(platform: Platform, tmp_path: Path) -> None:
    platform.run("institution", "create", "uni-s", user="op")
    first = platform.data("quota", "set", "uni-s", "--stored", "1GiB", user="op")
    assert (first["stored_mib"], first["cpu_milli"]) == (1024, -1)
    assert platform.data("quota", "set", "uni-s", "--cpus", "1", user="op")["stored_mib"] == 1024
    assert "0 B / 1 GiB" in platform.run("quota", "list", "--institution", "uni-s", user="op").stdout
    try:
        platform.run("quota", "set", "uni-a", "--stored", "0", user="op")
        folder = tmp_path / "f3"
        folder.mkdir()
        (folder / "new").write_text("something new")
        refused = platform.run("submit", "--folder", str(folder), "true", code=6).stderr
        assert "suanli artifacts delete" in refused
    finally:
        platform.run("quota", "set", "uni-a", "--stored", "none", user="op")
    platform.submit("--folder", str(folder), "true")
