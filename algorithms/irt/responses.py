"""Item responses: reading and checking them, and classical item analysis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from job_io import InputError, Table
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MISSING = {"", "NA", "na", "NaN", "nan", "."}
MIN_ITEMS = 3


@dataclass(frozen=True)
class Responses:
    """Answers of R rows to J items.

    `right` (R, J) is 1 where the answer is right and 0 elsewhere; `given` (R, J) is 1 where there is an answer;
    `frequency` (R,) is how many persons gave the row's answers.
    """

    items: list[str]
    names: list[str]
    right: Floats
    given: Floats
    frequency: Floats

    @property
    def persons(self) -> int:
        """How many persons the rows stand for."""
        return int(self.frequency.sum())


@dataclass(frozen=True)
class Classical:
    """Classical item statistics; an entry is NaN where it is undefined."""

    difficulty: Floats
    item_total: Floats
    alpha_without: Floats
    alpha: float
    mean_score: float
    sd_score: float
    complete_persons: int


def responses_from(table: Table, items: list[str], id_column: str, frequency_column: str) -> Responses:
    """Check a table and turn it into responses; `InputError` says in one sentence what cannot be used."""
    special = {id_column, frequency_column}
    chosen = items or [column for column in table.columns if column not in special]
    if len(chosen) < MIN_ITEMS:
        raise InputError(f"{table.name} has {len(chosen)} items; at least {MIN_ITEMS} are needed.")
    right = np.zeros((len(table.rows), len(chosen)))
    given = np.ones_like(right)
    for j, item in enumerate(chosen):
        for i, cell in enumerate(table.text(item)):
            if cell in MISSING:
                given[i, j] = 0.0
            elif cell in {"1", "1.0"}:
                right[i, j] = 1.0
            elif cell not in {"0", "0.0"}:
                raise InputError(f"{table.name}, line {i + 2}: item {item!r} holds {cell[:40]!r}; answers are 0 or 1.")
    names = table.text(id_column) if id_column else [str(i + 1) for i in range(len(table.rows))]
    result = Responses(chosen, names, right, given, _frequencies(table, frequency_column))
    _refuse_constant_items(table.name, result)
    return result


def classical(data: Responses) -> Classical:
    """Proportion right, corrected item-total correlation and Cronbach's alpha.

    Proportions use every answer; correlations and alpha use the persons who answered every item.
    """
    weight = data.frequency
    difficulty = (weight @ data.right) / (weight @ data.given)
    complete = data.given.all(axis=1)
    right, weight = data.right[complete], weight[complete]
    nothing = np.full(len(data.items), np.nan)
    count = float(weight.sum())
    if count < 2:
        return Classical(difficulty, nothing, nothing, np.nan, np.nan, np.nan, int(count))
    centred = right - (weight @ right) / count
    covariance = (centred * weight[:, None]).T @ centred / (count - 1)
    total = float(covariance.sum())
    variance = np.diag(covariance)
    with_rest = covariance.sum(axis=1) - variance
    rest = total - variance - 2 * with_rest
    with np.errstate(divide="ignore", invalid="ignore"):
        item_total = np.where(variance * rest > 0, with_rest / np.sqrt(np.maximum(variance * rest, 0)), np.nan)
        k = len(data.items) - 1
        alpha_without = np.where(rest > 0, k / (k - 1) * (1 - (variance.sum() - variance) / rest), np.nan)
    alpha = (k + 1) / k * (1 - float(variance.sum()) / total) if total > 0 else np.nan
    mean = float(weight @ right.sum(axis=1)) / count
    return Classical(difficulty, item_total, alpha_without, alpha, mean, float(np.sqrt(max(total, 0.0))), int(count))


def _frequencies(table: Table, column: str) -> Floats:
    if column not in table.columns:
        return np.ones(len(table.rows))
    values = np.array(table.numbers(column))
    if np.any(values < 0) or np.any(values != np.round(values)) or values.max() > 1e9:
        raise InputError(f"{table.name}: column {column!r} must hold whole numbers from 0 to 1000000000.")
    if values.sum() < 2:
        raise InputError(f"{table.name}: the frequencies stand for fewer than two persons.")
    return values


def _refuse_constant_items(name: str, data: Responses) -> None:
    answers, rights = data.frequency @ data.given, data.frequency @ data.right
    for item, n, r in zip(data.items, answers, rights, strict=True):
        if n == 0:
            raise InputError(f"{name}: nobody answered item {item!r}.")
        if r in (0, n):
            outcome = "right" if r else "wrong"
            raise InputError(
                f"{name}: every answer to item {item!r} is {outcome}, so it cannot be scaled; leave it out."
            )
