"""What one institution, and one person, may know of another's."""

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, regions_pb2
from tests.support.api import Agent, Api, info_of

Code = grpc.StatusCode


async def failure(call) -> grpc.aio.AioRpcError:
    """How a call, unary or of a stream, fails."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def about(job_id: str) -> dict[str, object]:
    """Every call that names a job."""
    return {
        "GetJob": jobs_pb2.GetJobRequest(job_id=job_id),
        "ExplainJob": jobs_pb2.ExplainJobRequest(job_id=job_id),
        "CancelJobs": jobs_pb2.CancelJobsRequest(job_ids=[job_id]),
        "WatchJobs": jobs_pb2.WatchJobsRequest(job_ids=[job_id]),
        "TailLogs": jobs_pb2.TailLogsRequest(job_id=job_id),
        "ListResults": jobs_pb2.ListResultsRequest(job_id=job_id),
        "DownloadResult": jobs_pb2.DownloadResultRequest(job_id=job_id, path="x"),
    }


@pytest.mark.parametrize("user", ["bob", "ben"])
async def test_another_institutions_job_is_as_if_it_were_not_there(api: Api, user: str) -> None:
    theirs = await api["ada"].submit()
    array = await api["ada"].submit(array=jobs_pb2.ArraySpec(size=3))
    for job_id in (theirs, array, f"{array}.1", f"{array}.7"):
        for name, request in about(job_id).items():
            error = await failure(getattr(api[user].jobs, name)(request))
            unknown = "j" + "0" * len(job_id[1:])
            reference = await failure(getattr(api[user].jobs, name)(about(unknown)[name]))
            assert error.code() is Code.NOT_FOUND, name
            assert error.details().replace(job_id, unknown) == reference.details(), name
            assert info_of(error) == info_of(reference)


async def test_a_batch_does_not_tell_either(api: Api) -> None:
    theirs, mine = await api["ada"].submit(), await api["bob"].submit()
    for first, second in ((theirs, "junknown"), ("junknown", theirs)):
        request = jobs_pb2.CancelJobsRequest(job_ids=[mine, first, second])
        error = await failure(api["bob"].jobs.CancelJobs(request))
        assert error.code() is Code.NOT_FOUND
        assert first in error.details()
    assert (await api["bob"].job(mine)).state == common_pb2.JOB_STATE_QUEUED


async def test_lists_and_streams_hold_the_own_institution_alone(api: Api) -> None:
    await api["ada"].submit(name="a")
    await api["bob"].submit(name="b")
    own = await api["bob"].jobs.ListJobs(jobs_pb2.ListJobsRequest())
    assert [job.spec.name for job in own.jobs] == ["b"]
    everything = await api["op"].jobs.ListJobs(jobs_pb2.ListJobsRequest())
    assert [job.spec.name for job in everything.jobs] == ["b", "a"]
    stream = api["bob"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    page = await stream.read()
    assert {event.institution for event in page.events} == {"uni-b"}
    stream.cancel()
    for institution in ("uni-a", "no-such"):
        listing = jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(institution=institution))
        error = await failure(api["bob"].jobs.ListJobs(listing))
        assert error.code() is Code.PERMISSION_DENIED
        watch = jobs_pb2.WatchJobsRequest(institution=institution)
        assert (await failure(api["bob"].jobs.WatchJobs(watch))).code() is Code.PERMISSION_DENIED


async def test_nobody_submits_for_another_institution(api: Api) -> None:
    for institution in ("uni-a", "no-such"):
        error = await failure(api["bob"].submit(institution=institution))
        assert error.code() is Code.PERMISSION_DENIED
        assert info_of(error).metadata["field"] == "jobs[0].institution"
    assert await api["op"].submit(institution="uni-a")
    assert (await failure(api["op"].submit())).code() is Code.INVALID_ARGUMENT


async def test_colleagues_see_jobs_and_leave_them_alone(api: Api) -> None:
    job_id = await api["ada"].submit()
    assert (await api["abe"].job(job_id)).user == "ada"
    for name in ("CancelJobs", "TailLogs", "ListResults", "DownloadResult"):
        error = await failure(getattr(api["abe"].jobs, name)(about(job_id)[name]))
        assert error.code() is Code.PERMISSION_DENIED, name
        assert info_of(error).reason == "NOT_YOUR_JOB"
    cancelled = await api["ann"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_id, job_id], reason="no"))
    assert list(cancelled.cancelling) == [job_id]
    again = await api["ada"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_id]))
    assert list(again.already_ended) == [job_id]


async def test_an_institutions_admin_makes_no_operator_and_touches_no_other_institution(api: Api) -> None:
    admin = api["ann"].admin

    def user(user_id: str, institution: str, role: int) -> admin_pb2.PutUserRequest:
        return admin_pb2.PutUserRequest(user=admin_pb2.User(id=user_id, institution=institution, role=role))

    refused = [
        admin.PutUser(user("eve", "", common_pb2.ROLE_OPERATOR)),
        admin.PutUser(user("eve", "", common_pb2.ROLE_FINANCE)),
        admin.PutUser(user("eve", "uni-b", common_pb2.ROLE_RESEARCHER)),
        admin.PutUser(user("bob", "uni-a", common_pb2.ROLE_RESEARCHER)),
        admin.PutUser(user("op", "uni-a", common_pb2.ROLE_RESEARCHER)),
        admin.PutProject(admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution="uni-b", id="p"))),
        admin.SetQuota(admin_pb2.SetQuotaRequest(quota=admin_pb2.Quota(institution="uni-b", project="default"))),
        admin.SetQuota(admin_pb2.SetQuotaRequest(quota=admin_pb2.Quota(institution="uni-a"))),
        admin.ListUsers(admin_pb2.ListUsersRequest(institution="uni-b")),
        admin.ListApiKeys(admin_pb2.ListApiKeysRequest(institution="uni-b")),
    ]
    for call in refused:
        assert (await failure(call)).code() is Code.PERMISSION_DENIED
    for wrong in (user("eve", "uni-a", common_pb2.ROLE_OPERATOR), user("eve", "uni-a", common_pb2.ROLE_AGENT)):
        assert (await failure(admin.PutUser(wrong))).code() is Code.INVALID_ARGUMENT
    await admin.PutUser(user("eve", "uni-a", common_pb2.ROLE_RESEARCHER))
    listed = await admin.ListUsers(admin_pb2.ListUsersRequest())
    assert {u.id for u in listed.users} == {"ada", "abe", "ann", "fay", "eve", "lea", "aud", "sam", "sue"}


async def test_keys_are_made_for_those_one_manages(api: Api) -> None:
    def make(user: str) -> admin_pb2.CreateApiKeyRequest:
        return admin_pb2.CreateApiKeyRequest(user=user)

    assert (await api["ann"].admin.CreateApiKey(make("ada"))).key.user == "ada"
    assert (await api["ada"].admin.CreateApiKey(make(""))).key.user == "ada"
    for caller, user in (("ada", "abe"), ("ada", "op"), ("ann", "bob"), ("ann", "op"), ("ann", "nobody-such")):
        assert (await failure(api[caller].admin.CreateApiKey(make(user)))).code() is Code.NOT_FOUND
    keys = await api["ada"].admin.ListApiKeys(admin_pb2.ListApiKeysRequest())
    assert {key.user for key in keys.keys} == {"ada"}
    other = (await api["bob"].admin.ListApiKeys(admin_pb2.ListApiKeysRequest())).keys[0].prefix
    colleague = (await api["abe"].admin.ListApiKeys(admin_pb2.ListApiKeysRequest())).keys[0].prefix
    for caller, prefix in (("ada", other), ("ada", colleague), ("ann", other), ("ann", "nosuchprefix")):
        error = await failure(api[caller].admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(prefix=prefix)))
        assert error.code() is Code.NOT_FOUND
    assert (await api["ann"].admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(prefix=colleague))).key.revoked


async def test_an_agent_speaks_for_its_region_only(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    call = agent.client.regions.Connect(timeout=10)
    hello = regions_pb2.Hello(region="west", boot_id="b", spool_id="s", protocol_version=1)
    await call.write(regions_pb2.ConnectRequest(hello=hello))
    assert info_of(await failure(call)).reason == "OTHER_REGION"
    call = agent.client.regions.Connect(timeout=10)
    hello = regions_pb2.Hello(region="east", boot_id="b", spool_id="s", protocol_version=2)
    await call.write(regions_pb2.ConnectRequest(hello=hello))
    assert info_of(await failure(call)).reason == "PROTOCOL_VERSION"
    call = agent.client.regions.Connect(timeout=10)
    await call.write(regions_pb2.ConnectRequest(events=regions_pb2.AttemptEvents()))
    assert info_of(await failure(call)).reason == "NO_HELLO"
    with pytest.raises(grpc.aio.AioRpcError):
        await agent.client.admin.ListUsers(admin_pb2.ListUsersRequest())
