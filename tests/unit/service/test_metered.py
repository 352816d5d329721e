"""What is metered: each allocation from grant to release, cut at month ends, whatever the agents' clocks say."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from scheduler.domain.states import AttemptOutcome
from scheduler.service.ports import UsageQuery
from scheduler.service.using import accrued
from tests.unit.service.harness import Site, spec

O = AttemptOutcome  # noqa: E741
MINUTE_MS = 60_000


def ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000  # type: ignore[misc,arg-type]


def intervals(site: Site, job_id: str) -> list[tuple[int, int]]:
    return [(record.start_ms, record.end_ms) for record in site.ledger(job_id)]


def test_an_allocation_is_metered_from_its_grant_not_its_start(site: Site) -> None:
    granted = site.clock.at_ms
    job_id = site.submit_one(cpu=2_500, memory=100, replicas=2)
    site.wait(1_000)
    site.east.started(job_id)
    site.wait(9_000)
    site.east.finished(job_id)
    (record,) = site.ledger(job_id)
    assert (record.start_ms, record.end_ms) == (granted, granted + 10_000)
    assert (record.cpu_milli, record.memory_mib, record.gpu_milli) == (5_000, 200, 0)
    assert (record.institution, record.user, record.region, record.pool) == ("north", "ada", "east", "cpu")
    assert (record.outcome, record.attempt, record.segment) == (O.SUCCEEDED, 1, 0)


def test_waiting_is_never_metered(site: Site) -> None:
    site.submit_one(cpu=8_000)
    waiting = site.submit_one()
    site.wait(MINUTE_MS)
    site.cancel(waiting)
    assert not site.ledger(waiting)


def test_every_attempt_has_its_own_segments(site: Site) -> None:
    job_id = site.submit_one(max_retries=1, backoff_ms=500)
    begin = site.clock.at_ms
    site.wait(1_000)
    site.east.finished(job_id, O.FAILED)
    site.wait(500)
    site.wait(2_000)
    site.east.finished(job_id, O.NODE_LOST)
    site.east.finished(job_id)
    assert intervals(site, job_id) == [(begin, begin + 1_000), (begin + 1_500, begin + 3_500)]
    assert [(record.attempt, record.outcome) for record in site.ledger(job_id)] == [(1, O.FAILED), (2, O.NODE_LOST)]


def test_a_segment_ends_with_the_day_and_the_month(site: Site) -> None:
    site.clock.at_ms = ms(2026, 12, 31, 23, 59)
    site.east.connect()
    job_id = site.running()
    site.wait(ms(2027, 2, 1, 0, 1) - site.clock.at_ms)
    site.east.finished(job_id)
    days = [*range(ms(2027, 1, 1), ms(2027, 2, 2), 86_400_000)]
    bounds = [ms(2026, 12, 31, 23, 59), *days, ms(2027, 2, 1, 0, 1)]
    assert intervals(site, job_id) == list(pairwise(bounds))
    assert [record.segment for record in site.ledger(job_id)] == list(range(len(bounds) - 1))
    assert sorted(total.key.month for total in site.store.usage_sums(UsageQuery())) == ["2026-12", "2027-01", "2027-02"]


@pytest.mark.parametrize(
    ("age_ms", "lasted_ms"),
    [(0, 10_000), (4_000, 6_000), (10_000, 0), (10**15, 0), (-5_000, 10_000)],
)
def test_an_end_is_taken_within_the_allocation_whatever_the_agents_clock_says(
    site: Site, age_ms: int, lasted_ms: int
) -> None:
    job_id = site.submit_one()
    granted = site.clock.at_ms
    site.wait(10_000)
    site.east.finished(job_id, age_ms=age_ms)
    (attempt,) = site.store.attempts_of(job_id, 10)
    assert (attempt.grant_ms, attempt.end_ms) == (granted, granted + lasted_ms)
    assert intervals(site, job_id) == ([(granted, granted + lasted_ms)] if lasted_ms else [])


def test_it_does_not_end_before_it_started(site: Site) -> None:
    job_id = site.submit_one()
    site.wait(10_000)
    site.east.started(job_id, age_ms=2_000)
    site.east.finished(job_id, age_ms=5_000)
    (attempt,) = site.store.attempts_of(job_id, 10)
    assert attempt.start_ms == attempt.end_ms == attempt.grant_ms + 8_000


def test_a_clock_that_steps_back_stops_no_time_and_takes_none_away(site: Site) -> None:
    job_id = site.running()
    site.wait(10_000)
    site.clock.at_ms -= 3_600_000
    site.east.finished(job_id)
    ((start, end),) = intervals(site, job_id)
    assert end - start == 10_000


def test_a_restart_on_a_host_whose_clock_is_behind_carries_time_on(site: Site) -> None:
    job_id = site.running()
    site.wait(10_000)
    site.submit_one()
    now = site.clock.at_ms
    site.clock.at_ms -= 3_600_000
    site.store.release_leadership(site.engine.state.epoch)
    site.start()
    site.east.connect()
    assert site.engine.state.now() == now
    site.east.finished(job_id)
    ((start, end),) = intervals(site, job_id)
    assert end - start == 10_000


def test_what_runs_is_reckoned_as_if_it_ended_now(site: Site) -> None:
    north, south = site.running(cpu=2_000), site.running(institution="south")
    site.wait(7_000)
    now = site.clock.at_ms
    everything = accrued(site.engine.state, UsageQuery(), now)
    assert [(record.job_id, record.end_ms - record.start_ms) for record in everything] == [
        (north, 7_000),
        (south, 7_000),
    ]
    assert [record.job_id for record in accrued(site.engine.state, UsageQuery("south"), now)] == [south]
    assert accrued(site.engine.state, UsageQuery("south", "other"), now) == []
    site.east.finished(north)
    (booked,) = site.ledger(north)
    assert (booked.cpu_milli, booked.start_ms, booked.end_ms) == (2_000, now - 7_000, now)


def test_the_sums_are_those_of_the_ledger(site: Site) -> None:
    for round_ in range(4):
        ids = site.submit(*(spec("north" if i % 2 else "south", cpu=500 * (i + 1)) for i in range(4)))
        site.wait(1_000 + 333 * round_)
        for job_id in ids:
            site.east.finished(job_id, O.FAILED if round_ % 2 else O.SUCCEEDED, age_ms=100 * round_)
    for institution in ("north", "south"):
        rows = [record for record in site.ledger() if record.institution == institution]
        sums = site.store.usage_sums(UsageQuery(institution))
        assert sum(s.cpu_milli_ms for s in sums) == sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in rows)
        assert sum(s.attempts for s in sums) == len(rows) == 8
