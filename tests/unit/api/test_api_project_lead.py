"""What leading a project gives, and what it does not."""

from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, budgets_pb2, common_pb2, jobs_pb2, usage_pb2
from scheduler.service.ids import WallClock
from tests.support.api import LED, Api, info_of

Code = grpc.StatusCode
LEAD = common_pb2.ROLE_PROJECT_LEAD


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = info_of(caught.value)
    return caught.value.code(), info.reason, info.metadata["field"]


def put_lead(api: Api, by: str, *projects: str, **changes: Any) -> Any:
    values = {"id": "lea", "institution": "uni-a", "role": LEAD} | changes
    user = admin_pb2.User(**values, projects=projects)
    return api[by].admin.PutUser(admin_pb2.PutUserRequest(user=user))


async def test_leading_begins_and_ends_at_once(api: Api) -> None:
    first, second = await api["abe"].submit(project=LED), await api["abe"].submit(project=LED)
    assert list((await put_lead(api, "ann", "default", LED)).user.projects) == ["default", LED]
    await api["lea"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[first]))
    await put_lead(api, "ann")
    call = api["lea"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[first, second]))
    assert await refused(call) == (Code.PERMISSION_DENIED, "NOT_YOUR_JOB", "job_ids")


async def test_who_leads_what_is_checked(api: Api) -> None:
    assert await refused(put_lead(api, "ann", "nothing")) == (Code.NOT_FOUND, "PROJECT_NOT_FOUND", "user.projects")
    bad = (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert await refused(put_lead(api, "ann", LED, role=common_pb2.ROLE_RESEARCHER)) == (*bad, "user.projects")
    assert await refused(put_lead(api, "ann", LED, "a,b")) == (*bad, "user.projects[1]")
    assert await refused(put_lead(api, "op", *["default"] * 65)) == (*bad, "user.projects")
    assert await refused(put_lead(api, "op", institution="")) == (*bad, "user.institution")
    assert (await refused(put_lead(api, "lea", LED, "default")))[:2] == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


async def test_a_lead_lowers_the_limits_of_its_project_and_no_others(api: Api) -> None:
    def put(by: str, cpu_milli: int, project: str = LED, **more: int) -> Any:
        limits = {"memory_mib": -1, "gpu_milli": -1, "pending_jobs": -1} | more
        quota = admin_pb2.Quota(institution="uni-a", project=project, cpu_milli=cpu_milli, **limits)
        return api[by].admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))

    await put("lea", 9000)
    await put("ann", 5000)
    await put("lea", 4000, gpu_milli=2000)
    above = (Code.PERMISSION_DENIED, "QUOTA_OF_INSTITUTION")
    assert await refused(put("lea", 4001, gpu_milli=2000)) == (*above, "quota.cpu_milli")
    assert await refused(put("lea", -1, gpu_milli=2000)) == (*above, "quota.cpu_milli")
    assert await refused(put("lea", 4000)) == (*above, "quota.gpu_milli")
    for project in ("default", "nothing"):
        elsewhere = await refused(put("lea", 1, project))
        assert elsewhere == (Code.PERMISSION_DENIED, "NOT_YOUR_PROJECT", "quota.project")
    assert (await refused(put("lea", 1, "")))[1] == "ROLE_NOT_ALLOWED"


async def test_a_lead_puts_budgets_below_those_of_the_institution(api: Api) -> None:
    now_ms = WallClock().now_ms()

    def put(by: str, id_: str, *projects: str, days: int = 10) -> Any:
        budget = budgets_pb2.Budget(
            id=id_,
            institution="uni-a",
            projects=projects,
            unit=budgets_pb2.BUDGET_UNIT_SERVICE_UNITS,
            amount=10,
            hard=True,
            from_ms=now_ms,
            to_ms=now_ms + days * 86_400_000,
        )
        return api[by].usage.PutBudget(budgets_pb2.PutBudgetRequest(budget=budget))

    await put("ann", "of-ann", LED)
    await put("lea", "of-lea", LED)
    await put("lea", "of-lea", LED, days=9)
    assert (await refused(put("lea", "of-ann", LED)))[1:] == ("BUDGET_OF_PLATFORM", "budget.id")
    assert (await refused(put("lea", "of-lea", LED, days=11)))[1:] == ("BUDGET_OF_PLATFORM", "budget.to_ms")
    assert (await refused(put("lea", "other", "default")))[1:] == ("NOT_YOUR_PROJECT", "budget.projects")
    assert (await refused(put("lea", "other")))[1:] == ("BUDGET_OF_PLATFORM", "budget.projects")
    await put("ann", "wide", LED, "default")
    assert (await refused(put("lea", "wide", LED)))[1:] == ("NOT_YOUR_PROJECT", "budget.id")


async def test_a_lead_reads_the_usage_of_its_project_whole(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    usage = api.control_plane.usage

    async def spy(query: Any, *arguments: Any, **more: Any) -> Any:
        asked.append((query.institution, query.project, query.user))
        return await usage(query, *arguments, **more)

    monkeypatch.setattr(api.control_plane, "usage", spy)
    for project in (LED, "default", "nothing", ""):
        await api["lea"].usage.GetUsage(usage_pb2.GetUsageRequest(project=project))
    assert asked == [("uni-a", LED, ""), *(("uni-a", other, "lea") for other in ("default", "nothing", ""))]
