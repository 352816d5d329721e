"""Usage, the ledger, the statement and the export of the same jobs say the same; and who may read them."""

from __future__ import annotations

import contextlib
import csv
from collections import defaultdict
from decimal import Decimal
from typing import Any, cast

import grpc
import pytest

from protos.suanli.v1 import common_pb2, prices_pb2, statements_pb2, usage_pb2
from scheduler.api import usage as module
from scheduler.api.permissions import Role, Scope
from scheduler.api.usage import UsageApi
from scheduler.api.visibility import Caller
from scheduler.domain.records import LedgerRecord
from scheduler.metering.money import COST_UNITS_PER_MINOR
from scheduler.service.contract import Service
from scheduler.service.ports import LedgerQuery
from tests.support.api import Agent, Api
from tests.support.focus import amounts, lint
from tests.support.ledger import START_MS, LedgerService, record

PRICES = """
# Dear enough for a job of milliseconds.
name: dear
currency: CNY
rates:
  - cpu_core_hour: 77777777.77
    memory_gib_hour: 3333333.33
discounts:
  - {institution: uni-a, percent: 12.5}
"""
JOBS = 3


async def played(api: Api) -> list[str]:
    """Jobs that ran and ended, at a price."""
    await api["op"].usage.PutPriceList(prices_pb2.PutPriceListRequest(document=PRICES))
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job_ids = []
    for _ in range(JOBS):
        resources = common_pb2.Resources(cpu_milli=2000, memory_mib=1536)
        job_ids.append(await api["ada"].submit("true", resources=resources))
        launch = await agent.launch()
        await agent.started(launch)
        await agent.finished(launch)
    return job_ids


async def streamed(api: Api, user: str, **fields: Any) -> list[usage_pb2.LedgerRecord]:
    call = api[user].usage.StreamLedger(usage_pb2.StreamLedgerRequest(**fields))
    return [one async for response in call for one in response.records]


async def exported(api: Api, user: str, **fields: Any) -> list[dict[str, str]]:
    request = usage_pb2.ExportUsageRequest(format=usage_pb2.EXPORT_FORMAT_FOCUS_CSV, **fields)
    data = b"".join([each.data async for each in api[user].usage.ExportUsage(request)])
    return list(csv.DictReader(data.decode().splitlines()))


async def test_ledger_usage_statement_and_export_agree(api: Api) -> None:
    job_ids = await played(api)
    ledger = list((await api["fay"].usage.ListLedger(usage_pb2.ListLedgerRequest())).records)
    assert {one.job_id for one in ledger} == set(job_ids)
    assert {one.price_list for one in ledger} == {1}
    assert await streamed(api, "fay") == ledger
    assert await streamed(api, "fin", after_sequence=ledger[0].sequence) == ledger[1:]

    cost = sum(int(one.cost_units) for one in ledger)
    assert cost > 0
    dimensions = [usage_pb2.USAGE_DIMENSION_PERIOD, usage_pb2.USAGE_DIMENSION_PRIORITY]
    usage = await api["fay"].usage.GetUsage(usage_pb2.GetUsageRequest(group_by=dimensions))
    assert sum(int(row.cost_units) for row in usage.rows) == cost == int(usage.total.cost_units)
    assert int(usage.total.list_cost_units) * 875 == cost * 1000
    assert (usage.currency, usage.currency_digits, usage.cost_units_per_minor) == ("CNY", 2, str(COST_UNITS_PER_MINOR))
    assert {row.key[1] for row in usage.rows} == {"normal"}

    rows = await exported(api, "fay", from_month="2020-01", to_month="2100-01")
    assert lint(rows) == []
    charges: dict[str, Decimal] = defaultdict(Decimal)
    for month in {one.period for one in ledger}:
        request = statements_pb2.GetStatementRequest(institution="uni-a", month=month)
        statement = await api["fay"].usage.GetStatement(request)
        for line in statement.lines:
            charges[f"{statement.number}-{line.number}"] += Decimal(line.amount_minor) / 100
    assert amounts(rows) == charges
    assert {row["x_LedgerSeq"] for row in rows} - {""} == {str(one.sequence) for one in ledger}
    assert await exported(api, "ben") == []


@pytest.mark.parametrize("method", ["StreamLedger", "ExportUsage"])
async def test_researchers_and_other_institutions_read_nothing(api: Api, method: str) -> None:
    for user, institution, code in (
        ("ada", "", grpc.StatusCode.PERMISSION_DENIED),
        ("fay", "uni-b", grpc.StatusCode.PERMISSION_DENIED),
        ("anonymous", "", grpc.StatusCode.UNAUTHENTICATED),
        ("fay", "uni-a", grpc.StatusCode.OK),
        ("fin", "uni-b", grpc.StatusCode.OK),
        ("op", "", grpc.StatusCode.OK),
    ):
        form = {"format": usage_pb2.EXPORT_FORMAT_FOCUS_CSV} if method == "ExportUsage" else {}
        request = getattr(usage_pb2, f"{method}Request")(institution=institution, **form)
        call = getattr(api[user].usage, method)(request)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() == code, user


async def test_a_stream_reads_no_further_than_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(LedgerService):
        async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
            self.asked.append(query)
            return [record(query.after + number, START_MS, START_MS + 1) for number in range(1, query.limit + 1)]

    monkeypatch.setattr(module, "STREAM_PAGE", 5)
    service = Endless([])
    caller = Caller("fin", "", int(Role.FINANCE), "", Scope.ANY)
    stream = UsageApi(cast(Service, service)).stream_ledger(usage_pb2.StreamLedgerRequest(after_sequence=7), caller)
    assert [one.sequence for one in (await anext(stream)).records] == [8, 9, 10, 11, 12]
    assert [one.sequence for one in (await anext(stream)).records] == [13, 14, 15, 16, 17]
    await stream.aclose()  # type: ignore[attr-defined]
    assert [query.after for query in service.asked if isinstance(query, LedgerQuery)] == [7, 12]
