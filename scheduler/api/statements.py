"""UsageService: statements."""

from __future__ import annotations

import asyncio

from protos.suanli.v1 import statements_pb2
from scheduler.api.visibility import Caller, institution_scope
from scheduler.metering.statement import build_statement
from scheduler.service.contract import Service
from scheduler.service.statements import StatementFacts
from scheduler.wire import check
from scheduler.wire.statements import month, statement_to_proto


class StatementApi:
    """The methods of UsageService about statements."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get_statement(
        self, request: statements_pb2.GetStatementRequest, caller: Caller
    ) -> statements_pb2.GetStatementResponse:
        """What an institution (the caller's own, where none is named) is charged for a month."""
        asked = institution_scope(caller, request.institution, "institution")
        institution = check.slug(asked, "institution", "an institution's id")
        facts = await self._service.statement(institution, month(request.month, "month"))
        return await asyncio.to_thread(_made, facts, request.include_energy)


def _made(facts: StatementFacts, with_energy: bool) -> statements_pb2.GetStatementResponse:
    statement = build_statement(
        facts.heading, facts.sums, facts.days, facts.prices, earlier=facts.earlier, with_energy=with_energy
    )
    return statement_to_proto(statement)
