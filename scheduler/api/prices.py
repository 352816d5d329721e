"""UsageService: price lists, and what a job would cost."""

from __future__ import annotations

import asyncio

from protos.suanli.v1 import prices_pb2
from scheduler.api.paging import decode_number, encode_token, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller, other_institution
from scheduler.service.contract import Service
from scheduler.wire import check
from scheduler.wire import prices as wire
from scheduler.wire.accounting import status_to_proto
from scheduler.wire.spec import SpecCodec


class PriceApi:
    """The methods of UsageService that read, put and use price lists."""

    def __init__(self, service: Service, codec: SpecCodec) -> None:
        self._service, self._codec = service, codec

    async def put_price_list(
        self, request: prices_pb2.PutPriceListRequest, caller: Caller
    ) -> prices_pb2.PutPriceListResponse:
        """Check a price list and put it in force in its window."""
        draft = await asyncio.to_thread(wire.draft_from_proto, request)
        put = await self._service.put_price_list(draft, caller.user)
        return prices_pb2.PutPriceListResponse(price_list=wire.price_list_to_proto(put.record), warnings=put.warnings)

    async def get_price_list(
        self, request: prices_pb2.GetPriceListRequest, caller: Caller
    ) -> prices_pb2.GetPriceListResponse:
        """The one in force, or any other."""
        del caller
        version = check.integer(request.version, 0, wire.MAX_VERSION, "version")
        record = await self._service.get_price_list(version)
        return prices_pb2.GetPriceListResponse(price_list=wire.price_list_to_proto(record))

    async def list_price_lists(
        self, request: prices_pb2.ListPriceListsRequest, caller: Caller
    ) -> prices_pb2.ListPriceListsResponse:
        """Newest first."""
        del caller
        asked = question("ListPriceLists")
        size = page_size(request.page_size)
        records = await self._service.list_price_lists(decode_number(request.page_token, asked), size + 1)
        page = records[:size]
        token = encode_token(str(page[-1].version), asked) if len(records) > size else ""
        return prices_pb2.ListPriceListsResponse(
            price_lists=[wire.price_list_to_proto(record) for record in page], next_page_token=token
        )

    async def estimate_cost(
        self, request: prices_pb2.EstimateCostRequest, caller: Caller
    ) -> prices_pb2.EstimateCostResponse:
        """What a job would cost where it could run."""
        spec = self._codec.read(request.job, field="job", institution=caller.institution)
        if caller.scope is not Scope.ANY and spec.institution != caller.institution:
            raise other_institution("job.institution", caller.institution)
        found = wire.estimates_to_proto(await self._service.estimate(spec, caller.user))
        for status in await self._service.list_budgets(spec.institution, include_past=False):
            if status.budget.is_for(spec.institution, spec.project):
                found.budgets.append(status_to_proto(status))
        return found
