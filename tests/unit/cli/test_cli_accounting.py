"""``suanli budget``, ``month`` and ``ledger correct`` against the real control plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protos.suanli.v1 import budgets_pb2
from suanli.cli import asking
from suanli.cli.budgets import bar
from tests.unit.cli.tools import Platform, running_platform

PRICES = "currency: CNY\nrates: [{cpu_core_hour: 1000000}]\n"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of its own: others count on there being no prices and budgets."""
    with running_platform(tmp_path_factory.mktemp("accounting-platform")) as running:
        yield running


def put(platform: Platform, name: str, *arguments: str, user: str = "fin", code: int = 0) -> str:
    result = platform.run("budget", "set", name, *arguments, user=user, code=code)
    return result.stdout + result.stderr


def test_a_budget_from_its_beginning_to_its_end(platform: Platform) -> None:
    new = ("--institution", "uni-b", "--unit", "core-hours", "--to", "2999-01-01")
    assert "give --amount, too" in put(platform, "term", *new, code=2)
    shown = put(platform, "term", *new, "--amount", "1,250.5", "--title", "Term 1", "--thresholds", "10,100%")
    assert "1,250.5 core-hours" in shown
    assert "hard" in shown
    data = platform.data("budget", "show", "term", user="bob")
    assert (data["budget"]["amount"], data["budget"]["unit"], data["budget"]["thresholds"]) == (
        1_250_500,
        "CPU_CORE_HOURS",
        [10, 100],
    )
    assert data["available"] == 1_250_500
    # What is not given stays.
    put(platform, "term", "--amount", "0.001", "--soft")
    changed = platform.data("budget", "show", "term", user="fin")["budget"]
    assert (changed["amount"], changed["hard"], changed["title"]) == (1, False, "Term 1")
    assert changed["from_ms"] == data["budget"]["from_ms"]
    table = platform.run("budget", "list", user="ben").stdout
    assert "░" * 20 in table
    assert "ends 2999-01-01" in table
    assert "There is no budget." in platform.run("budget", "list", user="ada").stderr

    assert "closed" in platform.run("budget", "close", "term", user="fin").stdout
    assert platform.data("budget", "list", user="fin") == []
    assert [one["budget"]["id"] for one in platform.data("budget", "list", "--all", user="fin")] == ["term"]
    assert not platform.data("budget", "reopen", "term", user="fin")["budget"]["closed"]
    assert "No budget has passed" in platform.run("budget", "notices", user="ben").stderr
    assert "no budget 'none'" in platform.run("budget", "show", "none", code=3).stderr


def test_amounts_are_exact_or_refused(platform: Platform) -> None:
    new = ("--institution", "uni-b", "--to", "2999-01-01")
    for amount in ("0", "-1", "1e3", "NaN", "abc", "1" * 30, ""):
        assert "is no amount" in put(platform, "x", *new, "--unit", "gpu-hours", "--amount", amount, code=2)
    assert "finer than 0.001 gpu-hours" in put(platform, "x", *new, "--unit", "gpu-hours", "--amount", "0.0005", code=2)
    assert "no list of per cent" in put(platform, "x", *new, "--thresholds", "half", code=2)
    assert "price list" in put(platform, "x", *new, "--unit", "money", "--amount", "5", code=6)
    platform.run("price", "put", "-", user="fin", stdin=PRICES)
    assert "finer than 0.01 CNY" in put(platform, "x", *new, "--unit", "money", "--amount", "0.005", code=2)
    assert "1,234.50 CNY" in put(platform, "x", *new, "--unit", "money", "--amount", "1234.5")
    assert platform.data("budget", "show", "x", user="fin")["budget"]["amount"] == 123_450
    assert "cannot be changed" in put(platform, "x", "--unit", "gpu-hours", code=6)


def test_an_institutions_own(platform: Platform) -> None:
    new = ("--unit", "service-units", "--amount", "10", "--to", "2999-01-01")
    assert "only the platform limits" in put(platform, "mine", *new, user="ann", code=4)
    put(platform, "mine", *new, "--project", "default", user="fay")
    assert "uni-a/default" in platform.run("budget", "list", "--project", "default").stdout
    put(platform, "theirs", *new, "--project", "default", user="ada", code=4)


def test_a_record_is_shown_and_corrected(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.run("price", "put", "-", user="fin", stdin=PRICES)
    platform.run("wait", platform.submit("true"), "--timeout", "20s")
    record = platform.data("ledger", user="fin")[0]
    number = str(record["sequence"])
    change = ("ledger", "correct", number, "--reason", "wrong project")

    assert "Give what is to be otherwise" in platform.run(*change, user="fin", code=2).stderr
    platform.run(*change, "--credit", "--reverse", user="fin", code=2)
    unasked = platform.run(*change, "--cpu", "0.5", user="fin", code=6)
    assert record["job_id"] in unasked.stdout
    assert "say it again with --yes" in unasked.stderr
    monkeypatch.setattr(asking, "at_terminal", lambda: True)
    refused = platform.run(*change, "--cpu", "0.5", user="fin", code=6, stdin="n\n")
    assert "the same with cpu 0.5 stands in its place. Post this correction? [y/N]" in refused.output
    assert len(platform.data("ledger", user="fin")) == 1

    done = platform.run(*change, "--cpu", "0.5", user="fin", stdin="y\n")
    assert "reversal" in done.stdout
    assert "correction" in done.stdout
    _, back, instead = platform.data("ledger", user="fin")
    assert (back["cpu_milli"], instead["cpu_milli"], instead["reason"]) == (-record["cpu_milli"], 500, "wrong project")
    assert "corrected before" in platform.run(*change, "--reverse", "--yes", user="op", code=6).stderr
    credit = ("ledger", "correct", str(instead["sequence"]), "--reason", "goodwill", "--credit", "--yes")
    (credited,) = platform.data(*credit, user="fin")
    assert (credited["kind"], credited["cost_units"]) == ("CREDIT", f"-{instead['cost_units']}")
    assert (
        "no ledger record 9999"
        in platform.run("ledger", "correct", "9999", "--reason", "x", "--reverse", user="fin", code=3).stderr
    )
    platform.run(*change, "--reverse", "--yes", user="ann", code=4)


def test_months(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "say it again with --yes" in platform.run("month", "close", "2020-01", user="fin", code=6).stderr
    monkeypatch.setattr(asking, "at_terminal", lambda: True)
    platform.run("month", "close", "2020-01", user="fin", code=6, stdin="n\n")
    asked = platform.run("month", "close", "2020-01", user="fin", stdin="y\n")
    assert "Close 2020-01 for good?" in asked.output
    month = platform.data("month", "close", "2020-01", "--yes", user="op")
    assert (month["month"], month["closed"], month["author"], len(month["digest"])) == ("2020-01", True, "fin", 64)
    assert month in platform.data("month", "list", user="fay")
    assert month["digest"][:16] in platform.run("month", "list", user="fay").stdout
    assert "not over yet" in platform.run("month", "close", "2999-01", "--yes", user="fin", code=6).stderr
    assert "is no month" in platform.run("month", "close", "2020-1", user="fin", code=2).stderr
    platform.run("month", "close", "2020-02", "--yes", user="fay", code=4)


@pytest.mark.parametrize(
    ("spent", "running", "committed", "drawn"),
    [
        (0, 0, 0, "░░░░░░░░░░"),
        (500, 200, 100, "█████▓▓▒░░"),
        (333, 333, 333, "███▓▓▓▒▒▒░"),
        (999, 0, 0, "█████████░"),
        (1_000, 0, 500, "██████████"),
        (5_000, 5_000, 0, "██████████"),
    ],
)
def test_a_bar_is_as_wide_as_the_budget(spent: int, running: int, committed: int, drawn: str) -> None:
    budget = budgets_pb2.Budget(amount=1_000)
    status = budgets_pb2.BudgetStatus(budget=budget, spent=spent, running=running, committed=committed)
    assert bar(status, 10) == drawn
