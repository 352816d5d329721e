"""Who stands where in a line, how long jobs are expected to run, and what is learnt from those that ended."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from scheduler.domain.agent import Checkpointed
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.policy import OrderPolicy, Policy
from scheduler.planning.runtimes import JobFeatures
from scheduler.planning.types import PendingJob
from tests.unit.service.harness import T0_MS, Site, launches, make, spec

O = AttemptOutcome  # noqa: E741
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SHORTEST = Policy(order=OrderPolicy((), shortness_milli=10_000))


class Expected(NamedTuple):
    expected_remaining_ms: int


class ByName:
    """Expects what it is told for a name, and remembers what it was told and asked."""

    def __init__(self) -> None:
        self.runtimes: dict[str, int] = {"short": 60_000, "long": 10 * HOUR_MS}
        self.observed: list[tuple[JobFeatures, int]] = []
        self.asked: list[tuple[int, int]] = []

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        self.observed.append((features, runtime_ms))

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Expected:
        self.asked.append((limit_ms, elapsed_ms))
        return Expected(self.runtimes.get(features.name, limit_ms) - elapsed_ms)


@pytest.fixture
def full() -> Site:
    """A site whose only node is taken by a job that is running."""
    site = Site(predictor=ByName, policy=SHORTEST)
    site.running(cpu=8_000, name="first", max_runtime_ms=HOUR_MS)
    return site


def predictor(site: Site) -> ByName:
    found = site.engine.state.predictor
    assert isinstance(found, ByName)
    return found


def line(site: Site) -> list[str]:
    """The names of those who wait in the only line, in its order."""
    queue = site.engine.state.queue
    (key,) = queue.groups()
    return [site.engine.state.jobs_by_no[place.job_no].spec.name for place in queue.jobs(key)]


def place(site: Site, job_id: str) -> PendingJob:
    queue = site.engine.state.queue
    number = site.engine.state.jobs[job_id].job_no
    return next(place for key in queue.groups() for place in queue.jobs(key) if place.job_no == number)


class TestOrder:
    def test_the_shorter_stands_before_the_longer_however_late(self, full: Site) -> None:
        full.submit(spec(name="long", max_runtime_ms=DAY_MS), spec(name="unknown", max_runtime_ms=DAY_MS))
        full.wait(1_000)
        full.submit_one(name="short", max_runtime_ms=DAY_MS)

        assert line(full) == ["short", "long", "unknown"]

    def test_a_place_tells_rank_expectation_limit_and_grace(self, full: Site) -> None:
        job_id = full.submit_one(cpu=8_000, name="short", max_runtime_ms=HOUR_MS, grace_period_ms=5_000)

        # 8 cores count as one GPU, and shortness 10 makes ten minutes of the one expected.
        rank = T0_MS + 600_000
        number = full.job(job_id).job_no
        assert place(full, job_id) == PendingJob(rank, number, 1, T0_MS, 60_000, HOUR_MS, 5_000)

    def test_expectations_are_bounded_by_the_limit(self, full: Site) -> None:
        assert place(full, full.submit_one(name="long", max_runtime_ms=HOUR_MS)).expected_ms == HOUR_MS
        predictor(full).runtimes["none"] = -5
        assert place(full, full.submit_one(name="none", max_runtime_ms=HOUR_MS)).expected_ms == 1

    def test_a_class_stands_ahead_by_its_head_start(self) -> None:
        site = Site()
        site.running(cpu=8_000)
        ranks = [place(site, site.submit_one(priority_class=each)).rank for each in (1, 2, 3, 4)]

        assert ranks == [T0_MS + DAY_MS, T0_MS, T0_MS - DAY_MS, T0_MS - 2 * DAY_MS]

    def test_users_stand_in_lines_of_their_own(self, full: Site) -> None:
        full.submit(spec(), user="ada")
        full.submit(spec(), spec(), user="bob")
        queue = full.engine.state.queue

        assert sorted((key.user, queue.size(key)) for key in queue.groups()) == [("ada", 1), ("bob", 2)]

    def test_a_task_that_is_tried_again_stands_before_the_tasks_never_started(self) -> None:
        site = Site()
        (array,) = site.submit(spec(cpu=8_000, size=3, max_retries=1))
        site.submit_one(cpu=8_000)
        commands = site.east.finished(f"{array}.0", O.FAILED)

        assert launches(commands) == [f"{array}.0"]

    def test_a_newcomer_that_goes_to_the_head_of_its_line_asks_for_a_round(self, full: Site) -> None:
        full.submit_one(name="long", max_runtime_ms=DAY_MS)
        state = full.engine.state
        assert not state.round_needed
        for name, needed in (("unknown", False), ("short", True)):
            full.engine.submit(make([spec(name=name, max_runtime_ms=DAY_MS)]), {})
            assert state.round_needed == needed


class TestPolicy:
    def test_another_order_ranks_all_who_wait_anew(self, full: Site) -> None:
        full.submit(spec(name="long", max_runtime_ms=DAY_MS), spec(name="short", max_runtime_ms=DAY_MS))
        assert line(full) == ["short", "long"]
        state = full.engine.state
        state.take_changes()

        state.use_policy(Policy(order=OrderPolicy(())))

        assert line(full) == ["long", "short"]
        assert state.round_needed
        assert state.take_changes() is None
        full.cancel(*[job.job_id for job in list(state.jobs.values()) if job.live is None])
        assert state.queue.size_total == 0

    def test_another_score_leaves_the_ranks(self, full: Site) -> None:
        full.submit_one(name="short", max_runtime_ms=DAY_MS)
        asked = len(predictor(full).asked)
        full.engine.state.use_policy(replace(SHORTEST, max_starts_per_round=1))

        assert len(predictor(full).asked) == asked


class TestRemaining:
    def test_what_a_checkpoint_saves_is_taken_into_account(self, full: Site) -> None:
        job_id = next(iter(full.east.held))
        predictor(full).runtimes["first"] = 40 * 60_000
        full.wait(10 * 60_000)
        full.east.event(full.east.held[job_id], Checkpointed("sha256:c"))
        full.wait(5 * 60_000)
        full.east.nodes = []
        full.east.report()
        full.east.finished(job_id, O.NODE_LOST)

        # It ran for fifteen minutes, of which ten are saved.
        assert predictor(full).asked[-1] == (70 * 60_000, 10 * 60_000)
        assert place(full, job_id).expected_ms == 30 * 60_000
        full.restart()
        assert full.job(job_id).done_ms == 10 * 60_000
        assert predictor(full).asked[-1] == (70 * 60_000, 10 * 60_000)

    def test_a_checkpoint_that_comes_with_the_end_saves_all(self, full: Site) -> None:
        job_id = next(iter(full.east.held))
        full.wait(10 * 60_000)
        full.east.finished(job_id, O.NODE_LOST, checkpoint="sha256:d")
        assert full.job(job_id).done_ms == 10 * 60_000

        full.east.started(job_id)
        full.wait(60_000)
        full.east.finished(job_id, O.NODE_LOST, checkpoint="sha256:d")
        assert full.job(job_id).done_ms == 10 * 60_000

    def test_a_running_job_is_expected_to_end_by_its_limit(self, full: Site) -> None:
        snapshot = full.engine.state.snapshot()
        (running,) = snapshot.running.values()
        now = full.clock.at_ms
        predictor(full).runtimes["first"] = 50 * 60_000

        assert snapshot.runtimes.remaining_ms(running, now + 20 * 60_000) == 30 * 60_000
        predictor(full).runtimes["first"] = DAY_MS
        assert snapshot.runtimes.remaining_ms(running, now + 20 * 60_000) == 40 * 60_000
        assert snapshot.runtimes.remaining_ms(running, now + 2 * HOUR_MS) == 1

    def test_without_a_predictor_the_limit_is_expected(self, site: Site) -> None:
        site.running(cpu=8_000, max_runtime_ms=HOUR_MS)
        snapshot = site.engine.state.snapshot()
        (running,) = snapshot.running.values()

        assert snapshot.runtimes.remaining_ms(running, site.clock.at_ms + 60_000) == 59 * 60_000
        assert place(site, site.submit_one(max_runtime_ms=HOUR_MS)).expected_ms == HOUR_MS


class TestLearning:
    @pytest.mark.parametrize(
        ("outcome", "told"),
        [(each, each in (O.SUCCEEDED, O.FAILED, O.OUT_OF_MEMORY, O.TIMED_OUT)) for each in O],
    )
    def test_those_that_ended_by_themselves_or_at_their_limit_are_learnt_from(
        self, full: Site, outcome: AttemptOutcome, told: bool
    ) -> None:
        job_id = next(iter(full.east.held))
        full.wait(90_000)
        full.east.finished(job_id, outcome, age_ms=30_000)
        features = JobFeatures("north", "default", "ada", "first", 0)

        assert predictor(full).observed == [(features, 60_000)] * told

    def test_a_cancelled_job_says_nothing(self, full: Site) -> None:
        job_id = next(iter(full.east.held))
        full.cancel(job_id)
        full.east.finished(job_id, O.FAILED)

        assert predictor(full).observed == []

    def test_the_runtime_is_that_of_the_whole_job_and_a_new_leader_learns_it_from_the_store(self, full: Site) -> None:
        job_id = next(iter(full.east.held))
        full.wait(60_000)
        full.east.finished(job_id, O.NODE_LOST, checkpoint="sha256:c")
        full.east.started(job_id)
        full.wait(5_000)
        full.east.finished(job_id)
        (array,) = full.submit(spec(name="task", size=2, gpu=0))
        for index in (0, 1):
            full.east.started(f"{array}.{index}")
            full.wait(1_000)
            full.east.finished(f"{array}.{index}", O.FAILED)
        full.submit_one(name="waiting", cpu=8_000)
        observed = predictor(full).observed

        assert [(features.name, ms) for features, ms in observed] == [
            ("first", 65_000),
            ("task", 1_000),
            ("task", 1_000),
        ]
        full.restart()
        assert predictor(full).observed == observed
