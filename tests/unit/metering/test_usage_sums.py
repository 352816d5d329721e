"""Sums of usage: exact, the same however they are added up."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering import names
from scheduler.metering.lines import cost_of
from scheduler.metering.usage import Aggregation, Dimension, UsageRow, grouping
from scheduler.service.ports import UsageQuery
from tests.support.ledger import DAY_MS, PRICES, START_MS, ledgers, record, sums_of, taken_back

DIMENSIONS = st.lists(st.sampled_from(list(Dimension)), unique=True, max_size=5)
ENERGY = PRICES.get(1).energy


@given(ledgers(), DIMENSIONS)
@settings(max_examples=100, deadline=None)
def test_sums_and_records_give_the_same_figures(records: list[LedgerRecord], group_by: list[Dimension]) -> None:
    summed, single = (Aggregation(group_by, PRICES, ENERGY) for _ in range(2))
    for row in sums_of(records, UsageQuery(group_by=grouping(group_by, True))):
        summed.add_sum(*row)
    for one in records:
        single.add_segment(one)

    assert summed.rows() == single.rows()
    assert summed.total() == single.total()
    held = [one for one in records if one.kind != EntryKind.CREDIT]
    total = summed.total()
    assert total.cpu_milli_ms == sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in held)
    assert total.gpu_used_milli_ms == sum(r.gpu_used_milli_ms for r in held)
    assert total.cost_units == sum(cost_of(one, PRICES) for one in records)
    assert total.attempts == sum(r.kind == EntryKind.USAGE and r.segment == 0 for r in records)
    for name in ("cpu_milli_ms", "cost_units", "list_cost_units", "service_cost_units", "segments"):
        assert sum(getattr(row, name) for row in summed.rows()) == getattr(total, name)


@given(ledgers(), st.lists(st.integers(START_MS, START_MS + 80 * DAY_MS), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_intervals_that_tile_time_add_up_to_the_whole(records: list[LedgerRecord], cuts: list[int]) -> None:
    parts = []
    for from_ms, to_ms in pairwise([0, *sorted(set(cuts)), 0]):
        part = Aggregation([Dimension.INSTITUTION], PRICES)
        for one in records:
            part.add_segment(one, from_ms, to_ms)
        parts.append(part.total())
    whole = Aggregation([], PRICES)
    for one in records:
        whole.add_segment(one)
    for name in set(UsageRow._fields) - {"key", "segments", "attempts"}:
        assert sum(getattr(part, name) for part in parts) == getattr(whole.total(), name), name


def test_a_straddling_segment_counts_with_its_part_inside() -> None:
    one = record(1, 1000, 3000, cpu_used_ms=1001)
    for from_ms, to_ms, inside, used in (
        (0, 0, 2000, 1_001_000),
        (1500, 0, 1500, 750_750),
        (0, 1500, 500, 250_250),
        (1500, 1600, 100, 50_050),
        (3000, 0, 0, 0),
        (1, 1000, 0, 0),
    ):
        aggregation = Aggregation([Dimension.USER])
        aggregation.add_segment(one, from_ms, to_ms)
        assert aggregation.total().cpu_milli_ms == 1500 * inside
        assert aggregation.total().cpu_used_milli_ms == used
        assert aggregation.total().attempts == (1 if inside else 0)
        assert [row.key for row in aggregation.rows()] == ([("u",)] if inside else [])


def test_a_credit_gives_money_back_and_no_hours_and_a_reversal_both() -> None:
    one = record(1, START_MS, START_MS + 3_600_000, price_list=1, rate=1, discount_bp=1250, cpu_used_ms=5)
    for kind, hours, used in ((EntryKind.CREDIT, 1500 * 3_600_000, 5000), (EntryKind.REVERSAL, 0, 0)):
        aggregation = Aggregation([Dimension.PRIORITY, Dimension.PERIOD], PRICES, ENERGY)
        aggregation.add_segment(one)
        before = aggregation.total()
        aggregation.add_segment(taken_back(one, 2, kind))
        total = aggregation.total()
        # 1.5 cores, 100 MiB, 0.25 GPU for an hour, at 3, 0.5 and 123.456789 hundredths, with 12.5 % off.
        assert before.list_cost_units > before.cost_units > 0
        assert 10_000 * before.cost_units == 8_750 * before.list_cost_units
        assert (total.cpu_milli_ms, total.cpu_used_milli_ms) == (hours, used)
        assert (total.cost_units, total.list_cost_units, total.service_cost_units) == (0, 0, 0)
        assert (total.energy_uj > 0) == (hours > 0)
        assert total.segments == total.attempts == 1
    assert [row.key for row in aggregation.rows()] == [("normal", "2026-01")]


def test_what_was_taken_back_before_the_interval_leaves_no_row() -> None:
    aggregation = Aggregation([Dimension.USER], PRICES)
    one = record(1, START_MS, START_MS + 10, kind=int(EntryKind.CORRECTION))
    aggregation.add_segment(one)
    aggregation.add_segment(taken_back(one, 2, EntryKind.REVERSAL))
    assert aggregation.rows() == []


def test_metric_names_are_unique_and_well_formed() -> None:
    published = [value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")]
    assert len(published) == len(set(published)) > 15
