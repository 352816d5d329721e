"""Posting by day, accounting months, what is taken back and credited, and corrections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound, SuanliError
from scheduler.domain.records import LedgerRecord, ProjectRecord
from scheduler.domain.states import AttemptOutcome, EntryKind
from scheduler.metering.chain import FIRST, chained, digest_of
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS
from scheduler.service import tenants
from scheduler.service.contract import Correction, Replacement
from scheduler.service.ports import UsageQuery
from scheduler.service.posting import POSTED_AT_ONCE
from scheduler.service.verification import Verification
from tests.unit.service.books import MINUTE_MS, Books, run
from tests.unit.service.harness import T0_MS, Site

O, K = AttemptOutcome, EntryKind  # noqa: E741
DAY_MS = 24 * HOUR_MS
LONG = {"max_runtime_ms": 60 * DAY_MS}
PRICES = "currency: CNY\nrates: [{cpu_core_hour: 1}]\ncredited: [node-lost]\n"


@pytest.fixture
def books(site: Site) -> Books:
    return Books(site)


def ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000  # type: ignore[misc,arg-type]


def go_to(site: Site, *parts: int) -> None:
    site.wait(ms(*parts) - site.clock.at_ms)


def core_ms(records: list[LedgerRecord], *kinds: EntryKind) -> int:
    """Milli-core × ms of records of these kinds."""
    return sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in records if r.kind in kinds)


def hours(records: list[LedgerRecord]) -> int:
    return core_ms(records, K.USAGE, K.REVERSAL, K.CORRECTION)


def cost(site: Site, records: list[LedgerRecord]) -> int:
    book, total = site.engine.state.metering.prices, 0
    for record in records:
        prices = book.get(record.price_list)
        if prices is not None:
            held_ms = record.end_ms - record.start_ms
            price = prices.price(record.rate)
            total += price.cpu_core * record.cpu_milli * held_ms * (10_000 - record.discount_bp) * 128
    return total


def refusal(work: object) -> SuanliError:
    with pytest.raises(SuanliError) as caught:
        work()  # type: ignore[operator]
    return caught.value


@pytest.fixture(autouse=True)
def verified(site: Site, books: Books) -> Iterator[None]:
    """Whatever a test has made of the ledger, it can be verified."""
    yield
    site.turn()
    check = Verification(site.store, site.engine.state, 1, None, site.store.last_sequences()[1])
    while check.step():
        pass
    check.finish()
    assert list(check.progress().faults) == []


# --- days -------------------------------------------------------------------------------------------------------------


def test_when_a_day_is_over_what_was_held_in_it_is_posted(site: Site) -> None:
    job_id = site.running(**LONG)
    site.wait(DAY_MS - 1)
    assert site.ledger() == []
    site.wait(1)
    (record,) = site.ledger()
    assert (record.start_ms, record.end_ms, record.segment, record.outcome) == (T0_MS, T0_MS + DAY_MS, 0, 0)
    assert (record.period, record.posted_ms, record.kind) == ("2026-10", T0_MS + DAY_MS, K.USAGE)
    site.wait(2 * DAY_MS + 5)
    site.east.finished(job_id)
    assert [(r.segment, r.start_ms - T0_MS, r.end_ms - T0_MS) for r in site.ledger(job_id)] == [
        (0, 0, DAY_MS),
        (1, DAY_MS, 2 * DAY_MS),
        (2, 2 * DAY_MS, 3 * DAY_MS),
        (3, 3 * DAY_MS, 3 * DAY_MS + 5),
    ]


def test_midnight_of_many_is_shared_between_ticks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.service.posting.POSTED_AT_ONCE", 3)
    assert POSTED_AT_ONCE > 3
    ids = [site.running(cpu=500, **LONG) for _ in range(8)]
    site.wait(DAY_MS)
    assert len(site.ledger()) == 3
    site.east.finished(ids[7])
    site.wait(1_000)
    site.wait(1_000)
    assert sorted(r.job_id for r in site.ledger() if r.end_ms == T0_MS + DAY_MS) == sorted(ids)
    assert len(site.ledger()) == 8


def test_a_region_that_cannot_be_heard_is_posted_later(site: Site) -> None:
    job_id = site.running(partition_policy=2, **LONG)
    site.wait(DAY_MS - 1_000)
    site.east.hang_up()
    site.wait(2_000, silent=True)
    assert site.ledger() == []
    site.east.connect()
    site.east.finished(job_id)
    assert core_ms(site.ledger(), K.USAGE) == 1_000 * (DAY_MS + 1_000)


def test_the_chain_goes_on_over_restarts(site: Site) -> None:
    for _ in range(3):
        site.east.finished(site.running())
        site.wait(1_000)
        job_id = site.running()
        site.wait(500)
        site.east.finished(job_id)
        site.restart()
    head = FIRST
    for record in site.ledger():
        assert chained(head, record) == record
        head = record.hash
    assert site.engine.state.metering.head == head != FIRST


# --- what was posted too much -----------------------------------------------------------------------------------------


def test_what_was_posted_beyond_the_end_is_taken_back(site: Site, books: Books) -> None:
    books.prices(PRICES)
    books.budget(10**7)
    job_id = site.running(cpu=2_000, **LONG)
    site.wait(3 * DAY_MS)
    # It had ended in the second day; its agent says so only now.
    ended_ms = T0_MS + DAY_MS + 6 * HOUR_MS
    site.east.finished(job_id, age_ms=site.clock.at_ms - ended_ms)

    records = site.ledger(job_id)
    assert hours(records) == 2_000 * (ended_ms - T0_MS)
    assert cost(site, records) == 30 * 2 * 100 * COST_UNITS_PER_MINOR
    back = [r for r in records if r.kind == K.REVERSAL]
    assert {r.cpu_milli for r in back} == {-2_000}
    assert back[0].start_ms == ended_ms
    assert [r.author for r in back] == [""] * len(back)
    assert (books.status().spent, books.status().committed) == (60_000, 0)


def test_an_outcome_that_the_price_list_credits_costs_nothing(site: Site, books: Books) -> None:
    books.prices(PRICES)
    books.budget(10**6, unit=1)
    job_id = site.running(**LONG)
    site.wait(DAY_MS + HOUR_MS)
    site.east.finished(job_id, O.NODE_LOST)
    records = site.ledger(job_id)
    assert hours(records) == 1_000 * (DAY_MS + HOUR_MS)
    assert core_ms(records, K.CREDIT) == -hours(records)
    assert cost(site, records) == 0
    assert books.status().spent == 0
    assert "price list 1 credits" in records[-1].reason


def test_a_credit_ends_where_the_attempt_did(site: Site, books: Books) -> None:
    books.prices(PRICES)
    job_id = site.running(**LONG)
    site.wait(2 * DAY_MS)
    site.wait(1_000)
    site.east.finished(job_id, O.NODE_LOST, age_ms=DAY_MS + HOUR_MS)
    records = site.ledger(job_id)
    assert hours(records) == 1_000 * (23 * HOUR_MS + 1_000)
    assert cost(site, records) == 0


def test_a_closed_budget_counts_no_more_and_verifies_all_the_same(site: Site, books: Books) -> None:
    books.budget(10**6)
    site.east.finished(_hour(site))
    books.budget(10**6, closed=True)
    site.east.finished(_hour(site))
    assert books.status().spent == 1_000


# --- months -----------------------------------------------------------------------------------------------------------


def test_a_month_is_closed_when_it_is_over_and_in_order(site: Site, books: Books) -> None:
    site.east.finished(_hour(site))
    error = refusal(lambda: books.close("2026-10"))
    assert (type(error), error.reason, error.field) == (FailedPrecondition, "MONTH_NOT_OVER", "month")
    go_to(site, 2026, 11, 3)
    site.east.finished(_hour(site))
    go_to(site, 2026, 12, 1)
    error = refusal(lambda: books.close("2026-11"))
    assert error.reason == "EARLIER_MONTH_OPEN"
    assert "2026-10 is still open" in error.message

    closed = books.close("2026-10")
    assert (closed.month, closed.author, closed.records, closed.ledger_sequence) == ("2026-10", "fin", 1, 2)
    assert closed.head_hash == site.ledger()[-1].hash
    assert closed.digest == digest_of(site.store.usage_sums(UsageQuery(period="2026-10")))
    assert books.close("2026-10") == closed
    books.close("2026-11")
    site.restart()
    assert [each.month for each in run(books.live.list_months())] == ["2026-11", "2026-10"]
    assert books.close("2026-10") == closed


def _hour(site: Site) -> str:
    job_id = site.running(max_runtime_ms=2 * HOUR_MS)
    site.wait(HOUR_MS)
    return job_id


def test_what_runs_over_its_end_is_posted_before(site: Site, books: Books) -> None:
    job_id = site.running(**LONG)
    site.clock.at_ms = ms(2026, 11, 1, 0, 1)
    assert site.ledger() == []
    closed = books.close("2026-10")
    assert {r.period for r in site.ledger()} == {"2026-10"}
    assert closed.records == len(site.ledger()) == 27
    site.wait(MINUTE_MS)
    site.east.finished(job_id)
    records = site.ledger(job_id)
    assert hours(records) == 1_000 * (ms(2026, 11, 1, 0, 2) - T0_MS)
    assert records[-1].period == "2026-11"


def test_what_comes_late_goes_to_the_next_open_month_and_keeps_its_time(site: Site, books: Books) -> None:
    job_id = site.running(partition_policy=2, **LONG)
    site.wait(HOUR_MS)
    site.east.hang_up()
    site.clock.at_ms = ms(2026, 12, 2)
    books.close("2026-10")
    books.close("2026-11")
    site.east.connect()
    site.east.finished(job_id, age_ms=ms(2026, 12, 2) - ms(2026, 11, 2))
    records = site.ledger(job_id)
    assert {r.period for r in records} == {"2026-12"}
    assert hours(records) == 1_000 * (ms(2026, 11, 2) - T0_MS)
    sums = site.store.usage_sums(UsageQuery(group_by=("month", "period")))
    assert sorted((each.key.month, each.key.period) for each in sums) == [
        ("2026-10", "2026-12"),
        ("2026-11", "2026-12"),
    ]


def test_two_who_close_it_at_once_close_it_once(site: Site, books: Books) -> None:
    site.east.finished(_hour(site))
    go_to(site, 2026, 11, 1)

    async def both() -> list[object]:
        class Slow(type(books.live)):  # type: ignore[misc]
            async def _settled(self, work):  # type: ignore[no-untyped-def]
                await asyncio.sleep(0)
                return await super()._settled(work)

        slow = Slow(site)
        return list(await asyncio.gather(slow.close_month("2026-10", "fin"), slow.close_month("2026-10", "op")))

    first, second = run(both())
    assert first == second
    site.restart()
    assert [each.author for each in run(books.live.list_months())] == ["fin"]


# --- corrections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(site: Site, books: Books) -> LedgerRecord:
    """An hour of two cores of "north", in October."""
    books.prices(PRICES + "discounts: [{institution: north, project: exams, percent: 25}]\n")
    tenants.put_project(site.engine.state, ProjectRecord("north", "exams", "", 1000, 0))
    job_id = site.running(cpu=2_000)
    site.wait(HOUR_MS)
    site.east.finished(job_id)
    (found,) = site.ledger(job_id)
    return found


def test_a_record_is_taken_back(site: Site, books: Books, record: LedgerRecord) -> None:
    books.budget(10_000)
    assert books.status().spent == 2_000
    site.wait(1_000)
    (reversal,) = books.correct(record.sequence, "counted twice")
    assert (reversal.kind, reversal.reference, reversal.revision) == (K.REVERSAL, record.sequence, 1)
    assert (reversal.reason, reversal.author) == ("counted twice", "fin")
    assert site.ledger(record.job_id) == [record, reversal]
    assert hours(site.ledger()) == cost(site, site.ledger()) == 0
    assert books.status().spent == 0


def test_another_stands_in_its_place(site: Site, books: Books, record: LedgerRecord) -> None:
    changed = Replacement(project="exams", end_ms=record.end_ms - HOUR_MS // 2, cpu_milli=1_000)
    _, instead = books.correct(record.sequence, replacement=changed)
    assert (instead.kind, instead.reference, instead.project) == (K.CORRECTION, record.sequence, "exams")
    assert (instead.cpu_milli, instead.memory_mib, instead.discount_bp) == (1_000, record.memory_mib, 2_500)
    assert hours(site.ledger()) == 1_000 * HOUR_MS // 2
    assert 200 * cost(site, site.ledger()) == 75 * 100 * COST_UNITS_PER_MINOR
    # A correction may be corrected in its turn.
    again = books.correct(instead.sequence, replacement=Replacement(cpu_milli=4_000))
    assert [(r.kind, r.revision, r.reference) for r in again] == [
        (K.REVERSAL, 2, instead.sequence),
        (K.CORRECTION, 2, instead.sequence),
    ]
    assert hours(site.ledger()) == 4_000 * HOUR_MS // 2


def test_a_credit_leaves_the_hours(site: Site, books: Books, record: LedgerRecord) -> None:
    (credit,) = books.correct(record.sequence, credit=True)
    assert credit.kind == K.CREDIT
    assert (hours(site.ledger()), cost(site, site.ledger())) == (2_000 * HOUR_MS, 0)


@pytest.mark.parametrize("restart", [False, True])
def test_nothing_is_corrected_twice(site: Site, books: Books, record: LedgerRecord, restart: bool) -> None:
    (reversal,) = books.correct(record.sequence)
    if restart:
        site.restart()
    for values in ({}, {"credit": True}, {"replacement": Replacement(cpu_milli=1)}):
        error = refusal(lambda values=values: books.correct(record.sequence, **values))
        assert (type(error), error.reason, error.field) == (FailedPrecondition, "ALREADY_CORRECTED", "sequence")
    assert refusal(lambda: books.correct(reversal.sequence)).reason == "NOT_CORRECTABLE"
    assert site.ledger() == [record, reversal]


def test_what_cannot_be_corrected(site: Site, books: Books, record: LedgerRecord) -> None:
    assert isinstance(refusal(lambda: books.correct(record.sequence + 1)), NotFound)
    with pytest.raises(NotFound):
        run(books.live.correct_ledger(Correction(record.sequence, "why"), "south", "fin"))
    for replacement, field in (
        (Replacement(start_ms=record.start_ms - 1), "replacement.start_ms"),
        (Replacement(end_ms=record.end_ms + 1), "replacement.end_ms"),
        (Replacement(end_ms=record.start_ms), "replacement.end_ms"),
        (Replacement(project="nothing"), "replacement.project"),
    ):
        error = refusal(lambda replacement=replacement: books.correct(record.sequence, replacement=replacement))
        assert error.field == field
    error = refusal(lambda: books.correct(record.sequence, replacement=Replacement(cpu_milli=1), credit=True))
    assert (type(error), error.field) == (InvalidArgument, "credit")
    running = site.running(**LONG)
    site.wait(2 * DAY_MS)
    posted = site.ledger(running)[0]
    assert refusal(lambda: books.correct(posted.sequence)).reason == "STILL_RUNNING"
    # Nothing of all that was posted.
    assert {r.kind for r in site.ledger()} == {K.USAGE}


def test_a_correction_of_a_closed_month_is_posted_to_the_open_one(
    site: Site, books: Books, record: LedgerRecord
) -> None:
    go_to(site, 2026, 11, 2)
    closed = books.close("2026-10")
    posted = books.correct(record.sequence, replacement=Replacement(cpu_milli=500))
    assert [r.period for r in posted] == ["2026-11", "2026-11"]
    assert [(r.start_ms, r.end_ms) for r in posted] == [(record.start_ms, record.end_ms)] * 2
    assert digest_of(site.store.usage_sums(UsageQuery(period="2026-10"))) == closed.digest


def test_only_what_still_counts_of_a_record_is_taken_back(site: Site, books: Books) -> None:
    books.prices(PRICES)
    job_id = site.running(**LONG)
    site.wait(DAY_MS)
    site.wait(DAY_MS)
    site.east.finished(job_id, age_ms=DAY_MS + HOUR_MS)
    first, second, *_ = site.ledger(job_id)
    assert hours(site.ledger()) == 1_000 * 23 * HOUR_MS
    assert refusal(lambda: books.correct(second.sequence)).reason == "ALREADY_CORRECTED"
    books.correct(first.sequence)
    assert (hours(site.ledger()), cost(site, site.ledger())) == (0, 0)


def test_what_was_credited_by_the_price_list_is_not_given_back_twice(site: Site, books: Books) -> None:
    books.prices(PRICES)
    job_id = site.running()
    site.wait(HOUR_MS)
    site.east.finished(job_id, O.NODE_LOST)
    usage, _ = site.ledger(job_id)
    for credit in (True, False):
        error = refusal(lambda credit=credit: books.correct(usage.sequence, credit=credit))
        assert error.reason == "ALREADY_CORRECTED"
    assert cost(site, site.ledger()) == 0
