"""UsageService: sums over the ledger, and its records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from protos.suanli.v1 import usage_pb2
from scheduler.api.paging import decode_number, encode_token, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller, institution_scope
from scheduler.metering.usage import Aggregation, Dimension, UsageRow
from scheduler.service.contract import Service, Usage
from scheduler.service.ports import LedgerQuery
from scheduler.wire import check
from scheduler.wire.admin import MAX_TIME_MS
from scheduler.wire.usage import ledger_to_proto

DEFAULT_LEDGER_PAGE = 1000
MAX_LEDGER_PAGE = 10_000


class UsageApi:
    """All methods of UsageService."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get_usage(self, request: usage_pb2.GetUsageRequest, caller: Caller) -> usage_pb2.GetUsageResponse:
        """Sums, grouped; of the caller's own jobs alone for one who may see no more."""
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        project = check.optional_slug(request.project, "project", "a project's id")
        _check_interval(request.from_ms, request.to_ms)
        group_by = _dimensions(request) or [Dimension.INSTITUTION]
        user = caller.user if caller.scope is Scope.OWN else ""
        usage = await self._service.usage(institution, project, request.include_running)
        aggregation = Aggregation(group_by)
        if request.from_ms or request.to_ms:
            await self._add_interval(aggregation, request, institution, user, usage.ledger_sequence)
        else:
            for row in usage.sums:
                if not user or row.key.user == user:
                    aggregation.add_sum(*row)
        _add_running(aggregation, usage, request, lambda owner: not user or owner == user)
        return usage_pb2.GetUsageResponse(
            rows=[_row(row) for row in aggregation.rows()],
            total=_row(aggregation.total()),
            ledger_sequence=usage.ledger_sequence,
            as_of_ms=usage.as_of_ms,
        )

    async def _add_interval(
        self,
        aggregation: Aggregation,
        request: usage_pb2.GetUsageRequest,
        institution: str,
        user: str,
        upto_sequence: int,
    ) -> None:
        """Count the ledger's records themselves, each with its part inside the interval."""
        query = LedgerQuery(
            institution, request.project, from_ms=request.from_ms, to_ms=request.to_ms, limit=MAX_LEDGER_PAGE
        )
        while True:
            page = await self._service.ledger(query)
            for record in page:
                # Later records may be those of allocations that are counted as running.
                if record.sequence <= upto_sequence and (not user or record.user == user):
                    aggregation.add_segment(record, request.from_ms, request.to_ms)
            if len(page) < query.limit or page[-1].sequence >= upto_sequence:
                return
            query = replace(query, after=page[-1].sequence)

    async def list_ledger(self, request: usage_pb2.ListLedgerRequest, caller: Caller) -> usage_pb2.ListLedgerResponse:
        """Records, oldest first."""
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        check.optional_slug(request.project, "project", "a project's id")
        if request.job_id:
            check.job_id(request.job_id, "job_id")
        _check_interval(request.from_ms, request.to_ms)
        size = page_size(request.page_size, DEFAULT_LEDGER_PAGE, MAX_LEDGER_PAGE)
        query = LedgerQuery(institution, request.project, request.job_id, request.from_ms, request.to_ms)
        asked = question("ListLedger", query)
        after = decode_number(request.page_token, asked)
        records = await self._service.ledger(replace(query, after=after, limit=size + 1))
        more = encode_token(str(records[size - 1].sequence), asked) if len(records) > size else ""
        return usage_pb2.ListLedgerResponse(
            records=[ledger_to_proto(record) for record in records[:size]], next_page_token=more
        )


def _add_running(
    aggregation: Aggregation, usage: Usage, request: usage_pb2.GetUsageRequest, wanted: Callable[[str], bool]
) -> None:
    for record in usage.running:
        if wanted(record.user):
            aggregation.add_segment(record, request.from_ms, request.to_ms)


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


def _row(row: UsageRow) -> usage_pb2.UsageRow:
    return usage_pb2.UsageRow(
        key=row.key,
        cpu_milli_ms=str(row.cpu_milli_ms),
        memory_mib_ms=str(row.memory_mib_ms),
        gpu_milli_ms=str(row.gpu_milli_ms),
        segments=row.segments,
        attempts=row.attempts,
    )
