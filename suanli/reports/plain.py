"""Statements for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from protos.suanli.v1 import statements_pb2
from suanli.reports import figures
from suanli.reports.sheet import Fact, Sheet
from suanli.reports.words import Language

_GAP = "  "
_LEFT_LINE_COLUMNS = 6
"""The first columns of lines are words; figures follow."""


def text(statement: statements_pb2.GetStatementResponse, language: Language = "en") -> str:
    """The whole statement; CJK characters count as two."""
    sheet = Sheet(statement, language)
    words = sheet.words
    parts = [
        [f"{words('title')} {statement.number} [{sheet.status}]"],
        _facts(sheet.facts),
        _table([(total.name, total.amount) for total in sheet.totals], 1),
    ]
    if sheet.resources:
        heads = (words("by_resource"), words("held"), words("amount"))
        parts.append(_table([heads, *((row.name, row.quantity, row.amount) for row in sheet.resources)], 1))
    if sheet.projects:
        parts.append(_projects(sheet))
    parts.append(_lines(sheet) if sheet.groups else [words("nothing")])
    parts.append(_facts(sheet.evidence))
    parts.append(list(sheet.notes))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _projects(sheet: Sheet) -> list[str]:
    words = sheet.words
    uses = [cell for name in ("cpu", "memory", "gpu") for cell in (words(name), words("used"))]
    rows = [(words("project"), "", *uses, words("attempts"), words("amount"))]
    for row in sheet.projects:
        cells = [cell for use in row.uses for cell in (use.hours, figures.share_text(use.used))]
        rows.append((row.project, row.title, *cells, row.attempts, row.amount))
    return _table(rows, 2)


def _lines(sheet: Sheet) -> list[str]:
    words = sheet.words
    rows: list[Sequence[str]] = [(words("project"), *sheet.line_titles)]
    for group in sheet.groups:
        rows += [(f"{group.charge} {group.project}".strip(), *line) for line in group.lines]
    return _table(rows, _LEFT_LINE_COLUMNS + 1)


def _facts(facts: Iterable[Fact]) -> list[str]:
    return _table([(fact.name, fact.value) for fact in facts], 2)


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows with columns as wide as they need to be: the first ``left`` flush left, the others right."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(cell + space if index < left else space + cell)
        lines.append(_GAP.join(cells).rstrip())
    return lines
