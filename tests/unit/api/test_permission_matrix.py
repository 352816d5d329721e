"""Every call, made for real by every role on own and foreign things, answers as the table of permissions says.

What may not be known of answers, to the byte, as what is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from protos.suanli.v1 import (
    admin_pb2,
    artifacts_pb2,
    audit_pb2,
    budgets_pb2,
    common_pb2,
    data_pb2,
    jobs_pb2,
    prices_pb2,
    regions_pb2,
    statements_pb2,
    usage_pb2,
)
from scheduler.api.permissions import PERMISSIONS, Role, Scope, scope_of
from scheduler.api.serving import SERVICES
from scheduler.service.ids import WallClock
from tests.support.api import LED, PEOPLE, Agent, Api, digest_of, info_of

Code = grpc.StatusCode
METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}


class Whose(IntEnum):
    """Things, by their distance from the caller; a scope covers all up to one of them."""

    OWN = 1
    PROJECT = 2
    INSTITUTION = 3
    FOREIGN = 4
    NOBODYS = 5


COVERED = {
    Scope.OWN: Whose.OWN,
    Scope.PROJECT: Whose.PROJECT,
    Scope.INSTITUTION: Whose.INSTITUTION,
    Scope.ANY: Whose.FOREIGN,
}


class Thing(NamedTuple):
    """A thing to call about: the name of it that a request gives, and where it is."""

    name: str
    institution: str
    project: str


Things = dict[Whose, Thing]
Build = Callable[[Thing], Message]
INSTITUTIONS: Things = {
    Whose.INSTITUTION: Thing("uni-a", "uni-a", "default"),
    Whose.FOREIGN: Thing("uni-b", "uni-b", "default"),
    Whose.NOBODYS: Thing("uni-z", "uni-z", "default"),
}
# A lead's project, the institution's other one, and one elsewhere.
PROJECTS: Things = {Whose.PROJECT: Thing(LED, "uni-a", LED), **INSTITUTIONS}


async def jobs(api: Api, user: str) -> Things:
    """New jobs, so that none has been cancelled by an earlier call."""
    found = {}
    places = {Whose.INSTITUTION: ("abe", "default"), Whose.FOREIGN: ("bob", "default"), Whose.PROJECT: ("abe", LED)}
    if "suanli.v1.JobService/SubmitJobs" in allowed(user) and PEOPLE[user][0]:
        places[Whose.OWN] = (user, "default")
    for whose, (owner, project) in places.items():
        found[whose] = Thing(await api[owner].submit(project=project), PEOPLE[owner][0], project)
    length = len(found[Whose.FOREIGN].name) - 1
    return {**found, Whose.NOBODYS: Thing("j" + "0" * length, "", "")}


async def users(api: Api, user: str) -> Things:
    del api
    things = {Whose.FOREIGN: Thing("bob", "uni-b", ""), Whose.NOBODYS: Thing("zoe", "", "")}
    if PEOPLE[user][0]:
        things |= {Whose.OWN: Thing(user, "uni-a", ""), Whose.INSTITUTION: Thing("abe", "uni-a", "")}
    return things


async def keys(api: Api, user: str) -> Things:
    found = {}
    for whose, thing in (await users(api, user)).items():
        prefix = "a" * 13
        if whose is not Whose.NOBODYS:
            prefix = (await api.control_plane.create_api_key(thing.name, "", 0, "test"))[0].prefix
        found[whose] = thing._replace(name=prefix)
    return found


async def institutions(api: Api, user: str) -> Things:
    del api, user
    return INSTITUTIONS


async def own_usage(api: Api, user: str) -> Things:
    """One's own institution, of which one who may see no more is told of the own jobs alone."""
    del api, user
    return {Whose.OWN: INSTITUTIONS[Whose.INSTITUTION], Whose.FOREIGN: INSTITUTIONS[Whose.FOREIGN]} | {
        Whose.NOBODYS: INSTITUTIONS[Whose.NOBODYS]
    }


async def projects(api: Api, user: str) -> Things:
    del api, user
    return PROJECTS


async def one_of_all(api: Api, user: str) -> Things:
    """Of calls that name no tenant's thing."""
    del api, user
    return {Whose.OWN: Thing("", "", "")}


async def regions(api: Api, user: str) -> Things:
    del api, user
    return {
        Whose.OWN: Thing("east", "", ""),
        Whose.FOREIGN: Thing("west", "", ""),
        Whose.NOBODYS: Thing("void", "", ""),
    }


async def put_data(api: Api) -> Things:
    """A new data set of each institution."""
    number = len((await api["op"].data.ListDataSets(data_pb2.ListDataSetsRequest(include_withdrawn=True))).data_sets)
    for user, name in (("sam", f"own-{number}"), ("stu", f"far-{number}")):
        one = data_pb2.DataSet(name=name, version="1", classification=2, home_region="east")
        await api[user].data.PutDataSet(data_pb2.PutDataSetRequest(data_set=one))
    return {
        Whose.INSTITUTION: Thing(f"own-{number}", "uni-a", "default"),
        Whose.FOREIGN: Thing(f"far-{number}", "uni-b", "default"),
        Whose.NOBODYS: Thing(f"not-{number}", "uni-z", "default"),
    }


async def data(api: Api, user: str) -> Things:
    del user
    return await put_data(api)


async def grants(api: Api, user: str) -> Things:
    """Asked for by others than those who decide here."""
    del user
    found = {}
    for whose, thing in (await put_data(api)).items():
        name = "0" * 26
        if whose is not Whose.NOBODYS:
            asker = "abe" if whose is Whose.INSTITUTION else "bob"
            purpose = f"p{len((await api['op'].data.ListGrants(data_pb2.ListGrantsRequest())).grants)}"
            request = data_pb2.RequestGrantRequest(
                grant=data_pb2.Grant(data_set=thing.name, purpose=purpose), reason="r"
            )
            name = (await api[asker].data.RequestGrant(request)).grant.id
        found[whose] = thing._replace(name=name)
    length = len(found[Whose.FOREIGN].name)
    return {**found, Whose.NOBODYS: found[Whose.NOBODYS]._replace(name="0" * length)}


def spec(thing: Thing) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(institution=thing.institution, command=jobs_pb2.Command(argv=["true"]))


def budget(thing: Thing) -> budgets_pb2.PutBudgetRequest:
    one = budgets_pb2.Budget(
        id=f"b-{thing.institution}-{thing.project}",
        institution=thing.institution,
        projects=[thing.project],
        unit=budgets_pb2.BUDGET_UNIT_SERVICE_UNITS,
        amount=5,
        from_ms=1,
        to_ms=WallClock().now_ms() + 10**9,
    )
    return budgets_pb2.PutBudgetRequest(budget=one, validate_only=True)


A, J, U = "suanli.v1.AdminService/", "suanli.v1.JobService/", "suanli.v1.UsageService/"
D, R = "suanli.v1.DataService/", "suanli.v1.ArtifactService/"
FILTER = jobs_pb2.JobFilter
CALLS: dict[str, tuple[Any, Build]] = {
    J + "GetJob": (jobs, lambda t: jobs_pb2.GetJobRequest(job_id=t.name)),
    J + "WatchJobs": (jobs, lambda t: jobs_pb2.WatchJobsRequest(job_ids=[t.name])),
    J + "ExplainJob": (jobs, lambda t: jobs_pb2.ExplainJobRequest(job_id=t.name)),
    J + "CancelJobs": (jobs, lambda t: jobs_pb2.CancelJobsRequest(job_ids=[t.name])),
    J + "TailLogs": (jobs, lambda t: jobs_pb2.TailLogsRequest(job_id=t.name)),
    J + "ListResults": (jobs, lambda t: jobs_pb2.ListResultsRequest(job_id=t.name)),
    J + "DownloadResult": (jobs, lambda t: jobs_pb2.DownloadResultRequest(job_id=t.name, path="x")),
    J + "SubmitJobs": (institutions, lambda t: jobs_pb2.SubmitJobsRequest(jobs=[spec(t)])),
    J + "ListJobs": (institutions, lambda t: jobs_pb2.ListJobsRequest(filter=FILTER(institution=t.institution))),
    J + "FindMissingBlobs": (
        institutions,
        lambda t: jobs_pb2.FindMissingBlobsRequest(digests=[digest_of(b"x")], institution=t.institution),
    ),
    J + "UploadBlob": (
        institutions,
        lambda t: jobs_pb2.UploadBlobRequest(digest=digest_of(b"x"), data=b"x", institution=t.institution),
    ),
    R + "ListArtifacts": (
        jobs,
        lambda t: artifacts_pb2.ListArtifactsRequest(filter=artifacts_pb2.ArtifactFilter(job_ids=[t.name])),
    ),
    R + "DeleteArtifacts": (
        jobs,
        lambda t: artifacts_pb2.DeleteArtifactsRequest(filter=artifacts_pb2.ArtifactFilter(job_ids=[t.name])),
    ),
    R + "GetStorage": (institutions, lambda t: artifacts_pb2.GetStorageRequest(institution=t.institution)),
    J + "ListAlgorithms": (one_of_all, lambda t: jobs_pb2.ListAlgorithmsRequest()),
    "suanli.v1.RegionService/Connect": (
        regions,
        lambda t: regions_pb2.ConnectRequest(
            hello=regions_pb2.Hello(
                region=t.name, boot_id="b", spool_id="s", protocol_version=1, software_version="test"
            )
        ),
    ),
    "suanli.v1.RegionService/RenewCertificate": (one_of_all, lambda t: regions_pb2.RenewCertificateRequest()),
    A + "PutInstitution": (
        institutions,
        lambda t: admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id=t.institution)),
    ),
    A + "ListInstitutions": (one_of_all, lambda t: admin_pb2.ListInstitutionsRequest()),
    A + "PutProject": (
        institutions,
        lambda t: admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution=t.institution, id="new")),
    ),
    A + "ListProjects": (institutions, lambda t: admin_pb2.ListProjectsRequest(institution=t.institution)),
    A + "PutUser": (
        institutions,
        lambda t: admin_pb2.PutUserRequest(
            user=admin_pb2.User(id="new-" + t.institution, institution=t.institution, role=common_pb2.ROLE_RESEARCHER)
        ),
    ),
    A + "ListUsers": (institutions, lambda t: admin_pb2.ListUsersRequest(institution=t.institution)),
    A + "CreateApiKey": (users, lambda t: admin_pb2.CreateApiKeyRequest(user=t.name)),
    A + "ListApiKeys": (users, lambda t: admin_pb2.ListApiKeysRequest(user=t.name)),
    A + "RevokeApiKey": (keys, lambda t: admin_pb2.RevokeApiKeyRequest(prefix=t.name)),
    A + "SetQuota": (
        projects,
        # Jobs of later calls find room in it.
        lambda t: admin_pb2.SetQuotaRequest(
            quota=admin_pb2.Quota(
                institution=t.institution, project=t.project, cpu_milli=10**6, memory_mib=10**6, pending_jobs=1000
            )
        ),
    ),
    A + "ListQuotas": (institutions, lambda t: admin_pb2.ListQuotasRequest(institution=t.institution)),
    A + "GetPolicy": (one_of_all, lambda t: admin_pb2.GetPolicyRequest()),
    A + "PutPolicy": (one_of_all, lambda t: admin_pb2.PutPolicyRequest(document_yaml="preset: fair")),
    A + "ListPolicyVersions": (one_of_all, lambda t: admin_pb2.ListPolicyVersionsRequest()),
    A + "ListPolicyPresets": (one_of_all, lambda t: admin_pb2.ListPolicyPresetsRequest()),
    A + "CreateEnrolmentToken": (one_of_all, lambda t: admin_pb2.CreateEnrolmentTokenRequest(region="north")),
    A + "ListRegions": (one_of_all, lambda t: admin_pb2.ListRegionsRequest()),
    A + "ListPools": (one_of_all, lambda t: admin_pb2.ListPoolsRequest()),
    A + "ListNodes": (one_of_all, lambda t: admin_pb2.ListNodesRequest()),
    A + "DrainNode": (one_of_all, lambda t: admin_pb2.DrainNodeRequest(region="east", node="n1")),
    A + "WhoAmI": (one_of_all, lambda t: admin_pb2.WhoAmIRequest()),
    U + "GetUsage": (
        own_usage,
        lambda t: usage_pb2.GetUsageRequest(institution=t.institution),
    ),
    U + "PutPriceList": (one_of_all, lambda t: prices_pb2.PutPriceListRequest(document="x", validate_only=True)),
    U + "GetPriceList": (one_of_all, lambda t: prices_pb2.GetPriceListRequest()),
    U + "ListPriceLists": (one_of_all, lambda t: prices_pb2.ListPriceListsRequest()),
    U + "EstimateCost": (institutions, lambda t: prices_pb2.EstimateCostRequest(job=spec(t))),
    U + "ListLedger": (institutions, lambda t: usage_pb2.ListLedgerRequest(institution=t.institution)),
    U + "StreamLedger": (institutions, lambda t: usage_pb2.StreamLedgerRequest(institution=t.institution)),
    U + "ExportUsage": (
        institutions,
        lambda t: usage_pb2.ExportUsageRequest(institution=t.institution, format=usage_pb2.EXPORT_FORMAT_FOCUS_CSV),
    ),
    U + "GetStatement": (
        institutions,
        lambda t: statements_pb2.GetStatementRequest(institution=t.institution, month="2026-10"),
    ),
    U + "VerifyLedger": (one_of_all, lambda t: usage_pb2.VerifyLedgerRequest()),
    U + "CorrectLedger": (one_of_all, lambda t: usage_pb2.CorrectLedgerRequest(sequence=9, reason="r", credit=True)),
    U + "CloseMonth": (one_of_all, lambda t: usage_pb2.CloseMonthRequest(month="2020-01")),
    U + "ListMonths": (one_of_all, lambda t: usage_pb2.ListMonthsRequest()),
    "suanli.v1.AuditService/ListAudit": (
        institutions,
        lambda t: audit_pb2.ListAuditRequest(institution=t.institution),
    ),
    "suanli.v1.AuditService/StreamAudit": (
        institutions,
        lambda t: audit_pb2.StreamAuditRequest(institution=t.institution),
    ),
    "suanli.v1.AuditService/VerifyAudit": (one_of_all, lambda t: audit_pb2.VerifyAuditRequest()),
    "suanli.v1.AuditService/GetAuditKey": (one_of_all, lambda t: audit_pb2.GetAuditKeyRequest()),
    D + "PutDataSet": (
        institutions,
        lambda t: data_pb2.PutDataSetRequest(
            data_set=data_pb2.DataSet(
                name=f"of-{t.institution}", version="1", institution=t.institution, classification=1
            )
        ),
    ),
    D + "ListDataSets": (one_of_all, lambda t: data_pb2.ListDataSetsRequest()),
    D + "GetDataSet": (data, lambda t: data_pb2.GetDataSetRequest(name=t.name)),
    D + "RequestGrant": (
        data,
        lambda t: data_pb2.RequestGrantRequest(grant=data_pb2.Grant(data_set=t.name, purpose="p"), reason="r"),
    ),
    D + "DecideGrant": (grants, lambda t: data_pb2.DecideGrantRequest(id=t.name, approve=True)),
    D + "RevokeGrant": (grants, lambda t: data_pb2.RevokeGrantRequest(id=t.name, reason="r")),
    D + "ListGrants": (one_of_all, lambda t: data_pb2.ListGrantsRequest()),
    D + "CheckAccess": (institutions, lambda t: data_pb2.CheckAccessRequest(spec=spec(t))),
    D + "GetLineage": (jobs, lambda t: data_pb2.GetLineageRequest(job_id=t.name)),
    D + "WithdrawDataSet": (
        data,
        lambda t: data_pb2.WithdrawDataSetRequest(name=t.name, version="1", reason="r"),
    ),
    U + "PutBudget": (projects, budget),
    U + "ListBudgets": (institutions, lambda t: budgets_pb2.ListBudgetsRequest(institution=t.institution)),
    U + "ListBudgetNotices": (institutions, lambda t: budgets_pb2.ListBudgetNoticesRequest(institution=t.institution)),
}


def allowed(user: str) -> set[str]:
    institution, role = PEOPLE[user]
    return {name for name in PERMISSIONS if scope_of(name, role, institution) is not None}


class Answer(NamedTuple):
    """How a call was answered: all of it, as it went over the wire."""

    code: str
    reason: str
    rest: str

    @property
    def refused(self) -> bool:
        return self.code == Code.PERMISSION_DENIED.name


async def answer(api: Api, user: str, name: str, request: Message) -> Answer:
    """The first message of the answer, or its error."""
    method = METHODS[name]
    kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    client, body = api[user], request.SerializeToString()
    call = getattr(client.channel, kind)("/" + name)
    try:
        running = call(iter([body]) if method.client_streaming else body, metadata=client.metadata, timeout=10)
        if method.server_streaming:
            response = await running.read()
            running.cancel()
        else:
            response = await running
    except grpc.aio.AioRpcError as error:
        info = info_of(error)
        return Answer(error.code().name, info.reason, f"{error.details()} {dict(info.metadata)}")
    return Answer("OK", "", repr(response))


async def fill(api: Api) -> Agent:
    """Have the other institution have something of everything: where nothing is, nobody sees too much."""
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job = await api["bob"].submit()
    launch = await agent.launch()
    assert launch.job_id == job
    await agent.started(launch)
    await agent.finished(launch)
    quota = admin_pb2.Quota(institution="uni-b", gpu_milli=4000, cpu_milli=10**6, memory_mib=10**6, pending_jobs=10**6)
    await api["op"].admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))
    wanted = budget(INSTITUTIONS[Whose.FOREIGN])
    wanted.validate_only = False
    await api["op"].usage.PutBudget(wanted)
    await api["bob"].upload(b"x")
    return agent


def test_every_call_of_the_table_is_in_the_matrix() -> None:
    assert set(CALLS) == set(PERMISSIONS)


async def check(api: Api, user: str, name: str, scope: Scope | None) -> int:
    """One cell of the matrix by one user; how many calls it took."""
    make, build = CALLS[name]
    things: Things = await make(api, user)
    answers = {whose: await answer(api, user, name, build(thing)) for whose, thing in things.items()}
    for whose, found in answers.items():
        where = (user, name, whose.name, found)
        assert found.code not in ("INTERNAL", "UNKNOWN", "UNAUTHENTICATED", "DEADLINE_EXCEEDED"), where
        if scope is None:
            assert (found.code, found.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED"), where
        elif found.reason == "NOT_YOUR_DATA":
            # Of the jobs of the institution, a steward reads the results of those that read its data.
            assert PEOPLE[user][1] is Role.STEWARD, where
            assert whose in (Whose.PROJECT, Whose.INSTITUTION), where
        elif whose <= COVERED[scope]:
            assert not found.refused, where
            assert not found.reason.endswith(("JOB_NOT_FOUND", "KEY_NOT_FOUND", "USER_NOT_FOUND")), where
        elif whose <= Whose.INSTITUTION:
            # It may be known of and not touched, or is not the caller's to manage at all.
            assert found.refused or found.code == "NOT_FOUND", where
        elif whose is Whose.FOREIGN:
            unknown, foreign = things[Whose.NOBODYS].name, things[Whose.FOREIGN].name
            assert found.code in ("NOT_FOUND", "PERMISSION_DENIED") or found == answers[Whose.NOBODYS], where
            assert found._replace(rest=found.rest.replace(foreign, unknown)) == answers[Whose.NOBODYS], where
    return len(answers)


@pytest.mark.parametrize("user", ["ada", "lea", "ann", "fay", "op", "aud", "fin", "pau", "sam"])
async def test_the_matrix(api: Api, user: str) -> None:
    await fill(api)
    institution, role = PEOPLE[user]
    calls = 0
    for name in PERMISSIONS:
        calls += await check(api, user, name, scope_of(name, role, institution))
    assert calls > 100


async def test_an_agent_is_let_into_its_region_and_nothing_else(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    api.clients["agent"] = agent.client
    for name in PERMISSIONS:
        make, build = CALLS[name]
        for whose, thing in (await make(api, "op")).items():
            found = await answer(api, "agent", name, build(thing))
            if Role.AGENT not in PERMISSIONS[name]:
                assert found.reason == "ROLE_NOT_ALLOWED", (name, found)
            elif whose is Whose.OWN:
                # This server signs no certificates, and says so to those only who may ask.
                assert found.code == "OK" or found.reason == "NO_AGENT_CA", (name, found)
            else:
                assert found.code in ("PERMISSION_DENIED", "UNAUTHENTICATED"), (name, whose, found)


@pytest.mark.parametrize("user", ["ada", "lea", "ann", "fay", "aud", "sam"])
async def test_what_a_list_shows_is_of_the_own_institution(api: Api, user: str) -> None:
    await api["bob"].submit(name="secret-b")
    await api.control_plane.create_api_key("bob", "secret-b", 0, "test")
    for name in allowed(user):
        if "/List" in name or "/Watch" in name:
            request = type(CALLS[name][1](INSTITUTIONS[Whose.INSTITUTION]))()
            if name.endswith("WatchJobs"):
                request = jobs_pb2.WatchJobsRequest(after_sequence=0)
            found = await answer(api, user, name, request)
            assert "secret-b" not in found.rest, name
            assert "uni-b" not in found.rest, name
            assert "bob" not in found.rest, name
