"""School effects against published figures, other implementations and bad inputs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, norm

# Davies (1947), the yield of dyestuff from six batches, five samples each.
DYESTUFF = {
    "A": [1545, 1440, 1440, 1520, 1580], "B": [1540, 1555, 1490, 1560, 1495], "C": [1595, 1550, 1605, 1510, 1560],
    "D": [1445, 1440, 1595, 1465, 1545], "E": [1595, 1630, 1515, 1635, 1625], "F": [1520, 1455, 1450, 1480, 1445],
}  # fmt: skip
BERKELEY = {"dataset": "ucb1973", "successes": "admitted", "failures": "rejected"}


@pytest.fixture
def school(load: Any) -> Any:
    return load("school-effects", ["design", "binomial", "gaussian", "job_io"])


def settings_of(school: Any, **changes: object) -> Any:
    schema = school.job_io.load_job(["--results", str(school._folder / "unused")])
    return schema.parameters | changes


def design_of(school: Any, table: Any, **changes: object) -> Any:
    return school.design.make_design(table, settings_of(school, **changes))


def star98(school: Any) -> Any:
    job = school.job_io.load_job(["--results", str(school._folder / "unused")])
    return school.design.make_design(school.design.load_table(job), job.parameters)


def berkeley(school: Any, **changes: object) -> Any:
    table = school.job_io.read_table(school.source / "data" / "ucb1973.csv")
    return design_of(school, table, **(BERKELEY | changes))


def test_binomial_model_of_star98_gives_the_published_figures(school: Any) -> None:
    glm = school.binomial.fit_glm(star98(school))
    assert glm.deviance == pytest.approx(4078.765, abs=6e-4)
    assert glm.pearson == pytest.approx(4051.92, abs=6e-3)
    assert glm.log_likelihood == pytest.approx(-2998.61, abs=6e-3)
    assert glm.residual_df == 282


def test_binomial_model_agrees_with_statsmodels_term_by_term(school: Any) -> None:
    import statsmodels.api as sm

    design = star98(school)
    glm = school.binomial.fit_glm(design)
    other = sm.GLM(np.column_stack([design.y, design.n - design.y]), design.x, family=sm.families.Binomial()).fit()
    assert glm.coefficients == pytest.approx(other.params, rel=1e-5)
    assert glm.standard_errors == pytest.approx(other.bse, rel=1e-5)


def test_departments_explain_the_berkeley_admissions(school: Any) -> None:
    glm = school.binomial.fit_glm(berkeley(school, predictors=["female", "department"]))
    assert glm.deviance == pytest.approx(20.204, abs=6e-4)
    assert glm.residual_df == 5
    assert glm.coefficients[1] == pytest.approx(0.09987, abs=1e-5)
    assert glm.standard_errors[1] == pytest.approx(0.08085, abs=1e-5)


def test_multilevel_likelihood_agrees_with_brute_integration(school: Any) -> None:
    design = berkeley(school, predictors=["female"], group="department")
    fit = school.binomial.fit_multilevel(design, school.binomial.fit_glm(design), 15)
    assert fit.converged

    def log_likelihood(coefficients: Any, sigma: float) -> float:
        total = 0.0
        for group in range(len(design.groups)):
            rows = design.group == group
            y, n, eta = design.y[rows], design.n[rows], design.x[rows] @ coefficients

            def inside(u: float, y: Any = y, n: Any = n, eta: Any = eta) -> float:
                p = 1 / (1 + np.exp(-(eta + u)))
                return float(np.prod(binom.pmf(y, n, p)) * norm.pdf(u, 0, sigma))

            total += np.log(quad(inside, -6, 6, points=[float(fit.effects[group])], limit=400)[0])
        return float(total)

    best = log_likelihood(fit.coefficients, fit.sigma)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)
    for change in ([0.05, 0], [-0.05, 0], [0, 0.02], [0, -0.02]):
        assert log_likelihood(fit.coefficients + np.array(change), fit.sigma) < best
    assert log_likelihood(fit.coefficients, fit.sigma * 1.1) < best
    assert log_likelihood(fit.coefficients, fit.sigma * 0.9) < best


def test_true_effects_of_simulated_schools_are_recovered(school: Any) -> None:
    draw = np.random.default_rng(11)
    schools, pupils = 200, 60
    x, u = draw.normal(0, 1, schools), draw.normal(0, 0.5, schools)
    passed = draw.binomial(pupils, 1 / (1 + np.exp(-(0.3 + 0.8 * x + u))))
    rows = [[f"s{k}", repr(float(x[k])), str(passed[k]), str(pupils - passed[k])] for k in range(schools)]
    table = school.job_io.Table("simulated", ("school", "x", "passed", "failed"), rows)
    design = design_of(school, table, successes="passed", failures="failed", group="school", predictors=["x"])
    fit = school.binomial.fit_multilevel(design, school.binomial.fit_glm(design), 15)
    assert fit.sigma == pytest.approx(0.5, abs=0.1)
    assert np.all(np.abs(fit.coefficients - [0.3, 0.8]) < 4 * fit.standard_errors)
    assert np.mean(np.abs(fit.effects - u) < 1.96 * fit.effect_errors) == pytest.approx(0.95, abs=0.05)


def dyestuff(school: Any) -> Any:
    rows = [[batch, str(value)] for batch, values in DYESTUFF.items() for value in values]
    table = school.job_io.Table("dyestuff", ("batch", "yield"), rows)
    return design_of(school, table, family="gaussian", score="yield", group="batch", predictors=[])


@pytest.mark.parametrize(
    ("restricted", "criterion", "tau2", "error"),
    [(True, 319.6543, 1764.05, 19.3834), (False, 327.3271, 1388.33, 17.6946)],
)
def test_linear_model_of_dyestuff_gives_the_figures_of_lme4(
    school: Any, restricted: bool, criterion: float, tau2: float, error: float
) -> None:
    fit = school.gaussian.fit_linear(dyestuff(school), restricted)
    assert fit.criterion == pytest.approx(criterion, abs=1e-4)
    assert fit.tau2 == pytest.approx(tau2, abs=0.01)
    assert fit.sigma2 == pytest.approx(2451.25, abs=0.01)
    assert fit.coefficients == pytest.approx([1527.5])
    assert fit.standard_errors == pytest.approx([error], abs=1e-3)


def test_linear_model_agrees_with_statsmodels_on_unbalanced_schools(school: Any) -> None:
    import statsmodels.api as sm

    draw = np.random.default_rng(3)
    sizes = draw.integers(2, 40, 50)
    group = np.repeat(np.arange(50), sizes)
    x = draw.normal(0, 1, len(group)) + draw.normal(0, 1, 50)[group]
    y = 50 + 3 * x + draw.normal(0, 2, 50)[group] + draw.normal(0, 5, len(group))
    rows = [[f"s{g}", repr(float(a)), repr(float(b))] for g, a, b in zip(group, x, y, strict=True)]
    table = school.job_io.Table("simulated", ("school", "x", "score"), rows)
    design = design_of(school, table, family="gaussian", score="score", group="school", predictors=["x"])
    fit = school.gaussian.fit_linear(design, True)
    other = sm.MixedLM(y, sm.add_constant(x), group).fit(reml=True)
    assert fit.coefficients == pytest.approx(other.fe_params, rel=1e-4)
    assert fit.standard_errors == pytest.approx(other.bse_fe, rel=5e-3)
    same = (group[:, None] == group[None, :]).astype(float)
    precision = np.linalg.inv(fit.sigma2 * np.eye(len(y)) + fit.tau2 * same)
    assert fit.standard_errors == pytest.approx(
        np.sqrt(np.diag(np.linalg.inv(design.x.T @ precision @ design.x))), rel=1e-6
    )
    assert fit.tau2 == pytest.approx(float(np.ravel(other.cov_re)[0]), rel=1e-3)
    assert fit.criterion == pytest.approx(-2 * other.llf, abs=1e-3)
    effects = np.array([float(np.ravel(other.random_effects[g])[0]) for g in range(50)])
    assert fit.effects == pytest.approx(effects, abs=1e-2)


def test_schools_that_do_not_differ_get_no_variance(school: Any) -> None:
    rows = [[f"s{k % 10}", str(float((k * 7) % 20))] for k in range(200)]
    alike = [[name, str(float(k // 10))] for k, (name, _) in enumerate(rows)]
    table = school.job_io.Table("alike", ("school", "score"), alike)
    design = design_of(school, table, family="gaussian", score="score", group="school", predictors=[])
    fit = school.gaussian.fit_linear(design, True)
    assert fit.tau2 == 0
    assert np.all(fit.effects == 0)


def test_a_job_leaves_every_output_of_the_manifest(school: Any) -> None:
    run = school.job("whole", {})
    assert run.returncode == 0, run.stderr
    manifest = school.job_io.load_job(["--results", str(run.results / "unused")]).manifest
    for output in manifest["outputs"]:
        assert (run.results / output["file"]).stat().st_size > 0
    assert run.result["fit"]["glm"]["deviance"] == pytest.approx(4078.765, abs=1e-3)
    assert "too small" in run.stderr
    effects = list(csv.DictReader((run.results / "effects.csv").open(encoding="utf-8")))
    assert len(effects) == 303
    assert sorted(int(row["rank"]) for row in effects) == list(range(1, 304))
    for row in effects:
        above, below = float(row["lower"]) > 0, float(row["upper"]) < 0
        assert row["verdict"] == ("above" if above else "below" if below else "not distinguishable")
    assert sum(run.result["verdicts"].values()) == 303


def grant(folder: Path, text: str) -> Path:
    path = folder / "granted" / "mine" / "data.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return folder / "granted"


def test_scores_of_a_granted_data_set_are_analysed(
    school: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = [f"{batch},{value}" for batch, values in DYESTUFF.items() for value in values]
    data = grant(tmp_path, "batch,yield\n" + "\n".join(rows) + "\n")
    parameters = {"dataset": "mine", "family": "gaussian", "score": "yield", "group": "batch", "predictors": []}
    run = school.main(monkeypatch, capsys, parameters, data)
    assert run.returncode == 0, run.stderr
    assert run.result["fit"]["minus_two_log_likelihood"] == pytest.approx(319.6543, abs=1e-4)
    assert (run.results / "plot.png").stat().st_size > 0


COUNTS = {"dataset": "mine", "successes": "yes", "failures": "no", "group": "school", "predictors": ["x"]}
SCORES = {"dataset": "mine", "family": "gaussian", "score": "score", "group": "school", "predictors": ["x"]}


@pytest.mark.parametrize(
    ("table", "parameters", "sentence"),
    [
        ("school,x,yes,no\na,1,1,1\n", {"predictors": ["y"]}, "no column 'y'"),
        ("school,x,yes,no\na,1,1.5,1\nb,2,1,1\n", {}, "whole numbers"),
        ("school,x,yes,no\na,1,nan,1\nb,2,1,1\n", {}, "not a number"),
        ("school,x,yes,no\na,1,1,1\nb,1,2,1\nc,1,3,1\n", {}, "'x' is constant"),
        ("school,x,yes,no\na,1,0,1\nb,2,0,1\nc,3,0,1\n", {}, "every outcome is the same"),
        ("school,x,yes,no\na,1,1,1\na,2,1,1\nb,3,1,1\nb,4,2,1\n", {}, "2 groups"),
        ("school,x,yes,no\na,1,1,1\nb,2,1,1\n", {}, "cannot carry"),
        ("school,x,z,yes,no\na,1,2,1,1\nb,2,4,1,2\nc,3,6,3,1\nd,5,10,1,1\n", {"predictors": ["x", "z"]}, "depend on"),
        ("school,x,yes,no\na,1,0,9\nb,2,0,9\nc,3,9,0\nd,4,9,0\n", {}, "no finite fit"),
        ("school,x,yes,no\na,1,1,1\n", SCORES | {"score": ""}, "'score'"),
        ("school,x,score\na,1,5\nb,2,7\nc,3,9\n", SCORES, "one row"),
        ("school,x,score\na,1,5\na,2,5\nb,3,5\nc,4,5\n", SCORES, "every score is the same"),
        ("school,x,score\na,1,5\na,2,6\nb,,5\nc,4,5\n", SCORES, "line 4"),
        ("", {}, "is empty"),
    ],
)
def test_a_table_that_cannot_be_used_ends_with_one_sentence(
    school: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    table: str,
    parameters: Any,
    sentence: str,
) -> None:
    run = school.main(monkeypatch, capsys, COUNTS | parameters, grant(tmp_path, table))
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1
