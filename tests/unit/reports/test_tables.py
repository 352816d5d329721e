"""Statements as CSV and JSON, and the check of the latter."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from suanli.reports import tables, verifying
from tests.unit.reports.samples import statement


def changed(path: list[str | int], value: Any) -> str:
    data = tables.data(statement())
    at: Any = data
    for step in path[:-1]:
        at = at[step]
    assert at[path[-1]] != value
    at[path[-1]] = value
    return json.dumps(data)


def test_csv_has_the_lines_exactly() -> None:
    one = statement()
    text = tables.csv_text(one)

    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert text.endswith("\r\n")
    assert text.count("\r\n") == len(one.lines) + 1
    assert [row["charge"] for row in rows] == [line.charge for line in one.lines]
    assert {row["charge"] for row in rows} == {"usage", "correction", "credit", "free"}
    assert sum(Decimal(row["amount"]) for row in rows) == Decimal(one.total_minor) / 100
    for row, line in zip(rows, one.lines, strict=True):
        assert (row["quantity_ms"], row["exact_cost_units"]) == (line.quantity_ms, line.exact_cost_units)
        assert int(row["amount_minor"]) == line.amount_minor
    free = next(row for row in rows if row["charge"] == "free")
    assert (free["rate"], free["unit_price"], free["project"]) == ("", "", "")
    assert rows[0]["unit_price"] == "0.05"
    assert rows[0]["discount_percent"] == "2.50"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert tables.guarded(text) == f"'{text}"
    assert tables.guarded(f"a{text}") == f"a{text}"


def test_titles_are_guarded_and_figures_are_not() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(statement()), newline="")))
    assert {row["project_title"] for row in rows} == {"考试与测评实验室", "'=HYPERLINK(1)", ""}
    assert any(row["amount"].startswith("-") for row in rows)


def test_json_is_whole_and_agrees_with_itself() -> None:
    one = statement(energy=True)
    found, problems = verifying.problems(tables.json_text(one))

    assert problems == []
    assert set(found) == {field.name for field in one.DESCRIPTOR.fields}
    assert found["digest"] == one.digest.hex()
    assert found["head_hash"] == one.head_hash.hex()
    assert found["cpu_milli_ms_by_day"] == list(one.cpu_milli_ms_by_day)
    assert found["lines"][0]["exact_cost_units"] == one.lines[0].exact_cost_units
    assert found["projects"][0]["title"] == "考试与测评实验室"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["number"], "other-2026-10", "the digest is"),
        (["currency"], "USD", "the digest is"),
        (["ledger_sequence"], 4712, "the digest is"),
        (["head_hash"], "00" * 32, "the digest is"),
        (["lines", 2, "project"], "other", "the amount of project"),
        (["lines", 0, "amount_minor"], 1, "the amount of line 1 is not its exact cost, rounded"),
        (["lines", 0, "quantity"], "1.000000", "the quantity of line 1"),
        (["lines", 0, "exact_cost_units"], "1", "the exact cost of line 1"),
        (["lines", 0, "discount_bp"], 0, "the exact cost of line 1"),
        (["lines", 0, "unit_price_micro"], 1, "the exact cost of line 1"),
        (["lines", 1, "number"], 7, "line 2 has the number 7"),
        (["total_minor"], 1, "the total is not"),
        (["projects", 0, "amount_minor"], 1, "the amount of project exam-lab"),
    ],
)
def test_what_was_changed_is_found(path: list[str | int], value: Any, words: str) -> None:
    _, problems = verifying.problems(changed(path, value))
    assert any(words in problem for problem in problems), problems


def test_the_digest_can_be_reckoned_as_the_manual_says(tmp_path: Path) -> None:
    manual = Path(__file__).resolve().parents[3] / "docs/howto/statements.md"
    (program,) = re.findall(r"```python\n(.*?)```", manual.read_text("utf-8"), re.S)
    for name, text, answer in (
        ("true.json", tables.json_text(statement()), "True\n"),
        ("false.json", changed(["total_minor"], 1), "False\n"),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == answer


def test_titles_and_days_are_not_in_the_digest() -> None:
    assert verifying.problems(changed(["institution_title"], "Another"))[1] == []
    assert verifying.problems(changed(["cpu_milli_ms_by_day", 0], "1"))[1] == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"digest": 1}', "[" * 100_000, changed(["lines"], 5), changed(["lines", 0], 5),
     changed(["lines", 0, "resource"], "disk"), changed(["lines", 0, "quantity_ms"], "x"),
     changed(["cost_units_per_minor"], "0"), changed(["projects"], None)],
)  # fmt: skip
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(verifying.NotAStatement):
        verifying.problems(text)
