"""Whatever runs and waits: where runtimes turn out as predicted, jobs start when the forecast said."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planning.explain import explain
from scheduler.planning.forecast import Forecast, Replay, Scenario
from scheduler.planning.frozen import freeze
from scheduler.planning.plan import Planner
from scheduler.planning.policy import PRESETS, PreemptionPolicy
from tests.property.test_explain import MINUTE_MS, NOW_MS, policies, worlds
from tests.unit.planning.test_forecast import Known, simulate

NEVER = PreemptionPolicy(reclaim=False, priority=False)


@settings(max_examples=150, deadline=None)
@given(worlds(), st.sampled_from(sorted(PRESETS)), st.lists(st.integers(1, 90), min_size=12, max_size=12))
def test_the_forecast_is_what_then_happens(world, preset, minutes):
    policy = replace(PRESETS[preset], preemption=NEVER)
    ends = {seq: NOW_MS + MINUTE_MS * minutes[at % 12] for at, seq in enumerate(world.running)}
    world.running = {seq: replace(view, limit_end_ms=NOW_MS + 100 * MINUTE_MS) for seq, view in world.running.items()}
    for key, jobs in world.lines.items():
        world.lines[key] = [
            job._replace(expected_ms=min(job.limit_ms, MINUTE_MS * minutes[job.job_no % 12])) for job in jobs
        ]
    replay = Replay(replace(world.snapshot(), runtimes=Known(ends)), policy, NOW_MS, Scenario.EXPECTED)
    numbers = [job.job_no for line in world.lines.values() for job in line]
    told = {number: replay.until(number) for number in numbers}
    happened = simulate(world, policy, ends)
    assert {number: at for number, at in told.items() if at is not None} == happened


@settings(max_examples=150, deadline=None)
@given(worlds(), policies)
def test_a_range_holds_its_estimate_and_starts_no_sooner_than_now(world, policy):
    snapshot = world.snapshot()
    for key, jobs in world.lines.items():
        told = explain(Planner(), snapshot, policy, NOW_MS, (key, jobs[0]))
        expected = Forecast(freeze(snapshot, (key, jobs[0])), policy, NOW_MS).expected_start(key, jobs[0], told)
        assert (expected.basis == "NONE") == (not expected.at_ms) == (expected.confidence == "NONE")
        if expected.at_ms:
            assert NOW_MS <= expected.earliest_ms <= expected.at_ms
            assert not expected.latest_ms or expected.at_ms <= expected.latest_ms
        else:
            assert expected.message.startswith("no estimate")
        if told.reservation is not None:
            assert expected.latest_ms <= told.reservation.start_ms
