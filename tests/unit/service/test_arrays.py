"""Arrays: one record however many tasks, tasks that live like jobs, and an end that follows from theirs."""

from __future__ import annotations

import pytest

from scheduler.domain.records import JobRecord
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome, JobState
from tests.unit.service.harness import Site, launches, node, spec, stops

OK, ANY = 1, 2
O = AttemptOutcome  # noqa: E741


def counts(record: JobRecord) -> tuple[int, int, int, int]:
    return record.array_next, record.array_succeeded, record.array_failed, record.array_cancelled


def test_a_million_tasks_cost_one_record(site: Site) -> None:
    site.east.hang_up()
    array = site.submit_one(size=1_000_000)
    assert len(site.engine.state.jobs) == 1
    assert site.engine.state.queue.size_total == 1
    assert site.store.load().last_job_no == 1
    assert site.engine.state.live_jobs == 1_000_000
    site.cancel(array)
    assert site.engine.state.live_jobs == 0
    assert site.store.load().last_job_no == 1


def test_a_task_becomes_a_job_when_it_is_granted_a_place(site: Site) -> None:
    array = site.submit_one(size=3, cpu=4_000)
    record = site.job(array)
    assert list(site.east.held) == [f"{array}.0", f"{array}.1"]
    assert (JobState(record.state), record.array_next, record.array_size) == (JobState.RUNNING, 2, 3)
    task = site.job(f"{array}.1")
    assert (task.array_id, task.array_index, task.array_size, JobState(task.state)) == (array, 1, 0, JobState.STARTING)
    assert task.spec == record.spec
    assert launches(site.east.finished(f"{array}.0")) == [f"{array}.2"]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("outcomes", "ends"),
    [
        ([O.SUCCEEDED, O.SUCCEEDED, O.SUCCEEDED], (JobState.SUCCEEDED, "")),
        ([O.SUCCEEDED, O.FAILED, O.SUCCEEDED], (JobState.FAILED, "TASKS_FAILED")),
        ([O.SUCCEEDED, O.TIMED_OUT, O.CANCELLED], (JobState.FAILED, "TASKS_FAILED")),
        ([O.SUCCEEDED, O.CANCELLED, O.SUCCEEDED], (JobState.CANCELLED, "CANCELLED")),
    ],
)
def test_it_ends_with_its_last_task(
    site: Site, outcomes: list[AttemptOutcome], ends: tuple[JobState, str], restart: bool
) -> None:
    array = site.submit_one(size=3)
    for index, outcome in enumerate(outcomes):
        assert site.state(array) is JobState.RUNNING
        task = f"{array}.{index}"
        if outcome is O.CANCELLED:
            site.cancel(task)
        site.east.finished(task, outcome)
        if restart and index < 2:
            site.restart()
    assert site.reason(array) == ends
    assert not site.engine.state.jobs


class TestParallelLimit:
    def test_no_more_than_the_limit_hold_places(self, site: Site) -> None:
        array = site.submit_one(size=5, max_parallel=2)
        assert sorted(site.east.held) == [f"{array}.0", f"{array}.1"]
        assert site.engine.state.queue.size_total == 0
        explained = site.engine.explain(array)
        assert explained is not None
        assert explained.explanation.code == "ARRAY_LIMIT"
        assert launches(site.east.finished(f"{array}.1")) == [f"{array}.2"]

    def test_a_task_that_waits_for_a_retry_keeps_its_place(self, site: Site) -> None:
        array = site.submit_one(size=3, max_parallel=1, max_retries=1, backoff_ms=1_000)
        assert launches(site.east.finished(f"{array}.0", O.FAILED)) == []
        assert launches(site.wait(1_000)) == [f"{array}.0"]
        assert launches(site.east.finished(f"{array}.0")) == [f"{array}.1"]

    def test_a_cancelled_task_in_back_off_gives_its_place_up(self, site: Site) -> None:
        array = site.submit_one(size=2, max_parallel=1, max_retries=1, backoff_ms=1_000)
        site.east.finished(f"{array}.0", O.FAILED)
        site.cancel(f"{array}.0")
        assert list(site.east.held) == [f"{array}.1"]

    def test_others_of_its_kind_pass_an_array_at_its_limit(self, site: Site) -> None:
        site.submit_one(size=5, max_parallel=1)
        site.wait(10)
        assert site.state(site.submit_one()) is JobState.STARTING


class TestCancelling:
    def test_one_that_was_never_started_ends_at_once(self, site: Site) -> None:
        site.submit_one(cpu=8_000)
        array = site.submit_one(size=5)
        site.cancel(array)
        assert site.reason(array) == (JobState.CANCELLED, "CANCELLED")
        assert counts(site.job(array)) == (5, 0, 0, 5)

    def test_a_running_one_stops_its_tasks_and_starts_no_more(self, site: Site) -> None:
        array = site.submit_one(size=5, cpu=4_000)
        assert sorted(stops(site.cancel(array))) == [(f"{array}.0", O.CANCELLED), (f"{array}.1", O.CANCELLED)]
        assert site.state(array) is JobState.RUNNING
        assert stops(site.cancel(array)) == []
        site.restart(connect=False)
        assert len(stops(site.east.connect())) == 2
        assert not launches(site.east.finished(f"{array}.0", O.SUCCEEDED))
        site.east.finished(f"{array}.1", O.CANCELLED)
        assert site.reason(array) == (JobState.CANCELLED, "CANCELLED")
        assert counts(site.job(array)) == (5, 1, 0, 4)
        assert site.engine.state.live_jobs == 0

    def test_a_failed_task_outweighs_the_cancelled_ones(self, site: Site) -> None:
        array = site.submit_one(size=3, cpu=4_000)
        site.east.finished(f"{array}.0", O.FAILED)
        site.cancel(array)
        for task in list(site.east.held):
            site.east.finished(task, O.CANCELLED)
        assert site.state(array) is JobState.FAILED

    def test_one_that_is_held_ends_at_once(self, site: Site) -> None:
        first, array = site.submit(spec(), spec(size=4, after={0: OK}))
        site.cancel(array)
        assert site.state(array) is JobState.CANCELLED
        assert not site.engine.state.dependents
        assert site.engine.state.live_jobs == 1
        site.east.finished(first)


@pytest.mark.parametrize("restart", [False, True])
def test_a_task_tried_again_goes_before_those_never_started(site: Site, restart: bool) -> None:
    array = site.submit_one(size=5, cpu=4_000, max_retries=1, backoff_ms=500)
    site.submit_one(cpu=4_000)
    site.east.finished(f"{array}.1", O.FAILED)
    site.wait(500)
    if restart:
        site.restart()
    assert launches(site.east.finished(f"{array}.0")) == [f"{array}.1"]
    assert launches(site.east.finished(f"{array}.2")) == [f"{array}.3"]


def test_a_restart_in_the_middle_changes_nothing() -> None:
    def story(restarts: bool) -> list[object]:
        site = Site(nodes=[node("n1", Resources(3_000, 32_768, 0))])
        array, after = site.submit(
            spec(size=12, max_parallel=4, max_retries=2, backoff_ms=700), spec(cpu=2_000, after={0: ANY})
        )
        other = site.submit_one(institution="south", size=5)
        told: list[object] = []
        for step in range(60):
            if restarts:
                site.restart()
            told.append(launches(site.wait(300)))
            tasks = sorted(site.east.held)
            if tasks:
                task = tasks[step % len(tasks)]
                told.append(launches(site.east.finished(task, O.FAILED if step % 5 == 0 else O.SUCCEEDED)))
        assert not site.engine.state.jobs
        return [told, [site.reason(job_id) for job_id in (array, after, other)], counts(site.job(array))]

    assert story(restarts=False) == story(restarts=True)
