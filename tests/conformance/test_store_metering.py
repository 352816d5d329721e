"""The ledger's sums and what else finance asks of a store, the same from each kind of store."""

from __future__ import annotations

import random
from datetime import datetime

import pytest

from scheduler.domain.errors import InvalidArgument
from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import AttemptState, EntryKind
from scheduler.service.ports import CommitBatch, LedgerQuery, Store, UsageKey, UsageQuery
from tests.conformance.conftest import Writer
from tests.support import rows
from tests.support.sums import negated, usage_by, usage_by_day

MONTHS = {name: int(datetime.fromisoformat(f"{name}-01T00:00Z").timestamp() * 1000) for name in ("2026-10", "2026-11")}
MONTH_MS = 30 * 86_400_000
GROUPS = [
    (),
    *((name,) for name in UsageKey._fields),
    ("institution", "kind", "price_list", "rate", "discount_bp"),
    ("month", "institution"),
    UsageKey._fields,
]


def _random_ledger(count: int, seed: int) -> list[LedgerRecord]:
    """Segments beyond 64 bits, half of which are reversed, corrected or credited."""
    chance = random.Random(seed)
    records: list[LedgerRecord] = []
    while len(records) < count:
        month = chance.choice(list(MONTHS))
        start_ms = MONTHS[month] + chance.randrange(MONTH_MS)
        usage = rows.segment(
            len(records) + 1,
            institution=chance.choice(["tongji", "fudan", "复旦"]),
            project=chance.choice(["default", "nlp"]),
            user=chance.choice(["li", "wang"]),
            region=chance.choice(["east", "west"]),
            pool=chance.choice(["cpu", "gpu"]),
            accelerator=chance.choice(["", "a100"]),
            segment=chance.randrange(3),
            start_ms=start_ms,
            end_ms=chance.randrange(start_ms, MONTHS[month] + MONTH_MS + 1),
            cpu_milli=chance.choice([1, 2**48]),
            memory_mib=chance.randrange(2**48),
            gpu_milli=chance.randrange(9),
            cpu_used_ms=chance.choice([0, 2**60]),
            peak_memory_mib=chance.randrange(2**40),
            gpu_used_milli_ms=chance.randrange(2**62),
            priority=chance.randrange(1, 5),
            preemptible=chance.randrange(2),
            purpose=chance.choice(["", "thesis"]),
            price_list=chance.randrange(3),
            rate=chance.randrange(-1, 2),
            discount_bp=chance.choice([0, 1500]),
            period=chance.choice(["2026-11", "2026-12"]),
        )
        records.append(usage)
        if chance.randrange(2):
            kind = chance.choice([EntryKind.REVERSAL, EntryKind.CREDIT])
            period = chance.choice([usage.period, "2027-01"])
            changes = {"kind": int(kind), "revision": 1, "reference": usage.sequence, "period": period}
            records.append(negated(usage, sequence=len(records) + 1, **changes))
            if kind == EntryKind.REVERSAL and chance.randrange(2):
                changes |= {"kind": int(EntryKind.CORRECTION), "project": "nlp", "cpu_milli": 7}
                records.append(usage._replace(sequence=len(records) + 1, **changes))
    return records


def _commit(writer: Writer, records: list[LedgerRecord]) -> None:
    for start in range(0, len(records), 50):
        writer.commit(ledger=records[start : start + 50])


def test_sums_by_any_fields_are_those_of_the_records(store: Store, writer: Writer) -> None:
    records = _random_ledger(300, seed=5)
    _commit(writer, records)

    for group_by in GROUPS:
        query = UsageQuery(group_by=group_by)
        assert store.usage_sums(query) == usage_by(records, query), group_by
    assert max(total.cpu_milli_ms for total in store.usage_sums(UsageQuery())) > 2**64
    assert min(total.cpu_milli_ms for total in store.usage_sums(UsageQuery())) < -(2**64)


FILTERS = {
    "institution": UsageQuery("fudan"),
    "project": UsageQuery("fudan", "nlp"),
    "project of any institution": UsageQuery(project="nlp"),
    "user": UsageQuery(user="wang"),
    "from a month": UsageQuery(from_month="2026-11"),
    "to a month": UsageQuery(to_month="2026-10"),
    "of a month, grouped": UsageQuery(from_month="2026-10", to_month="2026-10", group_by=("user", "kind")),
    "accounting month": UsageQuery(period="2026-12"),
    "an institution's accounting month": UsageQuery("复旦", period="2027-01", group_by=("project", "rate")),
    "nothing": UsageQuery("unknown", group_by=("user",)),
}


def test_sums_are_filtered(store: Store, writer: Writer) -> None:
    records = _random_ledger(300, seed=6)
    _commit(writer, records)

    found = {case: store.usage_sums(query) for case, query in FILTERS.items()}

    assert found == {case: usage_by(records, query) for case, query in FILTERS.items()}
    assert {case for case, sums in found.items() if not sums} == {"nothing"}


def test_usage_is_not_grouped_by_what_it_is_not_kept_by(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="'colour'") as refused:
        store.usage_sums(UsageQuery(group_by=("user", "colour")))

    assert refused.value.field == "group_by"


def test_what_is_reversed_adds_up_to_nothing(store: Store, writer: Writer) -> None:
    usage = rows.segment(1, cpu_milli=2**48 + 1, end_ms=rows.T0_MS + 10**9 - 1, cpu_used_ms=7, peak_memory_mib=3)
    reversal = negated(usage, sequence=2, kind=int(EntryKind.REVERSAL), revision=1)

    writer.commit(ledger=[usage])
    writer.commit(ledger=[reversal])

    [total] = store.usage_sums(UsageQuery(group_by=("institution",)))
    assert total[1:] == (0, 0, 0, 0, 0, 0, 1, 1)
    assert {day[4:] for day in store.usage_days("", "", "")} == {(0, 0, 0)}


def test_days_are_the_sums_of_their_parts(store: Store, writer: Writer) -> None:
    records = _random_ledger(200, seed=7)
    _commit(writer, records)

    expected = usage_by_day(records)

    assert store.usage_days("", "", "") == expected
    assert store.usage_days("", "2026-10-30", "2026-11-02") == [
        d for d in expected if "2026-10-30" <= d.day <= "2026-11-02"
    ]
    assert store.usage_days("fudan", "2026-11-02", "") == [
        d for d in expected if d.day >= "2026-11-02" and d.institution == "fudan"
    ]
    assert store.usage_days("", "2027-01-01", "2027-02-01") == []


def test_a_repeated_commit_adds_nothing(store: Store, writer: Writer) -> None:
    records = _random_ledger(40, seed=8)
    for _ in range(3):
        store.commit(writer.epoch, 1, CommitBatch(ledger=records))

    assert store.usage_sums(UsageQuery()) == usage_by(records, UsageQuery())
    assert store.usage_days("", "", "") == usage_by_day(records)


def test_a_segment_has_one_record_of_each_kind_and_revision(store: Store, writer: Writer) -> None:
    first = rows.segment(1, job_id="j")
    others = [
        first._replace(sequence=number, kind=int(kind), revision=revision)
        for number, (kind, revision) in enumerate([(EntryKind.REVERSAL, 1), (EntryKind.CORRECTION, 1)], 2)
    ]
    writer.commit(ledger=[first, *others, rows.segment(4, job_id="j", attempt=2), rows.segment(5, job_id="k")])

    assert [each for each in store.ledger_of(["nobody", "j"]) if each.attempt == 1] == [first, *others]
    assert store.ledger_of(["nobody"]) == store.ledger_of([]) == []


def test_the_records_of_many_jobs_are_read_by_number(store: Store, writer: Writer) -> None:
    records = [rows.segment(number, job_id=f"j{number % 1500}", attempt=number // 1500) for number in range(1, 3001)]
    _commit(writer, records)

    found = store.ledger_of([*(f"j{number}" for number in range(1200, 0, -1)), "j7", "nobody"])

    assert found == [record for record in records if 1 <= int(record.job_id[1:]) <= 1200]
    assert store.ledger_of([]) == []


def test_spending_is_read_by_budget(store: Store, writer: Writer) -> None:
    assert store.budget_spending() == []
    writer.commit(
        institutions=[rows.institution()],
        budgets=[rows.budget("b2"), rows.budget("b1")],
        budget_spending=[rows.budget_spending("b2"), rows.budget_spending("b1", spent="-3")],
    )
    writer.commit(budget_spending=[rows.budget_spending("b2", spent="7", threshold=80)])

    assert store.budget_spending() == store.load().budget_spending
    assert store.budget_spending() == [
        rows.budget_spending("b1", spent="-3"),
        rows.budget_spending("b2", spent="7", threshold=80),
    ]


def test_the_ledger_is_read_in_the_order_of_its_numbers(store: Store, writer: Writer) -> None:
    records = _random_ledger(60, seed=9)
    _commit(writer, records)

    assert store.ledger_after(0, 1000) == records
    assert store.ledger_after(10, 7) == records[10:17]
    assert store.ledger_after(len(records), 7) == []
    for period in ("2026-11", "2026-12", "2027-01", "2027-02"):
        of_period = [record for record in records if record.period == period]
        assert store.ledger(LedgerQuery(period=period)) == of_period
        assert store.count_posted(period) == len(of_period)
    assert store.load().ledger_hash == records[-1].hash


def test_the_newest_hash_is_that_of_the_highest_number(store: Store, writer: Writer) -> None:
    writer.commit(ledger=[rows.segment(2, hash=b"second"), rows.segment(1, hash=b"first")])

    assert store.load().ledger_hash == b"second"


def test_attempts_are_read_in_order_the_live_ones_too(store: Store, writer: Writer) -> None:
    ended = int(AttemptState.ENDED)
    attempts = [
        rows.attempt(1, 1, state=ended),
        rows.attempt(1, 2),
        rows.attempt(3, 1),
        rows.attempt(20, 1, state=ended),
    ]
    writer.commit(new_jobs=[rows.job(number) for number in (1, 3, 20)], new_attempts=attempts)

    assert store.attempts_after(0, 0, 10) == attempts
    assert store.attempts_after(1, 1, 2) == attempts[1:3]
    assert store.attempts_after(1, 9, 10) == attempts[2:]
    assert store.attempts_after(20, 1, 10) == []


def test_price_lists_are_loaded_whole_and_found(store: Store, writer: Writer) -> None:
    lists = [rows.price_list(number, document="# 价格\n" * 5_000 * number) for number in (1, 2, 10)]
    for each in lists:
        writer.commit(price_lists=[each])

    assert store.load().price_lists == lists
    assert [store.find_price_list(number) for number in (1, 2, 10)] == lists
    assert [store.find_price_list(number) for number in (0, 3, -1)] == [None] * 3


def test_notices_are_listed_newest_first(store: Store, writer: Writer) -> None:
    notices = [
        rows.budget_notice(number, budget=f"b{number % 3}", institution="fudan" if number % 3 else "tongji")
        for number in range(1, 13)
    ]
    writer.commit(budget_notices=notices)

    def numbers(institution: str, budget: str, before: int, limit: int) -> list[int]:
        return [notice.number for notice in store.list_budget_notices(institution, budget, before, limit)]

    assert store.list_budget_notices("", "", 0, 100) == notices[::-1]
    assert numbers("", "", 5, 2) == [4, 3]
    assert numbers("tongji", "", 0, 2) == [12, 9]
    assert numbers("", "b2", 9, 100) == [8, 5, 2]
    assert numbers("fudan", "b1", 0, 2) == [10, 7]
    assert numbers("tongji", "b1", 0, 2) == numbers("", "", 1, 9) == []
    assert store.load().last_budget_notice == 12
