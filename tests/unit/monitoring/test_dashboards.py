"""The dashboards: up to date, well formed, and every panel's query answered by a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.metering import names
from tests.support.prometheus import Prometheus, prometheus
from tests.unit.monitoring import series
from tools import dashboards
from tools.dashboard_panels import filled_in, queries_of

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTS = {name: json.loads(text) for name, text in dashboards.documents().items()}
PANELS = [
    pytest.param(panel, id=f"{name.removesuffix('.json')}-{panel['id']}-{panel.get('title')}")
    for name, document in DOCUMENTS.items()
    for panel in document["panels"]
    if panel["type"] not in ("row", "text")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(folder, {"global": {}}, series.store(folder)) as running:
        yield running


def test_the_files_are_up_to_date() -> None:
    stale = [name for name, text in dashboards.documents().items() if (dashboards.FOLDER / name).read_text() != text]
    assert not stale, "run: python -m tools.dashboards"
    assert {path.name for path in dashboards.FOLDER.iterdir()} == set(DOCUMENTS)


def test_the_check_names_a_stale_file_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert dashboards.main(folder) == 0
    assert dashboards.main(["--check", *folder]) == 0
    (tmp_path / "finance.json").write_text("{}")
    assert dashboards.main(["--check", *folder]) == 1
    assert "finance.json" in capsys.readouterr().err


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_something(server: Prometheus, panel: dict[str, Any]) -> None:
    expressions = queries_of(panel)
    assert expressions
    for expression in expressions:
        sent = filled_in(expression, "1h", dashboards.VARIABLES)
        assert "$" not in sent
        found = server.query(sent, series.END_S)
        assert found, expression
        assert all(sample.value == sample.value for sample in found.values()), f"NaN: {expression}"


def test_figures_are_those_of_the_series(server: Prometheus) -> None:
    finance = {panel.get("title"): panel for panel in DOCUMENTS["finance.json"]["panels"]}
    by_tenant = filled_in(queries_of(finance["Use"])[-1], "1h", dashboards.VARIABLES)
    assert {dict(key)["project"] for key in server.query(by_tenant, series.END_S)} == {"default", "physics"}
    (hours,) = server.query(
        filled_in(queries_of(finance["core-hours"])[0], "1h", dashboards.VARIABLES), series.END_S
    ).values()
    # Six series of four cores each.
    assert hours.value == pytest.approx(24)


def test_the_variables_name_labels_that_are_there(server: Prometheus) -> None:
    for document in DOCUMENTS.values():
        for variable in document["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
                found = server.query(
                    f"count by ({label}) ({filled_in(selector, '1h', dashboards.VARIABLES)})", series.END_S
                )
                assert found, variable["query"]
                assert all(key for key in found), variable["query"]


def test_every_metric_is_prepared_and_shown_somewhere() -> None:
    known = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")}
    ready = {f"{name}{suffix if suffix == '_total' else ''}" for name, _, suffix, _ in series.prepared()}
    assert ready - {"ALERTS"} == known
    text = "\n".join(found for document in DOCUMENTS.values() for found in queries_of(document))
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"suanli_\w+", text)}
    assert shown == known


def test_panels_neither_overlap_nor_leave_the_page() -> None:
    for name, document in DOCUMENTS.items():
        taken: set[tuple[int, int]] = set()
        assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
        for panel in document["panels"]:
            spot = panel["gridPos"]
            cells = {(spot["x"] + i, spot["y"] + j) for i in range(spot["w"]) for j in range(spot["h"])}
            assert spot["x"] + spot["w"] <= 24, (name, panel.get("title"))
            assert not cells & taken, (name, panel.get("title"))
            taken |= cells


def test_the_prepared_series_have_the_kinds_and_labels_of_the_real_ones() -> None:
    """The page of metrics is written from the collectors, and compared with them elsewhere."""
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(suanli_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    real = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    for name, kind, suffix, samples in series.prepared():
        if kind and name != "ALERTS":
            shown = f"{name}_total" if suffix == "_total" else name
            labels = {label for keys, _, _ in samples for label in re.findall(r'(\w+)="', keys)}
            assert (kind, labels - {"job", "instance", "le"}) == real[shown], shown
