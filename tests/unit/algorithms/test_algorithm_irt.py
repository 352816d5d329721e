"""Item analysis and IRT against published figures, known truths and bad inputs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def irt(load: Any) -> Any:
    return load("irt", ["model", "responses", "job_io"])


def fitted(irt: Any, dataset: str, model: str) -> Any:
    table = irt.job_io.read_table(irt.source / "data" / f"{dataset}.csv")
    data = irt.responses.responses_from(table, [], "", "frequency")
    patterns, _ = irt.model.patterns_of(data.right, data.given, data.frequency)
    return irt.model.fit(patterns, irt.model.make_grid(61), model, 1e-7, 5000)


@pytest.mark.parametrize(
    ("dataset", "sums"), [("lsat6", [924, 709, 553, 763, 870]), ("lsat7", [828, 658, 772, 606, 843])]
)
def test_shipped_tables_are_the_published_ones(irt: Any, dataset: str, sums: list[int]) -> None:
    data = irt.responses.responses_from(
        irt.job_io.read_table(irt.source / "data" / f"{dataset}.csv"), [], "", "frequency"
    )
    assert data.persons == 1000
    assert (data.frequency @ data.right).tolist() == sums


def test_two_parameter_model_of_lsat6_gives_the_figures_of_ltm(irt: Any) -> None:
    fit = fitted(irt, "lsat6", "2pl")
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(-2466.653, abs=6e-4)
    assert fit.a == pytest.approx([0.8254, 0.7229, 0.8905, 0.6886, 0.6575], abs=1e-3)
    assert fit.b == pytest.approx([-3.3597, -1.3696, -0.2799, -1.8659, -3.1236], abs=3e-3)
    assert fit.a_se == pytest.approx([0.2581, 0.1867, 0.2326, 0.1852, 0.2100], abs=6e-4)
    assert fit.b_se == pytest.approx([0.8669, 0.3073, 0.0997, 0.4341, 0.8700], abs=2e-3)


def test_rasch_model_of_lsat6_gives_the_known_figures(irt: Any) -> None:
    fit = fitted(irt, "lsat6", "rasch")
    assert fit.log_likelihood == pytest.approx(-2473.054, abs=6e-4)
    assert fit.a.tolist() == [1.0] * 5
    assert fit.b == pytest.approx([-2.872, -1.063, -0.258, -1.388, -2.219], abs=1e-3)


def test_one_common_discrimination_gives_the_figures_of_ltm(irt: Any) -> None:
    fit = fitted(irt, "lsat6", "1pl")
    assert fit.log_likelihood == pytest.approx(-2466.938, abs=6e-4)
    assert fit.a == pytest.approx([0.7551] * 5, abs=5e-4)
    assert fit.b == pytest.approx([-3.6153, -1.3224, -0.3176, -1.7301, -2.7802], abs=2e-3)


def test_two_parameter_model_of_lsat7_gives_the_figures_of_mirt(irt: Any) -> None:
    fit = fitted(irt, "lsat7", "2pl")
    assert fit.log_likelihood == pytest.approx(-2658.805, abs=6e-4)
    assert 2 * fit.free_parameters - 2 * fit.log_likelihood == pytest.approx(5337.61, abs=5e-3)
    assert fit.a == pytest.approx([0.988, 1.081, 1.706, 0.765, 0.736], abs=2e-3)


def test_parameters_of_simulated_persons_are_recovered_with_missing_answers(irt: Any) -> None:
    draw = np.random.default_rng(5)
    a, b = draw.uniform(0.7, 2.0, 12), draw.normal(0, 1, 12)
    ability = draw.normal(0, 1, 4000)
    chance = 1 / (1 + np.exp(-a * (ability[:, None] - b)))
    given = (draw.random(chance.shape) > 0.15).astype(float)
    right = (draw.random(chance.shape) < chance) * given
    patterns, row = irt.model.patterns_of(right, given, np.ones(len(right)))
    grid = irt.model.make_grid(61)
    fit = irt.model.fit(patterns, grid, "2pl", 1e-5, 2000)
    assert np.all(np.abs(fit.a - a) < 4 * fit.a_se)
    assert np.all(np.abs(fit.b - b) < 4 * fit.b_se)
    mean, error = (each[row] for each in irt.model.abilities(patterns, grid, fit.a, fit.d))
    assert np.corrcoef(mean, ability)[0, 1] > 0.85
    assert np.mean(np.abs(mean - ability) < 1.96 * error) == pytest.approx(0.95, abs=0.02)


def test_classical_statistics_agree_with_their_definitions_person_by_person(irt: Any) -> None:
    data = irt.responses.responses_from(irt.job_io.read_table(irt.source / "data" / "lsat7.csv"), [], "", "frequency")
    found = irt.responses.classical(data)
    people = np.repeat(data.right, data.frequency.astype(int), axis=0)
    rest = people.sum(axis=1)[:, None] - people
    assert found.difficulty == pytest.approx(people.mean(axis=0))
    assert found.item_total == pytest.approx([np.corrcoef(people[:, j], rest[:, j])[0, 1] for j in range(5)])
    assert found.alpha == pytest.approx(cronbach(people))
    assert found.alpha_without == pytest.approx([cronbach(np.delete(people, j, axis=1)) for j in range(5)])


def cronbach(people: Any) -> float:
    k = people.shape[1]
    parts, whole = people.var(axis=0, ddof=1).sum(), people.sum(axis=1).var(ddof=1)
    return float(k / (k - 1) * (1 - parts / whole))


def test_a_job_leaves_every_output_of_the_manifest(irt: Any) -> None:
    run = irt.job("whole", {"dataset": "lsat6"})
    assert run.returncode == 0, run.stderr
    manifest = irt.job_io.load_job(["--results", str(run.results / "unused")]).manifest
    for output in manifest["outputs"]:
        assert (run.results / output["file"]).stat().st_size > 0
    assert (run.results / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert run.result["model"]["log_likelihood"] == pytest.approx(-2466.653, abs=1e-3)
    assert [each["model"] for each in run.result["comparison"]] == ["rasch", "1pl", "2pl"]
    with (run.results / "persons.csv").open(encoding="utf-8") as stream:
        persons = list(csv.DictReader(stream))
    assert sum(int(person["frequency"]) for person in persons) == 1000
    assert sum(float(person["expected_frequency"]) for person in persons) == pytest.approx(1000, abs=10)


def test_one_row_per_person_gives_what_the_pattern_table_gives(
    irt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = list(csv.reader((irt.source / "data" / "lsat6.csv").open(encoding="utf-8")))
    people = [[f"p{i}-{k}", *row[:5]] for i, row in enumerate(rows[1:]) for k in range(int(row[5]))]
    grant(tmp_path, "spring", [["who", *rows[0][:5]], *people])
    settings = {"dataset": "spring", "id_column": "who", "model": "rasch", "compare_models": False}
    run = irt.main(monkeypatch, capsys, settings, tmp_path / "granted")
    assert run.returncode == 0, run.stderr
    assert run.result["model"]["log_likelihood"] == pytest.approx(-2473.054, abs=1e-3)


def grant(folder: Path, dataset: str, rows: list[list[str]] | bytes) -> None:
    path = folder / "granted" / dataset / "data.csv"
    path.parent.mkdir(parents=True)
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        path.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"", "is empty"),
        (b"a,b,c\n", "no rows"),
        (b"a,b\n1,0\n0,1\n", "2 items"),
        (b"a,b,c\n1,0,1\n0,2,1\n", "line 3: item 'b' holds '2'"),
        (b"a,b,c\n1,0,1\n0,1,1\n", "item 'c' is right"),
        (b"a,b,c\n1,0,\n0,1,\n", "nobody answered item 'c'"),
        (b"a,b,c\n1,0,1\n0,1\n", "2 cells"),
        (b"a,a,c\n1,0,1\n", "a name of its own"),
        (b"a,b,c\n1,\xff,1\n", "not UTF-8"),
        (b"a,b,c,frequency\n1,0,1,2\n0,1,0,-1\n", "whole numbers"),
        (b"a,b,c,frequency\n1,0,1,many\n0,1,0,1\n", "not a number"),
    ],
)
def test_a_table_that_cannot_be_used_ends_with_one_sentence(
    irt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, table: bytes, sentence: str
) -> None:
    grant(tmp_path, "mine", table)
    run = irt.main(monkeypatch, capsys, {"dataset": "mine"}, tmp_path / "granted")
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (run.results / "results.json").exists()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"dataset": "nowhere"}, "no data set 'nowhere'"),
        ({"dataset": "../irt/data/lsat6"}, "no data set"),
        ({"model": "3pl"}, "'model'"),
        ({"quadrature_points": 3}, "'quadrature_points'"),
        ({"surprise": 1}, "surprise"),
        ({"items": ["item1", "item2", "itemX"]}, "no column 'itemX'"),
        ("[1, 2]", "not of type 'object'"),
        ("{", "not JSON"),
    ],
)
def test_parameters_that_cannot_be_used_end_with_one_sentence(
    irt: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, parameters: object, sentence: str
) -> None:
    run = irt.main(monkeypatch, capsys, parameters)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_file_outside_the_granted_data_set_is_refused(
    irt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    grant(tmp_path, "mine", b"a,b,c\n1,0,1\n")
    (tmp_path / "granted" / "secret.csv").write_text("a,b,c\n1,0,0\n0,1,1\n", encoding="utf-8")
    run = irt.main(monkeypatch, capsys, {"dataset": "mine", "file": "../secret.csv"}, tmp_path / "granted")
    assert run.returncode == 2
    assert "outside the data set" in run.stderr


def test_a_negative_discrimination_is_pointed_out(
    irt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = list(csv.reader((irt.source / "data" / "lsat7.csv").open(encoding="utf-8")))
    wrong_key = [[row[0], row[1], row[2], str(1 - int(row[3])), row[4], row[5]] for row in rows[1:]]
    grant(tmp_path, "key", [rows[0], *wrong_key])
    run = irt.main(monkeypatch, capsys, {"dataset": "key", "compare_models": False}, tmp_path / "granted")
    assert run.returncode == 0
    assert any("wrong answer key" in warning for warning in run.result["warnings"])
    assert run.result["model"]["items"][3]["discrimination"] < 0
