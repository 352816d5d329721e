"""The drawings of a comparison, as PNG files. Needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import FailedPrecondition
from scheduler.simulation.comparison import Result, counted
from scheduler.simulation.series import pool_resource
from scheduler.simulation.tables import History
from scheduler.simulation.workload import DAY_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart; the pale yellow of the eight is left out, the last is for "others".
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
OTHERS = "#999999"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
# For ticks a year, month, day, hour, minute or second apart; and where such a tick begins the next greater unit.
_DATE_FORMATS = ["%Y", "%b %Y", "%b %d", "%H:%M", "%H:%M", "%H:%M:%S"]
_DATE_FORMATS_AT_ZERO = ["%Y", "%b %Y", "%b %d", "%b %d", "%H:%M", "%H:%M"]
_WIDTH_IN = 9.6
_ROW_IN = 2.1
_LINE_CHARACTERS = 120
_DPI = 130
_INK = "#1d2733"
_SOFT = "#5d6b7a"


def check_available() -> None:
    """Raise ``FailedPrecondition``, saying what to install, when there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        raise FailedPrecondition(
            "Drawing needs matplotlib, which is not installed here: pip install 'suanli[plots]', or give --no-plots.",
            reason="PLOTS_NOT_INSTALLED",
        )


def draw(history: History, results: Sequence[Result], folder: Path) -> list[tuple[str, str]]:
    """Draw everything into ``folder``; returns (file name, title) in the order of a report."""
    check_available()
    # No display is needed, whatever the environment says.
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib as mpl

    mpl.use("Agg", force=True)
    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#b5bec9",
            "axes.labelcolor": _SOFT,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titlecolor": _INK,
            "axes.grid": True,
            "grid.color": "#e6eaef",
            "xtick.color": _SOFT,
            "ytick.color": _SOFT,
            "legend.frameon": False,
            "legend.handlelength": 3.0,
            "lines.linewidth": 1.3,
        }
    )
    drawings: list[tuple[str, str, Callable[[History, Sequence[Result]], Figure]]] = [
        ("utilisation.png", "Utilisation of each pool", _utilisation),
        ("queue.png", "Jobs waiting", _queue),
        ("fairness.png", "Shares of the institutions", _fairness),
        ("waits.png", "How long jobs waited", _waits),
    ]
    drawn = []
    for name, title, make in drawings:
        figure = make(history, results)
        figure.savefig(folder / name, dpi=_DPI)
        drawn.append((name, title))
    return drawn


def _figure(rows: int, row_in: float = _ROW_IN, *, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 0.9 + row_in * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, sharey=share_y, squeeze=False)
    return figure, [row[0] for row in axes]


def _days(instants_ms: Sequence[int]) -> list[float]:
    """Instants as matplotlib reckons dates: in days since 1970."""
    return [ms / DAY_MS for ms in instants_ms]


def _date_axis(axis: Axes, history: History) -> None:
    from matplotlib import dates

    locator = dates.AutoDateLocator(minticks=4, maxticks=9, tz=UTC)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    formatter = dates.ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator, UTC, _DATE_FORMATS, zero_formats=_DATE_FORMATS_AT_ZERO, show_offset=False
    )
    axis.xaxis.set_major_formatter(formatter)
    axis.set_xlim(history.from_ms / DAY_MS, history.to_ms / DAY_MS)
    low, high = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (history.from_ms, history.to_ms))
    axis.set_xlabel(f"{low:%Y-%m-%d %H:%M} to {high:%Y-%m-%d %H:%M} UTC")


def _percent(axis: Axes, label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel(label)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels), fontsize=8.5)


def _columns(labels: Sequence[str]) -> int:
    """As many as fit side by side."""
    return max(1, min(len(labels), _LINE_CHARACTERS // (max(map(len, labels), default=0) + 6)))


def _greatest(sizes: Mapping[str, float]) -> list[str]:
    """The names that get a colour of their own: as many as there are, the greatest first."""
    return sorted(sizes, key=lambda name: (-sizes[name], name))[: len(PALETTE)]


def _utilisation(history: History, results: Sequence[Result]) -> Figure:
    sizes: dict[str, float] = {}
    for result in results:
        for _, pool, amount in result.outcome.capacity:
            sizes[pool] = max(sizes.get(pool, 0), amount.gpu_milli * 64 + amount.cpu_milli)
    shown = _greatest(sizes)
    colours = dict(zip(shown, PALETTE, strict=False))
    figure, axes = _figure(len(results), share_y=True)
    drawn: dict[str, Any] = {}
    for axis, result in zip(axes, results, strict=True):
        times = _days(result.series.middles_ms)
        for pool, values in result.series.utilisation.items():
            kind = "GPUs" if pool_resource(result.outcome.capacity, pool) == 2 else "cores"
            (line,) = axis.plot(times, values, color=colours.get(pool, OTHERS), alpha=1 if pool in colours else 0.5)
            drawn.setdefault(f"{pool} ({kind})" if pool in colours else "other pools", line)
        axis.set_title(result.variant.label)
        _percent(axis, "in use")
        axis.set_ylim(0, 1.03)
    _date_axis(axes[-1], history)
    figure.suptitle("Utilisation of each pool over time", x=0.01, ha="left", color=_INK, fontsize=12)
    labels = [label for pool in shown for label in drawn if label.rpartition(" (")[0] == pool]
    labels += [label for label in drawn if label == "other pools"]
    figure.legend(
        [drawn[label] for label in labels], labels, loc="outside lower center", ncols=_columns(labels), fontsize=8.5
    )
    return figure


def _queue(history: History, results: Sequence[Result]) -> Figure:
    figure, (axis,) = _figure(1, 3.6)
    for number, result in enumerate(results):
        waiting = result.series.waiting.values()
        total = [sum(values) for values in zip(*waiting, strict=True)] or [0.0] * len(result.series.middles_ms)
        axis.plot(_days(result.series.middles_ms), total, label=result.variant.label, **_style(number))
    axis.set_ylim(bottom=0)
    axis.set_ylabel("jobs waiting")
    _date_axis(axis, history)
    figure.suptitle("Jobs waiting over time", x=0.01, ha="left", color=_INK, fontsize=12)
    _legend(figure, axis)
    return figure


def _style(number: int) -> dict[str, Any]:
    """A variant's line. Lines differ in colour and dashes, and later ones are thinner, so that those below show where they are equal."""
    width = max(1.1, 2.0 - 0.3 * number)
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number % len(DASHES)], "linewidth": width}


def _fairness(history: History, results: Sequence[Result]) -> Figure:
    weights = {each.institution: each.weight for each in history.tenants if not each.project}
    names = sorted({name for result in results for name in result.series.share})
    sizes = {
        name: max((sum(result.series.share[name]) for result in results if name in result.series.share), default=0.0)
        for name in names
    }
    shown = _greatest(sizes)
    colours = dict(zip(shown, PALETTE, strict=False))
    whole = sum(weights.get(name, 1000) for name in names)
    highest = max(
        (part for result in results for values in result.series.share.values() for part in values), default=0.0
    )
    figure, axes = _figure(len(results) + 1)
    for number, (axis, result) in enumerate(zip(axes[:-1], results, strict=True)):
        times = _days(result.series.middles_ms)
        for name in shown:
            if name in result.series.share:
                part = weights.get(name, 1000) / whole
                label = f"{name} (due {part:.0%})" if number == 0 else None
                axis.plot(times, result.series.share[name], color=colours[name], label=label)
                axis.axhline(part, color=colours[name], linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.7)
        for place, name in enumerate(sorted(set(result.series.share) - set(shown))):
            label = "other institutions" if number == place == 0 else None
            axis.plot(times, result.series.share[name], color=OTHERS, alpha=0.5, zorder=1, label=label)
        axis.set_title(result.variant.label)
        _percent(axis, "dominant share")
        axis.set_ylim(0, max(0.1, 1.05 * highest))
    last = axes[-1]
    for number, result in enumerate(results):
        values = [float("nan") if value is None else value for value in result.series.jain]
        last.plot(_days(result.series.middles_ms), values, **_style(number))
        last.plot([], [], label=result.variant.label, **_style(number))
    last.set_title("Jain's index over the institutions that wait: 1 is even, gaps are when nobody waits")
    last.set_ylim(0, 1.05)
    last.set_ylabel("index")
    last.legend(loc="lower left", fontsize=8, ncols=min(2, len(results)))
    _date_axis(last, history)
    figure.suptitle(
        "Share of all pools held by each institution; dotted: its part by weight",
        x=0.01,
        ha="left",
        color=_INK,
        fontsize=12,
    )
    _legend(figure, axes[0])
    return figure


_WAIT_TICKS = (
    (1, "1 s"),
    (10, "10 s"),
    (60, "1 min"),
    (600, "10 min"),
    (3600, "1 h"),
    (6 * 3600, "6 h"),
    (86_400, "1 d"),
    (7 * 86_400, "7 d"),
    (30 * 86_400, "30 d"),
)


def _waits(history: History, results: Sequence[Result]) -> Figure:
    """The part of the jobs that waited at most so long. Waits below a second are drawn at a second."""
    figure, (axis,) = _figure(1, 3.8)
    longest = 60.0
    for number, result in enumerate(results):
        waits = sorted(max(1.0, each.wait_ms / 1000) for each in counted(history, result) if each.ended)
        if waits:
            longest = max(longest, waits[-1])
            parts = [(place + 1) / len(waits) for place in range(len(waits))]
            axis.step(waits, parts, where="post", label=result.variant.label, **_style(number))
    axis.set_xscale("log")
    ticks = [(at, name) for at, name in _WAIT_TICKS if at <= longest * 1.5]
    axis.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
    axis.minorticks_off()
    axis.set_xlim(1, longest * 1.2)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("time waited (logarithmic; at the left edge: a second or less)")
    _percent(axis, "of jobs waited at most so long")
    figure.suptitle("How long jobs waited", x=0.01, ha="left", color=_INK, fontsize=12)
    _legend(figure, axis)
    return figure
