"""Statements as one HTML page that needs nothing beside it and prints on A4."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from protos.suanli.v1 import statements_pb2
from suanli.reports import chart, figures
from suanli.reports.sheet import Fact, LineRow, ProjectRow, Sheet, Use
from suanli.reports.words import Language

_CHART_WIDTH, _CHART_HEIGHT = 540.0, 110.0
_LEFT_LINE_COLUMNS = 6
_FONTS = "system-ui, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_HTML_LANGUAGE = {"en": "en", "zh": "zh-CN"}


def html(statement: statements_pb2.GetStatementResponse, language: Language = "en") -> str:
    """The whole statement."""
    sheet = Sheet(statement, language)
    words = sheet.words
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    title = f"{words('title')} {statement.number}"
    sections = [
        _head(sheet),
        f'<div class="side"><dl>{_facts(sheet.facts)}</dl><div class="scroll">{_totals(sheet)}</div></div>',
        _resources(sheet),
        _projects(sheet),
        _charts(sheet),
        f"<h2>{escape(words('lines'))}</h2>{_lines(sheet)}",
        f'<section class="proof"><h2>{escape(words("evidence"))}</h2><dl>{_facts(sheet.evidence)}</dl></section>',
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in sheet.notes)}</ul>',
    ]
    return (
        f'<!doctype html>\n<html lang="{_HTML_LANGUAGE[language]}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}{_margins(sheet)}</style></head><body><main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


def _margins(sheet: Sheet) -> str:
    """What is printed above and below each page; the number is an identifier and needs no escape."""
    before, between, after = (part.strip() for part in sheet.words("page", "|", "|").split("|"))
    pages = f'"{before} " counter(page) " {between} " counter(pages) "{f" {after}" if after else ""}"'
    font = f"font: 8px {_FONTS}; color: #5b6776;"
    return (
        f'@page {{ @top-left {{ content: "{sheet.statement.number}"; {font} }} '
        f'@top-right {{ content: "{sheet.status}"; {font} }} '
        f'@bottom-left {{ content: "SHA-256 {sheet.statement.digest.hex()}"; {font} }} '
        f"@bottom-right {{ content: {pages}; {font} }} }}\n"
    )


def _head(sheet: Sheet) -> str:
    kind = "final" if sheet.statement.final else "provisional"
    return (
        f"<header><div><h1>{escape(sheet.words('title'))}</h1>"
        f'<div class="who">{escape(sheet.institution)} · {escape(sheet.statement.month)}</div></div>'
        f'<span class="badge {kind}">{escape(sheet.status)}</span></header>'
    )


def _facts(facts: Iterable[Fact]) -> str:
    return "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd>" for fact in facts)


def _totals(sheet: Sheet) -> str:
    rows = (
        f"<tr{' class=strong' if total.strong else ''}><td>{escape(total.name)}</td>{_num(total.amount)}</tr>"
        for total in sheet.totals
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _resources(sheet: Sheet) -> str:
    words = sheet.words
    if not sheet.resources:
        return f'<p class="soft">{escape(words("nothing"))}</p>'
    rows = "".join(
        f"<tr><td>{escape(row.name)}</td>{_num(row.quantity)}{_num(row.amount)}</tr>" for row in sheet.resources
    )
    heads = f"<th>{escape(words('resource'))}</th>{_num(words('held'), 'th')}{_num(words('amount'), 'th')}"
    return f'<h2>{escape(words("by_resource"))}</h2><div class="scroll">{_table(heads, rows)}</div>'


def _projects(sheet: Sheet) -> str:
    words = sheet.words
    if not sheet.projects:
        return ""
    uses = "".join(f"{_num(words(name), 'th')}<th>{escape(words('used'))}</th>" for name in ("cpu", "memory", "gpu"))
    heads = f"<th>{escape(words('project'))}</th>{uses}{_num(words('attempts'), 'th')}{_num(words('amount'), 'th')}"
    rows = "".join(map(_project, sheet.projects))
    return (
        f"<h2>{escape(words('projects'))}</h2>"
        f'<div class="scroll">{_table(heads, rows)}</div><h3>{escape(words("efficiency"))}</h3>'
    )


def _project(row: ProjectRow) -> str:
    name = f"{escape(row.title)}<br><span class=soft>{escape(row.project)}</span>" if row.title else escape(row.project)
    uses = "".join(_use(use, color) for use, color in zip(row.uses, chart.COLORS, strict=True))
    return f"<tr><td>{name}</td>{uses}{_num(row.attempts)}{_num(row.amount)}</tr>"


def _use(use: Use, color: str) -> str:
    if use.used is None:
        return f"{_num(use.hours)}<td></td>"
    wide = min(100.0, float(use.used * 100))
    bar = f'<i><b style="width:{wide:.1f}%;background:{color}"></b></i>'
    return f'{_num(use.hours)}<td><div class="meter">{bar}<span>{figures.share_text(use.used)}</span></div></td>'


def _charts(sheet: Sheet) -> str:
    if not sheet.panels:
        return ""
    parts = [f"<h2>{escape(sheet.words('by_day'))}</h2>"]
    for panel in sheet.panels:
        shapes = chart.bars(panel.values, panel.color, _CHART_WIDTH, _CHART_HEIGHT)
        parts.append(f"<h3>{escape(panel.title)}</h3>{chart.svg(shapes, _CHART_WIDTH, _CHART_HEIGHT, panel.title)}")
    return "".join(parts)


def _lines(sheet: Sheet) -> str:
    if not sheet.groups:
        return f'<p class="soft">{escape(sheet.words("nothing"))}</p>'
    rows = []
    for group in sheet.groups:
        name = " · ".join(filter(None, (group.charge, group.project)))
        rows.append(
            f'<tr class="group"><td colspan="{len(LineRow._fields) - 1}">{escape(name)}</td>{_num(group.subtotal)}</tr>'
        )
        rows += [f"<tr>{_cells(line, 'td')}</tr>" for line in group.lines]
    total = sheet.money(sheet.statement.total_minor)
    rows.append(
        f'<tr class="strong"><td colspan="{len(LineRow._fields) - 1}">{escape(sheet.words("total"))}</td>{_num(total)}</tr>'
    )
    return f'<div class="scroll">{_table(_cells(sheet.line_titles, "th"), "".join(rows))}</div>'


def _cells(row: LineRow, tag: str) -> str:
    return "".join(
        f"<{tag}>{escape(cell)}</{tag}>" if 0 < index < _LEFT_LINE_COLUMNS else _num(cell, tag)
        for index, cell in enumerate(row)
    )


def _num(text: str, tag: str = "td") -> str:
    return f'<{tag} class="num">{escape(text)}</{tag}>'


def _table(heads: str, rows: str) -> str:
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
