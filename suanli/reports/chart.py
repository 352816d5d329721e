"""The drawings of statements, as shapes that are the same on a page and in a document. Points; (0, 0) is the upper left corner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, Literal, NamedTuple

INK: Final = "#1b2430"
SOFT: Final = "#5b6776"
GRID: Final = "#d9dee5"
FAINT: Final = "#e9edf2"
CPU: Final = "#2f6db5"
MEMORY: Final = "#3c8d7d"
GPU: Final = "#8156b5"
COLORS: Final = (CPU, MEMORY, GPU)
"""Of CPU, memory and GPUs."""
_LEFT, _TOP, _BOTTOM = 44.0, 8.0, 14.0
_TICKS = 4
_LABEL_SIZE = 7.0
_FILLED = 0.68
"""Of a day's width, what its bar takes."""


class Box(NamedTuple):
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    color: str


class Rule(NamedTuple):
    """A thin horizontal line."""

    x: float
    y: float
    length: float
    color: str


class Label(NamedTuple):
    """Text; (x, y) is its base line's start, middle or end."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]


Shape = Box | Rule | Label


def bars(values: Sequence[float], color: str, width: float, height: float) -> list[Shape]:
    """A bar for each day, from 1 on, over a scale."""
    step, top = scale(max(values, default=0.0))
    room, base = height - _TOP - _BOTTOM, height - _BOTTOM
    shapes: list[Shape] = []
    for tick in range(round(top / step) + 1):
        y = base - room * tick * step / top
        shapes.append(Rule(_LEFT, y, width - _LEFT, GRID))
        shapes.append(Label(_LEFT - 5, y + _LABEL_SIZE * 0.35, tick_text(tick * step, step), "end"))
    pitch = (width - _LEFT) / max(1, len(values))
    for index, value in enumerate(values):
        x = _LEFT + pitch * index
        tall = room * value / top
        if tall:
            shapes.append(Box(x + pitch * (1 - _FILLED) / 2, base - tall, pitch * _FILLED, tall, color))
        shapes.append(Label(x + pitch / 2, base + _LABEL_SIZE + 3, str(index + 1), "middle"))
    return shapes


def scale(most: float) -> tuple[float, float]:
    """A step of 1, 2 or 5 times a power of ten, and the first of its multiples that is not below ``most``."""
    if most <= 0:
        return 1.0, 1.0
    raw = most / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return step, step * math.ceil(most / step - 1e-9)


def tick_text(value: float, step: float) -> str:
    """A multiple of a step, with as many digits after the point as the step needs."""
    return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}"


def svg(shapes: Sequence[Shape], width: float, height: float, title: str) -> str:
    """The shapes as an SVG element."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
    ]
    for shape in shapes:
        if isinstance(shape, Box):
            parts.append(
                f'<rect x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}" height="{shape.height:.2f}" '
                f'fill="{shape.color}"/>'
            )
        elif isinstance(shape, Rule):
            parts.append(
                f'<line x1="{shape.x:.2f}" y1="{shape.y:.2f}" x2="{shape.x + shape.length:.2f}" y2="{shape.y:.2f}" '
                f'stroke="{shape.color}" stroke-width="0.6"/>'
            )
        else:
            parts.append(
                f'<text x="{shape.x:.2f}" y="{shape.y:.2f}" text-anchor="{shape.anchor}" font-size="{_LABEL_SIZE:g}" '
                f'fill="{SOFT}">{escape(shape.text)}</text>'
            )
    return "".join(parts) + "</svg>"
