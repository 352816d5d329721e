"""From a table to a design matrix, an outcome and groups, with the checks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from job_io import InputError, Job, Table, find_table, read_table
from numpy.typing import NDArray

Floats = NDArray[np.float64]
INTERCEPT = "(intercept)"
BUILT_IN = "star98"
MAX_TERMS = 400
MAX_COUNT = 1e9


@dataclass(frozen=True)
class Design:
    """N rows: design `x` (N, P) whose first column is 1, terms' names, and each row's group as an index.

    For the binomial family `y` is successes and `n` trials; for the gaussian family `y` is the score and `n` is 1.
    """

    terms: list[str]
    x: Floats
    y: Floats
    n: Floats
    group: NDArray[np.intp]
    groups: list[str]


def load_table(job: Job) -> Table:
    """The table the parameters name; `star98` comes from the installed statsmodels unless a data set has that name."""
    dataset = job.parameters["dataset"]
    granted = job.data is not None and (job.data / dataset).is_dir()
    if dataset != BUILT_IN or granted:
        return read_table(find_table(job, dataset, job.parameters["file"]))
    try:
        from statsmodels.datasets import star98
    except ImportError as error:
        raise InputError("The data set star98 comes with the Python package statsmodels, which is missing.") from error
    frame = star98.load_pandas().data
    rows = [[repr(float(cell)) for cell in row] for row in frame.to_numpy()]
    return Table(BUILT_IN, tuple(frame.columns), rows)


def make_design(table: Table, settings: Mapping[str, Any]) -> Design:
    """Check the table and make the design; `InputError` says in one sentence what cannot be used."""
    y, n = _outcome(table, settings)
    labels = _groups(table, settings)
    terms, columns = [INTERCEPT], [np.ones(len(y))]
    for predictor in settings["predictors"]:
        for name, column in _predictor(table, predictor):
            terms.append(name)
            columns.append(column)
    if len(terms) > MAX_TERMS:
        raise InputError(f"{table.name}: the predictors make {len(terms)} terms; the most is {MAX_TERMS}.")
    keep = n > 0
    x = np.column_stack(columns)[keep]
    names = [label for label, kept in zip(labels, keep, strict=True) if kept]
    groups = list(dict.fromkeys(names))
    index = {name: at for at, name in enumerate(groups)}
    design = Design(terms, x, y[keep], n[keep], np.array([index[name] for name in names], dtype=np.intp), groups)
    _refuse_unusable(table.name, design, settings["family"])
    return design


def _outcome(table: Table, settings: Mapping[str, Any]) -> tuple[Floats, Floats]:
    if settings["family"] == "gaussian":
        if not settings["score"]:
            raise InputError("The gaussian family needs the parameter 'score', the column of scores.")
        score = np.array(table.numbers(settings["score"]))
        return score, np.ones(len(score))
    counts = []
    for column in (settings["successes"], settings["failures"]):
        values = np.array(table.numbers(column))
        if np.any(values < 0) or np.any(values != np.round(values)) or values.max() > MAX_COUNT:
            raise InputError(f"{table.name}: column {column!r} must hold whole numbers from 0 to 1000000000.")
        counts.append(values)
    return counts[0], counts[0] + counts[1]


def _groups(table: Table, settings: Mapping[str, Any]) -> list[str]:
    if settings["group"]:
        return table.text(settings["group"])
    if settings["family"] == "gaussian":
        raise InputError("The gaussian family needs the parameter 'group', the column of schools.")
    return [f"row {at}" for at in range(1, len(table.rows) + 1)]


def _predictor(table: Table, predictor: str) -> list[tuple[str, Floats]]:
    factors = predictor.split(":")
    if len(factors) == 1 and not _is_numeric(table.text(predictor)):
        return _indicators(table, predictor)
    product = np.ones(len(table.rows))
    for factor in factors:
        product = product * np.array(table.numbers(factor))
    if np.ptp(product) == 0:
        raise InputError(f"{table.name}: the predictor {predictor!r} is constant; leave it out.")
    return [(predictor, product)]


def _indicators(table: Table, column: str) -> list[tuple[str, Floats]]:
    cells = table.text(column)
    values = sorted(set(cells))
    if "" in values:
        raise InputError(f"{table.name}: the predictor {column!r} has empty cells.")
    if len(values) < 2 or len(values) > MAX_TERMS:
        raise InputError(
            f"{table.name}: the predictor {column!r} has {len(values)} values; 2 to {MAX_TERMS} can be used."
        )
    return [(f"{column}={value}", np.array([float(cell == value) for cell in cells])) for value in values[1:]]


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column is meant as numbers: it is unless no cell is one."""
    for cell in cells:
        try:
            float(cell)
        except ValueError:
            continue
        return True
    return False


def _refuse_unusable(name: str, design: Design, family: str) -> None:
    rows, terms = design.x.shape
    if rows <= terms:
        raise InputError(f"{name}: {rows} usable rows cannot carry {terms} terms.")
    if len(design.groups) < 3:
        raise InputError(f"{name}: there are {len(design.groups)} groups; at least 3 are needed.")
    if family == "gaussian" and np.ptp(design.y) == 0:
        raise InputError(f"{name}: every score is the same.")
    if family == "gaussian" and len(design.groups) == rows:
        raise InputError(f"{name}: every group has one row, so groups and pupils cannot be told apart.")
    if family == "binomial" and (design.y.sum() == 0 or design.y.sum() == design.n.sum()):
        raise InputError(f"{name}: every outcome is the same.")
    scaled = design.x / np.linalg.norm(design.x, axis=0)
    spread = np.linalg.svd(scaled, compute_uv=False)
    if spread[-1] < 1e-10 * spread[0]:
        raise InputError(f"{name}: the predictors depend on each other (some are sums of others); leave one out.")
