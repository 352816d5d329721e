"""Attempts that are stopped for a waiting job: what is checked, what is said, and what becomes of the job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler.domain.agent import Checkpointed, Launch, Stop
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.planning.types import Eviction, Plan, RunningView
from scheduler.service.evictions import WINDOW_MS
from tests.unit.service.books import ONE_HOUR, Books
from tests.unit.service.harness import SETTINGS, T0_MS, Site, launches, only, spec, stops

O = AttemptOutcome  # noqa: E741
Decide = Callable[..., list[Eviction]]
GRACE_MS = 7_000


@pytest.fixture
def decide(site: Site, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Have the next round decide on an eviction, and the planner on all others."""

    def decide(victim: str, wanted_by: str, rule: str = "RECLAIM", **changes: int) -> list[Eviction]:
        state = site.engine.state
        job = state.jobs[victim]
        assert job.live is not None
        eviction = Eviction(job.live.launch_seq, job.job_no, state.jobs[wanted_by].job_no, rule, GRACE_MS)
        decided = [Plan(evictions=(eviction._replace(**changes),))]
        plan = state.planner.plan
        monkeypatch.setattr(state.planner, "plan", lambda *read: decided.pop() if decided else plan(*read))
        state.round_needed = True
        return [eviction]

    return decide


def full(site: Site, institution: str = "north", **values: object) -> tuple[str, str]:
    """A preemptible job of "south" that holds the whole node, and one that waits for it."""
    victim = site.running(institution="south", cpu=8_000, preemptible=True, grace_period_ms=30_000, **values)
    return victim, site.submit_one(institution=institution, cpu=8_000)


def view(site: Site, job_id: str) -> RunningView:
    """As planning sees a running job."""
    (found,) = [each for each in site.engine.state.snapshot().running.values() if each.name == site.job(job_id).name]
    return found


def test_the_victim_is_told_why_and_makes_room(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    decide(victim, waiting)
    (stop,) = only(Stop, site.turn())

    assert (stop.ref.job_id, stop.grace_ms, stop.outcome) == (victim, GRACE_MS, O.PREEMPTED)
    assert stop.message == "Capacity reclaimed by its owner north."
    assert site.job(victim).message == stop.message
    assert site.reason(victim) == (JobState.RUNNING, "PREEMPTING")
    assert site.events(victim)[-1].kind == "PREEMPTING"
    stopping = view(site, victim)
    explained = site.engine.explain(victim)
    assert explained is not None
    assert explained.explanation.message == (
        "Attempt 1 in east/cpu has been told to end, and the job is queued again then. Capacity reclaimed by its owner north."
    )
    assert (stopping.stopped_by_ms, stopping.for_job_no) == (site.clock.at_ms + GRACE_MS, site.job(waiting).job_no)

    commands = site.east.finished(victim, O.PREEMPTED, message=stop.message)

    assert launches(commands) == [waiting]
    record = site.job(victim)
    assert (site.reason(victim), record.message) == ((JobState.QUEUED, "PREEMPTED"), stop.message)
    assert (record.losses, record.failures, record.submit_ms) == (0, 0, T0_MS)
    assert site.events(victim)[-1].kind == "PREEMPTED"


def test_nobody_is_stopped_for_a_job_that_its_budget_does_not_cover(site: Site, decide: Decide) -> None:
    books = Books(site)
    books.budget(16_000)
    victim = site.running(institution="south", cpu=7_000, preemptible=True, **ONE_HOUR)
    other = site.running(**ONE_HOUR)
    waiting = site.submit_one(cpu=8_000, **ONE_HOUR)
    assert site.state(waiting) is JobState.QUEUED
    books.budget(8_500)
    decide(victim, waiting)
    assert stops(site.turn()) == []
    assert site.reason(waiting) == (JobState.HELD, "BUDGET")

    site.east.finished(other)
    site.wait(1_000)
    decide(victim, waiting)
    assert stops(site.turn()) == [(victim, O.PREEMPTED)]


def test_it_resumes_from_its_checkpoint(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    site.wait(5_000)
    site.east.event(site.east.held[victim], Checkpointed("sha256:c"))
    decide(victim, waiting)
    site.turn()
    site.east.finished(victim, O.PREEMPTED)

    assert site.job(victim).message == "Capacity reclaimed by its owner north."
    assert site.job(victim).done_ms == 5_000
    (launch,) = only(Launch, site.east.finished(waiting))
    assert (launch.ref.job_id, launch.checkpoint) == (victim, "sha256:c")


@pytest.mark.parametrize(
    ("rule", "institution", "message"),
    [
        ("RECLAIM", "north", "Capacity reclaimed by its owner north."),
        ("FAIR_SHARE", "north", "Stopped for a job of north, whose owner holds less than its fair share."),
        ("FAIR_SHARE", "south", "Stopped for job j000008, whose owner holds less than its fair share."),
        ("PRIORITY", "south", "Stopped for job j000008 of a higher priority class."),
        ("SHORTER", "south", "Stopped for job j000008, which is expected to be much shorter."),
    ],
)
def test_the_message_names_no_job_of_another_institution(
    site: Site, decide: Decide, rule: str, institution: str, message: str
) -> None:
    victim, waiting = full(site, institution)
    decide(victim, waiting, rule)
    site.turn()

    assert site.job(victim).message == message.replace("j000008", waiting)


@pytest.mark.parametrize("change", [{"launch_seq": 99}, {"job_no": 99}, {"for_job_no": 99}])
def test_what_names_something_else_is_refused(site: Site, decide: Decide, change: dict[str, int]) -> None:
    victim, waiting = full(site)
    decide(victim, waiting, **change)

    assert stops(site.turn()) == []
    assert site.reason(victim) == (JobState.RUNNING, "")


def test_what_may_not_be_preempted_is_left(site: Site, decide: Decide) -> None:
    victim = site.running(institution="south", cpu=8_000)
    decide(victim, site.submit_one(cpu=8_000))

    assert stops(site.turn()) == []


def test_nobody_is_stopped_for_a_job_that_has_left_the_queue(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    decide(victim, waiting)
    site.engine.cancel([waiting], "ada", "")

    assert stops(site.turn()) == []


def test_nobody_is_stopped_for_a_job_that_has_been_started(site: Site, decide: Decide) -> None:
    victim = site.running(institution="south", cpu=4_000, preemptible=True)
    decide(victim, site.running(cpu=4_000))

    assert stops(site.turn()) == []


def test_what_is_stopping_already_is_not_told_again(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    site.cancel(victim)
    decide(victim, waiting)

    assert stops(site.turn()) == []
    assert site.reason(victim) == (JobState.RUNNING, "CANCELLING")
    assert site.engine.state.snapshot().evictions == {}


def test_a_starting_attempt_may_be_evicted(site: Site, decide: Decide) -> None:
    victim = site.submit_one(institution="south", cpu=8_000, preemptible=True)
    waiting = site.submit_one(institution="north", cpu=8_000)
    decide(victim, waiting)

    assert stops(site.turn()) == [(victim, O.PREEMPTED)]
    assert site.reason(victim) == (JobState.STARTING, "PREEMPTING")
    assert launches(site.east.finished(victim, O.PREEMPTED)) == [waiting]


def test_evictions_are_no_losses_however_many(site: Site, decide: Decide) -> None:
    victim = site.running(institution="south", cpu=8_000, preemptible=True)
    for _ in range(SETTINGS.max_losses + 2):
        waiting = site.submit_one(institution="north", cpu=8_000)
        decide(victim, waiting)
        site.turn()
        site.east.finished(victim, O.PREEMPTED)
        site.east.finished(waiting)
        site.east.started(victim)

    assert site.state(victim) is JobState.RUNNING
    assert (site.job(victim).losses, site.job(victim).attempt) == (0, SETTINGS.max_losses + 3)


def test_a_node_lost_while_stopping_is_a_loss(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    decide(victim, waiting)
    site.turn()
    site.east.finished(victim, O.NODE_LOST)

    assert (site.job(victim).losses, site.reason(victim)) == (1, (JobState.QUEUED, "NODE_LOST"))


def test_a_cancelled_victim_still_leaves_its_place_to_the_same_job(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    decide(victim, waiting)
    site.turn()

    assert stops(site.cancel(victim)) == [(victim, O.CANCELLED)]
    assert view(site, victim).for_job_no == site.job(waiting).job_no
    assert launches(site.east.finished(victim, O.CANCELLED)) == [waiting]
    assert site.state(victim) is JobState.CANCELLED


def test_a_new_leader_goes_on_stopping_it(site: Site, decide: Decide) -> None:
    victim, waiting = full(site)
    decide(victim, waiting)
    site.turn()
    site.wait(1_000)
    site.restart(connect=False)
    (stop,) = only(Stop, site.east.connect())

    assert (stop.outcome, stop.message) == (O.PREEMPTED, "Capacity reclaimed by its owner north.")
    assert stop.grace_ms == 30_000
    assert (view(site, victim).stopped_by_ms, view(site, victim).for_job_no) == (site.clock.at_ms + 30_000, 0)
    assert launches(site.east.finished(victim, O.PREEMPTED)) == [waiting]
    assert site.job(victim).losses == 0


def test_the_last_hours_evictions_are_counted_but_not_what_owners_reclaim(site: Site, decide: Decide) -> None:
    state = site.engine.state
    observed: list[tuple[str, str]] = []
    state.observer.evicted = lambda *told: observed.append(told)  # type: ignore[method-assign]
    for rule in ("PRIORITY", "RECLAIM", "FAIR_SHARE"):
        victim, waiting = full(site)
        decide(victim, waiting, rule)
        site.turn()
        site.cancel(victim, waiting)
        site.east.finished(victim, O.CANCELLED)
        site.wait(1_000)

    assert observed == [("south", "PRIORITY"), ("south", "RECLAIM"), ("south", "FAIR_SHARE")]
    assert state.snapshot().evictions == {"south": 2}
    site.clock.at_ms += WINDOW_MS - 3_000
    assert state.snapshot().evictions == {"south": 1}
    site.clock.at_ms += 2_000
    assert state.snapshot().evictions == {}


def test_an_array_may_be_what_is_waited_for(site: Site, decide: Decide) -> None:
    victim = site.running(institution="south", cpu=8_000, preemptible=True)
    (array,) = site.submit(spec("north", cpu=4_000, size=3, max_parallel=2))
    decide(victim, array)
    site.turn()

    # The next task has no claim, and the victim, whose owner holds less now, is next in line: the room beside is kept for it.
    assert launches(site.east.finished(victim, O.PREEMPTED)) == [f"{array}.0"]
