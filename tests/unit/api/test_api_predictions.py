"""How good runtime predictions are, as /metrics shows it."""

from __future__ import annotations

import pytest

from scheduler.planning.runtimes import Accuracy, JobFeatures, RuntimeModel
from tests.support.api import Api

ERROR, COVERAGE = "suanli_runtime_prediction_error_octaves", "suanli_runtime_prediction_p90_coverage"
HOUR_MS = 3_600_000


async def shown(api: Api, metric: str) -> float:
    lines = (await api.metrics.page(api.control_plane)).decode().splitlines()
    assert f"# TYPE {metric} gauge" in lines
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{metric} ")]
    return float(value)


async def test_without_a_prediction_there_is_nothing_to_show(api: Api) -> None:
    assert await shown(api, ERROR) == 0
    assert await shown(api, COVERAGE) == 0


async def test_the_error_is_in_octaves_and_the_coverage_a_part(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RuntimeModel()
    monkeypatch.setattr(api.control_plane.engine.state, "predictor", model)
    monkeypatch.setattr(model, "accuracy", lambda: Accuracy(1585, 870, 40))
    assert await shown(api, ERROR) == 1.585
    assert await shown(api, COVERAGE) == 0.87


async def test_the_gauges_follow_what_the_predictor_learns(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RuntimeModel()
    monkeypatch.setattr(api.control_plane.engine.state, "predictor", model)
    features = JobFeatures("uni-a", "default", "ada", "train", 1000)
    model.observe(features, HOUR_MS)
    assert await shown(api, COVERAGE) == 0, "the first was predicted from nothing, and is not judged"
    model.observe(features, HOUR_MS)
    assert (await shown(api, ERROR), await shown(api, COVERAGE)) == (0, 1)
    # log2(1000) octaves from the hour that was predicted, and beyond the week that nine of ten stay below: the upper median of the two.
    model.observe(features, 1000 * HOUR_MS)
    assert (await shown(api, ERROR), await shown(api, COVERAGE)) == (9.966, 0.5)
