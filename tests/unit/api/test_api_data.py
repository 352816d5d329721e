"""Data sets and grants over the wire: who may do what, what nobody may know of, and who may take results out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, data_pb2, jobs_pb2
from scheduler.api.permissions import PERMISSIONS, PLATFORM_STEWARD, Role, Scope, scope_of
from scheduler.domain.records import UserRecord
from tests.support.api import Agent, Api, Client, info_of

Code = grpc.StatusCode
SENSITIVE = data_pb2.CLASSIFICATION_SENSITIVE
READ, EXPORT = data_pb2.GRANT_ACTION_READ, data_pb2.GRANT_ACTION_EXPORT
DIGEST = "sha256:" + "a" * 64


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = info_of(caught.value)
    return caught.value.code(), info.reason, info.metadata.get("field", "")


async def put(api: Api, user: str = "sam", name: str = "census", **values: Any) -> data_pb2.DataSet:
    terms: dict[str, Any] = {"version": "2024", "classification": SENSITIVE, "home_region": "east"} | values
    request = data_pb2.PutDataSetRequest(data_set=data_pb2.DataSet(name=name, **terms))
    found: data_pb2.DataSet = (await api[user].data.PutDataSet(request)).data_set
    return found


async def ask(api: Api, user: str = "sue", **values: Any) -> data_pb2.Grant:
    terms: dict[str, Any] = {"data_set": "census", "purpose": "thesis"} | values
    request = data_pb2.RequestGrantRequest(grant=data_pb2.Grant(**terms), reason="board 12")
    grant: data_pb2.Grant = (await api[user].data.RequestGrant(request)).grant
    return grant


async def decide(api: Api, user: str, grant: str, approve: bool = True, reason: str = "") -> data_pb2.Grant:
    request = data_pb2.DecideGrantRequest(id=grant, approve=approve, reason=reason)
    found: data_pb2.Grant = (await api[user].data.DecideGrant(request)).grant
    return found


async def names(api: Api, user: str, **values: Any) -> list[str]:
    response = await api[user].data.ListDataSets(data_pb2.ListDataSetsRequest(**values))
    return [f"{each.name}@{each.version}" for each in response.data_sets]


async def grants(api: Api, user: str, **values: Any) -> list[str]:
    return [each.id for each in (await api[user].data.ListGrants(data_pb2.ListGrantsRequest(**values))).grants]


# --- data sets --------------------------------------------------------------------------------------------------------


async def test_a_data_set_comes_back_as_it_was_put(api: Api) -> None:
    given = data_pb2.DataSet(
        name="census",
        version="2024",
        institution="uni-a",
        steward="sue",
        classification=data_pb2.CLASSIFICATION_RESTRICTED,
        title="普查",
        personal=True,
        minors=True,
        deidentification=2,
        home_region="east",
        allowed_regions=["north", "west"],
        purposes=["report", "thesis"],
        size_mib=4096,
        content_hash=DIGEST,
        replicas={"east": data_pb2.DataReplica(location="/data/census", size_mib=4096, checksum=DIGEST)},
        schema_json='{"fields": []}',
        retention_until_ms=4_000_000_000_000,
        on_revoke=data_pb2.ON_REVOKE_FINISH,
        listed=True,
    )
    made = (await api["sam"].data.PutDataSet(data_pb2.PutDataSetRequest(data_set=given))).data_set
    assert (made.author, made.create_time_ms > 0) == ("sam", True)
    given.author, given.create_time_ms = "sam", made.create_time_ms
    assert made == given
    for version in ("", "2024"):
        request = data_pb2.GetDataSetRequest(name="census", version=version)
        assert (await api["bob"].data.GetDataSet(request)).data_set == given


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "a b"}, "data_set.name"),
        ({"name": "a@1"}, "data_set.name"),
        ({"version": "../x"}, "data_set.version"),
        ({"classification": 0}, "data_set.classification"),
        ({"classification": 9}, "data_set.classification"),
        ({"home_region": ""}, "data_set.home_region"),
        ({"allowed_regions": ["A"]}, "data_set.allowed_regions[0]"),
        ({"purposes": [" "]}, "data_set.purposes[0]"),
        ({"deidentification": 4}, "data_set.deidentification"),
        ({"content_hash": "md5"}, "data_set.content_hash"),
        ({"schema_json": "{"}, "data_set.schema_json"),
        ({"on_revoke": 7}, "data_set.on_revoke"),
        ({"size_mib": -1}, "data_set.size_mib"),
        ({"replicas": {"west": data_pb2.DataReplica()}}, "data_set.replicas[west]"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_field(api: Api, values: dict[str, Any], field: str) -> None:
    assert await failure(put(api, **values)) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", field)


async def test_only_those_who_may_know_of_it_find_it(api: Api) -> None:
    await put(api)
    await put(api, name="open", listed=True)
    await put(api, name="weather", classification=data_pb2.CLASSIFICATION_PUBLIC, home_region="")
    await put(api, "stu", "theirs")
    assert await names(api, "ada") == ["census@2024", "open@2024", "weather@2024"]
    assert await names(api, "bob") == ["open@2024", "theirs@2024", "weather@2024"]
    assert await names(api, "op") == ["census@2024", "open@2024", "theirs@2024", "weather@2024"]
    unknown = (Code.NOT_FOUND, "DATA_SET_NOT_FOUND")
    for name in ("census", "nothing"):
        assert await failure(api["bob"].data.GetDataSet(data_pb2.GetDataSetRequest(name=name))) == (*unknown, "name")
        assert await failure(ask(api, "bob", data_set=name)) == (*unknown, "grant.data_set")
        request = data_pb2.WithdrawDataSetRequest(name=name, version="2024", reason="x")
        assert await failure(api["stu"].data.WithdrawDataSet(request)) == (*unknown, "version")
        checked = await api["bob"].data.CheckAccess(check("thesis", name))
        assert [(each.code, each.data_set) for each in checked.reasons] == [("DATA_SET_UNKNOWN", name)]
        assert checked.classification == 0
    # A grant lets its institution know.
    await ask(api, "sue", institution="uni-b")
    assert "census@2024" in await names(api, "bob")


async def test_stewards_keep_what_their_institution_owns(api: Api) -> None:
    await put(api, name="open", listed=True)
    assert await failure(put(api, "stu", "open", listed=True)) == (
        Code.PERMISSION_DENIED,
        "DATA_SET_NAME_TAKEN",
        "data_set.name",
    )
    other = (Code.PERMISSION_DENIED, "OTHER_INSTITUTION")
    assert await failure(put(api, "stu", "new", institution="uni-a")) == (*other, "data_set.institution")
    request = data_pb2.WithdrawDataSetRequest(name="open", version="2024", reason="x")
    assert await failure(api["stu"].data.WithdrawDataSet(request)) == (*other, "name")
    assert (await put(api, "op", "open", institution="uni-a", steward="sam", title="by the platform")).author == "op"
    assert (await api["sue"].data.WithdrawDataSet(request)).data_set.withdrawn_reason == "x (sue)"
    assert await names(api, "ada") == []
    assert await names(api, "ada", include_withdrawn=True) == ["open@2024"]


async def test_a_listing_goes_on_where_the_page_ended(api: Api) -> None:
    for version in ("1", "2", "3"):
        await put(api, version=version)
    first = await api["ada"].data.ListDataSets(data_pb2.ListDataSetsRequest(page_size=2))
    rest = await api["ada"].data.ListDataSets(
        data_pb2.ListDataSetsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [each.version for each in (*first.data_sets, *rest.data_sets)] == ["1", "2", "3"]
    made = [(await ask(api, purpose=purpose)).id for purpose in ("a", "b", "c")]
    page = await api["ada"].data.ListGrants(data_pb2.ListGrantsRequest(page_size=2))
    more = await api["ada"].data.ListGrants(data_pb2.ListGrantsRequest(page_size=2, page_token=page.next_page_token))
    assert [each.id for each in (*page.grants, *more.grants)] == made[::-1]


# --- grants -----------------------------------------------------------------------------------------------------------


async def test_a_grant_is_asked_for_decided_by_another_and_revoked(api: Api) -> None:
    await put(api, listed=True)
    asked = await ask(api, "bob", actions=[READ, EXPORT], project="default", version="20*")
    assert (asked.status, asked.institution, asked.requester) == (data_pb2.GRANT_STATUS_REQUESTED, "uni-b", "bob")
    assert (asked.request_reason, list(asked.actions)) == ("board 12", [READ, EXPORT])
    for user in ("bob", "ben", "ada", "ann", "fay"):
        assert (await failure(decide(api, user, asked.id)))[:2] == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    # Of the asking institution's stewards, too: they know of it, and it is not theirs.
    assert await failure(decide(api, "stu", asked.id)) == (Code.PERMISSION_DENIED, "OTHER_INSTITUTION", "id")
    approved = await decide(api, "sam", asked.id, reason="fine")
    assert (approved.status, approved.decider, approved.decision_reason) == (
        data_pb2.GRANT_STATUS_APPROVED,
        "sam",
        "fine",
    )
    request = data_pb2.RevokeGrantRequest(id=asked.id, reason="over")
    assert (await failure(api["stu"].data.RevokeGrant(request)))[1] == "OTHER_INSTITUTION"
    revoked = (await api["sue"].data.RevokeGrant(request)).grant
    assert (revoked.status, revoked.revoker, revoked.revoke_reason) == (data_pb2.GRANT_STATUS_REVOKED, "sue", "over")
    for user in ("bob", "stu", "ada", "sam", "op"):
        assert await grants(api, user) == [asked.id]


async def test_nobody_decides_on_an_own_request_not_even_an_operator(api: Api) -> None:
    await put(api)
    for user in ("sue", "op"):
        asked = await ask(api, user, institution="uni-a", purpose=user)
        assert await failure(decide(api, user, asked.id)) == (Code.PERMISSION_DENIED, "OWN_REQUEST", "id")
        assert (await decide(api, "sam", asked.id)).status == data_pb2.GRANT_STATUS_APPROVED


async def test_grants_of_others_are_not_there(api: Api) -> None:
    await put(api)
    asked = await ask(api)
    assert await grants(api, "bob") == await grants(api, "stu") == []
    gone = (Code.NOT_FOUND, "GRANT_NOT_FOUND", "id")
    for name in (asked.id, "0" * 26):
        assert await failure(decide(api, "stu", name)) == gone
        request = data_pb2.RevokeGrantRequest(id=name, reason="x")
        assert await failure(api["stu"].data.RevokeGrant(request)) == gone


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"purpose": ""}, "grant.purpose"),
        ({"version": "a b"}, "grant.version"),
        ({"actions": [9]}, "grant.actions"),
        ({"deidentification": -1}, "grant.deidentification"),
        ({"from_ms": 9, "to_ms": 8}, "grant.to_ms"),
        ({"data_set": ""}, "grant.data_set"),
    ],
)
async def test_a_request_that_cannot_be_meant(api: Api, values: dict[str, Any], field: str) -> None:
    await put(api)
    assert await failure(ask(api, **values)) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", field)


async def test_reasons_are_asked_for(api: Api) -> None:
    await put(api)
    asked = await ask(api)
    empty = (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "reason")
    assert await failure(decide(api, "sam", asked.id, approve=False)) == empty
    assert await failure(api["sam"].data.RevokeGrant(data_pb2.RevokeGrantRequest(id=asked.id))) == empty
    request = data_pb2.RequestGrantRequest(grant=data_pb2.Grant(data_set="census", purpose="x"))
    assert await failure(api["ada"].data.RequestGrant(request)) == empty
    assert await failure(ask(api, "bob", institution="uni-a")) == (
        Code.PERMISSION_DENIED,
        "OTHER_INSTITUTION",
        "grant.institution",
    )


async def test_a_steward_of_no_institution_is_the_platforms(api: Api) -> None:
    await api.control_plane.put_user(UserRecord("pat", "", "", int(Role.STEWARD), 0, 0), "test")
    _, key = await api.control_plane.create_api_key("pat", "", 0, "test")
    api.clients["pat"] = Client(api.address, key)
    await put(api)
    await put(api, "stu", "theirs")
    assert await names(api, "pat") == ["census@2024", "theirs@2024"]
    asked = await ask(api, "ada")
    assert (await decide(api, "pat", asked.id)).decider == "pat"
    for method in PERMISSIONS:
        if method in PLATFORM_STEWARD:
            assert scope_of(method, Role.STEWARD, "") is Scope.ANY
        else:
            assert scope_of(method, Role.STEWARD, "") is not Scope.INSTITUTION


# --- decisions, results and lineage -----------------------------------------------------------------------------------


def check(purpose: str, *data_sets: str, **values: Any) -> data_pb2.CheckAccessRequest:
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"]), purpose=purpose, data_sets=data_sets, **values)
    return data_pb2.CheckAccessRequest(spec=spec)


@pytest.fixture
async def agent(api: Api) -> AsyncIterator[Agent]:
    """Region "east", whose pool is trusted with everything."""
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    policy = admin_pb2.PutPolicyRequest(document_yaml="pools: {east/cpu: {trust: sensitive}}")
    await api["op"].admin.PutPolicy(policy)
    yield agent
    agent.call.cancel()


async def test_access_is_checked_without_submitting(api: Api, agent: Agent) -> None:
    await put(api, purposes=["thesis"])
    asked = await ask(api)
    told = await api["ada"].data.CheckAccess(check("party", "census"))
    assert not told.allowed
    assert [each.code for each in told.reasons] == [
        "PURPOSE_NOT_ALLOWED",
        "GRANT_NOT_APPROVED",
        "GRANT_FOR_OTHER_PURPOSE",
    ]
    assert {each.grant for each in told.reasons} == {"", asked.id}
    await decide(api, "sam", asked.id)
    told = await api["ada"].data.CheckAccess(check("thesis", "census"))
    assert (told.allowed, list(told.pools), dict(told.grants), told.classification) == (
        True,
        ["east/cpu"],
        {"census": asked.id},
        SENSITIVE,
    )
    assert (await failure(api["bob"].data.CheckAccess(check("thesis", "census", institution="uni-a"))))[1] == (
        "OTHER_INSTITUTION"
    )


async def test_submission_says_what_is_missing(api: Api, agent: Agent) -> None:
    await put(api)
    assert await failure(api["ada"].submit(data_sets=["census"], purpose="thesis")) == (
        Code.FAILED_PRECONDITION,
        "DATA_NOT_GRANTED",
        "jobs[0].data_sets",
    )
    assert await failure(api["bob"].submit(data_sets=["census"], purpose="thesis")) == (
        Code.INVALID_ARGUMENT,
        "DATA_SET_NOT_FOUND",
        "jobs[0].data_sets[0]",
    )


async def ended(api: Api, agent: Agent, **values: Any) -> str:
    """A job of ada's that has ended."""
    job_id = await api["ada"].submit(**values)
    launch = await agent.launch()
    await agent.started(launch)
    await agent.finished(launch)
    return job_id


async def test_results_and_logs_of_sensitive_data_need_a_grant_to_export(api: Api, agent: Agent) -> None:
    await put(api)
    asked = await ask(api)
    await decide(api, "sam", asked.id)
    job_id = await ended(api, agent, data_sets=["census"], purpose="thesis")
    plain = await ended(api, agent)

    def take(user: str, job: str) -> list[Any]:
        jobs = api[user].jobs
        return [
            jobs.DownloadResult(jobs_pb2.DownloadResultRequest(job_id=job, path="table")),
            jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job, rank=5)),
        ]

    async def reasons(user: str, job: str) -> list[str]:
        found = []
        for call in take(user, job):
            try:
                async for _ in call:
                    break
                found.append("")
            except grpc.aio.AioRpcError as error:
                found.append(info_of(error).reason)
            call.cancel()
        return found

    # There is no such file and no such rank: what matters is who gets to hear that.
    through = ["RESULT_NOT_FOUND", "INVALID_ARGUMENT"]
    assert await reasons("ada", job_id) == await reasons("ann", job_id) == ["RESULTS_NOT_EXPORTABLE"] * 2
    with pytest.raises(grpc.aio.AioRpcError, match="Ask sam for one"):
        await anext(aiter(take("ada", job_id)[0]))
    assert await reasons("sue", job_id) == await reasons("op", job_id) == through
    assert await reasons("sue", plain) == ["NOT_YOUR_DATA"] * 2
    assert await reasons("ada", plain) == through
    assert await reasons("stu", job_id) == ["JOB_NOT_FOUND"] * 2

    export = await ask(api, actions=[EXPORT])
    await decide(api, "sam", export.id)
    assert await reasons("ada", job_id) == through
    await api["sam"].data.RevokeGrant(data_pb2.RevokeGrantRequest(id=export.id, reason="over"))
    assert await reasons("ada", job_id) == ["RESULTS_NOT_EXPORTABLE"] * 2


async def test_who_follows_a_log_loses_it_with_the_grant_to_export(api: Api, agent: Agent) -> None:
    await put(api, on_revoke=data_pb2.ON_REVOKE_FINISH)
    read, export = await ask(api), await ask(api, actions=[EXPORT])
    await decide(api, "sam", read.id)
    await decide(api, "sam", export.id)
    job_id = await api["ada"].submit(data_sets=["census"], purpose="thesis")
    await agent.started(await agent.launch())
    stdout = jobs_pb2.LOG_STREAM_STDOUT
    log = api["ada"].jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job_id, stream=stdout, follow=True))
    request = (await agent.take("log_request")).log_request
    await agent.log(request, 0, b"before")
    assert (await log.read()).data == b"before"
    await api["sam"].data.RevokeGrant(data_pb2.RevokeGrantRequest(id=export.id, reason="over"))
    await agent.log(request, 6, b"after")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await log.read()
    assert info_of(caught.value).reason == "RESULTS_NOT_EXPORTABLE"


async def test_lineage_tells_what_a_job_read_and_made(api: Api, agent: Agent) -> None:
    await put(api, content_hash=DIGEST)
    await decide(api, "sam", (await ask(api)).id)
    job_id = await ended(api, agent, data_sets=["census"], purpose="thesis")
    told = await api["abe"].data.GetLineage(data_pb2.GetLineageRequest(job_id=job_id))
    assert [(each.name, each.version, each.content_hash) for each in told.inputs] == [("census", "2024", DIGEST)]
    assert told.classification == SENSITIVE
    assert [event["eventType"] for event in json.loads(told.events_json)] == ["START", "COMPLETE"]
    assert await failure(api["bob"].data.GetLineage(data_pb2.GetLineageRequest(job_id=job_id))) == (
        Code.NOT_FOUND,
        "JOB_NOT_FOUND",
        "job_id",
    )
