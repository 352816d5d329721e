"""Small scenarios whose outcome can be reckoned by hand."""

from __future__ import annotations

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.outcome import summarise
from scheduler.simulation.workload import FleetChange, Scenario, SimJob
from scheduler.simulation.world import Simulation

SECOND = 1000


def gpus(name: str, count: int, region_pool: str = "gpu") -> NodeReport:
    return NodeReport(name, name, region_pool, "A100", Resources(64_000, 262_144, count * 1000))


def job(submit_s: int, runtime_s: int, gpu: int = 1, replicas: int = 1, **rest: object) -> SimJob:
    shape = Shape(Resources(1000, 1024, gpu * 1000), replicas)
    return SimJob(submit_s * SECOND, "a", shape, runtime_s * SECOND, **rest)  # type: ignore[arg-type]


def play(jobs: list[SimJob], *nodes: NodeReport, preset: str = "fifo", **rest: object):
    return Simulation(Scenario(jobs, {"east": nodes}, **rest), PRESETS[preset]).run()  # type: ignore[arg-type]


def test_two_jobs_on_one_gpu_run_one_after_the_other():
    outcome = play([job(0, 10), job(2, 5)], gpus("n1", 1))
    assert [(each.start_ms, each.end_ms) for each in outcome.jobs] == [(0, 10_000), (10_000, 15_000)]
    assert summarise(outcome.jobs).average_completion_ms == (10_000 + 13_000) // 2
    assert outcome.gpu_utilisation() == 1.0


def test_a_gang_waits_for_all_of_its_places():
    outcome = play([job(0, 10), job(1, 5, replicas=2), job(2, 3)], gpus("n1", 1), gpus("n2", 1))
    # The last job fits on the second node, but may run for a day there, in the place of the gang.
    assert [each.start_ms for each in outcome.jobs[:2]] == [0, 10_000]
    assert outcome.jobs[2].start_ms == 15_000


def test_a_job_that_ends_before_a_reservation_runs_in_its_place():
    first = job(0, 10, limit_ms=10 * SECOND)
    outcome = play([first, job(1, 5, replicas=2), job(2, 3, limit_ms=3 * SECOND)], gpus("n1", 1), gpus("n2", 1))
    assert [each.start_ms for each in outcome.jobs] == [0, 10_000, 2_000]


def test_the_ledger_holds_what_the_jobs_held():
    outcome = play([job(0, 10, gpu=2), job(2, 5), job(3, 4, replicas=2)], gpus("n1", 2))
    held = sum(each.held_ms * each.job.shape.total.gpu_milli for each in outcome.jobs)
    assert sum(each.gpu_milli * (each.end_ms - each.start_ms) for each in outcome.ledger) == held


def test_a_fleet_that_grows_starts_what_waited():
    change = FleetChange(4 * SECOND, "east", (gpus("n1", 1), gpus("n2", 1)))
    outcome = play([job(0, 10), job(1, 5)], gpus("n1", 1), changes=(change,))
    assert [each.start_ms for each in outcome.jobs] == [0, 4_000]
    assert outcome.capacity_ms(lambda each: each.gpu_milli, 10_000) == 10_000 * 1000 + 6_000 * 1000


def test_what_could_never_run_is_refused_and_said_so():
    outcome = play([job(0, 1, gpu=2)], gpus("n1", 1))
    assert "No pool can hold" in outcome.jobs[0].refused
    assert not outcome.jobs[0].ended


def test_a_job_is_ended_at_its_limit():
    outcome = play([job(0, 100, limit_ms=7 * SECOND)], gpus("n1", 1))
    assert outcome.jobs[0].end_ms == 7_000


def test_the_same_scenario_has_the_same_outcome():
    jobs = [job(at, 3 + at % 4, gpu=1 + at % 2) for at in range(40)]
    one, two = (play(jobs, gpus("n1", 2), gpus("n2", 1), preset="suanli") for _ in range(2))
    assert one.jobs == two.jobs
    assert one.ledger == two.ledger
