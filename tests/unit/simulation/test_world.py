"""Small scenarios whose outcome can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import PRESETS
from scheduler.planning.runtimes import Accuracy, JobFeatures
from scheduler.simulation.oracle import Truth
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
    assert [each.completion_ms for each in outcome.jobs] == [10_000, 13_000]
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


def test_an_evicted_job_has_lost_its_restart_cost_and_nothing_more():
    # What is expected to be much shorter goes first, and what runs is ripe for eviction after 10 minutes.
    long = job(0, 100_000, limit_ms=200_000 * SECOND, restart_cost_ms=7 * SECOND)
    outcome = play([long, job(1_000, 50, limit_ms=60 * SECOND)], gpus("n1", 1), preset="suanli")
    assert [each.evictions for each in outcome.jobs] == [1, 0]
    assert outcome.jobs[1].start_ms == 1_000 * SECOND
    assert outcome.jobs[0].end_ms == (100_000 + 50 + 7) * SECOND
    assert outcome.jobs[0].held_ms == (100_000 + 7) * SECOND


def test_work_after_the_last_checkpoint_is_done_again():
    long = job(0, 100_000, limit_ms=200_000 * SECOND, checkpoint_ms=300 * SECOND)
    outcome = play([long, job(1_000, 50, limit_ms=60 * SECOND)], gpus("n1", 1), preset="suanli")
    # 900 of the first 1000 seconds are safe.
    assert outcome.jobs[0].end_ms == (1_050 + 100_000 - 900) * SECOND


def test_a_stopped_job_holds_its_place_as_long_as_it_takes_of_its_grace():
    scenario = Scenario(
        [
            job(0, 100_000, limit_ms=200_000 * SECOND, grace_ms=40 * SECOND),
            job(1_000, 50, limit_ms=60 * SECOND),
        ],
        {"east": (gpus("n1", 1),)},
    )
    outcome = Simulation(scenario, PRESETS["suanli"], notice_milli=500).run()
    assert outcome.jobs[1].start_ms == 1_020 * SECOND
    # It worked until it was told to stop, and then saved its work.
    assert outcome.jobs[0].end_ms == (1_070 + 99_000) * SECOND


def test_an_eviction_waits_until_the_job_is_ripe():
    long = job(0, 100_000, limit_ms=200_000 * SECOND)
    outcome = play([long, job(1, 50, limit_ms=60 * SECOND)], gpus("n1", 1), preset="suanli")
    assert outcome.jobs[1].start_ms == PRESETS["suanli"].preemption.min_runtime_ms


def test_a_job_is_lost_with_its_node_and_begins_anew():
    change = FleetChange(4 * SECOND, "east", (gpus("n2", 1),))
    outcome = play([job(0, 10)], gpus("n1", 1), changes=(change,))
    assert (outcome.jobs[0].start_ms, outcome.jobs[0].end_ms) == (0, 14_000)
    assert outcome.jobs[0].evictions == 0
    assert sum(each.end_ms - each.start_ms for each in outcome.ledger) == 14_000


def test_a_job_on_another_node_survives_and_a_gang_does_not():
    nodes = (gpus("n1", 1), gpus("n2", 1), gpus("n3", 1))
    change = FleetChange(4 * SECOND, "east", nodes[:2])
    outcome = play([job(0, 10, replicas=2), job(1, 10)], *nodes, changes=(change,))
    ends = [each.end_ms for each in outcome.jobs]
    assert ends == [10_000, 20_000]  # The single job stood on n3, and waits for the gang's nodes.


def test_a_faster_accelerator_is_reckoned_in_also_over_an_eviction():
    policy = replace(PRESETS["suanli"], speed_milli={"A100": 2000})
    scenario = Scenario(
        [job(0, 100_000, limit_ms=200_000 * SECOND), job(1_000, 50, limit_ms=60 * SECOND)],
        {"east": (gpus("n1", 1),)},
    )
    outcome = Simulation(scenario, policy).run()
    assert [each.end_ms for each in outcome.jobs] == [50_025 * SECOND, 1_025 * SECOND]


def test_known_runtimes_put_the_shorter_job_first():
    def played(known: bool) -> list[int]:
        jobs = [job(0, 10), job(1, 9), job(2, 3)]
        scenario = Scenario(jobs, {"east": (gpus("n1", 1),)})
        return [each.start_ms for each in Simulation(scenario, PRESETS["shortest"], known_runtimes=known).run().jobs]

    assert played(known=False) == [0, 10_000, 19_000]
    assert played(known=True) == [0, 13_000, 10_000]


def test_an_oracle_knows_what_an_evicted_job_has_left():
    jobs = [
        job(0, 100_000, limit_ms=200_000 * SECOND),
        job(99_000, 400, limit_ms=200_000 * SECOND),
        job(99_100, 2_500, limit_ms=200_000 * SECOND),
    ]
    scenario = Scenario(jobs, {"east": (gpus("n1", 1),)})
    # What remains matters a thousand times more than when a job was submitted.
    policy = replace(PRESETS["suanli"], order=replace(PRESETS["suanli"].order, shortness_milli=1_000_000))
    outcome = Simulation(scenario, policy, known_runtimes=True).run()
    # 1,000 s are left of the long job: 2.5 times the second's, which therefore evicts it, and less than the third's.
    assert [each.start_ms // SECOND for each in outcome.jobs] == [0, 99_000, 100_400]
    assert outcome.jobs[0].end_ms == 100_400 * SECOND


def test_time_alone_gives_planning_a_turn_where_it_is_asked_for():
    jobs = [job(0, 100), job(1, 10)]
    scenario = Scenario(jobs, {"east": (gpus("n1", 1),)})
    seldom = Simulation(scenario, PRESETS["fifo"]).run()
    often = Simulation(scenario, PRESETS["fifo"], round_every_ms=10 * SECOND).run()
    assert often.rounds - seldom.rounds == 9
    assert often.jobs == seldom.jobs


def test_the_last_job_waits_for_ever_where_nothing_will_happen_any_more():
    change = FleetChange(4 * SECOND, "east", ())
    scenario = Scenario([job(0, 10)], {"east": (gpus("n1", 1),)}, changes=(change,))
    outcome = Simulation(scenario, PRESETS["fifo"], round_every_ms=SECOND).run()
    assert not outcome.jobs[0].ended


def test_an_attempt_that_ripens_just_after_a_round_is_evicted_at_once():
    ripe_ms = PRESETS["suanli"].preemption.min_runtime_ms
    jobs = [
        job(0, 100_000, limit_ms=200_000 * SECOND),
        job(1, 50, limit_ms=60 * SECOND),
        # Whoever comes a moment before has the engine plan, when it is too early.
        job(0, 50, limit_ms=60 * SECOND, user="other"),
    ]
    jobs[2] = replace(jobs[2], submit_ms=ripe_ms - SECOND)
    outcome = play(jobs, gpus("n1", 1), preset="suanli")
    assert outcome.jobs[1].start_ms == ripe_ms


class Listener:
    """Expects every job to run to its limit, and notes how long they did run."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        self.heard.append((features.name, runtime_ms))

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Truth:
        return Truth(max(1, limit_ms - elapsed_ms), max(1, limit_ms - elapsed_ms))

    def accuracy(self) -> Accuracy:
        return Accuracy(0, 0, 0)


def test_the_engine_learns_how_long_a_job_ran_over_all_its_attempts():
    for checkpoint_ms in (0, 10 * SECOND):
        listener = Listener()
        long = job(0, 100_000, name="long", limit_ms=200_000 * SECOND, checkpoint_ms=checkpoint_ms)
        jobs = [long, *(job(at, 50, name="short", limit_ms=60 * SECOND) for at in (1_005, 3_000))]
        scenario = Scenario(jobs, {"east": (gpus("n1", 1),)})
        outcome = Simulation(scenario, PRESETS["suanli"], predictor=listener).run()
        assert outcome.jobs[0].evictions == 2
        assert listener.heard == [("short", 50_000), ("short", 50_000), ("long", 100_000 * SECOND)]


def test_a_job_that_is_lost_too_often_comes_to_its_end():
    nodes = [(gpus(f"n{number}", 1),) for number in range(30)]
    changes = tuple(FleetChange(at * SECOND, "east", nodes[at]) for at in range(1, 30))
    outcome = play([job(0, 100)], *nodes[0], changes=changes)
    assert outcome.jobs[0].end_ms == 21 * SECOND
