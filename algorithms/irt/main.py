"""Item analysis and item response theory: the program a job runs. See `manifest.yaml`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import figure
import model as irt
import numpy as np
from job_io import Job, find_table, read_table, run, write_csv, write_json
from responses import Classical, Floats, Responses, classical, responses_from

ITEM_COLUMNS = (
    "item", "answers", "difficulty", "item_total", "alpha_without", "discrimination", "discrimination_se",
    "location", "location_se",
)  # fmt: skip


def main(job: Job) -> None:
    """Read, analyse, fit, write."""
    settings = job.parameters
    table = read_table(find_table(job, settings["dataset"], settings["file"]))
    data = responses_from(table, settings["items"], settings["id_column"], settings["frequency_column"])
    scores = classical(data)
    patterns, pattern_of_row = irt.patterns_of(data.right, data.given, data.frequency)
    grid = irt.make_grid(settings["quadrature_points"])
    names = irt.MODELS if settings["compare_models"] else (settings["model"],)
    fits = {name: irt.fit(patterns, grid, name, settings["tolerance"], settings["max_iterations"]) for name in names}
    chosen = fits[settings["model"]]
    ability, error = (each[pattern_of_row] for each in irt.abilities(patterns, grid, chosen.a, chosen.d))
    expected = data.persons * irt.pattern_probabilities(patterns, grid, chosen.a, chosen.d)[pattern_of_row]
    if not job.is_main:
        return
    _write_items(job, data, scores, chosen)
    _write_persons(job, data, ability, error, expected)
    figure.draw(job.results / "plot.png", settings["dataset"], data, scores, chosen, ability)
    result = _result(job, settings["dataset"], data, scores, fits, _reliability(data, ability, error))
    write_json(job.results / "results.json", result)
    print(result["summary"])
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _result(
    job: Job, source: str, data: Responses, scores: Classical, fits: Mapping[str, irt.Fit], reliability: float | None
) -> dict[str, Any]:
    chosen = fits[job.parameters["model"]]
    hardest, easiest = (data.items[int(pick(scores.difficulty))] for pick in (np.argmin, np.argmax))
    alpha = _number(scores.alpha)
    return {
        "algorithm": job.manifest["name"],
        "version": job.manifest["version"],
        "summary": (
            f"{data.persons} persons, {len(data.items)} items of {source}: alpha "
            f"{'undefined' if alpha is None else format(alpha, '.3f')}, hardest {hardest}, easiest {easiest}; "
            f"{chosen.model} log-likelihood {chosen.log_likelihood:.3f}."
        ),
        "headline": [
            {"label": "Persons", "value": data.persons},
            {"label": "Items", "value": len(data.items)},
            {"label": "Cronbach's alpha", "value": alpha},
            {"label": f"Log-likelihood ({chosen.model})", "value": chosen.log_likelihood},
        ],
        "parameters": dict(job.parameters),
        "data": {"dataset": source, "persons": data.persons, "rows": len(data.names), "items": data.items,
                 "missing_answers": int(data.frequency @ (1 - data.given).sum(axis=1))},
        "classical": {"alpha": alpha, "mean_score": _number(scores.mean_score), "sd_score": _number(scores.sd_score),
                      "complete_persons": scores.complete_persons},
        "model": _fit_json(chosen, data.persons) | {
            "marginal_reliability": reliability,
            "items": [
                dict(zip(ITEM_COLUMNS, row, strict=True)) for row in _item_rows(data, scores, chosen)
            ],
        },
        "comparison": [_fit_json(each, data.persons) for each in fits.values()],
        "warnings": [warning for each in fits.values() for warning in _warnings(each)],
    }  # fmt: skip


def _fit_json(fit: irt.Fit, persons: int) -> dict[str, Any]:
    return {
        "model": fit.model,
        "log_likelihood": fit.log_likelihood,
        "free_parameters": fit.free_parameters,
        "aic": 2 * fit.free_parameters - 2 * fit.log_likelihood,
        "bic": math.log(persons) * fit.free_parameters - 2 * fit.log_likelihood,
        "iterations": fit.iterations,
        "converged": fit.converged,
    }


def _warnings(fit: irt.Fit) -> list[str]:
    found = []
    if not fit.converged:
        found.append(f"{fit.model}: not converged after {fit.iterations} iterations; read its figures with care.")
    if not fit.information_positive:
        found.append(f"{fit.model}: the data do not identify all parameters, so there are no standard errors.")
    if float(np.abs(fit.a).max()) > 5:
        found.append(f"{fit.model}: a discrimination above 5 usually means too few persons for this model.")
    if np.any(fit.a < 0):
        found.append(f"{fit.model}: a negative discrimination usually means a wrong answer key.")
    return found


def _reliability(data: Responses, ability: Floats, error: Floats) -> float | None:
    """Share of the ability estimates' total variance that is not error."""
    weight = data.frequency / data.frequency.sum()
    variance = float(weight @ ability**2 - (weight @ ability) ** 2)
    noise = float(weight @ error**2)
    return variance / (variance + noise) if variance + noise > 0 else None


def _item_rows(data: Responses, scores: Classical, fit: irt.Fit) -> list[tuple[object, ...]]:
    answers = data.frequency @ data.given
    return [
        (
            data.items[j], int(answers[j]), *(
                _number(value[j]) for value in
                (scores.difficulty, scores.item_total, scores.alpha_without, fit.a, fit.a_se, fit.b, fit.b_se)
            ),
        )
        for j in range(len(data.items))
    ]  # fmt: skip


def _write_items(job: Job, data: Responses, scores: Classical, fit: irt.Fit) -> None:
    write_csv(job.results / "items.csv", ITEM_COLUMNS, _item_rows(data, scores, fit))


def _write_persons(job: Job, data: Responses, ability: Floats, error: Floats, expected: Floats) -> None:
    columns = ("row", "answered", "sum_score", "ability", "ability_se", "frequency", "expected_frequency")
    rows = zip(
        data.names, data.given.sum(axis=1).astype(int).tolist(), data.right.sum(axis=1).astype(int).tolist(),
        ability.tolist(), error.tolist(), data.frequency.astype(int).tolist(), expected.tolist(), strict=True,
    )  # fmt: skip
    write_csv(job.results / "persons.csv", columns, rows)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(run(main))
