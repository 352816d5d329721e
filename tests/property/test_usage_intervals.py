"""Usage of any interval is the same whether it comes from the sums of whole months or from the records alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from protos.suanli.v1 import usage_pb2
from scheduler.api.permissions import Role, Scope
from scheduler.api.usage import UsageApi, split_interval
from scheduler.api.visibility import Caller
from scheduler.domain.records import LedgerRecord
from scheduler.metering.usage import Aggregation, Dimension
from scheduler.service.contract import Service
from scheduler.service.ports import LedgerQuery, UsageQuery
from scheduler.wire.usage import row_to_proto
from tests.support.ledger import DAY_MS, PRICES, START_MS, LedgerService, ledgers, record

FIN = Caller("fin", "", int(Role.FINANCE), "", Scope.ANY)
U = Caller("u", "uni-a", int(Role.RESEARCHER), "", Scope.OWN)
JANUARY, FEBRUARY, MARCH, APRIL, MAY = (
    1_767_225_600_000, 1_769_904_000_000, 1_772_323_200_000, 1_775_001_600_000, 1_777_593_600_000,
)  # fmt: skip
BOUNDS = st.one_of(
    st.sampled_from([0, JANUARY, FEBRUARY, FEBRUARY - 1, FEBRUARY + 1, MARCH, APRIL, MAY]),
    st.integers(START_MS - DAY_MS, START_MS + 80 * DAY_MS),
)
DIMENSIONS = st.lists(st.sampled_from(list(Dimension)), unique=True, min_size=1, max_size=4)


def asked(service: LedgerService, caller: Caller, **fields: object) -> usage_pb2.GetUsageResponse:
    api = UsageApi(cast(Service, service))
    return asyncio.run(api.get_usage(usage_pb2.GetUsageRequest(**fields), caller))


@given(ledgers(14), BOUNDS, BOUNDS, DIMENSIONS, st.booleans(), st.sampled_from([FIN, U]))
@settings(max_examples=300, deadline=None)
def test_sums_and_fringes_are_what_the_records_say(
    records: list[LedgerRecord], one: int, other: int, group_by: list[Dimension], energy: bool, caller: Caller
) -> None:
    from_ms, to_ms = (one, other) if not other or one < other else (other, one)
    if from_ms == to_ms != 0:
        to_ms += 1
    running = [record(0, MARCH - 10_000, MARCH, price_list=1, rate=1, user="u"), record(0, MARCH, MARCH + 5, user="v")]
    service = LedgerService(records, running=running if caller is FIN else running[:1])
    answer = asked(
        service, caller, from_ms=from_ms, to_ms=to_ms, group_by=group_by, include_energy=energy, include_running=True
    )

    plain = Aggregation(group_by, PRICES, PRICES.at(1).energy if energy else None)
    for each in chain(records, running):
        mine = each.user == "u" and each.institution == "uni-a"
        if caller is FIN or mine:
            plain.add_segment(each, from_ms, to_ms)
    assert list(answer.rows) == [row_to_proto(row, energy) for row in plain.rows()]
    assert answer.total == row_to_proto(plain.total(), energy)
    assert (answer.currency, answer.currency_digits, answer.as_of_ms) == ("CNY", 2, 1)


@given(BOUNDS, BOUNDS)
def test_the_parts_of_an_interval_tile_it(one: int, other: int) -> None:
    from_ms, to_ms = min(one, other), max(one, other) + 1
    months, fringes = split_interval(from_ms, to_ms)
    pieces = sorted([*fringes, *([(_start(months[0], from_ms), _end(months[1]))] if months else [])])
    assert pieces[0][0] == from_ms
    assert pieces[-1][1] == to_ms
    assert all(left[1] == right[0] for left, right in pairwise(pieces))


def _start(month: str, from_ms: int) -> int:
    return _ms(month) if month else from_ms


def _end(month: str) -> int:
    year, number = int(month[:4]), int(month[5:])
    return _ms(f"{year + number // 12:04d}-{number % 12 + 1:02d}")


def _ms(month: str) -> int:
    return int(datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC).timestamp()) * 1000


def test_whole_months_are_not_read_record_by_record() -> None:
    day = [record(n, MARCH + n, MARCH + n + 1) for n in range(1, 9)]
    for from_ms, to_ms, months in (
        (0, 0, ("", "")),
        (MARCH, APRIL, ("2026-03", "2026-03")),
        (MARCH, 0, ("2026-03", "")),
    ):
        service = LedgerService(day)
        assert asked(service, FIN, from_ms=from_ms, to_ms=to_ms).total.cpu_milli_ms == str(8 * 1500)
        (query,) = service.asked
        assert isinstance(query, UsageQuery)
        assert (query.from_month, query.to_month) == months
        assert query.group_by == ("institution", "kind", "price_list", "rate", "discount_bp")
    service = LedgerService(day)
    asked(service, FIN, from_ms=FEBRUARY + 1, to_ms=APRIL + 1)
    sums, *fringes = service.asked
    assert isinstance(sums, UsageQuery)
    assert (sums.from_month, sums.to_month) == ("2026-03", "2026-03")
    assert [(q.from_ms, q.to_ms) for q in fringes if isinstance(q, LedgerQuery)] == [
        (FEBRUARY + 1, MARCH),
        (APRIL, APRIL + 1),
    ]


def test_what_came_after_the_sums_were_read_is_not_counted_in_the_fringe() -> None:
    class Growing(LedgerService):
        async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
            self.records.append(record(2, MARCH + 5, MARCH + 6))
            return await super().ledger(query)

    answer = asked(Growing([record(1, MARCH + 1, MARCH + 3)]), FIN, from_ms=MARCH + 2, to_ms=MARCH + 9)
    assert answer.total.cpu_milli_ms == "1500"
    assert answer.ledger_sequence == 1


def test_the_end_of_time_is_an_interval_like_any_other() -> None:
    service = LedgerService([record(1, MARCH, MARCH + 2)])
    last = 253_402_300_800_000
    assert asked(service, FIN, from_ms=MARCH + 1, to_ms=last).total.cpu_milli_ms == "1500"
    assert asked(service, FIN, from_ms=last - 1, to_ms=last).rows == []
    assert asked(service, FIN, from_ms=last - 1).rows == []
    assert asked(service, FIN, from_ms=1, to_ms=2).rows == []
