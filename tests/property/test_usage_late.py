"""What is posted while the sums are read is taken out of them again, exactly, whatever they are grouped by."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.service.ports import UsageKey, UsageQuery
from scheduler.service.sums import sum_usage
from scheduler.service.using import without_late
from tests.support.ledger import ledgers, sums_of

QUERIES = st.builds(
    UsageQuery,
    institution=st.sampled_from(["", "uni-a"]),
    user=st.sampled_from(["", "u"]),
    from_month=st.sampled_from(["", "2026-02"]),
    to_month=st.sampled_from(["", "2026-03"]),
    period=st.sampled_from(["", "2026-05"]),
    group_by=st.lists(st.sampled_from(UsageKey._fields), unique=True, max_size=4).map(tuple),
)


@given(ledgers(16), QUERIES, st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_without_what_came_late_the_sums_are_as_before(
    records: list[LedgerRecord], query: UsageQuery, known: int
) -> None:
    early, late = records[:known], records[known:]
    found = without_late(sums_of(records, query), late, query)
    # A sum of which nothing is left may stand there or not: it changes no figure.
    assert [row for row in found if any(row[1:])] == [row for row in sums_of(early, query) if any(row[1:])]


@given(ledgers(16))
@settings(max_examples=50, deadline=None)
def test_the_sums_are_those_of_an_independent_reckoning(records: list[LedgerRecord]) -> None:
    assert sorted(sum_usage(records)) == sums_of(records, UsageQuery())
