"""The figure of the training: learning curve, ROC curve and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from job_io import MUTED, PALETTE, plot_style
from matplotlib.axes import Axes
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CALIBRATION_BINS = 10


def draw(
    path: Path, result: Mapping[str, Any], history: Sequence[tuple[int, float, float]], logits: Floats, base: Floats,
    right: Floats,
) -> None:  # fmt: skip
    """Write the PNG from the result, the epochs' losses and the held-out answers."""
    with mpl.rc_context(plot_style()):
        figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", width_ratios=[1.35, 1, 1])
        _learning(axes[0], result, history)
        _roc(axes[1], result, logits, base, right)
        _calibration(axes[2], logits, right)
        replicas = result["world_size"]
        figure.suptitle(
            f"{result['data']['dataset']} · {result['data']['training_persons']:,} persons on {replicas} "
            f"replica{'s' if replicas > 1 else ''} · loss {result['loss_reduction']:.1%} below the item means",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path)
        plt.close(figure)


def _learning(axes: Axes, result: Mapping[str, Any], history: Sequence[tuple[int, float, float]]) -> None:
    epochs, training, held_out = zip(*history, strict=True)
    axes.axhline(
        result["held_out"]["baseline"]["log_loss"], color=MUTED, linestyle=(0, (4, 3)), label="item means (held out)"
    )
    axes.plot(epochs, training, color=PALETTE[5], linewidth=1.2, alpha=0.8, label="training")
    axes.plot(epochs, held_out, color=PALETTE[0], linewidth=2.2, label="held out")
    if result["resumed_from"]:
        axes.axvline(result["resumed_from"]["epoch"], color=PALETTE[1], linestyle=":", label="resumed here")
    axes.set(xlabel="Epoch", ylabel="Log loss per answer")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.28 * (high - low))
    axes.legend(loc="upper right", ncols=2)
    axes.set_title("Learning")


def _roc(axes: Axes, result: Mapping[str, Any], logits: Floats, base: Floats, right: Floats) -> None:
    for name, score, colour in (("baseline", base, MUTED), ("model", logits, PALETTE[0])):
        auc = result["held_out"][name]["auc"]
        if auc is None:
            continue
        levels = np.unique(score)[::-1]
        hit = np.array([0.0, *(np.mean(score[right == 1] >= level) for level in _thin(levels))])
        miss = np.array([0.0, *(np.mean(score[right == 0] >= level) for level in _thin(levels))])
        label = "item means" if name == "baseline" else "model"
        axes.plot(miss, hit, color=colour, linewidth=2, label=f"{label}, AUC {auc:.3f}")
    axes.plot([0, 1], [0, 1], color="#cbd2d9", linewidth=0.9)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="Wrong answers called right")
    axes.set_ylabel("Right answers called right")
    axes.legend(loc="lower right")
    axes.set_title("Telling right from wrong")


def _calibration(axes: Axes, logits: Floats, right: Floats) -> None:
    chance = 1 / (1 + np.exp(-logits))
    edges = np.quantile(chance, np.linspace(0, 1, CALIBRATION_BINS + 1))
    which = np.clip(np.searchsorted(edges, chance, side="right") - 1, 0, CALIBRATION_BINS - 1)
    used = [k for k in range(CALIBRATION_BINS) if np.any(which == k)]
    said = np.array([chance[which == k].mean() for k in used])
    seen = np.array([right[which == k].mean() for k in used])
    error = np.array([np.sqrt(max(p * (1 - p), 1e-9) / np.sum(which == k)) for p, k in zip(seen, used, strict=True)])
    axes.plot([0, 1], [0, 1], color="#cbd2d9", linewidth=0.9)
    axes.errorbar(said, seen, yerr=1.96 * error, fmt="o", color=PALETTE[2], elinewidth=1.3, markersize=5)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="Foretold chance of a right answer")
    axes.set_ylabel("Share that was right")
    axes.set_title("Can the chances be believed?")


def _thin(levels: Floats, most: int = 400) -> Floats:
    return levels if len(levels) <= most else levels[np.linspace(0, len(levels) - 1, most).astype(int)]
