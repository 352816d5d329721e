"""What the idle part of a GPU is worth, by its size: the prices of a cutting-stock problem.

Shares of GPUs are cut from GPUs as rolls of paper are cut to orders. Gilmore and Gomory ("A linear programming approach to the
cutting-stock problem", Operations Research 9, 1961) solve the linear program "the fewest GPUs that hold all shares of the mix" by
adding one pattern (a set of shares that fits one GPU) at a time; its dual prices say how much of a GPU one more share of a size
costs. A size that nothing can be put beside costs a whole GPU, and what fits only into what such a size leaves over costs nothing.

The value of a gap is the highest sum of prices that fits into it, so a share is best put where the value lost is least.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from scheduler.domain.resources import GPU_UNIT
from scheduler.planning.compiled import compiled

MICRO = 1_000_000
"""Values are integers: millionths of a GPU."""
MAX_SIZES = 64
_EPSILON = 1e-9
_PIVOTS_PER_SIZE = 50

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def gap_values(demand: Mapping[int, int]) -> Ints:
    """The value of a gap of 0..1000 milli-GPUs, in millionths of a GPU; never decreasing, from 0 to 1,000,000.

    ``demand`` counts the shares asked for by size (1..999 milli-GPUs); of more than 64 sizes those asked for most are looked at.
    Without shares only a whole GPU is worth anything. Prices are computed in floating point, in a fixed order of operations.
    """
    asked = sorted((-count, size) for size, count in demand.items() if count > 0 and 0 < size < GPU_UNIT)
    sizes = sorted((size for _, size in asked[:MAX_SIZES]), reverse=True)
    if not sizes:
        return np.where(np.arange(GPU_UNIT + 1) < GPU_UNIT, 0, MICRO)
    counts = np.array([demand[size] for size in sizes], dtype=np.float64)
    best = _solve(np.array(sizes, dtype=np.int64), counts)
    values: Ints = np.floor(best / best[GPU_UNIT] * MICRO + 0.5).astype(np.int64)
    return values


@compiled
def _knapsack(sizes: Ints, prices: Floats, best: Floats, last: Ints) -> None:
    """The highest sum of prices in a gap of each width, and the size that was put in last (-1: leave one milli idle)."""
    best[0] = 0.0
    last[0] = -1
    for width in range(1, len(best)):
        best[width] = best[width - 1]
        last[width] = -1
        for item in range(len(sizes)):
            if sizes[item] <= width and best[width - sizes[item]] + prices[item] > best[width] + _EPSILON:
                best[width] = best[width - sizes[item]] + prices[item]
                last[width] = item


@compiled
def _enter(inverse: Floats, amounts: Floats, costs: Floats, column: Floats, cost: float) -> bool:
    """One pivot of the revised simplex method: the column enters the basis; False when nothing would leave it."""
    size = len(amounts)
    direction = np.zeros(size)
    leaving = -1
    for row in range(size):
        for item in range(size):
            direction[row] += inverse[row, item] * column[item]
        if direction[row] > _EPSILON and (
            leaving < 0 or amounts[row] * direction[leaving] < amounts[leaving] * direction[row] - _EPSILON
        ):
            leaving = row
    if leaving < 0:
        return False
    pivot = direction[leaving]
    for item in range(size):
        inverse[leaving, item] /= pivot
    amounts[leaving] /= pivot
    for row in range(size):
        if row != leaving and direction[row] != 0.0:
            for item in range(size):
                inverse[row, item] -= direction[row] * inverse[leaving, item]
            amounts[row] -= direction[row] * amounts[leaving]
    costs[leaving] = cost
    return True


@compiled
def _solve(sizes: Ints, demand: Floats) -> Floats:
    """Column generation, beginning with one pattern a size: as many of it as a GPU holds."""
    count = len(sizes)
    inverse = np.zeros((count, count))
    amounts = np.zeros(count)
    costs = np.ones(count)
    for item in range(count):
        inverse[item, item] = 1.0 / (GPU_UNIT // sizes[item])
        amounts[item] = demand[item] * inverse[item, item]
    best = np.zeros(GPU_UNIT + 1)
    last = np.zeros(GPU_UNIT + 1, dtype=np.int64)
    prices = np.zeros(count)
    for _ in range(_PIVOTS_PER_SIZE * count):
        lowest = 0
        for item in range(count):
            prices[item] = 0.0
            for row in range(count):
                prices[item] += costs[row] * inverse[row, item]
            if prices[item] < prices[lowest]:
                lowest = item
        column = np.zeros(count)
        if prices[lowest] < -_EPSILON:
            # More of this size than was asked for does no harm: the surplus enters.
            column[lowest] = -1.0
            if not _enter(inverse, amounts, costs, column, 0.0):
                break
            continue
        _knapsack(sizes, prices, best, last)
        if best[GPU_UNIT] <= 1.0 + _EPSILON:
            break
        width = GPU_UNIT
        while width > 0:
            if last[width] < 0:
                width -= 1
            else:
                column[last[width]] += 1.0
                width -= sizes[last[width]]
        if not _enter(inverse, amounts, costs, column, 1.0):
            break
    for item in range(count):
        prices[item] = max(prices[item], 0.0)
    _knapsack(sizes, prices, best, last)
    return best
