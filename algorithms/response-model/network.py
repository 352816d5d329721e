"""The network and its measures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class ResponseModel(nn.Module):
    """From a person's visible answers to the log-odds of a right answer to every item.

    The input is (N, 2 J): the answers as +1, -1 or 0 where hidden, then 1 where visible. The output is (N, J). The last
    layer starts from each item's share of right answers, so training begins at the baseline.
    """

    def __init__(self, item_log_odds: Tensor, hidden_units: int) -> None:
        super().__init__()
        items = len(item_log_odds)
        last = nn.Linear(hidden_units, items)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(item_log_odds)
        self.layers = nn.Sequential(
            nn.Linear(2 * items, hidden_units), nn.Tanh(), nn.Linear(hidden_units, hidden_units), nn.Tanh(), last
        )

    def forward(self, right: Tensor, visible: Tensor) -> Tensor:
        """Log-odds (N, J) from answers and what of them may be seen, both (N, J)."""
        shown = (2 * right - 1) * visible
        return self.layers(torch.cat([shown, visible], dim=1))  # type: ignore[no-any-return]


def hidden_mask(given: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which given answers to hide, (N, J): about `share` of them at random, and at least one of each person's."""
    draw = torch.rand(given.shape, generator=generator).masked_fill(given == 0, 2.0)
    return ((draw < share) | (draw == draw.min(dim=1, keepdim=True).values)).float() * given


@torch.no_grad()
def foretell(model: nn.Module, right: Tensor, given: Tensor) -> Tensor:
    """The log-odds (N, J) of each answer, foretold from the person's other answers alone."""
    result = torch.zeros_like(right)
    for item in range(right.shape[1]):
        visible = given.clone()
        visible[:, item] = 0
        result[:, item] = model(right, visible)[:, item]
    return result


def area_under_curve(score: NDArray[np.float64], right: NDArray[np.float64]) -> float | None:
    """The chance that a right answer scores above a wrong one, ties as half; None if all answers are alike."""
    positives = float(right.sum())
    negatives = float(len(right)) - positives
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(middle[inverse][right == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
