"""Budgets: who is refused, who is held and goes on, who is stopped in time, and what is told of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound, SuanliError
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.metering.budgets import BudgetUnit
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS
from tests.unit.service.books import MINUTE_MS, ONE_HOUR, Books
from tests.unit.service.harness import T0_MS, Site, node, stops

O = AttemptOutcome  # noqa: E741
HELD_FOR_BUDGET = (JobState.HELD, "BUDGET")
PRICES = "currency: CNY\nrates: [{cpu_core_hour: %s, service_units: {cpu_core_hour: 3}}]\n"


@pytest.fixture
def books(site: Site) -> Books:
    return Books(site)


def refusal(work: object) -> SuanliError:
    with pytest.raises(SuanliError) as caught:
        work()  # type: ignore[operator]
    return caught.value


# --- submission -------------------------------------------------------------------------------------------------------


def test_what_a_budget_can_never_cover_is_refused(site: Site, books: Books) -> None:
    books.budget(1_999)
    error = refusal(lambda: site.submit_one(cpu=2_000, **ONE_HOUR))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.field, error.metadata["budget"]) == (
        "BUDGET_EXCEEDED",
        "jobs[0].max_runtime_ms",
        "term",
    )
    assert "2.000 core-hours" in error.message
    assert "1.999 core-hours left" in error.message
    assert site.state(site.submit_one(cpu=1_999, **ONE_HOUR)) is JobState.STARTING
    assert site.submit_one(institution="south", cpu=8_000, **ONE_HOUR)


def test_a_project_has_what_its_institution_has_too(site: Site, books: Books) -> None:
    books.budget(10_000)
    books.budget(900, "small", projects=frozenset({"default"}))
    assert refusal(lambda: site.submit_one(**ONE_HOUR)).metadata["budget"] == "small"
    books.budget(5_000, "small", projects=frozenset({"default"}))
    books.budget(900)
    assert refusal(lambda: site.submit_one(**ONE_HOUR)).metadata["budget"] == "term"


# --- holding ----------------------------------------------------------------------------------------------------------


def test_one_that_does_not_fit_beside_others_waits_and_says_why(site: Site, books: Books) -> None:
    books.budget(1_500)
    first, second = site.running(**ONE_HOUR), site.submit_one(**ONE_HOUR)

    assert site.reason(second) == HELD_FOR_BUDGET
    status = books.status()
    assert (status.spent, status.committed, status.available, status.held_jobs) == (0, 1_000, 500, 1)
    explained = site.engine.explain(second)
    assert explained is not None
    assert explained.explanation.code == "BUDGET"
    assert "1.000 core-hours in east/cpu" in explained.explanation.message
    assert "0.500 core-hours that is neither spent nor kept" in explained.explanation.message

    site.wait(15 * MINUTE_MS)
    assert site.reason(second) == HELD_FOR_BUDGET
    assert books.status()[1:4] == (0, 250, 750)
    site.east.finished(first)
    site.wait(1_000)
    assert site.state(second) is JobState.STARTING
    status = books.status()
    assert (status.spent, status.committed, status.held_jobs) == (250, 1_000, 0)
    assert status.available == 250


def test_those_who_wait_go_first_come_first(site: Site, books: Books) -> None:
    books.budget(2_000)
    first = site.running(cpu=2_000, **ONE_HOUR)
    waiting = [site.submit_one(**ONE_HOUR) for _ in range(3)]
    assert {site.reason(each) for each in waiting} == {HELD_FOR_BUDGET}
    site.wait(30 * MINUTE_MS)
    site.east.finished(first)
    site.wait(1_000)
    assert [site.state(each) for each in waiting] == [JobState.STARTING, JobState.HELD, JobState.HELD]


def test_more_money_lets_them_go_at_once(site: Site, books: Books) -> None:
    books.budget(1_000)
    site.running(**ONE_HOUR)
    second = site.submit_one(**ONE_HOUR)
    books.budget(2_000)
    site.wait(1_000)
    assert site.state(second) is JobState.STARTING


def test_so_does_closing_it_and_a_closed_one_keeps_nothing(site: Site, books: Books) -> None:
    books.budget(1_000)
    first, second = site.running(**ONE_HOUR), site.submit_one(**ONE_HOUR)
    closed = books.budget(1_000, closed=True)
    assert closed.committed == 0
    site.wait(1_000)
    assert site.state(second) is JobState.STARTING
    site.east.finished(first)
    assert (books.status().committed, books.status().running) == (0, 0)
    # Opened again it has counted everything.
    site.east.started(second)
    site.wait(30 * MINUTE_MS)
    opened = books.budget(1_000)
    assert (opened.spent, opened.running, opened.available) == (1, 500, 0)
    assert stops(site.wait(1_000)) == []


def test_a_held_job_can_be_cancelled(site: Site, books: Books) -> None:
    books.budget(1_000)
    first, second = site.running(**ONE_HOUR), site.submit_one(**ONE_HOUR)
    site.cancel(second)
    assert site.state(second) is JobState.CANCELLED
    assert books.status().held_jobs == 0
    site.east.finished(first)
    site.wait(1_000)


def test_tasks_of_an_array_wait_like_jobs(site: Site, books: Books) -> None:
    books.budget(2_000)
    array = site.submit_one(size=3, **ONE_HOUR)
    for index in (0, 1):
        site.east.started(f"{array}.{index}")
    assert site.reason(array) == (JobState.RUNNING, "BUDGET")
    assert books.status().held_jobs == 1
    explained = site.engine.explain(array)
    assert explained is not None
    assert explained.explanation.code == "BUDGET"

    site.wait(6 * MINUTE_MS)
    site.east.finished(f"{array}.0")
    site.wait(1_000)
    # A tenth is spent, so there is not enough yet.
    assert site.reason(array) == (JobState.RUNNING, "BUDGET")
    site.east.finished(f"{array}.1")
    site.wait(1_000)
    assert site.state(f"{array}.2") is JobState.STARTING
    assert site.reason(array) == (JobState.RUNNING, "")
    site.east.finished(f"{array}.2")
    assert site.state(array) is JobState.SUCCEEDED


def test_a_whole_array_may_wait(site: Site, books: Books) -> None:
    books.budget(1_000)
    first = site.running(**ONE_HOUR)
    array = site.submit_one(size=2, **ONE_HOUR)
    assert site.reason(array) == HELD_FOR_BUDGET
    books.budget(3_000)
    site.wait(1_000)
    assert site.state(array) is JobState.RUNNING
    site.east.finished(first)


# --- notices ----------------------------------------------------------------------------------------------------------


def test_a_soft_budget_only_gives_notice(site: Site, books: Books) -> None:
    books.budget(1_000, hard=False)
    ids = [site.running(**ONE_HOUR) for _ in range(4)]
    assert {site.state(each) for each in ids} == {JobState.RUNNING}
    for job_id in ids:
        site.wait(15 * MINUTE_MS)
        site.east.finished(job_id)
    # 0.25 + 0.5 + 0.75 + 1 core-hours: the second passes 50, the third two at once.
    assert books.notices() == [(50, 750), (80, 1_500), (100, 1_500)]
    assert (books.status().threshold, books.status().spent, books.status().available) == (100, 2_500, 0)


def test_a_notice_is_given_once_and_again_only_for_new_terms(site: Site, books: Books) -> None:
    books.budget(1_000, hard=False)
    site.east.finished(_after(site, 30))
    assert books.notices() == [(50, 500)]
    books.budget(1_000, hard=False, thresholds=(50, 60))
    assert books.notices() == [(50, 500)]
    books.budget(800, hard=False, thresholds=(50, 60))
    assert books.notices() == [(50, 500), (60, 500)]
    books.budget(8_000, hard=False, thresholds=(50, 60))
    assert books.status().threshold == 0
    books.budget(1_000, hard=False, thresholds=(50, 60))
    assert books.notices() == [(50, 500), (60, 500), (50, 500)]


def _after(site: Site, minutes: int, **values: int) -> str:
    job_id = site.running(**{**ONE_HOUR, **values})
    site.wait(minutes * MINUTE_MS)
    return job_id


def test_it_says_when_it_will_be_used_up(site: Site, books: Books) -> None:
    books.budget(1_000, hard=False, to_ms=T0_MS + 10 * HOUR_MS)
    site.east.finished(_after(site, 12))
    site.clock.at_ms = T0_MS + HOUR_MS
    # A fifth in an hour.
    assert books.status().exhausted_ms == T0_MS + 5 * HOUR_MS
    site.clock.at_ms = T0_MS + 3 * HOUR_MS
    assert books.status().exhausted_ms == 0


# --- time -------------------------------------------------------------------------------------------------------------


def test_nothing_starts_that_might_outlast_it(site: Site, books: Books) -> None:
    end_ms = T0_MS + 2 * HOUR_MS
    books.budget(100_000, to_ms=end_ms)
    first = site.submit_one(**ONE_HOUR)
    assert site.state(first) is JobState.STARTING
    site.wait(HOUR_MS + 1)
    late = site.submit_one(**ONE_HOUR)
    assert site.reason(late) == HELD_FOR_BUDGET
    assert 'outside the time of budget "term"' in site.job(late).message
    short = site.submit_one(max_runtime_ms=60_000, grace_period_ms=1_000)
    assert site.state(short) is JobState.STARTING
    # The next one takes over where it ends.
    books.budget(5_000, "next", from_ms=end_ms, to_ms=end_ms + 9 * HOUR_MS)
    site.wait(1_000)
    assert site.state(late) is JobState.STARTING
    assert books.status().committed + books.status("next").committed >= 1_000


def test_one_for_later_limits_later(site: Site, books: Books) -> None:
    books.budget(100_000, from_ms=T0_MS + HOUR_MS, to_ms=T0_MS + 9 * HOUR_MS)
    held = site.submit_one(**ONE_HOUR)
    assert site.reason(held) == HELD_FOR_BUDGET
    site.wait(HOUR_MS - 1)
    assert site.state(held) is JobState.HELD
    site.wait(1)
    assert site.state(held) is JobState.STARTING


def test_only_what_is_held_in_its_time_counts(site: Site, books: Books) -> None:
    job_id = _after(site, 20)
    books.budget(1_000, hard=False, from_ms=site.clock.at_ms, to_ms=site.clock.at_ms + 10 * MINUTE_MS)
    site.wait(30 * MINUTE_MS)
    site.east.finished(job_id)
    # A sixth, rounded up.
    assert books.status().spent == 167


# --- prices -----------------------------------------------------------------------------------------------------------


def test_money_and_service_units_are_counted_by_the_price_list(site: Site, books: Books) -> None:
    books.prices(PRICES % "0.9" + "discounts: [{institution: north, percent: 50}]\n")
    books.budget(1_000, unit=BudgetUnit.MONEY)
    books.budget(9_000, "units", unit=BudgetUnit.SERVICE_UNITS)
    job_id = site.running(cpu=2_000, **ONE_HOUR)
    money, units = books.status(), books.status("units")
    assert (money.committed, money.currency, money.digits) == (90, "CNY", 2)
    assert (units.committed, units.currency, units.digits) == (6_000, "", 3)
    site.wait(20 * MINUTE_MS)
    site.east.finished(job_id)
    assert (books.status().spent, books.status("units").spent) == (30, 2_000)


def test_when_prices_rise_what_runs_is_stopped_in_time(site: Site, books: Books) -> None:
    books.prices(PRICES % "1")
    books.budget(200, unit=BudgetUnit.MONEY)
    job_id = site.running(**ONE_HOUR)
    site.wait(30 * MINUTE_MS)
    books.prices(PRICES % "10")
    assert books.status().available == 0
    # 0.50 are spent, the other 1.50 last for nine minutes.
    end_ms = site.clock.at_ms + 9 * MINUTE_MS
    ordered: list[tuple[str, AttemptOutcome]] = []
    while not ordered:
        ordered = stops(site.wait(1_000))
    assert ordered == [(job_id, O.PREEMPTED)]
    assert end_ms - 34_000 <= site.clock.at_ms <= end_ms - 30_000
    assert site.job(job_id).message == 'Stopped because budget "term" is used up.'
    site.wait(30_000)
    site.east.finished(job_id, O.PREEMPTED)
    assert site.reason(job_id) == HELD_FOR_BUDGET
    account = site.engine.state.metering.budgets.accounts["term"]
    assert 190 * COST_UNITS_PER_MINOR < account.spent <= 200 * COST_UNITS_PER_MINOR
    assert books.notices() == [(50, account.budget.nearest(account.spent)), (80, account.budget.nearest(account.spent))]


def test_a_start_that_takes_long_is_paid_and_overruns_nothing(site: Site, books: Books) -> None:
    books.budget(1_000)
    job_id = site.submit_one(**ONE_HOUR)
    site.wait(5 * MINUTE_MS)
    site.east.started(job_id)
    assert stops(site.wait(54 * MINUTE_MS)) == []
    ordered: list[tuple[str, AttemptOutcome]] = []
    while not ordered:
        ordered = stops(site.wait(1_000))
    site.wait(30_000)
    site.east.finished(job_id, O.PREEMPTED)
    assert 990 < books.status().spent <= 1_000


def test_a_dearer_list_for_later_is_reckoned_with(site: Site, books: Books) -> None:
    at_ms = T0_MS + 30 * MINUTE_MS
    books.prices(PRICES % "1")
    books.prices(PRICES % "3" + f"from: {datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()}\n")
    books.budget(350, unit=BudgetUnit.MONEY)
    first, second = site.running(**ONE_HOUR), site.submit_one(**ONE_HOUR)
    assert books.status().committed == 200
    assert site.reason(second) == HELD_FOR_BUDGET
    site.east.finished(first)


def test_a_cheaper_list_lets_those_go_who_wait(site: Site, books: Books) -> None:
    at_ms = T0_MS + 2 * HOUR_MS
    books.prices(PRICES % "1")
    books.prices(PRICES % "0.1" + f"from: {datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()}\n")
    books.budget(700, unit=BudgetUnit.MONEY)
    site.running(cpu=3_000, max_runtime_ms=4 * HOUR_MS)
    held = site.submit_one(**ONE_HOUR)
    assert site.reason(held) == HELD_FOR_BUDGET
    site.wait(1_000)
    site.wait(2 * HOUR_MS - 1_001)
    assert site.state(held) is JobState.HELD
    site.wait(1)
    assert site.state(held) is JobState.STARTING


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_keeps_what_is_spent_kept_and_held(site: Site, books: Books) -> None:
    books.budget(2_600, thresholds=(1, 50))
    done, running = site.running(**ONE_HOUR), site.running(**ONE_HOUR)
    site.wait(6 * MINUTE_MS)
    site.east.finished(done)
    held = site.submit_one(cpu=2_000, **ONE_HOUR)
    array = site.submit_one(size=2, cpu=1_500, **ONE_HOUR)
    before, notices = books.status(), books.notices()
    assert (before.spent, before.running, before.available, before.held_jobs) == (100, 100, 0, 2)
    assert site.reason(held) == HELD_FOR_BUDGET

    site.restart()

    after = books.status()
    assert after == before
    assert books.notices() == notices == [(1, 100)]
    assert site.reason(held) == HELD_FOR_BUDGET
    assert site.reason(array) == (JobState.RUNNING, "BUDGET")
    books.budget(20_000, thresholds=(1, 50))
    site.wait(1_000)
    assert site.state(held) is JobState.STARTING
    assert site.state(f"{array}.1") is JobState.STARTING
    assert site.state(running) is JobState.RUNNING


# --- terms ------------------------------------------------------------------------------------------------------------


def test_what_has_been_used_before_counts(site: Site, books: Books) -> None:
    site.east.finished(_after(site, 30))
    running = _after(site, 30)
    status = books.budget(2_000)
    assert (status.spent, status.running, status.committed) == (500, 500, 500)
    assert books.notices() == []
    site.east.finished(running)
    assert books.notices() == [(50, 1_000)]


def test_terms_that_cannot_be(site: Site, books: Books) -> None:
    books.budget(1_000)
    fixed: list[tuple[dict[str, Any], str]] = [
        ({"institution": "south"}, "budget.institution"),
        ({"unit": BudgetUnit.GPU_HOURS}, "budget.unit"),
        ({"from_ms": T0_MS + 1}, "budget.from_ms"),
    ]
    for values, field in fixed:
        error = refusal(lambda values=values: books.budget(1_000, **values))
        assert (error.reason, error.field) == ("BUDGET_FIXED", field)
    assert books.budget(1_000, from_ms=0).budget.from_ms == T0_MS
    site.clock.at_ms += 5
    assert books.budget(1_000, "other", from_ms=0).budget.from_ms == T0_MS + 5
    error = refusal(lambda: books.budget(1_000, "old", from_ms=0, to_ms=T0_MS + 5))
    assert isinstance(error, InvalidArgument)
    assert error.field == "budget.to_ms"
    unknown: list[tuple[dict[str, Any], str]] = [
        ({"institution": "nobody"}, "INSTITUTION_NOT_FOUND"),
        ({"projects": frozenset({"default", "nothing"})}, "PROJECT_NOT_FOUND"),
    ]
    for values, reason in unknown:
        error = refusal(lambda values=values: books.budget(1_000, "x", **values))
        assert isinstance(error, NotFound)
        assert error.reason == reason
    assert refusal(lambda: books.budget(1_000, "x", unit=BudgetUnit.MONEY)).reason == "NO_PRICE_LIST"


def test_who_is_held_is_told_where_the_budget_would_do(site: Site, books: Books) -> None:
    site.add_region("west", [node("w1")])
    books.prices("currency: CNY\nrates:\n- {pools: [east/*], cpu_core_hour: 100}\n- {cpu_core_hour: 1}\n")
    books.budget(1_000, unit=BudgetUnit.MONEY)
    job_id = site.submit_one(preferred_regions=["east"], **ONE_HOUR)
    assert site.reason(job_id) == HELD_FOR_BUDGET
    assert site.job(job_id).message.endswith("It would be covered in west/cpu: ask for a pool by its name.")
