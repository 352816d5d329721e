"""Budgets, accounting months and corrections over the wire: who may do what, and what is refused where."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, budgets_pb2, prices_pb2, usage_pb2
from scheduler.domain.records import BudgetNoticeRecord, MonthRecord
from scheduler.metering.segments import month_of
from tests.support.api import Agent, Api, info_of

Code = grpc.StatusCode
FAR_MS = 4_000_000_000_000
HOURS = budgets_pb2.BUDGET_UNIT_CPU_CORE_HOURS
PRICES = "currency: CNY\nrates:\n  - {cpu_core_hour: 0.1}\n"


def budget(name: str = "term", **values: Any) -> budgets_pb2.Budget:
    terms: dict[str, Any] = {"institution": "uni-a", "unit": HOURS, "amount": 10_000, "to_ms": FAR_MS, "hard": True}
    return budgets_pb2.Budget(id=name, **terms | values)


async def put(api: Api, user: str, name: str = "term", check: bool = False, **values: Any) -> budgets_pb2.BudgetStatus:
    request = budgets_pb2.PutBudgetRequest(budget=budget(name, **values), validate_only=check)
    status: budgets_pb2.BudgetStatus = (await api[user].usage.PutBudget(request)).status
    return status


async def listed(api: Api, user: str, **values: Any) -> list[str]:
    response = await api[user].usage.ListBudgets(budgets_pb2.ListBudgetsRequest(**values))
    return [each.budget.id for each in response.budgets]


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = info_of(caught.value)
    return caught.value.code(), info.reason, info.metadata.get("field", "")


# --- budgets ----------------------------------------------------------------------------------------------------------


async def test_a_budget_is_put_and_read_by_whom_it_concerns(api: Api) -> None:
    checked = await put(api, "fin", check=True)
    assert await listed(api, "fin") == []
    status = await put(api, "fin", projects=["default"], thresholds=[10, 1000], title="学期")
    assert (checked.budget.id, checked.available) == ("term", 10_000)
    assert list(checked.budget.thresholds) == [50, 80, 100]
    made = status.budget
    assert (made.author, made.title, list(made.thresholds), list(made.projects)) == (
        "fin",
        "学期",
        [10, 1000],
        ["default"],
    )
    assert 0 < made.from_ms <= made.create_time_ms
    assert (status.available, status.committed, status.currency_digits) == (10_000, 0, 3)
    for user in ("ada", "ann", "fay", "op", "fin"):
        response = await api[user].usage.ListBudgets(budgets_pb2.ListBudgetsRequest(project="default"))
        assert list(response.budgets) == [status]
        assert await listed(api, user, project="other") == []
    assert await listed(api, "bob") == await listed(api, "ben") == []
    denied = (Code.PERMISSION_DENIED, "OTHER_INSTITUTION", "institution")
    assert await failure(listed(api, "bob", institution="uni-a")) == denied


async def test_lists_are_paged_and_leave_out_what_is_over(api: Api) -> None:
    for number in range(5):
        await put(api, "op", f"b{number}", closed=number == 3)
    seen: list[str] = []
    request = budgets_pb2.ListBudgetsRequest(page_size=2)
    for _ in range(2):
        response = await api["ada"].usage.ListBudgets(request)
        seen += [each.budget.id for each in response.budgets]
        request.page_token = response.next_page_token
    assert (seen, request.page_token) == (["b0", "b1", "b2", "b4"], "")
    assert await listed(api, "ada", include_past=True) == [f"b{number}" for number in range(5)]


async def test_an_institutions_officers_limit_its_projects_and_lift_nothing(api: Api) -> None:
    project = {"projects": ["default"]}
    assert (await put(api, "ann", "own", **project, institution="")).budget.institution == "uni-a"
    assert (await put(api, "fay", "own", **project, amount=20_000)).budget.author == "fay"
    platforms = (Code.PERMISSION_DENIED, "BUDGET_OF_PLATFORM")
    # Not the institution as a whole, not what the platform has put, not elsewhere.
    assert await failure(put(api, "ann")) == (*platforms, "budget.projects")
    await put(api, "op", "limit", **project, to_ms=FAR_MS - 1_000)
    for changes in ({"amount": 10**9}, {"closed": True}, {"to_ms": FAR_MS - 2_000}):
        for user in ("ann", "fay"):
            assert await failure(put(api, user, "limit", **project | changes)) == (*platforms, "budget.id")
    denied = (Code.PERMISSION_DENIED, "OTHER_INSTITUTION", "budget.institution")
    assert await failure(put(api, "ann", "x", **project, institution="uni-b")) == denied
    # Nor beyond the time in which the platform allows anything, also not by a budget of their own.
    assert await failure(put(api, "ann", "more", **project)) == (*platforms, "budget.to_ms")
    assert (await put(api, "ann", "less", **project, to_ms=FAR_MS - 1_000)).budget.author == "ann"
    assert (await put(api, "ann", "soft", **project, hard=False)).budget.author == "ann"
    assert (await failure(put(api, "ada", "x", **project)))[1] == "ROLE_NOT_ALLOWED"
    # What the platform has changed is the platform's.
    await put(api, "fin", "less", **project, to_ms=FAR_MS - 1_000)
    assert await failure(put(api, "ann", "less", **project, to_ms=FAR_MS - 1_000)) == (*platforms, "budget.id")


async def test_anothers_budget_is_not_told_of(api: Api) -> None:
    await put(api, "op", "theirs", institution="uni-b")
    taken = await failure(put(api, "ann", "theirs", projects=["default"]))
    assert taken == (Code.PERMISSION_DENIED, "BUDGET_ID_TAKEN", "budget.id")
    assert await listed(api, "fay", include_past=True) == []
    assert (await failure(put(api, "op", "theirs")))[:2] == (Code.FAILED_PRECONDITION, "BUDGET_FIXED")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "Term"}, "budget.id"),
        ({"name": ""}, "budget.id"),
        ({"institution": ""}, "budget.institution"),
        ({"institution": "a b"}, "budget.institution"),
        ({"projects": ["default", "default"]}, "budget.projects[1]"),
        ({"projects": ["a", ""]}, "budget.projects[1]"),
        ({"projects": [f"p{number}" for number in range(1001)]}, "budget.projects"),
        ({"unit": 0}, "budget.unit"),
        ({"unit": 5}, "budget.unit"),
        ({"amount": 0}, "budget.amount"),
        ({"amount": 10**15 + 1}, "budget.amount"),
        ({"from_ms": -1}, "budget.from_ms"),
        ({"to_ms": 0}, "budget.to_ms"),
        ({"to_ms": 1}, "budget.to_ms"),
        ({"from_ms": FAR_MS}, "budget.to_ms"),
        ({"to_ms": 1 << 60}, "budget.to_ms"),
        ({"thresholds": [0]}, "budget.thresholds[0]"),
        ({"thresholds": [50, 50]}, "budget.thresholds[1]"),
        ({"thresholds": [80, 50]}, "budget.thresholds[1]"),
        ({"thresholds": [1001]}, "budget.thresholds[0]"),
        ({"thresholds": list(range(1, 12))}, "budget.thresholds"),
        ({"title": "x" * 257}, "budget.title"),
        ({"title": "a\nb"}, "budget.title"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, values: dict[str, Any], field: str) -> None:
    assert await failure(put(api, "op", **values)) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", field)
    assert await listed(api, "op", include_past=True) == []


async def test_what_is_not_there_is_named(api: Api) -> None:
    no_prices = await failure(put(api, "op", unit=budgets_pb2.BUDGET_UNIT_MONEY))
    assert no_prices == (Code.FAILED_PRECONDITION, "NO_PRICE_LIST", "budget.unit")
    nobody = await failure(put(api, "op", institution="nobody"))
    assert nobody == (Code.NOT_FOUND, "INSTITUTION_NOT_FOUND", "budget.institution")
    nothing = await failure(put(api, "op", projects=["default", "nothing"]))
    assert nothing == (Code.NOT_FOUND, "PROJECT_NOT_FOUND", "budget.projects[1]")


async def test_notices_newest_first(api: Api) -> None:
    await put(api, "op", "a")
    state = api.control_plane.engine.state
    rows = [BudgetNoticeRecord(n, "a" if n % 2 else "b", "uni-a", 50, n, 5, 10, 3) for n in range(1, 6)]
    state.metering.budgets._new_notices.extend(rows)
    await put(api, "op", "b")

    async def told(user: str, **values: Any) -> tuple[list[int], str]:
        request = budgets_pb2.ListBudgetNoticesRequest(**values)
        response = await api[user].usage.ListBudgetNotices(request)
        return [each.time_ms for each in response.notices], response.next_page_token

    first, token = await told("ada", page_size=2)
    assert (first, bool(token)) == ([5, 4], True)
    assert await told("ada", page_size=4, page_token=token) == ([3, 2, 1], "")
    assert await told("fin", budget="b", institution="uni-a") == ([4, 2], "")
    assert await told("bob", budget="b") == ([], "")
    call = api["bob"].usage.ListBudgetNotices(budgets_pb2.ListBudgetNoticesRequest(budget="B"))
    assert await failure(call) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "budget")
    whole = await api["ada"].usage.ListBudgetNotices(budgets_pb2.ListBudgetNoticesRequest(budget="a", page_size=1))
    assert whole.notices[0] == budgets_pb2.BudgetNotice(
        budget="a", institution="uni-a", threshold=50, time_ms=5, spent=5, amount=10, unit=HOURS
    )


# --- corrections and months -------------------------------------------------------------------------------------------


async def a_record(api: Api) -> usage_pb2.LedgerRecord:
    """Of a job of uni-a."""
    await api["fin"].usage.PutPriceList(prices_pb2.PutPriceListRequest(document=PRICES))
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    await api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    state = api.control_plane.engine.state
    started_ms = state.now()
    while state.now() < started_ms + 2:
        await api["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
    await agent.finished(launch)
    records = (await api["op"].usage.ListLedger(usage_pb2.ListLedgerRequest())).records
    record: usage_pb2.LedgerRecord = records[0]
    return record


async def correct(api: Api, user: str, sequence: int, **values: Any) -> list[usage_pb2.LedgerRecord]:
    request = usage_pb2.CorrectLedgerRequest(**{"sequence": sequence, "reason": "counted twice"} | values)
    return list((await api[user].usage.CorrectLedger(request)).records)


async def test_a_record_is_corrected_once_by_the_platform_alone(api: Api) -> None:
    record = await a_record(api)
    for user in ("ada", "ann", "fay"):
        assert (await failure(correct(api, user, record.sequence)))[:2] == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    half = usage_pb2.LedgerReplacement(cpu_milli=record.cpu_milli // 2)
    back, instead = await correct(api, "fin", record.sequence, replacement=half)
    assert (back.kind, back.cpu_milli) == (usage_pb2.LEDGER_KIND_REVERSAL, -record.cpu_milli)
    assert (instead.kind, instead.cpu_milli) == (usage_pb2.LEDGER_KIND_CORRECTION, record.cpu_milli // 2)
    assert (back.author, back.reason, back.reference) == ("fin", "counted twice", record.sequence)
    assert int(back.cost_units) == -int(record.cost_units) == -2 * int(instead.cost_units)
    listed = await api["fay"].usage.ListLedger(usage_pb2.ListLedgerRequest())
    assert list(listed.records) == [record, back, instead]
    again = await failure(correct(api, "op", record.sequence, credit=True))
    assert again == (Code.FAILED_PRECONDITION, "ALREADY_CORRECTED", "sequence")
    nothing = await failure(correct(api, "op", 99))
    assert nothing == (Code.NOT_FOUND, "RECORD_NOT_FOUND", "sequence")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"sequence": 0}, "sequence"),
        ({"reason": ""}, "reason"),
        ({"reason": "  "}, "reason"),
        ({"reason": "x" * 1001}, "reason"),
        ({"reason": "a\0b"}, "reason"),
        ({"replacement": {}}, "replacement"),
        ({"replacement": {"cpu_milli": -1}}, "replacement.cpu_milli"),
        ({"replacement": {"memory_mib": 1 << 60}}, "replacement.memory_mib"),
        ({"replacement": {"gpu_milli": -5}}, "replacement.gpu_milli"),
        ({"replacement": {"start_ms": -5}}, "replacement.start_ms"),
        ({"replacement": {"end_ms": 1 << 60}}, "replacement.end_ms"),
        ({"replacement": {"project": ""}}, "replacement.project"),
        ({"replacement": {"cpu_milli": 1}, "credit": True}, "credit"),
    ],
)
async def test_a_wrong_correction_is_refused_where_it_is_wrong(api: Api, values: dict[str, Any], field: str) -> None:
    refused = await failure(correct(api, "op", **{"sequence": 1} | values))
    assert refused == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", field)


async def test_months(api: Api) -> None:
    record = await a_record(api)
    now = month_of(record.start_ms)

    def close(user: str, month: str) -> Any:
        return api[user].usage.CloseMonth(usage_pb2.CloseMonthRequest(month=month))

    assert await failure(close("fin", now)) == (Code.FAILED_PRECONDITION, "MONTH_NOT_OVER", "month")
    for month in ("", "2026-1", "2026-13", "2026-00", "2026-10-01", "２０２６-10", "1969-12", " 2026-10"):
        assert await failure(close("op", month)) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "month")
    for user in ("ada", "ann", "fay"):
        assert (await failure(close(user, "2020-01")))[1] == "ROLE_NOT_ALLOWED"
    closed = (await close("fin", "2020-01")).month
    assert (closed.month, closed.closed, closed.author, closed.records) == ("2020-01", True, "fin", 0)
    assert (len(closed.digest), closed.head_hash) == (32, record.hash)
    assert (await close("op", "2020-01")).month == closed
    earlier = [MonthRecord(f"2019-{n:02}", 5, "fin", 0, b"", b"", 0) for n in range(1, 4)]
    api.control_plane.engine.state.metering.months |= {each.month: each for each in earlier}
    for user in ("ann", "fay", "op", "fin"):
        first = await api[user].usage.ListMonths(usage_pb2.ListMonthsRequest(page_size=3))
        assert [(each.month, each.closed) for each in first.months] == [
            (now, False),
            ("2020-01", True),
            ("2019-03", True),
        ]
        request = usage_pb2.ListMonthsRequest(page_size=3, page_token=first.next_page_token)
        rest = await api[user].usage.ListMonths(request)
        assert [each.month for each in rest.months] == ["2019-02", "2019-01"]
        assert rest.next_page_token == ""
    call = api["ada"].usage.ListMonths(usage_pb2.ListMonthsRequest())
    assert (await failure(call))[1] == "ROLE_NOT_ALLOWED"
