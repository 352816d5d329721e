"""Keys that are limited: to a role, to a project, to reading; and streams that end with their key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, prices_pb2
from scheduler.api.limits import OF_ONE_PROJECT, READS, Credential, scope_within
from scheduler.api.permissions import PERMISSIONS, PUBLIC, Role, scope_of
from scheduler.domain.errors import PermissionDenied
from scheduler.identity.issuers import ROLES
from tests.support.api import Agent, Api, Client, info_of

Code = grpc.StatusCode
VERBS = (
    "Get",
    "List",
    "Watch",
    "Explain",
    "Estimate",
    "Tail",
    "Download",
    "Stream",
    "Export",
    "Verify",
    "Check",
    "WhoAmI",
)
PEOPLE = {Role.RESEARCHER: "uni-a", Role.INSTITUTION_ADMIN: "uni-a", Role.FINANCE: "uni-a", Role.OPERATOR: ""}


def test_the_tables_of_limits_name_methods_that_are_there_and_reading_changes_nothing() -> None:
    assert set(PERMISSIONS) >= READS | OF_ONE_PROJECT
    assert {method for method in READS if not method.rpartition("/")[2].startswith(VERBS)} == set()
    assert not READS & PUBLIC


def test_a_token_may_name_each_role_of_a_person() -> None:
    assert dict(ROLES) == {role.name.lower().replace("_", "-"): role for role in Role if role is not Role.AGENT}


@pytest.mark.parametrize("role", list(PEOPLE))
def test_a_limit_never_grants_more_than_the_role_of_either(role: Role) -> None:
    for method in PERMISSIONS:
        for limits in [(one,) for one in PEOPLE] + [(), (Role.RESEARCHER, Role.FINANCE)]:
            credential = Credential("u", PEOPLE[role], role, roles=tuple(map(int, limits)))
            own = scope_of(method, role, PEOPLE[role])
            theirs = [scope_of(method, limit, PEOPLE[role]) for limit in limits]
            widest = max((one for one in theirs if one is not None), default=None)
            if own is None or widest is None:
                with pytest.raises(PermissionDenied):
                    scope_within(method, credential)
            else:
                assert scope_within(method, credential) == min(own, widest)


@pytest.mark.parametrize("role", list(PEOPLE))
def test_a_method_outside_the_tables_is_closed_to_a_key_that_is_limited(role: Role) -> None:
    for method in PERMISSIONS:
        if scope_of(method, role, PEOPLE[role]) is None:
            continue
        for limit, table in (({"read_only": True}, READS), ({"project": "p"}, OF_ONE_PROJECT)):
            credential = Credential("u", PEOPLE[role], role, **limit)  # type: ignore[arg-type]
            if method in table:
                scope_within(method, credential)
            else:
                with pytest.raises(PermissionDenied, match="only"):
                    scope_within(method, credential)


async def reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return str(info_of(caught.value).reason)


async def key(api: Api, by: str, **limits: Any) -> Client:
    response = await api[by].admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(**limits))
    client = api.clients[response.key.prefix] = Client(api.address, response.secret)
    client.prefix = response.key.prefix  # type: ignore[attr-defined]
    return client


async def project(api: Api, name: str = "lab") -> str:
    put = admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution="uni-a", id=name))
    await api["op"].admin.PutProject(put)
    return name


async def test_a_key_that_reads_reads_only(api: Api) -> None:
    mine = await api["ada"].submit()
    client = await key(api, "ada", read_only=True)
    assert (await client.job(mine)).id == mine
    assert (await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())).read_only
    assert await reason(client.submit()) == "CREDENTIAL_READ_ONLY"
    assert await reason(client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[mine]))) == "CREDENTIAL_READ_ONLY"
    assert await reason(client.admin.CreateApiKey(admin_pb2.CreateApiKeyRequest())) == "CREDENTIAL_READ_ONLY"
    assert await reason(client.jobs.UploadBlob(iter([]))) == "CREDENTIAL_READ_ONLY"


async def test_a_key_of_a_project_knows_of_no_other(api: Api) -> None:
    lab = await project(api)
    other = await api["ada"].submit()
    client = await key(api, "ada", project=lab)
    mine = await client.submit()
    assert (await client.job(mine)).spec.project == lab
    assert await reason(client.job(other)) == "JOB_NOT_FOUND"
    assert await reason(client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[mine, other]))) == "JOB_NOT_FOUND"
    assert await reason(client.jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=other))) == "JOB_NOT_FOUND"
    assert await reason(client.submit(project="default")) == "CREDENTIAL_PROJECT_LIMIT"
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"]), project="default")
    assert await reason(client.jobs.ExplainJob(jobs_pb2.ExplainJobRequest(spec=spec))) == "CREDENTIAL_PROJECT_LIMIT"
    estimate = prices_pb2.EstimateCostRequest(job=spec)
    assert await reason(client.usage.EstimateCost(estimate)) == "CREDENTIAL_PROJECT_LIMIT"
    listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest())
    assert [job.id for job in listed.jobs] == [mine]
    asked = jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(project="default"))
    assert await reason(client.jobs.ListJobs(asked)) == "CREDENTIAL_PROJECT_LIMIT"
    watch = client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    assert {event.job_id for event in (await watch.read()).events} == {mine}
    watch.cancel()
    # The projects of two institutions may have one name.
    client = await key(api, "op", user="op")
    assert await client.job(mine)


async def test_a_key_of_a_project_of_that_name_elsewhere_knows_nothing_of_it(api: Api) -> None:
    theirs = await api["bob"].submit()
    client = await key(api, "ada", project="default")
    assert await reason(client.job(theirs)) == "JOB_NOT_FOUND"


async def test_a_key_is_made_for_a_project_that_is_there(api: Api) -> None:
    ask = admin_pb2.CreateApiKeyRequest
    assert await reason(api["ada"].admin.CreateApiKey(ask(project="nix"))) == "PROJECT_NOT_FOUND"
    assert await reason(api["op"].admin.CreateApiKey(ask(project="default"))) == "PROJECT_NOT_FOUND"
    for role in (common_pb2.ROLE_AGENT, 77):
        assert await reason(api["ada"].admin.CreateApiKey(ask(limit_role=role))) == "INVALID_ARGUMENT"  # type: ignore[arg-type]


async def test_a_key_with_a_lower_role_makes_no_key_with_a_higher(api: Api) -> None:
    client = await key(api, "ann", limit_role=common_pb2.ROLE_RESEARCHER)
    assert await reason(client.admin.ListUsers(admin_pb2.ListUsersRequest())) == "CREDENTIAL_ROLE_LIMIT"
    ask = admin_pb2.CreateApiKeyRequest
    higher = client.admin.CreateApiKey(ask(limit_role=common_pb2.ROLE_INSTITUTION_ADMIN))
    assert await reason(higher) == "CREDENTIAL_ROLE_LIMIT"
    child = await client.admin.CreateApiKey(ask())
    assert child.key.limit_role == common_pb2.ROLE_RESEARCHER
    client = await key(api, "ada", limit_role=common_pb2.ROLE_OPERATOR)
    assert await reason(client.admin.ListUsers(admin_pb2.ListUsersRequest())) == "ROLE_NOT_ALLOWED"
    assert await client.submit()


async def test_a_key_says_when_it_was_used_last(api: Api) -> None:
    client = await key(api, "ada")

    async def used() -> int:
        keys = (await api["ann"].admin.ListApiKeys(admin_pb2.ListApiKeysRequest(user="ada"))).keys
        return next(one.last_used_time_ms for one in keys if one.prefix == client.prefix)  # type: ignore[attr-defined]

    assert await used() == 0
    await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())
    first = await used()
    assert first > 0
    while await used() == first:
        await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())


async def rest_of(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def revoke(api: Api, client: Client) -> None:
    request = admin_pb2.RevokeApiKeyRequest(prefix=client.prefix)  # type: ignore[attr-defined]
    await api["op"].admin.RevokeApiKey(request)


async def test_an_open_stream_ends_with_its_key(api: Api) -> None:
    client = await key(api, "ada")
    streams = [c.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0)) for c in (client, api["ada"])]
    for stream in streams:
        await stream.read()
    await revoke(api, client)
    async with asyncio.timeout(10):
        assert await reason(rest_of(streams[0])) == "KEY_REVOKED"
    job_id = await api["ada"].submit()
    assert (await streams[1].read()).events[0].job_id == job_id
    streams[1].cancel()


async def test_an_open_stream_ends_when_its_key_expires(api: Api) -> None:
    client = await key(api, "ada", expire_time_ms=api.control_plane.engine.state.now() + 1_500)
    stream = client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    await stream.read()
    assert await reason(rest_of(stream)) == "KEY_EXPIRED"


async def test_an_open_stream_ends_when_the_role_of_its_user_changes(api: Api) -> None:
    stream = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    await stream.read()
    user = admin_pb2.User(id="ada", institution="uni-a", role=common_pb2.ROLE_FINANCE)
    await api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user))
    assert await reason(rest_of(stream)) == "ROLE_NOT_ALLOWED"
    stream = api["ann"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    await stream.read()
    user = admin_pb2.User(id="ann", institution="uni-a", role=common_pb2.ROLE_RESEARCHER)
    await api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user))
    assert await reason(rest_of(stream)) == "RIGHTS_CHANGED"


async def test_an_agent_whose_key_is_revoked_is_cut_off(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    keys = (await api["op"].admin.ListApiKeys(admin_pb2.ListApiKeysRequest())).keys
    prefix = next(one.prefix for one in keys if one.region == "east")
    await api["op"].admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(prefix=prefix))
    async with asyncio.timeout(10):
        assert await reason(rest_of(agent.call)) == "KEY_REVOKED"


async def test_an_upload_ends_with_its_key(api: Api) -> None:
    client = await key(api, "ada")
    call = client.jobs.UploadBlob()
    await call.write(jobs_pb2.UploadBlobRequest(digest=f"sha256:{'a' * 64}", data=b"x"))
    gate = api.server._gate
    await until(api, lambda: bool(gate._streams))
    await revoke(api, client)
    await until(api, lambda: any(stream.failure for stream in gate._streams.values()))
    await call.write(jobs_pb2.UploadBlobRequest(data=b"x"))
    assert await reason(call) == "KEY_REVOKED"


async def until(api: Api, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await api["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest())


async def test_a_call_that_ends_leaves_no_stream_behind(api: Api) -> None:
    streams = [api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0)) for _ in range(5)]
    for stream in streams:
        await stream.read()
    gate = api.server._gate
    assert len(gate._streams) == 5
    for stream in streams:
        stream.cancel()
    await until(api, lambda: not gate._streams)
