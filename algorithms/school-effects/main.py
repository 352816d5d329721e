"""School and district effects: the program a job runs. See `manifest.yaml`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import figure
import numpy as np
from binomial import fit_glm, fit_multilevel
from design import Design, Floats, load_table, make_design
from gaussian import fit_linear
from job_io import Job, run, write_csv, write_json
from scipy.special import expit
from scipy.stats import chi2, norm

ABOVE, BELOW, ALIKE = "above", "below", "not distinguishable"


@dataclass(frozen=True)
class Coefficients:
    """One model's estimates and standard errors, in the order of the design's terms."""

    model: str
    estimate: Floats
    error: Floats


@dataclass(frozen=True)
class Analysis:
    """What both families give: models of the coefficients, group effects, expected outcomes and figures of fit."""

    coefficients: list[Coefficients]
    effects: Floats
    effect_errors: Floats
    expected: Floats
    fit: dict[str, Any]
    headline: list[dict[str, Any]]
    unit: str
    warnings: list[str]


def main(job: Job) -> None:
    """Read, fit, write."""
    settings = job.parameters
    design = make_design(load_table(job), settings)
    analysis = analyse_counts(design, settings["quadrature_points"]) if settings["family"] == "binomial" else None
    analysis = analysis or analyse_scores(design, settings["method"] == "reml")
    if not job.is_main:
        return
    z = float(norm.ppf(0.5 + settings["confidence"] / 2))
    low, high = analysis.effects - z * analysis.effect_errors, analysis.effects + z * analysis.effect_errors
    verdicts = [ABOVE if a > 0 else BELOW if b < 0 else ALIKE for a, b in zip(low, high, strict=True)]
    _write_coefficients(job, design, analysis, z)
    _write_effects(job, design, analysis, low, high, verdicts)
    figure.draw(
        job.results / "plot.png", settings["dataset"], settings["confidence"], design.groups, analysis.effects, low, high,
        analysis.unit, _standardised(design, analysis, z),
    )  # fmt: skip
    counts = {verdict: verdicts.count(verdict) for verdict in (ABOVE, BELOW, ALIKE)}
    summary = (
        f"{len(design.groups)} groups of {settings['dataset']}: {counts[ABOVE]} above and {counts[BELOW]} below what their "
        f"circumstances predict, {counts[ALIKE]} not distinguishable at {settings['confidence']:.0%}."
    )
    write_json(
        job.results / "results.json",
        {
            "algorithm": job.manifest["name"],
            "version": job.manifest["version"],
            "summary": summary,
            "headline": [{"label": "Groups", "value": len(design.groups)}, *analysis.headline],
            "parameters": dict(settings),
            "data": {
                "dataset": settings["dataset"],
                "rows": len(design.y),
                "observations": int(design.n.sum()),
                "groups": len(design.groups),
            },
            "fit": analysis.fit,
            "verdicts": counts,
            "coefficients": {
                each.model: [
                    {"term": term, "estimate": b, "standard_error": e}
                    for term, b, e in zip(design.terms, each.estimate.tolist(), each.error.tolist(), strict=True)
                ]
                for each in analysis.coefficients
            },
            "warnings": analysis.warnings,
        },
    )
    print(summary)
    for warning in analysis.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def analyse_counts(design: Design, points: int) -> Analysis:
    """The binomial GLM, and the multi-level logit model that allows for differences between groups."""
    glm = fit_glm(design)
    multilevel = fit_multilevel(design, glm, points)
    variance = multilevel.sigma**2
    fit = {
        "glm": {
            "deviance": glm.deviance,
            "pearson_chi2": glm.pearson,
            "residual_df": glm.residual_df,
            "log_likelihood": glm.log_likelihood,
            "dispersion": glm.dispersion,
        },
        "multilevel": {
            "log_likelihood": multilevel.log_likelihood,
            "between_group_sd": multilevel.sigma,
            "intraclass_correlation": variance / (variance + math.pi**2 / 3),
            "converged": multilevel.converged,
        }
        | _group_test(2 * (multilevel.log_likelihood - glm.log_likelihood)),
    }
    warnings = []
    if glm.dispersion > 1.5:
        warnings.append(
            f"The counts vary {glm.dispersion:.1f} times as much as chance allows, so the GLM's standard errors are too "
            "small; read the multi-level model's."
        )
    if not multilevel.converged:
        warnings.append("The multi-level model did not converge; read its figures with care.")
    headline = [
        {"label": "GLM deviance", "value": glm.deviance},
        {"label": "Between-group SD (log-odds)", "value": multilevel.sigma},
    ]
    rate = expit(design.x @ multilevel.coefficients)
    return Analysis(
        [
            Coefficients("glm", glm.coefficients, glm.standard_errors),
            Coefficients("multilevel", multilevel.coefficients, multilevel.standard_errors),
        ],
        multilevel.effects, multilevel.effect_errors, rate, fit, headline, "log-odds", warnings,
    )  # fmt: skip


def analyse_scores(design: Design, restricted: bool) -> Analysis:
    """The linear model with a random intercept for each group."""
    linear = fit_linear(design, restricted)
    fit = {
        "method": "reml" if restricted else "ml",
        "minus_two_log_likelihood": linear.criterion,
        "between_group_variance": linear.tau2,
        "within_group_variance": linear.sigma2,
        "intraclass_correlation": linear.intraclass,
    } | _group_test(linear.criterion_without_groups - linear.criterion)
    headline = [
        {"label": "Between-group variance", "value": linear.tau2},
        {"label": "Intraclass correlation", "value": linear.intraclass},
    ]
    warnings = [] if linear.tau2 > 0 else ["The groups differ by no more than chance, so every effect is 0."]
    return Analysis(
        [Coefficients("multilevel", linear.coefficients, linear.standard_errors)],
        linear.effects, linear.effect_errors, design.x @ linear.coefficients, fit, headline, "score points", warnings,
    )  # fmt: skip


def _group_test(statistic: float) -> dict[str, float]:
    """Likelihood ratio test of "groups do not differ"; the variance is on its bound, so the p value is halved."""
    statistic = max(statistic, 0.0)
    return {"group_lr_statistic": statistic, "group_lr_p": 0.5 * float(chi2.sf(statistic, 1)) if statistic else 1.0}


def _write_coefficients(job: Job, design: Design, analysis: Analysis, z: float) -> None:
    columns = ("model", "term", "estimate", "standard_error", "lower", "upper", "z", "p_value")
    rows = [
        (each.model, term, b, e, b - z * e, b + z * e, b / e, 2 * float(norm.sf(abs(b / e))))
        for each in analysis.coefficients
        for term, b, e in zip(design.terms, each.estimate.tolist(), each.error.tolist(), strict=True)
    ]
    write_csv(job.results / "coefficients.csv", columns, rows)


def _write_effects(
    job: Job, design: Design, analysis: Analysis, low: Floats, high: Floats, verdicts: list[str]
) -> None:
    def total(values: Floats) -> Floats:
        return np.bincount(design.group, weights=values).astype(float)

    size = total(design.n)
    observed, expected = total(design.y) / size, total(analysis.expected * design.n) / size
    order = np.argsort(np.argsort(-analysis.effects, kind="stable"), kind="stable") + 1
    columns = ("group", "observations", "observed", "expected", "effect", "standard_error", "lower", "upper", "rank",
               "verdict")  # fmt: skip
    rows = zip(
        design.groups, size.astype(int).tolist(), observed.tolist(), expected.tolist(), analysis.effects.tolist(),
        analysis.effect_errors.tolist(), low.tolist(), high.tolist(), order.tolist(), verdicts, strict=True,
    )  # fmt: skip
    write_csv(job.results / "effects.csv", columns, rows)


def _standardised(design: Design, analysis: Analysis, z: float) -> list[figure.Bar]:
    """The multi-level coefficients per standard deviation of their predictor, with half-widths, intercept left out."""
    chosen, spread = analysis.coefficients[-1], design.x.std(axis=0)
    return [
        figure.Bar(term, float(b * s), float(z * e * s))
        for term, b, e, s in zip(design.terms, chosen.estimate, chosen.error, spread, strict=True)
        if s > 0
    ]


if __name__ == "__main__":
    sys.exit(run(main))
