"""``suanli policy``: look first, then change; and what was, stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.tools import Platform, running_platform


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of its own for each module: others count on the policy as it is."""
    with running_platform(tmp_path_factory.mktemp("policy-platform")) as running:
        yield running


def change(platform: Platform, document: str, *arguments: str, code: int = 0) -> str:
    result = platform.run("policy", "set", "-", *arguments, user="op", code=code, stdin=document)
    return result.stdout + result.stderr


def version(platform: Platform) -> int:
    return int(platform.data("policy", "show")["version"])


def test_before_and_after_the_first(platform: Platform) -> None:
    shown = platform.run("policy", "show")
    assert "built-in" in shown.stderr
    assert yaml.safe_load(shown.stdout)["name"] == "suanli"
    assert "No policy was put yet" in platform.run("policy", "history").stderr

    Path("policy.yaml").write_text("# the senate's\npreset: fair\norder: {shortness: 2.5}\n")
    platform.run("policy", "set", "policy.yaml", "--comment", "term 2", "--yes", user="op")

    shown = platform.run("policy", "show")
    assert shown.stdout == Path("policy.yaml").read_text()
    assert shown.stderr.startswith("Version 1, put at 20")
    assert "by op: term 2" in shown.stderr
    effective = yaml.safe_load(platform.run("policy", "show", "--effective").stdout)
    assert (effective["preset"], effective["order"]["shortness"]) == ("fair", 2.5)
    data = platform.data("policy", "show")
    assert (data["version"], data["author"], data["comment"]) == (1, "op", "term 2")
    assert yaml.safe_load(data["effective_yaml"]) == effective


def test_differences_are_shown_and_nothing_is_done_unasked(platform: Platform) -> None:
    change(platform, "preset: fair\n", "--yes")
    before = version(platform)

    said = change(platform, "preset: fair\nbackfill: {look: 99}\nspeed: {H100: 3}\n", code=6)

    assert f"--- version {before}\n+++ <stdin>" in said
    assert "-  look: 16\n+  look: 99\n" in said
    assert "warning: policy.speed: no node has an accelerator" in said
    assert "say it again with --yes" in said
    assert version(platform) == before
    assert "does not differ" in change(platform, "preset: fair\n# the same\n", code=6)
    said = change(platform, "preset: fair\nbackfill: {look: 99}\n", "--yes")
    assert f"Version {before + 1} is in force" in said
    assert "+  look: 99" in said


def test_a_check_changes_nothing(platform: Platform) -> None:
    change(platform, "preset: fair\n", "--yes")
    before = version(platform)
    Path("new.yaml").write_text("preset: fifo\npools: {west/x: {}}\n")

    checked = platform.run("policy", "check", "new.yaml", user="op")

    assert "new.yaml is a good policy." in checked.stderr
    assert 'warning: policy.pools: there is no pool "west/x"' in checked.stderr
    assert "-preset: fair\n-name: fair\n+preset: fifo\n+name: fifo\n" in checked.stdout
    data = platform.data("policy", "check", "new.yaml", user="op")
    assert (data["policy"]["version"], len(data["warnings"])) == (0, 1)
    assert version(platform) == before


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("order: [\n", "bad.yaml: policy (line 2, column 1): this is not readable YAML"),
        ("\norder:\n  shortnes: 1\n", "bad.yaml: policy.order.shortnes (line 3, column 3): there is no setting"),
        ("# " + "x" * 300_000, "bad.yaml is larger than 262,144 bytes"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(platform: Platform, document: str, said: str) -> None:
    Path("bad.yaml").write_text(document)
    for command in (("policy", "check", "bad.yaml"), ("policy", "set", "bad.yaml", "--yes")):
        assert said in platform.run(*command, user="op", code=2).stderr
    Path("bad.yaml").write_bytes(b"a: 1\n\xff")
    assert "bad.yaml:2: this is not UTF-8" in platform.run("policy", "check", "bad.yaml", user="op", code=2).stderr
    assert "No such file" in platform.run("policy", "check", "none.yaml", user="op", code=1).stderr


def test_presets(platform: Platform) -> None:
    assert [one["name"] for one in platform.data("policy", "presets")] == ["fair", "fifo", "shortest", "suanli"]
    assert "In order of submission" in platform.run("policy", "presets").stdout
    fifo = yaml.safe_load(platform.run("policy", "presets", "fifo").stdout)
    assert fifo["order"]["fair_levels"] == []
    assert yaml.safe_load(platform.data("policy", "presets", "fifo")["effective_yaml"]) == fifo
    assert "there are fair, fifo" in platform.run("policy", "presets", "best", code=3).stderr

    platform.run("policy", "set", "--preset", "fifo", "--yes", user="op")
    assert platform.run("policy", "show").stdout == "preset: fifo\n"
    assert "not a preset" in platform.run("policy", "set", "--preset", "best", "--yes", user="op", code=2).stderr
    platform.run("policy", "set", user="op", code=2)
    platform.run("policy", "set", "a.yaml", "--preset", "fifo", user="op", code=2)


def test_back_to_an_older_version(platform: Platform) -> None:
    change(platform, "preset: shortest # one\n", "--yes")
    old = version(platform)
    change(platform, "preset: fifo # two\n", "--yes", "--comment", "a try")

    assert "-preset: fifo\n" in platform.run("policy", "rollback", str(old), user="op", code=6).stdout
    platform.run("policy", "rollback", str(old), "--yes", user="op")

    assert platform.run("policy", "show").stdout == "preset: shortest # one\n"
    assert platform.run("policy", "show", "--version", str(old + 1)).stdout == "preset: fifo # two\n"
    newest, before, *_ = platform.data("policy", "history")
    assert (newest["version"], newest["comment"]) == (old + 2, f"Back to version {old}")
    assert (before["version"], before["comment"], before["author"]) == (old + 1, "a try", "op")
    assert [one["version"] for one in platform.data("policy", "history", "--limit", "2")] == [old + 2, old + 1]
    assert "a try" in platform.run("policy", "history").stdout
    assert "no version 999" in platform.run("policy", "rollback", "999", "--yes", user="op", code=3).stderr


def test_who_comes_second_is_told(platform: Platform) -> None:
    change(platform, "preset: fair # 1\n", "--yes")
    change(platform, "preset: fair # 2\n", "--yes")
    stale = version(platform) - 1

    said = change(platform, "preset: fifo\n", "--expect", str(stale), "--yes", code=6)

    assert f"at version {stale + 1} by now" in said
    change(platform, "preset: fifo\n", "--expect", str(stale + 1), "--yes")


def test_only_operators_change_it(platform: Platform) -> None:
    Path("policy.yaml").write_text("preset: fair\n")
    for user in ("ada", "ann", "fin"):
        platform.run("policy", "set", "policy.yaml", "--yes", user=user, code=4)
        platform.run("policy", "check", "policy.yaml", user=user, code=4)
        platform.run("policy", "history", user=user)


def test_help_has_examples(platform: Platform) -> None:
    for command in ("show", "check", "set", "presets", "history", "rollback"):
        assert f"suanli policy {command}" in platform.run("policy", command, "--help").stdout.partition("Options")[0]
