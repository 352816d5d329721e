"""Sums of usage: exact, the same however they are added up."""

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.metering import names
from scheduler.metering.segments import segments
from scheduler.metering.usage import Aggregation, Dimension
from scheduler.store.rollup import sum_usage

DAY_MS = 86_400_000
START = int(datetime(2026, 1, 20, tzinfo=UTC).timestamp() * 1000)


def record(sequence: int, start_ms: int, end_ms: int, segment: int = 0, **changes: object) -> LedgerRecord:
    values = {
        "sequence": sequence,
        "institution": "uni-a",
        "project": "p",
        "user": "u",
        "job_id": f"j{sequence}",
        "attempt": 1,
        "segment": segment,
        "region": "east",
        "pool": "cpu",
        "accelerator": "",
        "start_ms": start_ms,
        "end_ms": end_ms,
        "cpu_milli": 1500,
        "memory_mib": 100,
        "gpu_milli": 250,
        "outcome": 1,
    }
    return LedgerRecord(**values | changes)


@st.composite
def allocations(draw: st.DrawFn) -> list[LedgerRecord]:
    records: list[LedgerRecord] = []
    for index in range(draw(st.integers(0, 8))):
        start = START + draw(st.integers(0, 80 * DAY_MS))
        end = start + draw(st.integers(1, 70 * DAY_MS))
        tenant = draw(st.sampled_from(["uni-a", "uni-b"]))
        pool = draw(st.sampled_from(["cpu", "gpu"]))
        cpu = draw(st.integers(1, 10**9))
        for number, (begin, until) in enumerate(segments(start, end)):
            records.append(
                record(
                    len(records),
                    begin,
                    until,
                    number,
                    institution=tenant,
                    pool=pool,
                    cpu_milli=cpu,
                    job_id=f"j{index}",
                )
            )
    return records


DIMENSIONS = st.lists(st.sampled_from(list(Dimension)), unique=True, max_size=7)


@given(allocations(), DIMENSIONS)
@settings(max_examples=80, deadline=None)
def test_sums_and_segments_give_the_same_amounts(records: list[LedgerRecord], group_by: list[Dimension]) -> None:
    summed, single = Aggregation(group_by), Aggregation(group_by)
    for row in sum_usage(records):
        summed.add_sum(*row)
    for one in records:
        single.add_segment(one)

    def amounts(aggregation: Aggregation) -> list[tuple[object, ...]]:
        return [tuple(row[:5]) for row in aggregation.rows()]

    assert amounts(summed) == amounts(single)
    assert summed.total() == single.total()
    assert summed.total().cpu_milli_ms == sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in records)
    assert summed.total().attempts == len({r.job_id for r in records})
    assert sum(row.cpu_milli_ms for row in summed.rows()) == summed.total().cpu_milli_ms


@given(allocations(), st.lists(st.integers(START, START + 160 * DAY_MS), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_intervals_that_tile_time_add_up_to_the_whole(records: list[LedgerRecord], cuts: list[int]) -> None:
    bounds = [0, *sorted(set(cuts)), 0]
    parts = []
    for from_ms, to_ms in pairwise(bounds):
        part = Aggregation([Dimension.INSTITUTION])
        for one in records:
            part.add_segment(one, from_ms, to_ms)
        parts.append(part.total())
    whole = Aggregation([])
    for one in records:
        whole.add_segment(one)
    assert sum(part.cpu_milli_ms for part in parts) == whole.total().cpu_milli_ms
    assert sum(part.gpu_milli_ms for part in parts) == whole.total().gpu_milli_ms


def test_a_straddling_segment_counts_with_its_part_inside() -> None:
    one = record(1, 1000, 3000)
    for from_ms, to_ms, inside in (
        (0, 0, 2000),
        (1500, 0, 1500),
        (0, 1500, 500),
        (1500, 1600, 100),
        (3000, 0, 0),
        (1, 1000, 0),
    ):
        aggregation = Aggregation([Dimension.USER])
        aggregation.add_segment(one, from_ms, to_ms)
        assert aggregation.total().cpu_milli_ms == 1500 * inside
        assert aggregation.total().attempts == (1 if inside else 0)
        assert [row.key for row in aggregation.rows()] == ([("u",)] if inside else [])


def test_what_still_runs_is_cut_at_the_month() -> None:
    start = int(datetime(2026, 1, 31, 23, tzinfo=UTC).timestamp() * 1000)
    aggregation = Aggregation([Dimension.MONTH])
    aggregation.add_segment(record(1, start, start + 3 * 3_600_000))
    assert [(row.key, row.cpu_milli_ms) for row in aggregation.rows()] == [
        (("2026-01",), 1500 * 3_600_000),
        (("2026-02",), 1500 * 2 * 3_600_000),
    ]
    assert aggregation.total().attempts == 1


def test_metric_names_are_unique_and_well_formed() -> None:
    published = [value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")]
    assert len(published) == len(set(published)) > 15
