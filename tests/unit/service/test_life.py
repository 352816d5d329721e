"""The life of a job: starts, ends, retries, losses, and cancelling in every state (docs/explanation/lifecycle.md)."""

from __future__ import annotations

import pytest

from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.service.ending import MAX_BACKOFF_MS
from tests.unit.service.harness import SETTINGS, Site, launches, node, spec, stops

O = AttemptOutcome  # noqa: E741
RETRIABLE = [O.FAILED, O.OUT_OF_MEMORY, O.SPAWN_FAILED, O.ENVIRONMENT_FAILED]


class TestEnds:
    def test_a_job_that_succeeds(self, site: Site) -> None:
        job_id = site.submit_one()
        site.wait(1_000)
        site.east.started(job_id)
        site.wait(5_000)
        site.east.finished(job_id, results="sha256:r", checkpoint="sha256:c")
        record = site.job(job_id)
        assert site.reason(job_id) == (JobState.SUCCEEDED, "")
        assert (record.start_ms - record.submit_ms, record.end_ms - record.submit_ms) == (1_000, 6_000)
        assert (record.results, record.checkpoint, record.exit_code) == ("sha256:r", "sha256:c", 0)
        assert [JobState(event.state).name for event in site.events(job_id)] == [
            "QUEUED",
            "STARTING",
            "RUNNING",
            "SUCCEEDED",
        ]

    @pytest.mark.parametrize("started", [False, True])
    @pytest.mark.parametrize("outcome", RETRIABLE)
    def test_without_a_retry_left_the_outcome_is_the_reason(
        self, site: Site, outcome: AttemptOutcome, started: bool
    ) -> None:
        job_id = site.running() if started else site.submit_one()
        site.east.finished(job_id, outcome, exit_code=7, exit_signal=9, message="It broke.")
        record = site.job(job_id)
        assert site.reason(job_id) == (JobState.FAILED, outcome.name)
        assert (record.exit_code, record.exit_signal, record.message) == (7, 9, "It broke.")

    def test_a_time_out_is_not_retried(self, site: Site) -> None:
        job_id = site.running(max_retries=3)
        site.east.finished(job_id, O.TIMED_OUT)
        assert site.reason(job_id) == (JobState.TIMED_OUT, "TIMED_OUT")

    def test_an_ended_job_leaves_memory_and_frees_what_it_held(self, site: Site) -> None:
        job_id = site.running(cpu=8_000)
        waiting = site.submit_one(cpu=8_000)
        assert launches(site.east.finished(job_id)) == [waiting]
        assert set(site.engine.state.jobs) == {waiting}


class TestRetries:
    @pytest.mark.parametrize("outcome", RETRIABLE)
    def test_a_retry_without_back_off_starts_at_once(self, site: Site, outcome: AttemptOutcome) -> None:
        job_id = site.running(max_retries=1)
        assert launches(site.east.finished(job_id, outcome)) == [job_id]
        assert site.job(job_id).attempt == 2
        site.east.finished(job_id, outcome)
        assert site.reason(job_id) == (JobState.FAILED, outcome.name)

    def test_back_off_doubles_up_to_an_hour(self, site: Site) -> None:
        base = 1_000_000
        job_id = site.submit_one(max_retries=5, backoff_ms=base)
        for wait in (base, 2 * base, MAX_BACKOFF_MS, MAX_BACKOFF_MS):
            site.east.finished(job_id, O.FAILED)
            assert site.reason(job_id) == (JobState.HELD, "BACKOFF")
            assert site.engine.next_timer_ms == site.clock.at_ms + wait
            assert not launches(site.wait(wait - 1))
            assert launches(site.wait(1)) == [job_id]

    def test_a_back_off_goes_on_over_a_restart(self, site: Site) -> None:
        job_id = site.submit_one(max_retries=1, backoff_ms=10_000)
        site.east.finished(job_id, O.FAILED)
        site.wait(4_000)
        site.restart()
        assert not launches(site.wait(5_999))
        assert launches(site.wait(1)) == [job_id]

    def test_a_new_attempt_gets_the_newest_checkpoint(self, site: Site) -> None:
        job_id = site.running(max_retries=1)
        site.east.finished(job_id, O.FAILED, checkpoint="sha256:c")
        attempt = site.engine.state.jobs[job_id].live
        assert attempt is not None
        assert site.job(job_id).checkpoint == "sha256:c"


class TestLosses:
    @pytest.mark.parametrize("outcome", [O.NODE_LOST, O.PREEMPTED])
    def test_a_loss_uses_no_retry_and_keeps_the_place_in_the_queue(self, site: Site, outcome: AttemptOutcome) -> None:
        first = site.running(cpu=8_000)
        site.wait(10)
        later = site.submit_one(cpu=8_000)
        assert launches(site.east.finished(first, outcome)) == [first]
        record = site.job(first)
        assert (record.failures, record.losses, record.attempt) == (0, 1, 2)
        assert site.events(first)[-2].kind == outcome.name
        assert site.state(later) is JobState.QUEUED

    def test_a_job_lost_too_often_fails(self, site: Site) -> None:
        job_id = site.submit_one(max_retries=5)
        for _ in range(SETTINGS.max_losses):
            assert launches(site.east.finished(job_id, O.NODE_LOST)) == [job_id]
        site.east.finished(job_id, O.NODE_LOST)
        assert site.reason(job_id) == (JobState.FAILED, "TOO_MANY_LOSSES")

    def test_a_stop_that_nobody_asked_for_is_a_loss(self, site: Site) -> None:
        job_id = site.running()
        assert launches(site.east.finished(job_id, O.CANCELLED)) == [job_id]
        assert site.job(job_id).losses == 1


class TestCancelling:
    def test_a_queued_job_is_cancelled_at_once(self, site: Site) -> None:
        site.submit_one(cpu=8_000)
        job_id = site.submit_one()
        assert stops(site.cancel(job_id, reason="wrong data")) == []
        assert site.reason(job_id) == (JobState.CANCELLED, "CANCELLED")
        assert site.job(job_id).message == "Cancelled by ada: wrong data"

    def test_a_job_in_back_off_is_cancelled_at_once_and_stays_so(self, site: Site) -> None:
        job_id = site.submit_one(max_retries=1, backoff_ms=1_000)
        site.east.finished(job_id, O.FAILED)
        site.cancel(job_id)
        site.wait(2_000)
        assert site.state(job_id) is JobState.CANCELLED
        assert site.engine.next_timer_ms is None

    @pytest.mark.parametrize("started", [False, True])
    def test_an_active_job_is_stopped_first_and_told_once(self, site: Site, started: bool) -> None:
        job_id = site.running() if started else site.submit_one()
        before = site.state(job_id)
        assert stops(site.cancel(job_id)) == [(job_id, O.CANCELLED)]
        assert site.reason(job_id) == (before, "CANCELLING")
        assert stops(site.cancel(job_id)) == []
        assert [event.kind for event in site.events(job_id)].count("CANCEL_REQUESTED") == 1
        assert not launches(site.east.finished(job_id, O.CANCELLED))
        assert site.reason(job_id) == (JobState.CANCELLED, "CANCELLED")

    @pytest.mark.parametrize("outcome", [O.FAILED, O.NODE_LOST, O.PREEMPTED, O.TIMED_OUT, O.OUT_OF_MEMORY])
    def test_however_it_then_ends_it_is_cancelled_and_not_tried_again(
        self, site: Site, outcome: AttemptOutcome
    ) -> None:
        job_id = site.running(max_retries=3)
        site.cancel(job_id)
        assert not launches(site.east.finished(job_id, outcome))
        assert site.state(job_id) is JobState.CANCELLED

    def test_unless_it_succeeded(self, site: Site) -> None:
        job_id = site.running()
        site.cancel(job_id)
        site.east.finished(job_id, O.SUCCEEDED)
        assert site.reason(job_id) == (JobState.SUCCEEDED, "")

    def test_a_start_reported_late_does_not_hide_that_it_is_being_cancelled(self, site: Site) -> None:
        job_id = site.submit_one()
        site.cancel(job_id)
        site.east.started(job_id)
        assert site.reason(job_id) == (JobState.RUNNING, "CANCELLING")

    def test_while_the_region_is_away_it_stays_and_is_told_at_its_return(self, site: Site) -> None:
        job_id = site.running()
        site.east.hang_up()
        site.cancel(job_id)
        site.wait(1_000_000)
        assert site.reason(job_id) == (JobState.RUNNING, "CANCELLING")
        assert stops(site.east.connect()) == [(job_id, O.CANCELLED)]
        site.east.finished(job_id, O.CANCELLED)
        assert site.state(job_id) is JobState.CANCELLED

    def test_a_restart_forgets_no_cancellation(self, site: Site) -> None:
        job_id = site.running(max_retries=1)
        site.cancel(job_id)
        site.restart(connect=False)
        assert stops(site.east.connect()) == [(job_id, O.CANCELLED)]
        site.east.finished(job_id, O.FAILED)
        assert site.state(job_id) is JobState.CANCELLED

    def test_an_ended_or_unknown_job_is_passed_over(self, site: Site) -> None:
        job_id = site.running()
        site.east.finished(job_id)
        assert site.engine.cancel([job_id, "jnone"], "ada", "") == []
        assert not site.engine.take_turn()


class TestStarting:
    def test_a_gang_starts_whole_or_not_at_all(self) -> None:
        site = Site(nodes=[node("n1"), node("n2")])
        site.submit_one(cpu=5_000)
        gang = site.submit_one(cpu=5_000, replicas=2)
        assert site.state(gang) is JobState.QUEUED
        site.east.finished("j000001")
        live = site.engine.state.jobs[gang].live
        assert live is not None
        assert sorted(replica.node_id for replica in live.replicas) == ["n1", "n2"]

    def test_parts_of_a_gpu_share_one_and_whole_ones_do_not(self) -> None:
        gpus = node("g1", Resources(8_000, 32_768, 2_000), "gpu", "NVIDIA-A100")
        site = Site(nodes=[gpus])
        site.submit(*(spec(gpu=500) for _ in range(2)), spec(gpu=1_000))
        (view,) = site.engine.state.pools["east", "gpu"].values()  # type: ignore[index]
        assert view.gpu_free == (0, 0)
        assert view.free.gpu_milli == 0
        assert site.state(site.submit_one(gpu=250)) is JobState.QUEUED

    def test_a_job_that_waits_can_say_why(self, site: Site) -> None:
        site.submit_one(cpu=8_000)
        explained = site.engine.explain(site.submit_one(cpu=8_000))
        assert explained is not None
        assert explained.explanation.code not in ("", "NONE")
        assert explained.explanation.message
