"""UsageService: sums over the ledger, and its records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NamedTuple

from protos.suanli.v1 import usage_pb2
from scheduler.api.paging import decode_number, encode_token, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller, institution_scope
from scheduler.domain.records import LedgerRecord
from scheduler.metering.money import COST_UNITS_PER_MINOR
from scheduler.metering.segments import month_of, month_start_ms, next_month_ms
from scheduler.metering.usage import Aggregation, Dimension, grouping
from scheduler.service.contract import Service
from scheduler.service.ports import LedgerQuery, UsageQuery
from scheduler.wire import check
from scheduler.wire.admin import MAX_TIME_MS
from scheduler.wire.usage import ledger_to_proto, row_to_proto

DEFAULT_LEDGER_PAGE = 1000
MAX_LEDGER_PAGE = 10_000
STREAM_PAGE = 1000
_FAR_MS = 250_000_000_000_000
"""Past every record there may be, and before the last year that can be written as a month."""


class Interval(NamedTuple):
    """An interval of time in whole UTC months and the rest: what the store has sums of, and what has to be added up from records.

    ``months`` are the first and the last whole month ("" is open); None without any. ``fringes`` are half-open, 0 is open.
    """

    months: tuple[str, str] | None
    fringes: tuple[tuple[int, int], ...]


def split_interval(from_ms: int, to_ms: int) -> Interval:
    """[from_ms, to_ms), 0 being open, cut at the first and the last beginning of a month in it."""
    if from_ms >= _FAR_MS:
        return Interval(None, ((from_ms, to_ms),))
    end_ms = 0 if to_ms >= _FAR_MS else to_ms
    first_ms = from_ms if month_start_ms(month_of(from_ms)) == from_ms else next_month_ms(from_ms)
    last_ms = month_start_ms(month_of(end_ms))
    if end_ms and last_ms < first_ms:
        return Interval(None, ((from_ms, end_ms),))
    fringes = []
    if from_ms < first_ms:
        fringes.append((from_ms, first_ms))
    if last_ms < end_ms:
        fringes.append((last_ms, end_ms))
    if end_ms and first_ms == last_ms:
        return Interval(None, tuple(fringes))
    months = (month_of(first_ms) if from_ms else "", month_of(last_ms - 1) if end_ms else "")
    return Interval(months, tuple(fringes))


class UsageApi:
    """The methods of UsageService that read the ledger."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get_usage(self, request: usage_pb2.GetUsageRequest, caller: Caller) -> usage_pb2.GetUsageResponse:
        """Sums, grouped; of the caller's own jobs alone for one who may see no more. A lead reads a whole project it leads by naming it."""
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        check.optional_slug(request.project, "project", "a project's id")
        _check_interval(request.from_ms, request.to_ms)
        group_by = _dimensions(request) or [Dimension.INSTITUTION]
        whole = caller.scope in (Scope.INSTITUTION, Scope.ANY) or request.project in caller.leads
        user = "" if whole else caller.user
        interval = split_interval(request.from_ms, request.to_ms)
        query = UsageQuery(institution, request.project, user, group_by=grouping(group_by, request.include_energy))
        if interval.months is not None:
            query = replace(query, from_month=interval.months[0], to_month=interval.months[1])
        usage = await self._service.usage(query, request.include_running, sums=interval.months is not None)
        prices = self._service.price_book()
        newest = prices.at(usage.as_of_ms) or prices.newest
        factors = newest.energy if request.include_energy and newest is not None else None
        aggregation = Aggregation(group_by, prices, factors)
        for row in usage.sums:
            aggregation.add_sum(*row)
        for from_ms, to_ms in interval.fringes:
            await self._add_fringe(aggregation, query, from_ms, to_ms, usage.ledger_sequence)
        for record in usage.running:
            aggregation.add_segment(record, request.from_ms, request.to_ms)
        return usage_pb2.GetUsageResponse(
            rows=[row_to_proto(row, factors is not None) for row in aggregation.rows()],
            total=row_to_proto(aggregation.total(), factors is not None),
            ledger_sequence=usage.ledger_sequence,
            as_of_ms=usage.as_of_ms if request.include_running else 0,
            currency=newest.currency if newest is not None else "",
            currency_digits=newest.digits if newest is not None else 0,
            cost_units_per_minor=str(COST_UNITS_PER_MINOR),
        )

    async def _add_fringe(
        self, aggregation: Aggregation, asked: UsageQuery, from_ms: int, to_ms: int, upto_sequence: int
    ) -> None:
        """Count the ledger's records themselves, each with its part inside the interval."""
        query = LedgerQuery(asked.institution, asked.project, from_ms=from_ms, to_ms=to_ms, limit=MAX_LEDGER_PAGE)
        async for page in self._pages(query, upto_sequence):
            for record in page:
                if not asked.user or record.user == asked.user:
                    aggregation.add_segment(record, from_ms, to_ms)

    async def _pages(self, query: LedgerQuery, upto_sequence: int) -> AsyncIterator[list[LedgerRecord]]:
        """The records up to a number: later ones may be those of allocations that were counted as running."""
        while True:
            page = await self._service.ledger(query)
            yield [record for record in page if record.sequence <= upto_sequence]
            if len(page) < query.limit or page[-1].sequence >= upto_sequence:
                return
            query = replace(query, after=page[-1].sequence)

    async def list_ledger(self, request: usage_pb2.ListLedgerRequest, caller: Caller) -> usage_pb2.ListLedgerResponse:
        """Records, oldest first."""
        query = _ledger_query(request, caller)
        if request.job_id:
            check.job_id(request.job_id, "job_id")
        size = page_size(request.page_size, DEFAULT_LEDGER_PAGE, MAX_LEDGER_PAGE)
        query = replace(query, job_id=request.job_id)
        asked = question("ListLedger", query)
        after = decode_number(request.page_token, asked)
        records = await self._service.ledger(replace(query, after=after, limit=size + 1))
        more = encode_token(str(records[size - 1].sequence), asked) if len(records) > size else ""
        prices = self._service.price_book()
        return usage_pb2.ListLedgerResponse(
            records=[ledger_to_proto(record, prices) for record in records[:size]], next_page_token=more
        )

    async def stream_ledger(
        self, request: usage_pb2.StreamLedgerRequest, caller: Caller
    ) -> AsyncIterator[usage_pb2.StreamLedgerResponse]:
        """A page of records at a time, of which only one is held here; those there were when it began, and maybe some after."""
        after = check.integer(request.after_sequence, 0, (1 << 63) - 1, "after_sequence")
        query = replace(_ledger_query(request, caller), after=after, limit=STREAM_PAGE)
        while True:
            page = await self._service.ledger(query)
            prices = self._service.price_book()
            if page:
                yield usage_pb2.StreamLedgerResponse(records=[ledger_to_proto(record, prices) for record in page])
            if len(page) < query.limit:
                return
            query = replace(query, after=page[-1].sequence)


def _ledger_query(request: usage_pb2.ListLedgerRequest | usage_pb2.StreamLedgerRequest, caller: Caller) -> LedgerQuery:
    institution = institution_scope(caller, request.institution, "institution")
    check.optional_slug(institution, "institution", "an institution's id")
    check.optional_slug(request.project, "project", "a project's id")
    _check_interval(request.from_ms, request.to_ms)
    return LedgerQuery(institution, request.project, from_ms=request.from_ms, to_ms=request.to_ms)


def _check_interval(from_ms: int, to_ms: int) -> None:
    check.integer(from_ms, 0, MAX_TIME_MS, "from_ms", "ms since 1970 (0: open)")
    check.integer(to_ms, 0, MAX_TIME_MS, "to_ms", "ms since 1970 (0: open)")
    if to_ms and to_ms <= from_ms:
        check.invalid("to_ms", "the interval ends before it begins; give a later instant, or 0 to leave it open.")


def _dimensions(request: usage_pb2.GetUsageRequest) -> list[Dimension]:
    known = {int(dimension): dimension for dimension in Dimension}
    check.count(len(request.group_by), len(known), "group_by", "dimensions")
    for index, value in enumerate(request.group_by):
        if value not in known:
            names = ", ".join(dimension.name for dimension in Dimension)
            check.invalid(f"group_by[{index}]", f"{value} is no dimension; give some of {names}.")
    return [known[value] for value in request.group_by]
