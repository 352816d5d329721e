"""Jobs that wait for other jobs."""

from __future__ import annotations

import pytest

from scheduler.domain.states import AttemptOutcome, JobState
from tests.unit.service.harness import Site, launches, spec

OK, ANY = 1, 2
O = AttemptOutcome  # noqa: E741


@pytest.mark.parametrize("restart", [False, True])
def test_a_job_waits_for_all_it_depends_on(site: Site, restart: bool) -> None:
    a, b, c = site.submit(spec(), spec(), spec(after={0: OK, 1: OK}))
    assert site.reason(c) == (JobState.HELD, "DEPENDENCY")
    explained = site.engine.explain(c)
    assert explained is not None
    assert explained.waiting_for == (a, b)
    site.east.finished(a)
    if restart:
        site.restart()
    assert site.state(c) is JobState.HELD
    assert launches(site.east.finished(b)) == [c]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("outcome", "ends"), [(O.FAILED, "FAILED"), (O.TIMED_OUT, "TIMED_OUT"), (O.CANCELLED, "CANCELLED")]
)
def test_any_end_contents_after_any_and_only_success_after_ok(
    site: Site, outcome: AttemptOutcome, ends: str, restart: bool
) -> None:
    a, ok, after_ok, any_ = site.submit(spec(), spec(after={0: OK}), spec(after={1: OK}), spec(after={0: ANY}))
    if outcome is O.CANCELLED:
        site.cancel(a)
    if restart:
        site.restart()
    assert launches(site.east.finished(a, outcome)) == [any_]
    assert site.state(a).name == ends
    assert site.reason(ok) == (JobState.CANCELLED, "DEPENDENCY_FAILED")
    assert a in site.job(ok).message
    assert site.reason(after_ok) == (JobState.CANCELLED, "DEPENDENCY_FAILED")


def test_a_dependency_that_has_ended_already_counts_as_it_ended(site: Site) -> None:
    good, bad = site.submit(spec(), spec())
    site.east.finished(good)
    site.east.finished(bad, O.FAILED)
    after_good, any_bad = site.submit(spec(after={good: OK}), spec(after={bad: ANY}))
    assert [site.state(job_id) for job_id in (after_good, any_bad)] == [JobState.STARTING] * 2
    dead, follower = site.submit(spec(after={bad: OK, good: OK}), spec(after={0: OK}))
    assert site.reason(dead) == (JobState.CANCELLED, "DEPENDENCY_FAILED")
    assert site.reason(follower) == (JobState.CANCELLED, "DEPENDENCY_FAILED")


def test_the_order_within_a_call_does_not_matter(site: Site) -> None:
    (bad,) = site.submit(spec())
    site.east.finished(bad, O.FAILED)
    follower, dead = site.submit(spec(after={1: OK}), spec(after={bad: OK}))
    assert [site.state(job_id) for job_id in (follower, dead)] == [JobState.CANCELLED] * 2
    last, first = site.submit(spec(after={1: OK}), spec())
    assert site.state(last) is JobState.HELD
    assert launches(site.east.finished(first)) == [last]


def test_the_same_job_twice_with_both_conditions_needs_its_success(site: Site) -> None:
    (a,) = site.submit(spec())
    both = site.submit(spec(after={a: ANY, a + "": OK}))[0]
    site.east.finished(a, O.FAILED)
    assert site.state(both) is JobState.CANCELLED


def test_a_retry_of_the_dependency_is_not_its_end(site: Site) -> None:
    a, b = site.submit(spec(max_retries=1), spec(after={0: OK}))
    site.east.finished(a, O.FAILED)
    assert site.state(b) is JobState.HELD
    assert b in launches(site.east.finished(a))


def test_an_array_is_waited_for_as_a_whole(site: Site) -> None:
    array, after = site.submit(spec(size=2), spec(after={0: OK}))
    site.east.finished(f"{array}.1")
    assert site.state(after) is JobState.HELD
    assert launches(site.east.finished(f"{array}.0")) == [after]


def test_an_array_whose_dependency_failed_is_cancelled_with_all_its_tasks(site: Site) -> None:
    a, array = site.submit(spec(), spec(size=1_000, after={0: OK}))
    site.east.finished(a, O.FAILED)
    record = site.job(array)
    assert site.reason(array) == (JobState.CANCELLED, "DEPENDENCY_FAILED")
    assert (record.array_cancelled, record.array_next) == (1_000, 1_000)
    assert site.engine.state.live_jobs == 0
    assert site.engine.state.tenants["north", ""].live_jobs == 0


def test_a_cancelled_job_waits_no_more_and_leaves_no_trace(site: Site) -> None:
    a, b = site.submit(spec(), spec(after={0: ANY}))
    site.cancel(b)
    assert not site.engine.state.dependents
    site.east.finished(a)
    assert site.state(b) is JobState.CANCELLED


@pytest.mark.parametrize("forward", [True, False])
def test_a_chain_of_ten_thousand_falls_at_once(site: Site, forward: bool) -> None:
    count = 10_000
    if forward:
        chain = [spec()] + [spec(after={i: OK}) for i in range(count - 1)]
    else:
        chain = [spec(after={i + 1: OK}) for i in range(count - 1)] + [spec()]
    ids = site.submit(*chain)
    first = ids[0] if forward else ids[-1]
    site.east.finished(first, O.FAILED)
    assert not site.engine.state.jobs
    records = site.store.get_jobs(ids)
    assert sum(record.state == JobState.CANCELLED for record in records) == count - 1


def test_many_dependents_of_one_job_can_all_be_cancelled(site: Site) -> None:
    (root,) = site.submit(spec(cpu=100))
    ids = site.submit(*(spec(after={root: OK}) for _ in range(8_000)))
    assert site.engine.cancel(ids, "ada", "") == ids
    site.turn()
    assert not site.engine.state.dependents
