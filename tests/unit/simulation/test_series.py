"""Step functions and what is drawn of a simulation, reckoned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.series import Steps, bins, jain_index, series
from scheduler.simulation.workload import Scenario, SimJob
from scheduler.simulation.world import Simulation


def test_a_step_function_is_averaged_exactly() -> None:
    steps = Steps()
    steps.span(2, 5, 10)
    steps.span(4, 8, 1)
    assert steps.integrals([0, 4, 6, 10]) == [20, 12, 2]
    assert steps.means([0, 4, 6, 10]) == [5.0, 6.0, 0.5]
    assert steps.integral(3, 5) == 21
    assert steps.peak() == 11


def test_one_function_may_be_taken_off_another() -> None:
    one, other = Steps(), Steps()
    one.span(0, 10, 3)
    other.span(4, 6, 2)
    one.merge(other, -1)
    assert one.integrals([0, 4, 6, 10]) == [12, 2, 12]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(-9, 9)), max_size=12), st.integers(1, 13))
def test_parts_add_up_to_the_whole_and_agree_with_counting(spans: list[tuple[int, int, int]], parts: int) -> None:
    steps = Steps()
    for one, other, amount in spans:
        steps.span(min(one, other), max(one, other), amount)
    expected = sum(
        amount for at in range(5, 45) for one, other, amount in spans if min(one, other) <= at < max(one, other)
    )
    assert sum(steps.integrals(bins(5, 45, parts))) == steps.integral(5, 45) == expected


def test_jains_index() -> None:
    assert jain_index([2, 2, 2]) == 1.0
    assert jain_index([1, 0, 0, 0]) == 0.25
    assert jain_index([0, 0]) == 1.0


def test_the_series_of_a_small_simulation() -> None:
    """One GPU: a's job holds it for 10 s; b's waits from 2 s on, runs for 6 s more."""
    gpu = Shape(Resources(1000, 1024, 1000), 1)
    node = NodeReport("n1", "n1", "gpu", "A100", Resources(2000, 4096, 1000))
    jobs = [SimJob(100_000, "a", gpu, 10_000), SimJob(102_000, "b", gpu, 6_000)]
    outcome = Simulation(Scenario(jobs, {"east": [node]}), PRESETS["fifo"]).run()
    found = series(outcome, {"a": 1000, "b": 1000}, 96_000, 120_000, parts=12)
    assert found.utilisation == {"east/gpu": (0.0, 0.0, *[1.0] * 8, 0.0, 0.0)}
    assert found.waiting["b"] == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert found.waiting["a"] == (0.0,) * 12
    assert found.share["a"] == (0.0, 0.0, *[1.0] * 5, *[0.0] * 5)
    assert found.running == (0.0, 0.0, *[1.0] * 8, 0.0, 0.0)
    # While b waits a has all there is, which of two is one half; else nobody wants anything.
    assert found.jain == (None, None, None, 0.5, 0.5, 0.5, 0.5, None, None, None, None, None)


def test_the_window_may_begin_before_the_first_job_and_cut_the_last() -> None:
    cpu = Shape(Resources(1000, 1024, 0), 1)
    node = NodeReport("n1", "n1", "cpu", "", Resources(2000, 4096, 0))
    outcome = Simulation(Scenario([SimJob(50, "a", cpu, 100)], {"east": [node]}), PRESETS["fifo"]).run()
    found = series(outcome, {}, 0, 100, parts=2)
    assert found.utilisation["east/cpu"] == (0.0, 0.5)
    assert found.share["a"] == pytest.approx((0.0, 0.5))
