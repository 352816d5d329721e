"""The figure of the item analysis: curves, information and where the persons are."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import model as irt
import numpy as np
from job_io import INK, MUTED, PALETTE, plot_style
from matplotlib.axes import Axes
from responses import Classical, Floats, Responses

LABELLED_ITEMS = 10


def draw(path: Path, source: str, data: Responses, scores: Classical, fit: irt.Fit, ability: Floats) -> None:
    """Write the PNG: item characteristic curves above, test information and ability below."""
    with mpl.rc_context(plot_style()):
        figure = plt.figure(figsize=(10, 7.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[1.45, 1])
        at = np.linspace(-4, 4, 321)
        _curves(figure.add_subplot(grid[0, :]), at, data, fit)
        _information(figure.add_subplot(grid[1, 0]), at, fit)
        _persons(figure.add_subplot(grid[1, 1]), data, fit, ability)
        alpha = "" if np.isnan(scores.alpha) else f" · alpha {scores.alpha:.2f}"
        figure.suptitle(
            f"{source} · {data.persons:,} persons · {len(data.items)} items · {fit.model.upper()} model{alpha}",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path)
        plt.close(figure)


def _curves(axes: Axes, at: Floats, data: Responses, fit: irt.Fit) -> None:
    curves = irt.curve(at, fit.a, fit.d)
    few = len(data.items) <= LABELLED_ITEMS
    if few:
        for j, item in enumerate(data.items):
            label = f"{item}   a = {fit.a[j]:.2f}, b = {fit.b[j]:+.2f}"
            axes.plot(at, curves[:, j], color=PALETTE[j], linewidth=2.2, label=label)
        axes.legend(loc="lower right", fontsize=9, labelcolor=INK)
    else:
        order = np.argsort(np.argsort(fit.b))
        colours = mpl.colormaps["viridis"](order / (len(order) - 1))
        for j in range(len(data.items)):
            axes.plot(at, curves[:, j], color=colours[j], linewidth=1.1, alpha=0.75)
        axes.text(0.99, 0.03, "colour: easy (dark) to hard (light)", transform=axes.transAxes, ha="right", color=MUTED)
    axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))
    axes.set(xlim=(-4, 4), ylim=(0, 1), xlabel="Ability (standard deviations)", ylabel="Probability of a right answer")
    axes.set_title("Item characteristic curves")


def _information(axes: Axes, at: Floats, fit: irt.Fit) -> None:
    information = irt.test_information(at, fit.a, fit.d)
    axes.fill_between(at, information, color=PALETTE[0], alpha=0.18, linewidth=0)
    axes.plot(at, information, color=PALETTE[0], linewidth=2)
    best = int(np.argmax(information))
    axes.plot(at[best], information[best], "o", color=PALETTE[0], markersize=5)
    axes.text(
        float(np.clip(at[best], -2.2, 2.2)),
        information[best] * 0.5,
        f"sharpest at {round(at[best], 1) + 0.0:+.1f}\nstandard error {1 / np.sqrt(information[best]):.2f}",
        ha="center",
        va="center",
    )
    axes.set(xlim=(-4, 4), ylim=(0, information[best] * 1.12), xlabel="Ability", ylabel="Test information")
    axes.set_title("Where the test measures well")


def _persons(axes: Axes, data: Responses, fit: irt.Fit, ability: Floats) -> None:
    low, high = float(ability.min()), float(ability.max())
    bins = np.linspace(low - 0.1, high + 0.1, 25)
    axes.hist(ability, bins=list(bins), weights=data.frequency, color=PALETTE[2], alpha=0.85, edgecolor="white")
    lowest, highest = min(low, -3.0) - 0.5, max(high, 3.0) + 0.5
    shown = (fit.b >= lowest) & (fit.b <= highest)
    axes.plot(fit.b[shown], np.zeros(int(shown.sum())), "^", color=PALETTE[1], markersize=8, clip_on=False, zorder=4)
    axes.plot([], [], "^", color=PALETTE[1], markersize=7, label="item difficulty")
    axes.legend(loc="upper left")
    axes.set(xlim=(lowest, highest), xlabel="Ability (EAP) and difficulty", ylabel="Persons")
    axes.set_title("Persons and items on one scale")
