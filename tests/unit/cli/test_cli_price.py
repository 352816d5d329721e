"""``suanli price``: prices are checked, put and shown, and a job's cost is told before it is submitted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.tools import Platform, running_platform

LIST = "# the senate's\ncurrency: CNY\nrates:\n  - {cpu_core_hour: 0.25, memory_gib_hour: 0.01}\n"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of its own for each module, others count on there being no prices; with a first list in force."""
    with running_platform(tmp_path_factory.mktemp("price-platform")) as running:
        assert "no price list yet" in running.run("price", "list").stderr
        assert "No price list is in force" in running.run("price", "show", code=3).stderr
        assert "There is no price list yet" in running.run("price", "estimate", "--", "true").stderr
        done = running.run("price", "put", "-", "--comment", "term 2", user="fin", stdin=LIST)
        assert "Version 1 (CNY) is in force from 20" in done.stderr
        yield running


def test_what_is_in_force_is_shown(platform: Platform) -> None:
    shown = platform.run("price", "show", "--version", "1")
    assert shown.stdout == LIST
    assert "Version 1, for the time from 20" in shown.stderr
    assert "by fin: term 2" in shown.stderr
    effective = yaml.safe_load(platform.run("price", "show", "--effective").stdout)
    assert effective["rates"] == [{"cpu_core_hour": "0.25", "memory_gib_hour": "0.01", "gpu_hour": "0"}]
    data = platform.data("price", "show", "--version", "1")
    assert (data["version"], data["currency"], data["author"], data["to_ms"]) == (1, "CNY", "fin", 0)
    assert json.loads(data["effective"]) == effective
    assert yaml.safe_load(platform.run("price", "show", "--version", "1", "-o", "yaml").stdout) == data
    assert "no version 99" in platform.run("price", "show", "--version", "99", code=3).stderr


def test_a_list_for_later_leaves_the_present_as_it_is(platform: Platform) -> None:
    done = platform.run("price", "put", "-", user="op", stdin=LIST + "from: 2999-01-01\nto: 3000-01-01\n")
    assert "is in force from 2999-01-01T00:00:00Z until 3000-01-01T00:00:00Z" in done.stderr
    assert platform.data("price", "show")["version"] == 1
    newest, *_ = platform.data("price", "list")
    assert (newest["from_ms"], newest["document"]) == (32_472_144_000_000, "")
    assert "2999-01-01T00:00:00Z" in platform.run("price", "list").stdout
    assert len(platform.data("price", "list", "--limit", "1")) == 1


def test_a_check_shows_the_difference_and_changes_nothing(platform: Platform) -> None:
    platform.run("price", "put", "-", user="op", stdin=LIST + "from: 2998-01-01\n")
    before = platform.data("price", "list")
    Path("new.yaml").write_text(LIST.replace("0.25", "0.30") + "discounts: [{institution: nobody, percent: 5}]\n")

    checked = platform.run("price", "check", "new.yaml", user="op")

    assert "-- cpu_core_hour: '0.25'\n+- cpu_core_hour: '0.3'\n" in checked.stdout
    assert 'warning: prices.discounts[0].institution: there is no institution "nobody"' in checked.stderr
    assert "new.yaml is a good price list; it would be in force from 20" in checked.stderr
    data = platform.data("price", "check", "new.yaml", user="op")
    assert data["price_list"]["version"] == 0
    assert f"version {before[0]['version']}, which was to be in force from 2998-01-01 on" in data["warnings"][0]
    assert platform.data("price", "list") == before


@pytest.mark.parametrize(
    ("document", "code", "said"),
    [
        ("rates: [\n", 2, "bad.yaml: prices (line 2, column 1): this is not readable YAML"),
        (
            "currency: CNY\nrates:\n  - gpu_hours: 1\n",
            2,
            "bad.yaml: prices.rates[0].gpu_hours (line 3, column 5): there",
        ),
        ("# " + "x" * 300_000, 2, "bad.yaml is larger than 262,144 bytes"),
        (LIST + "from: 2020-01-01\n", 6, "prices.from: 2020-01-01 has passed"),
        (LIST.replace("CNY", "JPY"), 6, "the platform's prices are in CNY"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(platform: Platform, document: str, code: int, said: str) -> None:
    Path("bad.yaml").write_text(document)
    for command in ("check", "put"):
        assert said in platform.run("price", command, "bad.yaml", user="op", code=code).stderr
    assert "No such file" in platform.run("price", "check", "none.yaml", user="op", code=1).stderr


def test_who_may_not_put_one(platform: Platform) -> None:
    Path("prices.yaml").write_text(LIST)
    for user in ("ada", "ann", "fay"):
        platform.run("price", "put", "prices.yaml", user=user, code=4)
        platform.run("price", "list", user=user)


def test_what_a_job_would_cost(platform: Platform) -> None:
    options = ("--cpus", "2", "--memory", "4GiB", "--max-runtime", "59m", "--grace-period", "1m")
    table = platform.run("price", "estimate", *options, "--", "python", "-c", "pass").stdout.splitlines()

    # An hour of 2 cores at 0.25 and 4 GiB at 0.01.
    assert table[0].split() == ["POOL", "GPU", "TYPE", "AT", "MOST", "IN", "EXPECTED", "IN"]
    assert table[1].split()[:4] == ["east/cpu", "0.54", "CNY", "1h"]
    Path("job.yaml").write_text(
        "command: [python, -c, pass]\ncpus: 2\nmemory: 4GiB\nmax_runtime: 59m\ngrace_period: 1m\n"
    )
    array = platform.run("price", "estimate", "-f", "job.yaml", "--array", "10000").stdout.splitlines()
    assert array[1].split()[1:3] == ["5,400.00", "CNY"]
    data = platform.data("price", "estimate", "-f", "job.yaml")
    assert int(data["estimates"][0]["max_cost_units"]) == 54 * int(data["cost_units_per_minor"])
    tiny = platform.run(
        "price", "estimate", "--cpus", "10m", "--memory", "1MiB", "--max-runtime", "1m", "--", "true"
    ).stdout
    # 90 seconds of a 100th of a core and a 1024th of a GiB: 0.0000625 and 0.000000244 yuan.
    assert "0.000063 CNY" in tiny


def test_what_cannot_be_estimated(platform: Platform) -> None:
    assert "Nothing to run" in platform.run("price", "estimate", code=2).stderr
    Path("two.yaml").write_text("command: [a]\n---\ncommand: [b]\n")
    assert "has 2 jobs" in platform.run("price", "estimate", "-f", "two.yaml", code=2).stderr
    Path("large.yaml").write_text("command: [a]\ncpus: 1000\n")
    assert "large.yaml" in platform.run("price", "estimate", "-f", "large.yaml", code=6).stderr
    assert platform.data("ps") == []


def test_help_has_examples(platform: Platform) -> None:
    for command in ("put", "check", "show", "list", "estimate"):
        assert f"suanli price {command}" in platform.run("price", command, "--help").stdout.partition("Options")[0]
