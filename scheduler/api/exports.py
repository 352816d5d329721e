"""UsageService: the ledger in the columns of an open specification."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from protos.suanli.v1 import usage_pb2
from scheduler.api.visibility import Caller, institution_scope
from scheduler.domain.errors import NotFound
from scheduler.domain.records import LedgerRecord
from scheduler.metering.focus import Account, FocusMonth, csv_text
from scheduler.metering.statement import build_statement
from scheduler.service.contract import Service
from scheduler.service.ports import LedgerQuery, UsageQuery
from scheduler.service.statements import StatementFacts
from scheduler.wire import check
from scheduler.wire.statements import month

PAGE = 1000
CHUNK_BYTES = 64 * 1024


class ExportApi:
    """The method of UsageService that exports. It holds a page of records and the lines of one statement at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def export_usage(
        self, request: usage_pb2.ExportUsageRequest, caller: Caller
    ) -> AsyncIterator[usage_pb2.ExportUsageResponse]:
        """The bytes of a CSV file: by institution, accounting month and number of the record."""
        buffer = bytearray(csv_text((), header=True).encode())
        for institution, period in await self._statements(request, caller):
            async for text in self._month(institution, period):
                buffer += text.encode()
                while len(buffer) >= CHUNK_BYTES:
                    yield usage_pb2.ExportUsageResponse(data=bytes(buffer[:CHUNK_BYTES]))
                    del buffer[:CHUNK_BYTES]
        yield usage_pb2.ExportUsageResponse(data=bytes(buffer))

    async def _statements(self, request: usage_pb2.ExportUsageRequest, caller: Caller) -> list[tuple[str, str]]:
        """The institutions and accounting months that there are records of, in order."""
        if request.format != usage_pb2.EXPORT_FORMAT_FOCUS_CSV:
            check.invalid("format", "it is none that this server writes; give EXPORT_FORMAT_FOCUS_CSV.")
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        first = month(request.from_month, "from_month") if request.from_month else ""
        last = month(request.to_month, "to_month") if request.to_month else ""
        if last and not first:
            check.invalid("from_month", "to_month is given without it; give both, or from_month alone for one month.")
        if last and last < first:
            check.invalid("to_month", "it is before from_month; give the same month or a later one.")
        if institution and institution not in {one.institution for one in await self._service.list_institutions()}:
            raise NotFound(
                f'There is no institution "{institution}".', reason="INSTITUTION_NOT_FOUND", field="institution"
            )
        usage = await self._service.usage(UsageQuery(institution, group_by=("institution", "period")))
        found = sorted({(row.key.institution, row.key.period) for row in usage.sums})
        first = first or max((period for _, period in found), default="")
        return [pair for pair in found if first <= pair[1] <= (last or first)]

    async def _month(self, institution: str, period: str) -> AsyncIterator[str]:
        facts = await self._service.statement(institution, period)
        export = await asyncio.to_thread(_begun, facts)
        query = LedgerQuery(institution, period=period, limit=PAGE)
        upto = facts.heading.head.sequence
        while True:
            page = await self._service.ledger(query)
            yield await asyncio.to_thread(_text, export, [one for one in page if one.sequence <= upto])
            if len(page) < PAGE or page[-1].sequence >= upto:
                break
            query = replace(query, after=page[-1].sequence)
        yield csv_text(export.closing())


def _begun(facts: StatementFacts) -> FocusMonth:
    heading = facts.heading
    statement = build_statement(heading, facts.sums, (), facts.prices, earlier=facts.earlier)
    account = Account(
        heading.institution, statement.currency, statement.digits, heading.title, dict(heading.project_titles)
    )
    return FocusMonth(account, heading.month, statement.lines, facts.prices)


def _text(export: FocusMonth, records: Sequence[LedgerRecord]) -> str:
    return csv_text(row for record in records for row in export.rows(record))
