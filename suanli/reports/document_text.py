"""Text in a PDF: Helvetica where it has the glyphs, and STSong-Light elsewhere."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from itertools import groupby
from typing import Any, Final

from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_LEFT, TA_RIGHT
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.platypus import Flowable, Paragraph

from suanli.reports import chart

PLAIN: Final = "Helvetica"
BOLD: Final = "Helvetica-Bold"
ASIAN: Final = "STSong-Light"
SIZE: Final = 8.0
SMALL: Final = 7.0
PADDING: Final = 2.5
_LEADING = 1.25
_FITS = 0.5

pdfmetrics.registerFont(UnicodeCIDFont(ASIAN))


@lru_cache(maxsize=4096)
def _western(character: str) -> bool:
    return bool(character.encode("cp1252", "ignore"))


def runs(text: str, font: str) -> list[tuple[str, str]]:
    """(font, part) for the parts that each have one font."""
    return [(font if western else ASIAN, "".join(part)) for western, part in groupby(text, _western)]


def width_of(text: str, font: str, size: float) -> float:
    """How wide it is, in points."""
    return sum(float(pdfmetrics.stringWidth(part, name, size)) for name, part in runs(text, font))


def draw(canvas: Any, x: float, y: float, text: str, font: str, size: float, *, right: bool = False) -> None:
    """One line of text that begins or (``right``) ends at x."""
    x -= width_of(text, font, size) if right else 0
    for name, part in runs(text, font):
        canvas.setFont(name, size)
        canvas.drawString(x, y, part)
        x += pdfmetrics.stringWidth(part, name, size)


@lru_cache(maxsize=64)
def _style(font: str, size: float, color: str, right: bool, asian: bool) -> ParagraphStyle:
    return ParagraphStyle(
        f"{font}{size}{color}{right}{asian}",
        fontName=font,
        fontSize=size,
        leading=size * _LEADING,
        textColor=HexColor(color),
        alignment=TA_RIGHT if right else TA_LEFT,
        # Chinese has no spaces at which to break a line.
        wordWrap="CJK" if asian else None,
        splitLongWords=1,
    )


def paragraph(
    text: str, *, font: str = PLAIN, size: float = SIZE, color: str = chart.INK, right: bool = False
) -> Paragraph:
    """Text that wraps."""
    parts = runs(text, font)
    markup = "".join(
        f'<font name="{ASIAN}">{escape(part)}</font>' if name == ASIAN else escape(part) for name, part in parts
    )
    return Paragraph(markup, _style(font, size, color, right, any(name == ASIAN for name, _ in parts)))


def cell(text: str, width: float, *, right: bool = False, size: float = SIZE) -> str | Flowable:
    """What to put in a table's cell: the text itself, one line in two fonts, or, which takes long, a paragraph where it is too wide."""
    if width_of(text, PLAIN, size) > width - 2 * PADDING - _FITS:
        return paragraph(text, size=size, right=right)
    return text if all(map(_western, text)) else OneLine(text, PLAIN, size)


class OneLine(Flowable):  # type: ignore[misc]
    """A line of text, in as many fonts as it needs."""

    def __init__(self, text: str, font: str, size: float) -> None:
        super().__init__()
        self._text, self._font, self._size = text, font, size

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:
        """As wide and high as it is."""
        del available_width, available_height
        return width_of(self._text, self._font, self._size), self._size * _LEADING

    def draw(self) -> None:
        """Draw it."""
        self.canv.setFillColor(HexColor(chart.INK))
        draw(self.canv, 0, self._size * (_LEADING - 1), self._text, self._font, self._size)


class Banner(OneLine):
    """A line of bold text in the first cell of a table's row that runs on over the cells beside it."""

    def __init__(self, text: str, width: float, size: float = SMALL) -> None:
        super().__init__(shortened(text, width, BOLD, size), BOLD, size)

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:
        """It takes no width."""
        return 0, super().wrap(available_width, available_height)[1]


def shortened(text: str, width: float, font: str, size: float) -> str:
    """The text, cut short with dots where it is wider than ``width``."""
    if width_of(text, font, size) <= width:
        return text
    while text and width_of(f"{text}…", font, size) > width:
        text = text[:-1]
    return f"{text}…"


class Meter(Flowable):  # type: ignore[misc]
    """What part of what was held was used: a bar and the figure."""

    def __init__(self, part: float, words: str, color: str, width: float) -> None:
        super().__init__()
        self._part, self._words, self._color, self._room = part, words, color, width

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:
        """As high as a line of text."""
        del available_width, available_height
        return self._room, SIZE * _LEADING

    def draw(self) -> None:
        """Draw both."""
        figure = 21.0
        long = self._room - figure
        self.canv.setFillColor(HexColor(chart.FAINT))
        self.canv.rect(0, 2, long, 5, stroke=0, fill=1)
        self.canv.setFillColor(HexColor(self._color))
        self.canv.rect(0, 2, long * min(1.0, self._part), 5, stroke=0, fill=1)
        self.canv.setFillColor(HexColor(chart.INK))
        draw(self.canv, self._room, 2, self._words, PLAIN, SMALL, right=True)
