"""Whatever is simulated: the ledger is what was held, no node holds more than it has, no work is lost or made up, all jobs end."""

from __future__ import annotations

import itertools
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.outcome import JobOutcome, Outcome
from scheduler.simulation.workload import FleetChange, Scenario, SimJob
from scheduler.simulation.world import Simulation

MINUTE = 60_000
NODES = tuple(NodeReport(f"n{i}", f"n{i}", "gpu", "A100", Resources(16_000, 65_536, 4_000)) for i in range(3))
SPARE = NodeReport("spare", "spare", "gpu", "A100", Resources(16_000, 65_536, 4_000))


@st.composite
def sim_jobs(draw: st.DrawFn) -> SimJob:
    runtime_ms = draw(st.integers(1, 300)) * MINUTE
    gpu_milli = draw(st.sampled_from([0, 500, 1000, 2000, 4000]))
    replicas = draw(st.integers(1, 3))
    return SimJob(
        submit_ms=draw(st.integers(0, 200)) * MINUTE,
        institution=draw(st.sampled_from(["a", "b"])),
        shape=Shape(Resources(draw(st.sampled_from([500, 4000])), 1024, gpu_milli), replicas),
        runtime_ms=runtime_ms,
        name=draw(st.sampled_from(["x", "y"])),
        user=draw(st.sampled_from(["u", "v"])),
        limit_ms=runtime_ms * draw(st.integers(1, 4)),
        priority=draw(st.sampled_from(list(PriorityClass))),
        preemptible=draw(st.booleans()),
        grace_ms=draw(st.sampled_from([0, 30_000])),
        restart_cost_ms=draw(st.sampled_from([0, 0, MINUTE, 1000 * MINUTE])),
        checkpoint_ms=draw(st.sampled_from([0, 0, 7 * MINUTE])),
    )


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    jobs = draw(st.lists(sim_jobs(), min_size=8, max_size=30))
    changes: tuple[FleetChange, ...] = ()
    if draw(st.booleans()):
        # A node goes, another comes: every job fits somewhere at all times.
        at_ms = draw(st.integers(1, 600)) * MINUTE
        changes = (FleetChange(at_ms, "east", (*NODES[:2], SPARE)),)
    return Scenario(jobs, {"east": NODES}, changes=changes)


OPTIONS = st.fixed_dictionaries(
    {
        "known_runtimes": st.booleans(),
        "notice_milli": st.sampled_from([0, 1000]),
        "round_every_ms": st.sampled_from([0, 5 * MINUTE]),
    }
)


def play(scenario: Scenario, preset: str, options: dict[str, int]) -> Outcome:
    return Simulation(scenario, PRESETS[preset], **options).run()  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.sampled_from(sorted(PRESETS)), OPTIONS)
def test_what_is_simulated_adds_up(scenario: Scenario, preset: str, options: dict[str, int]) -> None:
    outcome = play(scenario, preset, options)
    for each in outcome.jobs:
        _ended_as_it_must(each, scenario)
    _metered_what_was_held(outcome)
    _never_more_than_there_is(outcome)
    again = play(scenario, preset, options)
    assert again.jobs == outcome.jobs
    assert again.ledger == outcome.ledger


def _ended_as_it_must(each: JobOutcome, scenario: Scenario) -> None:
    job = each.job
    assert not each.refused
    assert each.ended
    assert each.start_ms >= job.submit_ms
    assert each.end_ms >= each.start_ms + job.runtime_ms
    if not each.evictions and not scenario.changes:
        assert each.held_ms == job.runtime_ms == each.end_ms - each.start_ms
    if not job.preemptible:
        assert not each.evictions


def _metered_what_was_held(outcome: Outcome) -> None:
    held = sum(each.held_ms * each.job.shape.total.cpu_milli for each in outcome.jobs)
    assert sum(each.cpu_milli * (each.end_ms - each.start_ms) for each in outcome.ledger) == held
    by_job: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for each in outcome.ledger:
        by_job[each.job_id].append((each.start_ms, each.end_ms))
    for spans in by_job.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def _never_more_than_there_is(outcome: Outcome) -> None:
    steps: dict[int, int] = defaultdict(int)
    for each in outcome.ledger:
        steps[each.start_ms] += each.gpu_milli
        steps[each.end_ms] -= each.gpu_milli
    held = 0
    for at_ms in sorted(steps):
        held += steps[at_ms]
        assert held <= 12_000
