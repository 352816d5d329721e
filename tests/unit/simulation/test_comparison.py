"""The figures of variants, reckoned by hand, and how they are written for people."""

from __future__ import annotations

import pytest

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.comparison import Result, against, report
from scheduler.simulation.page import change_text, render, tables, value_text
from scheduler.simulation.series import series
from scheduler.simulation.tables import History, PastJob
from scheduler.simulation.trial import Changes, Variant, scenario
from scheduler.simulation.world import Simulation

T0 = 1_000_000_000
GPU = Shape(Resources(1000, 1024, 1000), 1)


def past(name: str, submit_s: int, runtime_s: int, start_s: int, institution: str = "a", gpu: int = 1) -> PastJob:
    """A job that ran from ``start_s`` on; all seconds from the window's beginning."""
    end_s = start_s + runtime_s
    return PastJob(
        name,
        institution,
        "default",
        "u",
        "train",
        "SUCCEEDED",
        T0 + submit_s * 1000,
        T0 + submit_s * 1000,
        T0 + start_s * 1000,
        T0 + end_s * 1000,
        runtime_s * 1000,
        1,
        0,
        Shape(Resources(1000, 1024, gpu * 1000), 1),
        PriorityClass.NORMAL,
        False,
        3_600_000,
        0,
        False,
    )


def simulated(history: History, changes: Changes | None = None) -> Result:
    variant = Variant(str(changes or "base"), PRESETS["fifo"], changes or Changes())
    given, origins = scenario(history, variant)
    outcome = Simulation(given, variant.policy).run()
    return Result(variant, outcome, origins, series(outcome, {}, history.from_ms, history.to_ms, 10))


@pytest.fixture
def history() -> History:
    """On one GPU: j1 holds it for 10 s; j2 waits 9 s; j3 of b, 15 s, really began at 17 s though it could at 16 s; j4 asks for two GPUs."""
    jobs = (past("j1", 0, 10, 0), past("j2", 1, 6, 10), past("j3", 2, 15, 17, "b"), past("j4", 3, 5, 40, "b", gpu=2))
    node = NodeReport("n1", "n1", "gpu", "A100", Resources(8000, 8192, 1000))
    return History(T0, T0 + 40_000, jobs, {"east": (node,)}, ())


def test_the_figures_of_the_baseline(history: History) -> None:
    metrics = report(history, [simulated(history)])
    (variant,) = metrics["variants"]
    figures = variant["figures"]
    assert (figures["jobs"], figures["ended"], figures["refused"], figures["unfinished"]) == (4, 3, 1, 0)
    assert [figures[f"wait_{name}_ms"] for name in ("average", "median", "p99")] == [23_000 // 3, 9_000, 14_000]
    assert [figures[f"completion_{name}_ms"] for name in ("average", "median", "p99")] == [18_000, 15_000, 29_000]
    assert figures["gpu_utilisation"] == 31 / 40
    assert figures["cpu_utilisation"] == 31 / 320
    (refused,) = variant["refused"]
    assert (refused["job_id"], refused["institution"]) == ("j4", "b")
    assert "No pool can hold" in refused["message"]
    institutions = variant["institutions"]
    assert institutions["a"]["wait_average_ms"] == 4_500
    assert institutions["b"]["wait_average_ms"] == 14_000
    assert institutions["b"]["gpu_hours"] == pytest.approx(15 / 3600)


def test_how_far_the_baseline_is_from_what_happened(history: History) -> None:
    found = report(history, [simulated(history)])["calibration"]
    assert found["actual"]["jobs"] == 3
    assert found["actual"]["wait_average_ms"] == 24_000 // 3
    assert found["simulated"]["wait_average_ms"] == 23_000 // 3
    assert found["simulated"]["completion_off_p99_ms"] == 1_000
    # What happened includes j4, which the simulation refuses, but not what of it lies after the window.
    assert found["actual"]["gpu_utilisation"] == 31 / 40


def test_a_bigger_pool_against_the_baseline(history: History) -> None:
    metrics = report(history, [simulated(history), simulated(history, Changes(add=(("east", "gpu", 1),)))])
    bigger = metrics["variants"][1]
    assert bigger["changes"] == "+1 east/gpu"
    # j1 and j2 run at once; j3 begins when j2 ends, at 7 s.
    assert bigger["figures"]["wait_average_ms"] == 5_000 // 3
    assert bigger["against_baseline"]["wait_average_ms"]["difference"] == 5_000 // 3 - 23_000 // 3
    assert bigger["against_baseline"]["gpu_utilisation"]["difference"] == pytest.approx(-31 / 80)
    assert bigger["institutions"]["a"]["against_baseline"]["wait_average_ms"] == {
        "difference": -4_500,
        "percent": -100.0,
    }


def test_jobs_from_before_the_window_do_not_count_in_the_waits(history: History) -> None:
    earlier = past("j0", -5, 3, 0)
    with_it = History(history.from_ms, history.to_ms, (earlier, *history.jobs), history.regions, ())
    metrics = report(with_it, [simulated(with_it)])
    assert metrics["jobs"] == {"in_history": 5, "simulated": 5, "never_ran": 0, "from_before": 1, "still_running": 0}
    assert metrics["variants"][0]["figures"]["jobs"] == 4
    assert metrics["variants"][0]["figures"]["wait_average_ms"] == (3 + 12 + 17) * 1000 // 3


def test_differences() -> None:
    assert against({"x": 3, "y": None, "z": 1}, {"x": 2, "y": 1, "z": 0}) == {
        "x": {"difference": 1, "percent": 50.0},
        "z": {"difference": 1, "percent": None},
    }


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "time", "–"),
        (0, "time", "0 s"),
        (400, "time", "400 ms"),
        (90_000, "time", "1.5 min"),
        (216_000_000, "time", "2.5 d"),
        (0.1234, "part", "12.3 %"),
        (1204, "count", "1,204"),
        (0.98765, "index", "0.988"),
    ],
)
def test_values_for_people(value: float | None, kind: str, text: str) -> None:
    assert value_text(value, kind) == text


@pytest.mark.parametrize(
    ("difference", "percent", "kind", "text"),
    [
        (0, 0.0, "time", "±0"),
        (-500, -25.0, "time", "−25.0 %"),
        (5_000, None, "time", "+5.0 s"),
        (-0.031, -10.0, "part", "−3.1 points"),
        (7, 700.0, "count", "+7"),
        (1, 0.0001, "time", "±0.0 %"),
    ],
)
def test_changes_for_people(difference: float, percent: float | None, kind: str, text: str) -> None:
    assert change_text({"difference": difference, "percent": percent}, kind) == text


def test_tables_and_page_say_the_same_and_escape_names(history: History) -> None:
    metrics = report(history, [simulated(history), simulated(history, Changes(load_milli=2000))])
    metrics["variants"][1]["label"] = "<b>more</b>"
    compared, institutions, calibrated = tables(metrics)
    assert compared["head"] == ["", "base", "<b>more</b>"]
    assert compared["rows"][0][:2] == ["average wait", "7.7 s"]
    assert [row[0] for row in institutions["rows"]] == ["a", "a", "b", "b"]
    assert calibrated["rows"][0][:3] == ["average wait", "8.0 s", "7.7 s"]
    page = render(metrics, [], "1.0")
    assert "<b>more</b>" not in page
    assert "&lt;b&gt;more&lt;/b&gt;" in page
    assert "7.7 s" in page
    assert "No pool can hold" in page
