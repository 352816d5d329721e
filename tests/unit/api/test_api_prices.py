"""Price lists over the wire: who may put one, what is refused where, and what a job would cost."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import jobs_pb2, prices_pb2
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS
from scheduler.metering.price_text import read_prices
from tests.support.api import Agent, Api, info_of

Code = grpc.StatusCode
LIST = "# for 2026\nname: ours\ncurrency: CNY\nrates:\n  - {cpu_core_hour: 0.1, service_units: {cpu_core_hour: 1}}\n"


async def put(api: Api, document: str = LIST, user: str = "op", **values: Any) -> prices_pb2.PutPriceListResponse:
    request = prices_pb2.PutPriceListRequest(document=document, **values)
    response: prices_pb2.PutPriceListResponse = await api[user].usage.PutPriceList(request)
    return response


async def get(api: Api, version: int = 0, user: str = "op") -> prices_pb2.PriceList:
    request = prices_pb2.GetPriceListRequest(version=version)
    found: prices_pb2.PriceList = (await api[user].usage.GetPriceList(request)).price_list
    return found


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = info_of(caught.value)
    return caught.value.code(), info.reason, info.metadata.get("field", ""), str(caught.value.details())


async def test_before_any_was_put_there_is_none(api: Api) -> None:
    assert await failure(get(api)) == (
        Code.NOT_FOUND,
        "PRICE_LIST_NOT_FOUND",
        "version",
        "No price list is in force; `suanli price list` shows them.",
    )
    assert (await failure(get(api, 1)))[:3] == (Code.NOT_FOUND, "PRICE_LIST_NOT_FOUND", "version")
    assert (await failure(get(api, -1)))[0] is Code.INVALID_ARGUMENT


async def test_a_version_is_put_and_read_back_by_everyone(api: Api) -> None:
    found = (await put(api, comment="the senate's")).price_list

    assert (found.version, found.document, found.comment, found.author) == (1, LIST, "the senate's", "op")
    assert (found.name, found.currency, found.to_ms) == ("ours", "CNY", 0)
    assert found.from_ms == found.create_time_ms > 0
    assert json.loads(found.effective)["rates"][0]["cpu_core_hour"] == "0.1"
    for user in ("op", "ada", "ann", "fay", "fin"):
        assert await get(api, user=user) == found == await get(api, 1, user)
    in_force = api.control_plane.engine.state.metering.prices.newest
    assert in_force is not None
    assert in_force.rates == read_prices(LIST).price_list.rates


async def test_an_operator_or_the_platforms_finance_puts_one(api: Api) -> None:
    for user in ("ada", "ann", "fay"):
        assert (await failure(put(api, user=user)))[:2] == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
        assert (await failure(put(api, user=user, validate_only=True)))[0] is Code.PERMISSION_DENIED
    assert (await put(api, user="fin")).price_list.author == "fin"


async def test_one_for_later_is_not_in_force_now(api: Api) -> None:
    await put(api)
    later = (await put(api, LIST + "from: 2999-01-01\nto: 3000-01-01\n")).price_list

    assert (later.version, later.to_ms - later.from_ms) == (2, 365 * 24 * HOUR_MS)
    assert (await get(api)).version == 1
    assert await get(api, 2) == later


async def test_a_check_says_what_would_be_and_changes_nothing(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    response = await put(api, "currency: CNY\nrates: [{pools: [west/*]}]\n", validate_only=True)

    assert response.price_list.version == 0
    assert [warning.partition(":")[0] for warning in response.warnings] == ["prices.rates", "prices.rates[0]"]
    assert (await failure(get(api)))[0] is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("values", "code", "reason", "field", "said"),
    [
        ({"document": "rates: [\n"}, Code.INVALID_ARGUMENT, "PRICES_UNREADABLE", "prices", "prices (line 2, column 1)"),
        (
            {"document": "currency: CNY\nrates:\n  - gpu_hour: -1\n"},
            Code.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
            "prices.rates[0].gpu_hour",
            "prices.rates[0].gpu_hour (line 3, column 5): -1 is not a number",
        ),
        ({"comment": "x" * 1001}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "comment", "at most 1,000"),
        ({"comment": "a\nb"}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "comment", "control character"),
        ({"document": "#" * (256 * 1024 + 1)}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "prices", "larger than"),
        (
            {"document": LIST + "from: 2020-01-01\n"},
            Code.FAILED_PRECONDITION,
            "PRICES_IN_THE_PAST",
            "prices.from",
            'leave "from" out',
        ),
        (
            {"document": LIST.replace("CNY", "EUR")},
            Code.FAILED_PRECONDITION,
            "CURRENCY_CHANGED",
            "prices.currency",
            "write the list in CNY",
        ),
    ],
)
async def test_a_wrong_one_is_refused(
    api: Api, values: Any, code: grpc.StatusCode, reason: str, field: str, said: str
) -> None:
    await put(api)
    found = await failure(put(api, **values))
    assert found[:3] == (code, reason, field)
    assert said in found[3]
    assert (await get(api)).version == 1


async def test_versions_are_listed_newest_first_in_pages(api: Api) -> None:
    for number in range(1, 6):
        await put(api, comment=f"the {number}.")
    request, found, pages = prices_pb2.ListPriceListsRequest(page_size=2), [], 0
    while pages == 0 or request.page_token:
        response = await api["ada"].usage.ListPriceLists(request)
        found += response.price_lists
        request.page_token = response.next_page_token
        pages += 1

    assert pages == 3
    assert [(one.version, one.comment, one.document, one.effective) for one in found] == [
        (number, f"the {number}.", "", "") for number in (5, 4, 3, 2, 1)
    ]
    nonsense = prices_pb2.ListPriceListsRequest(page_token="nonsense")
    assert (await failure(api["op"].usage.ListPriceLists(nonsense)))[:2] == (Code.INVALID_ARGUMENT, "PAGE_TOKEN")


async def estimated(api: Api, user: str = "ada", **values: Any) -> prices_pb2.EstimateCostResponse:
    spec = jobs_pb2.JobSpec(
        command=jobs_pb2.Command(argv=["true"]),
        resources={"cpu_milli": 2_000, "memory_mib": 64},
        max_runtime_ms=HOUR_MS - 30_000,
        grace_period_ms=30_000,
        **values,
    )
    response: prices_pb2.EstimateCostResponse = await api[user].usage.EstimateCost(
        prices_pb2.EstimateCostRequest(job=spec)
    )
    return response


async def test_a_job_is_estimated_as_it_would_be_submitted(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    assert [one.unpriced for one in (await estimated(api)).estimates] == [True]
    await put(api)

    found = await estimated(api)

    assert (found.currency, found.currency_digits) == ("CNY", 2)
    assert found.cost_units_per_minor == str(COST_UNITS_PER_MINOR)
    (one,) = found.estimates
    assert (one.pool, one.accelerator, one.max_runtime_ms, one.unpriced) == ("east/cpu", "", HOUR_MS, False)
    assert one.max_cost_units == str(20 * COST_UNITS_PER_MINOR)
    assert one.max_service_units == str(2 * COST_UNITS_PER_MINOR)
    assert int(one.expected_cost_units) * HOUR_MS == int(one.max_cost_units) * one.expected_runtime_ms
    assert (found.covered, found.message) == (True, "")
    (array,) = (await estimated(api, array={"size": 100})).estimates
    assert int(array.max_cost_units) == 100 * int(one.max_cost_units)
    assert len((await estimated(api, "op", institution="uni-b")).estimates) == 1

    for user, values, code, field in (
        ("fay", {}, Code.PERMISSION_DENIED, ""),
        ("ada", {"institution": "uni-b"}, Code.PERMISSION_DENIED, "job.institution"),
        ("ada", {"project": "none"}, Code.NOT_FOUND, "job.project"),
        ("ada", {"replicas": 1000}, Code.FAILED_PRECONDITION, "job.resources"),
        ("ada", {"pools": ["A"]}, Code.INVALID_ARGUMENT, "job.pools[0]"),
    ):
        found_code, _, found_field, _ = await failure(estimated(api, user, **values))
        assert (found_code, found_field) == (code, field), values
    assert api.control_plane.engine.state.live_jobs == 0


async def test_what_no_budget_covers_is_estimated_all_the_same(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    await put(api)
    from_ms = (await get(api)).from_ms
    # 19 fen of the 20 that it may cost.
    budget = Budget("b", "uni-a", frozenset(), BudgetUnit.MONEY, 19, from_ms, from_ms + 100 * HOUR_MS, hard=True)
    await api.control_plane.put_budget(budget, "op", False)

    found = await estimated(api)

    assert [one.max_cost_units for one in found.estimates] == [str(20 * COST_UNITS_PER_MINOR)]
    assert not found.covered
    assert 'budget "b" has 0.19 CNY left' in found.message
    assert (await estimated(api, "op", institution="uni-b")).covered
