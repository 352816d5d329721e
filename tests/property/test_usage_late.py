"""What is posted while the sums are read is taken out of them again, exactly, whatever they are grouped by."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.service.ports import UsageKey, UsageQuery
from scheduler.service.using import usage_key, without_late
from scheduler.store import rollup
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
def test_the_store_and_the_service_sum_by_the_same_keys(records: list[LedgerRecord]) -> None:
    assert [usage_key(one) for one in records] == [rollup.usage_key(one) for one in records]
    assert sorted(rollup.sum_usage(records)) == sums_of(records, UsageQuery())
