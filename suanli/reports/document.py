"""Statements as PDF. Needs ``reportlab`` (the extra ``reports``); nothing is embedded or downloaded.

Text is set in Helvetica, and what that has no glyphs for in STSong-Light, one of the fonts of Adobe's Asian font packs that readers of PDF
bring or replace. The same statement gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from reportlab.graphics.shapes import Drawing, Line, Rect, String
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    LongTable,
    PageBreak,
    PageTemplate,
    Spacer,
    Table,
)

from protos.suanli.v1 import statements_pb2
from suanli.reports import chart, figures
from suanli.reports.document_text import (
    BOLD,
    PADDING,
    PLAIN,
    SIZE,
    SMALL,
    Banner,
    Meter,
    cell,
    draw,
    paragraph,
    shortened,
    width_of,
)
from suanli.reports.sheet import Fact, Group, LineRow, ProjectRow, Sheet
from suanli.reports.words import Language

_MARGIN = 13 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_FIRST_TOP, _TOP, _BOTTOM = 12 * mm, 19 * mm, 17 * mm
_CHART_HEIGHT = 88.0
_TITLE, _HEADING = 20.0, 10.5
_GOOD, _WAIT = "#1f7a4d", "#a15c00"
_LEFT_LINE_COLUMNS = 6
_ROWS_OF_A_TABLE = 1000
_LANGUAGES = {"en": "en-GB", "zh": "zh-CN"}
# Widths of columns, in mm; each list adds up to the width between the margins, 184.
_LINE_MM = (9, 13, 31, 21, 18, 22, 24, 10, 16, 10, 10)
_PROJECT_MM = (34, 21, 20, 21, 20, 19, 20, 16, 13)
_RESOURCE_MM = (104, 40, 40)


def pdf(statement: statements_pb2.GetStatementResponse, language: Language = "en") -> bytes:
    """The whole statement."""
    sheet = Sheet(statement, language)
    buffer = io.BytesIO()
    template = BaseDocTemplate(
        buffer,
        pagesize=A4,
        title=f"{sheet.words('title')} {statement.number}",
        author=sheet.institution,
        subject=f"SHA-256 {statement.digest.hex()}",
        creator="Suanli",
        lang=_LANGUAGES[language],
        invariant=1,
    )
    # The first page has its title where the others have a running head.
    template.addPageTemplates([_page("first", _FIRST_TOP), _page("later", _TOP)])
    template.build(_story(sheet), canvasmaker=_numbering(sheet))
    return buffer.getvalue()


def _page(name: str, top: float) -> PageTemplate:
    frame = Frame(_MARGIN, _BOTTOM, _WIDTH, A4[1] - top - _BOTTOM, 0, 0, 0, 0)
    return PageTemplate(name, [frame], autoNextPageTemplate="later")


def _story(sheet: Sheet) -> list[Flowable]:
    words = sheet.words
    story: list[Flowable] = [_Title(sheet), Spacer(0, 8), _side_by_side(sheet)]
    if not sheet.groups:
        story += [Spacer(0, 10), paragraph(words("nothing"), color=chart.SOFT)]
    if sheet.resources:
        story.append(KeepTogether([_heading(words("by_resource")), _resources(sheet)]))
    if sheet.projects:
        story += [CondPageBreak(30 * mm), _heading(words("projects")), _projects(sheet)]
        story += [Spacer(0, 3), paragraph(words("efficiency"), size=SMALL, color=chart.SOFT)]
    for panel in sheet.panels:
        shapes = chart.bars(panel.values, panel.color, _WIDTH, _CHART_HEIGHT)
        story.append(KeepTogether([_heading(panel.title), _drawing(shapes, _WIDTH, _CHART_HEIGHT)]))
    if sheet.groups:
        story += [CondPageBreak(40 * mm), _heading(words("lines")), *_lines(sheet)]
    proof = [_heading(words("evidence")), _facts(sheet.evidence, 38 * mm, _WIDTH - 38 * mm, SMALL)]
    notes = [paragraph(note, size=SMALL, color=chart.SOFT) for note in sheet.notes]
    story.append(KeepTogether([*proof, Spacer(0, 6), *notes]))
    return story


class _Title(Flowable):  # type: ignore[misc]
    """What it is, whose, and whether it is final."""

    def __init__(self, sheet: Sheet) -> None:
        super().__init__()
        self._sheet = sheet

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:
        """Over the whole width."""
        del available_width, available_height
        return _WIDTH, 48

    def draw(self) -> None:
        """Draw it."""
        sheet, canvas = self._sheet, self.canv
        canvas.setFillColor(HexColor(chart.INK))
        draw(canvas, 0, 26, sheet.words("title"), BOLD, _TITLE)
        canvas.setFillColor(HexColor(chart.SOFT))
        month = f" · {sheet.statement.month}"
        room = _WIDTH - width_of(month, PLAIN, _HEADING)
        draw(canvas, 0, 10, shortened(sheet.institution, room, PLAIN, _HEADING) + month, PLAIN, _HEADING)
        color = HexColor(_status_color(sheet))
        wide = width_of(sheet.status, BOLD, 9) + 18
        canvas.setStrokeColor(color)
        canvas.setLineWidth(1.1)
        canvas.roundRect(_WIDTH - wide, 24, wide, 17, 8.5)
        canvas.setFillColor(color)
        draw(canvas, _WIDTH - wide + 9, 29.4, sheet.status, BOLD, 9)
        canvas.setStrokeColor(HexColor(chart.INK))
        canvas.line(0, 0, _WIDTH, 0)


def _status_color(sheet: Sheet) -> str:
    return _GOOD if sheet.statement.final else _WAIT


def _heading(text: str) -> Flowable:
    found = paragraph(text, font=BOLD, size=_HEADING)
    found.spaceBefore, found.spaceAfter = 13, 4
    return found


def _side_by_side(sheet: Sheet) -> Table:
    left, right = _WIDTH * 0.52, _WIDTH * 0.48
    facts = _facts(sheet.facts, 33 * mm, left - 39 * mm)
    outer = Table([[facts, _totals(sheet, right)]], [left, right])
    outer.setStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), *_padding(0, 0)])
    return outer


def _facts(facts: Iterable[Fact], name: float, value: float, size: float = SIZE) -> Table:
    rows = [[paragraph(fact.name, color=chart.SOFT), paragraph(fact.value, size=size)] for fact in facts]
    table = Table(rows, [name, value], hAlign="LEFT")
    table.setStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), *_padding(0, 1.4)])
    return table


def _totals(sheet: Sheet, width: float) -> Table:
    wide = width - 34 * mm
    rows: list[list[Any]] = []
    style: list[Any] = [*_body(headed=False), *_padding(PADDING, 2.2), ("ALIGN", (1, 0), (1, -1), "RIGHT")]
    for at, total in enumerate(sheet.totals):
        if total.strong:
            rows.append([Banner(total.name, wide, 10), total.amount])
            style += [
                ("FONT", (0, at), (-1, at), BOLD, 10),
                ("LINEABOVE", (0, at), (-1, at), 1, HexColor(chart.INK)),
                ("LINEBELOW", (0, at), (-1, at), 1, HexColor(chart.INK)),
                *(("TOPPADDING", (0, at), (-1, at), 4), ("BOTTOMPADDING", (0, at), (-1, at), 4)),
            ]
        else:
            rows.append([paragraph(total.name), total.amount])
    table = Table(rows, [wide, width - wide])
    table.setStyle(style)
    return table


def _resources(sheet: Sheet) -> Table:
    words = sheet.words
    widths = [each * mm for each in _RESOURCE_MM]
    rows = [_heads((words("resource"), words("held"), words("amount")), 1)]
    rows += [[cell(row.name, widths[0]), row.quantity, row.amount] for row in sheet.resources]
    table = Table(rows, widths)
    table.setStyle([*_body(), *_padding(PADDING, 2.2), ("ALIGN", (1, 1), (-1, -1), "RIGHT")])
    return table


def _projects(sheet: Sheet) -> LongTable:
    words = sheet.words
    widths = _fitted(_PROJECT_MM, (sheet.money(sheet.statement.total_minor), *(row.amount for row in sheet.projects)))
    names = [name for resource in ("cpu", "memory", "gpu") for name in (resource, "used")]
    heads = _heads((words("project"), *map(words, names), words("attempts"), words("amount")), 1)
    for column in (2, 4, 6):
        heads[column] = _head_cell(words("used"), False)
    rows = [heads, *(_project(row, widths) for row in sheet.projects)]
    table = LongTable(rows, widths, repeatRows=1)
    table.setStyle([*_body(), *_padding(PADDING, 2.4), ("ALIGN", (1, 1), (-1, -1), "RIGHT")])
    return table


def _project(row: ProjectRow, widths: Sequence[float]) -> list[Any]:
    name: list[Any] = [paragraph(row.title or row.project)]
    if row.title:
        name.append(paragraph(row.project, size=SMALL, color=chart.SOFT))
    cells: list[Any] = [name]
    for index, (use, color) in enumerate(zip(row.uses, chart.COLORS, strict=True)):
        cells.append(cell(use.hours, widths[1 + 2 * index], right=True))
        room = widths[2 + 2 * index] - 2 * PADDING
        words = figures.share_text(use.used)
        cells.append("" if use.used is None else Meter(float(use.used), words, color, room))
    return [*cells, row.attempts, row.amount]


def _lines(sheet: Sheet) -> list[Flowable]:
    """All lines below their groups, as one table; of very many, as several that each begin a page, because the work on one grows with
    its square."""
    amounts = [line.amount for group in sheet.groups for line in group.lines]
    total = sheet.money(sheet.statement.total_minor)
    widths = _fitted(_LINE_MM, [*amounts, *(group.subtotal for group in sheet.groups), total])
    tables = [_LineTable(sheet, widths)]
    for group in sheet.groups:
        if len(tables[-1].rows) > _ROWS_OF_A_TABLE:
            tables.append(_LineTable(sheet, widths))
        tables[-1].add(group)
    tables[-1].close(sheet.words("total"), total)
    story: list[Flowable] = []
    for table in tables:
        story += [PageBreak(), table.table()] if story else [table.table()]
    return story


class _LineTable:
    """Takes groups of lines."""

    def __init__(self, sheet: Sheet, widths: Sequence[float]) -> None:
        self._widths = widths
        self._last = len(LineRow._fields) - 1
        titles = enumerate(sheet.line_titles)
        self.rows: list[list[Any]] = [
            [_head_cell(title, not 0 < index < _LEFT_LINE_COLUMNS) for index, title in titles]
        ]
        self._style: list[Any] = [
            *_body(SMALL),
            *_padding(PADDING, 1.9),
            ("ALIGN", (0, 1), (0, -1), "RIGHT"),
            ("ALIGN", (_LEFT_LINE_COLUMNS, 1), (-1, -1), "RIGHT"),
        ]

    def add(self, group: Group) -> None:
        """A banner, and the lines below it."""
        at = len(self.rows)
        self._banner(" · ".join(filter(None, (group.charge, group.project))), group.subtotal, SMALL)
        # The banner stays with the line below it.
        self._style += [("BACKGROUND", (0, at), (-1, at), HexColor(chart.FAINT)), ("NOSPLIT", (0, at), (0, at + 1))]
        self.rows += [self._cells(line) for line in group.lines]

    def close(self, name: str, total: str) -> None:
        """The total, below the last line."""
        at = len(self.rows)
        self._banner(name, total, SIZE)
        self._style += [("LINEABOVE", (0, at), (-1, at), 1, HexColor(chart.INK)), ("NOSPLIT", (0, at - 1), (0, at))]

    def table(self) -> LongTable:
        """What was taken."""
        table = LongTable(self.rows, self._widths, repeatRows=1)
        table.setStyle(self._style)
        return table

    def _banner(self, name: str, amount: str, size: float) -> None:
        at, last = len(self.rows), self._last
        self.rows.append([Banner(name, sum(self._widths[:last]), size), *[""] * (last - 1), amount])
        self._style += [("FONT", (last, at), (last, at), BOLD, size), ("ALIGN", (0, at), (0, at), "LEFT")]

    def _cells(self, line: LineRow) -> list[Any]:
        return [
            cell(text, width, size=SMALL, right=not 0 < index < _LEFT_LINE_COLUMNS)
            for index, (text, width) in enumerate(zip(line, self._widths, strict=True))
        ]


def _fitted(widths_mm: Sequence[float], amounts: Iterable[str]) -> list[float]:
    """The widths in points: the last column as wide as the widest amount in bold, what is left over shared among the others."""
    wide = max(width_of(amount, BOLD, SIZE) for amount in amounts) + 2 * PADDING + 1
    others = [each * mm for each in widths_mm[:-1]]
    factor = (_WIDTH - wide) / sum(others)
    return [each * factor for each in others] + [wide]


def _heads(titles: Sequence[str], left: int) -> list[Any]:
    return [_head_cell(title, index >= left) for index, title in enumerate(titles)]


def _head_cell(title: str, right: bool) -> Flowable:
    return paragraph(title, font=BOLD, size=SMALL, color=chart.SOFT, right=right)


def _body(size: float = SIZE, *, headed: bool = True) -> list[Any]:
    style: list[Any] = [
        ("FONT", (0, 0), (-1, -1), PLAIN, size),
        ("TEXTCOLOR", (0, 0), (-1, -1), HexColor(chart.INK)),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LINEBELOW", (0, int(headed)), (-1, -1), 0.4, HexColor(chart.GRID)),
    ]
    if headed:
        style += [("VALIGN", (0, 0), (-1, 0), "BOTTOM"), ("LINEBELOW", (0, 0), (-1, 0), 0.8, HexColor(chart.INK))]
    return style


def _padding(across: float, down: float) -> list[Any]:
    whole = ((0, 0), (-1, -1))
    return [
        ("LEFTPADDING", *whole, across),
        ("RIGHTPADDING", *whole, across),
        ("TOPPADDING", *whole, down),
        ("BOTTOMPADDING", *whole, down),
    ]


def _drawing(shapes: Sequence[chart.Shape], width: float, height: float) -> Drawing:
    """Shapes of a chart; y grows upwards here."""
    drawing = Drawing(width, height)
    for shape in shapes:
        if isinstance(shape, chart.Box):
            y = height - shape.y - shape.height
            drawing.add(Rect(shape.x, y, shape.width, shape.height, fillColor=HexColor(shape.color), strokeColor=None))
        elif isinstance(shape, chart.Rule):
            y = height - shape.y
            color = HexColor(shape.color)
            drawing.add(Line(shape.x, y, shape.x + shape.length, y, strokeColor=color, strokeWidth=0.5))
        else:
            where = {"fontName": PLAIN, "fontSize": SMALL, "fillColor": HexColor(chart.SOFT)}
            drawing.add(String(shape.x, height - shape.y, shape.text, textAnchor=shape.anchor, **where))
    return drawing


def _numbering(sheet: Sheet) -> type[Canvas]:
    """A canvas that writes heads and feet when the number of pages is known."""

    class Numbered(Canvas):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            pages = list(self._pages)
            for number, page in enumerate(pages, 1):
                self.__dict__.update(page)
                _margins(self, sheet, number, len(pages))
                super().showPage()
            super().save()

    return Numbered


def _margins(canvas: Canvas, sheet: Sheet, number: int, count: int) -> None:
    right = A4[0] - _MARGIN
    if number > 1:
        canvas.setFillColor(HexColor(chart.SOFT))
        name = f"{sheet.words('title')} {sheet.statement.number} · {sheet.institution}"
        name = shortened(name, _WIDTH - 30 * mm, PLAIN, SMALL)
        draw(canvas, _MARGIN, A4[1] - 12 * mm, name, PLAIN, SMALL)
        canvas.setFillColor(HexColor(_status_color(sheet)))
        draw(canvas, right, A4[1] - 12 * mm, sheet.status, BOLD, SMALL, right=True)
    canvas.setStrokeColor(HexColor(chart.GRID))
    canvas.setLineWidth(0.5)
    canvas.line(_MARGIN, 13 * mm, right, 13 * mm)
    canvas.setFillColor(HexColor(chart.SOFT))
    draw(canvas, _MARGIN, 9 * mm, f"SHA-256 {sheet.statement.digest.hex()}", PLAIN, 6.5)
    draw(canvas, right, 9 * mm, sheet.words("page", number, count), PLAIN, SMALL, right=True)
