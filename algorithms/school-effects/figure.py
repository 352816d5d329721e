"""The figure of the school-effects analysis: a caterpillar plot and the coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from job_io import INK, MUTED, PALETTE, plot_style
from matplotlib.axes import Axes
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAMED_GROUPS = 40
SHOWN_TERMS = 24
ABOVE_COLOUR, BELOW_COLOUR, ALIKE_COLOUR = PALETTE[0], PALETTE[1], "#b8c2cc"


class Bar(NamedTuple):
    """A coefficient per standard deviation of its predictor, and half the width of its interval."""

    term: str
    estimate: float
    half: float


def draw(
    path: Path, source: str, confidence: float, groups: list[str], effects: Floats, low: Floats, high: Floats,
    unit: str, bars: list[Bar],
) -> None:  # fmt: skip
    """Write the PNG: groups in order of their effect, and the coefficients beside them if there are any."""
    with mpl.rc_context(plot_style()):
        wide = bool(bars)
        figure, axes = plt.subplots(
            1, 2 if wide else 1, figsize=(12 if wide else 8, 6.2), layout="constrained", squeeze=False,
            width_ratios=[1.7, 1] if wide else [1],
        )  # fmt: skip
        _caterpillar(axes[0, 0], groups, effects, low, high, unit)
        if wide:
            _coefficients(axes[0, 1], bars, unit)
        figure.suptitle(
            f"{source} · {len(groups)} groups, {confidence:.0%} intervals",
            x=0.01,
            ha="left",
            fontsize=13,
            fontweight="bold",
        )
        figure.savefig(path)
        plt.close(figure)


def _caterpillar(axes: Axes, groups: list[str], effects: Floats, low: Floats, high: Floats, unit: str) -> None:
    order = np.argsort(effects, kind="stable")
    at = np.arange(len(order))
    for name, colour, chosen in (
        ("not distinguishable", ALIKE_COLOUR, (low <= 0) & (high >= 0)),
        ("above expectation", ABOVE_COLOUR, low > 0),
        ("below expectation", BELOW_COLOUR, high < 0),
    ):
        shown = chosen[order]
        axes.vlines(at[shown], low[order][shown], high[order][shown], color=colour, linewidth=1.4, alpha=0.75)
        axes.plot(
            at[shown], effects[order][shown], "o", color=colour, markersize=4, label=f"{name} ({int(shown.sum())})"
        )
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.set_ylabel(f"Effect given the circumstances ({unit})")
    axes.set_xlim(-1, len(order))
    axes.grid(visible=False, axis="x")
    if len(groups) <= NAMED_GROUPS:
        names = [groups[k] if len(groups[k]) <= 24 else groups[k][:23] + "…" for k in order]
        crowded = sum(map(len, names)) > 60
        axes.set_xticks(at, names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    else:
        axes.set_xlabel("Groups, from the lowest effect to the highest")
    axes.legend(loc="upper left")
    axes.set_title("Who stands out, once circumstances are equal")


def _coefficients(axes: Axes, bars: list[Bar], unit: str) -> None:
    shown = sorted(bars, key=lambda bar: abs(bar.estimate), reverse=True)[:SHOWN_TERMS][::-1]
    at = np.arange(len(shown))
    for k, bar in enumerate(shown):
        clear = abs(bar.estimate) > bar.half
        colour = ALIKE_COLOUR if not clear else ABOVE_COLOUR if bar.estimate > 0 else BELOW_COLOUR
        axes.hlines(k, bar.estimate - bar.half, bar.estimate + bar.half, color=colour, linewidth=2)
        axes.plot(bar.estimate, k, "o", color=colour, markersize=5.5)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(at, [bar.term.replace(":", " × ") for bar in shown], fontsize=8)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{unit} per standard deviation of the predictor", color=MUTED)
    more = "" if len(shown) == len(bars) else f" (largest {len(shown)} of {len(bars)})"
    axes.set_title(f"Circumstances{more}")
