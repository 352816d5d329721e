"""Who may use, see and delete what is stored, and how much may be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, artifacts_pb2, data_pb2, jobs_pb2
from scheduler.governance.limits import Limits
from scheduler.service.ids import WallClock
from scheduler.service.people import KeyLimits
from scheduler.service.ports import AuditQuery
from scheduler.store.memory import MemoryStore
from tests.support.api import LED, Agent, Api, Client, digest_of, info_of, running_api
from tests.unit.api.test_api_tenancy import failure

Code = grpc.StatusCode
MIB = 1 << 20
Kind = artifacts_pb2.ArtifactKind


async def missing(client: Client, *digests: str) -> list[str]:
    return list((await client.jobs.FindMissingBlobs(jobs_pb2.FindMissingBlobsRequest(digests=digests))).digests)


async def refusal(client: Client, folder: str) -> tuple[object, str]:
    error = await failure(client.submit(working_folder=folder))
    return error.code(), error.details().replace(folder, "…")


async def ended(api: Api, user: str, agent: Agent, files: dict[str, bytes], **spec: Any) -> str:
    """A job that left these results, and logs."""
    job_id = await api[user].submit(**spec)
    launch = await agent.launch()
    await agent.started(launch)
    entries = [(path, api.store.put(data), len(data)) for path, data in sorted(files.items())]
    logs = [("stdout.log", api.store.put(b"log"), 3)]
    await agent.finished(
        launch, results=api.store.put(json.dumps(entries).encode()), logs=api.store.put(json.dumps(logs).encode())
    )
    return job_id


@pytest.fixture
async def agent(api: Api) -> Agent:
    found = Agent(api)
    await found.enrol()
    await found.connect()
    return found


async def listed(client: Client, **values: Any) -> list[artifacts_pb2.Artifact]:
    order = values.pop("order", artifacts_pb2.ARTIFACT_ORDER_NEWEST)
    found: list[artifacts_pb2.Artifact] = []
    request = artifacts_pb2.ListArtifactsRequest(
        filter=artifacts_pb2.ArtifactFilter(**values), order=order, page_size=2
    )
    while True:
        page = await client.artifacts.ListArtifacts(request)
        found += page.artifacts
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def delete(client: Client, validate_only: bool = False, **values: Any) -> artifacts_pb2.DeleteArtifactsResponse:
    chosen = artifacts_pb2.ArtifactFilter(**values)
    return await client.artifacts.DeleteArtifacts(
        artifacts_pb2.DeleteArtifactsRequest(filter=chosen, reason="why", validate_only=validate_only)
    )


async def set_quota(client: Client, project: str = "", **limits: int) -> None:
    quota = admin_pb2.Quota(
        institution="uni-a", project=project, cpu_milli=-1, memory_mib=-1, gpu_milli=-1, pending_jobs=-1, **limits
    )
    await client.admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))


# --- access -----------------------------------------------------------------------------------------------------------


async def test_what_another_institution_holds_is_as_if_it_were_not_there(api: Api) -> None:
    data, unknown = b"of uni-a", digest_of(b"nobody's")
    digest = await api["ada"].upload(data)
    folder = await api["ada"].upload_folder({"main.py": data})
    assert await missing(api["abe"], digest, folder, unknown) == [unknown]
    assert await missing(api["bob"], digest, folder, unknown) == [digest, folder, unknown]
    assert await refusal(api["bob"], folder) == await refusal(api["bob"], unknown)
    await api["abe"].submit(working_folder=folder)

    # Whoever proves that they have it, by sending it, has it, too.
    assert await api["bob"].upload_folder({"main.py": data}) == folder
    assert await missing(api["bob"], digest, folder) == []
    await api["bob"].submit(working_folder=folder)


async def test_a_manifest_that_names_what_others_hold_opens_nothing(api: Api) -> None:
    secret = await api["ada"].upload(b"secret")
    forged = await api["bob"].upload(json.dumps([("stolen", secret, 6)]).encode())
    assert await missing(api["bob"], forged) == []
    assert await refusal(api["bob"], forged) == await refusal(api["bob"], digest_of(b"nobody's"))
    assert await listed(api["bob"], digests=[secret]) == []
    assert (await delete(api["bob"], digests=[secret])).items == 0
    assert await missing(api["ada"], secret) == []


async def test_results_may_be_used_by_who_may_read_them(api: Api, agent: Agent) -> None:
    job_id = await ended(api, "abe", agent, {"model": b"weights"})
    folder = (await api["abe"].job(job_id)).results
    nothing = await refusal(api["ada"], digest_of(b"nobody's"))
    # A colleague knows the digest, and may not read the results.
    assert (await api["ada"].job(job_id)).results == folder
    assert await refusal(api["ada"], folder) == nothing
    assert await refusal(api["bob"], folder) == nothing
    assert await refusal(api["lea"], folder) == nothing
    for user in ("abe", "ann"):
        assert await api[user].submit(working_folder=folder)
    assert await api["op"].submit(working_folder=folder, institution="uni-b")
    # One who has the content can send it.
    assert await missing(api["ada"], folder) == [folder]
    await api["ada"].upload_folder({"model": b"weights"})
    assert await api["ada"].submit(working_folder=folder)


async def test_a_lead_may_use_what_the_projects_jobs_left(api: Api, agent: Agent) -> None:
    job_id = await ended(api, "abe", agent, {"model": b"weights"}, project=LED)
    folder = (await api["abe"].job(job_id)).results
    assert await api["lea"].submit(working_folder=folder)
    assert [one.job_id for one in await listed(api["lea"], kinds=[Kind.ARTIFACT_KIND_RESULT])] == [job_id]
    assert await listed(api["ada"]) == []


async def test_results_of_sensitive_data_are_no_working_folder(api: Api, agent: Agent) -> None:
    one = data_pb2.DataSet(name="census", version="1", home_region="east", classification=4)
    await api["sam"].data.PutDataSet(data_pb2.PutDataSetRequest(data_set=one))
    job_id = await ended(api, "abe", agent, {"a": b"1"})
    folder = (await api["abe"].job(job_id)).results
    plane = api.control_plane
    real = plane.outputs_of
    census = await plane.get_data_set("census", "uni-a")

    async def outputs_of(record: Any) -> Any:
        found = await real(record)
        return found._replace(inputs=[census], not_exportable=[census]) if record.job_id == job_id else found

    plane.outputs_of = outputs_of  # type: ignore[method-assign]
    error = await failure(api["abe"].submit(working_folder=folder))
    assert info_of(error).reason == "RESULTS_NOT_EXPORTABLE"


async def test_a_key_of_one_project_sees_that_project_only(api: Api) -> None:
    folder = await api["ada"].upload_folder({"a": b"1"})
    for project, expected in (("default", []), (LED, [folder])):
        _, key = await api.control_plane.create_api_key("ada", "", 0, "test", KeyLimits(project=project))
        client = api.clients[f"ada-{project}"] = Client(api.address, key)
        assert await missing(client, folder) == expected
        if expected:
            assert info_of(await failure(client.submit(working_folder=folder))).metadata["field"].endswith("folder")
            mine = await client.upload(b"mine")
            assert [one.digest for one in await listed(client)] == [mine]
            assert [one.project for one in await listed(api["ada"], digests=[mine])] == [LED]


async def test_what_was_deleted_must_be_sent_again(api: Api) -> None:
    folder = await api["ada"].upload_folder({"a": b"1"})
    await api["ada"].jobs.CancelJobs(
        jobs_pb2.CancelJobsRequest(job_ids=[await api["ada"].submit(working_folder=folder)])
    )
    assert (await delete(api["ada"], digests=[digest_of(b"1")])).items == 1
    assert await refusal(api["ada"], folder) == await refusal(api["ada"], digest_of(b"nobody's"))
    await api["ada"].upload(b"1")
    assert await api["ada"].submit(working_folder=folder)


# --- list and delete --------------------------------------------------------------------------------------------------


async def test_lists_show_what_the_caller_may_see(api: Api, agent: Agent) -> None:
    job_id = await ended(api, "ada", agent, {"a": b"1"})
    small, large = await api["ada"].upload(b"s"), await api["ada"].upload(b"l" * 1000)
    await api["abe"].upload(b"abe's")
    await api["bob"].upload(b"bob's")
    own = await listed(api["ada"])
    assert [one.digest for one in own[:2]] in ([large, small], [small, large])
    assert {(one.kind, one.job_id, one.attempt) for one in own} == {
        (Kind.ARTIFACT_KIND_UPLOAD, "", 0),
        (Kind.ARTIFACT_KIND_RESULT, job_id, 0),
        (Kind.ARTIFACT_KIND_LOG, job_id, 1),
    }
    assert [one.size_bytes for one in own if one.job_id] == [-1, -1]
    by_size = await listed(api["ada"], order=artifacts_pb2.ARTIFACT_ORDER_LARGEST)
    assert [one.size_bytes for one in by_size] == [1000, 1, -1, -1]
    assert {one.user for one in await listed(api["ann"])} == {"ada", "abe"}
    assert {one.user for one in await listed(api["aud"])} == {"ada", "abe"}
    assert len(await listed(api["ada"], job_ids=[job_id])) == 2
    assert len(await listed(api["op"], job_ids=[job_id])) == 2
    assert info_of(await failure(listed(api["op"]))).reason == "NO_INSTITUTION"
    assert info_of(await failure(listed(api["abe"], job_ids=[job_id]))).reason == "NOT_YOUR_JOB"
    assert info_of(await failure(listed(api["bob"], job_ids=[job_id]))).reason == "JOB_NOT_FOUND"


async def test_results_and_logs_that_were_deleted_are_said_to_be(api: Api, agent: Agent) -> None:
    job_id = await ended(api, "ada", agent, {"a": b"1"})
    tried = await delete(api["ada"], True, job_ids=[job_id])
    assert (tried.items, len(await listed(api["ada"]))) == (2, 2)
    assert (await failure(delete(api["abe"], job_ids=[job_id]))).code() is Code.PERMISSION_DENIED
    assert (await delete(api["ada"], job_ids=[job_id])).items == 2
    assert (await delete(api["ada"], job_ids=[job_id])).items == 0
    results = jobs_pb2.ListResultsRequest(job_id=job_id)
    assert info_of(await failure(api["ada"].jobs.ListResults(results))).reason == "RESULTS_DELETED"
    logs = api["ada"].jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job_id))
    assert info_of(await failure(logs)).reason == "LOGS_DELETED"


async def test_what_an_unfinished_job_left_or_needs_is_kept(api: Api, agent: Agent) -> None:
    folder = await api["ada"].upload_folder({"a": b"1", "b": b"2"})
    other = await api["ada"].upload(b"3")
    job_id = await api["ada"].submit(working_folder=folder)
    launch = await agent.launch()
    await agent.started(launch)
    await agent.event(launch, checkpointed={"checkpoint": api.store.put(b"[]")})
    answer = await delete(api["ada"], kinds=[Kind.ARTIFACT_KIND_UPLOAD, Kind.ARTIFACT_KIND_CHECKPOINT])
    assert (answer.items, answer.kept) == (1, 4)
    assert await missing(api["ada"], folder, other) == [other]
    assert {one.job_id for one in await listed(api["ada"])} == {"", job_id}


async def test_an_array_stands_for_its_tasks(api: Api, agent: Agent) -> None:
    array = await ended(api, "ada", agent, {"a": b"1"}, array=jobs_pb2.ArraySpec(size=1))
    assert {one.job_id for one in await listed(api["ada"], job_ids=[array])} == {f"{array}.0"}
    assert (await delete(api["ada"], job_ids=[array])).items == 2


async def test_a_deletion_says_what(api: Api) -> None:
    error = await failure(delete(api["ada"], project="default"))
    assert info_of(error).metadata["field"] == "filter"
    many = [await api["ada"].upload(bytes([number])) for number in range(5)]
    await delete(api["ada"], digests=many)
    log = await api.control_plane.list_audit(AuditQuery(action="DeleteArtifacts", outcome=1))
    assert [(each.actor, each.on_behalf_of, each.reason, each.target) for each in log] == [
        ("ada", "uni-a", "why", "uni-a")
    ]
    assert sorted(json.loads(log[0].after)["digests"]) == sorted(many)


# --- quota ------------------------------------------------------------------------------------------------------------


async def test_an_upload_beyond_the_quota_is_refused_and_leaves_nothing(api: Api) -> None:
    await set_quota(api["op"], stored_mib=2)
    await api["ada"].upload(b"x" * MIB)
    for client in (api["ada"], api["abe"]):
        error = await failure(client.upload(b"y" * (MIB + 1)))
        info = info_of(error)
        assert (error.code(), info.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_STORED")
        assert (info.metadata["quota"], info.metadata["limit_bytes"]) == ("uni-a", str(2 * MIB))
        assert info.metadata["used_bytes"] == str(MIB)
        assert "suanli artifacts delete" in error.details()
    # What is held takes no more room when it is sent again; another institution's quota is another.
    await api["ada"].upload(b"x" * MIB)
    await api["bob"].upload(b"y" * (MIB + 1))
    await api["ada"].upload(b"z" * MIB)
    assert api.control_plane.engine.state.storage.incoming == {}
    assert [each.size_bytes for each in api.control_plane.storage_of("uni-a")] == [2 * MIB, 2 * MIB]


async def test_uploads_that_come_together_do_not_pass_the_quota_together(api: Api) -> None:
    await set_quota(api["op"], stored_mib=3)
    sent = [api["ada"].upload(bytes([number]) * MIB) for number in range(8)]
    done = await asyncio.gather(*sent, return_exceptions=True)
    assert sum(isinstance(each, str) for each in done) <= 3
    assert sum(each.size_bytes for each in await listed(api["ada"])) <= 3 * MIB
    same = [api["bob"].upload(b"same" * 1000) for _ in range(8)]
    await asyncio.gather(*same)
    assert [each.size_bytes for each in api.control_plane.storage_of("uni-b")] == [4000, 4000]


async def test_results_are_kept_above_the_quota_and_jobs_refused_until_it_is_freed(api: Api, agent: Agent) -> None:
    await set_quota(api["op"], stored_mib=1)
    launched = await api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    big = api.store.put(b"r" * (2 * MIB))
    manifest = api.store.put(json.dumps([("big", big, 2 * MIB)]).encode())
    await agent.finished(launch, results=manifest)
    plane = api.control_plane
    found = await plane.unmeasured(None, 9)
    await plane.note_sizes([(found[0], 2 * MIB)])
    files = (await api["ada"].jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=launched))).files
    assert [file.size_bytes for file in files] == [2 * MIB]
    error = await failure(api["ada"].submit())
    assert info_of(error).reason == "QUOTA_STORED"
    assert "the quota of institution" in error.details().lower()
    assert info_of(await failure(api["ada"].upload(b"1"))).reason == "QUOTA_STORED"
    assert await api["bob"].submit()
    shown = (await api["ann"].admin.ListQuotas(admin_pb2.ListQuotasRequest())).quotas[0]
    assert (shown.stored_mib, shown.stored_bytes) == (1, 2 * MIB)
    assert (await delete(api["ada"], job_ids=[launched])).size_bytes == 2 * MIB
    assert await api["ada"].submit()


async def test_who_may_set_a_quota_on_storage(api: Api) -> None:
    await set_quota(api["op"], stored_mib=100)
    assert (await failure(set_quota(api["ann"], stored_mib=200))).code() is Code.PERMISSION_DENIED
    await set_quota(api["ann"], LED, stored_mib=10)
    await set_quota(api["lea"], LED, stored_mib=2)
    assert info_of(await failure(set_quota(api["lea"], LED, stored_mib=3))).reason == "QUOTA_OF_INSTITUTION"
    # A client of an older release, which does not know of it, leaves it as it was.
    await set_quota(api["ann"], LED)
    await set_quota(api["lea"], LED)
    quotas = (await api["ann"].admin.ListQuotas(admin_pb2.ListQuotasRequest())).quotas
    assert {(each.project, each.stored_mib) for each in quotas} == {("", 100), (LED, 2)}
    error = await failure(api["ada"].upload(b"x" * (3 * MIB), project=LED))
    assert info_of(error).metadata["quota"] == f"uni-a/{LED}"
    assert info_of(await failure(api["ada"].upload(b"x", project="nope"))).reason == "PROJECT_NOT_FOUND"


async def test_storage_is_told_by_project(api: Api) -> None:
    await api["ada"].upload(b"12345")
    await api["ada"].upload(b"123", project=LED)
    await api["bob"].upload(b"1")
    await set_quota(api["op"], stored_mib=7)
    response = await api["fay"].artifacts.GetStorage(artifacts_pb2.GetStorageRequest())
    assert [(each.project, each.items, each.size_bytes, each.limit_mib) for each in response.storage] == [
        ("", 2, 8, 7),
        ("default", 1, 5, -1),
        (LED, 1, 3, -1),
    ]
    everybody = await api["op"].artifacts.GetStorage(artifacts_pb2.GetStorageRequest())
    assert {each.institution for each in everybody.storage} == {"uni-a", "uni-b"}


async def test_what_was_uploaded_in_a_day_counts_after_a_restart(tmp_path: Path) -> None:
    clock = WallClock()
    memory = MemoryStore(clock)
    limits = Limits(user_upload_mib_per_day=1, institution_upload_mib_per_day=2)
    async with running_api(tmp_path / "1", store=memory, limits=limits) as api:
        await api["ada"].upload(b"a" * (MIB - 10))
        await api["abe"].upload(b"b" * (MIB - 10))
    async with running_api(tmp_path / "2", store=memory, limits=limits) as api:
        await api.server.limiting.remember_uploads(api.control_plane, clock.now_ms())
        for user, limit in (("ada", "user_upload_day"), ("lea", "institution_upload_day")):
            error = await failure(api[user].upload(b"c" * 100_000))
            assert info_of(error).metadata["limit"] == limit
        await api["bob"].upload(b"c" * 100_000)
    async with running_api(tmp_path / "3", store=memory, limits=limits) as api:
        await api.server.limiting.remember_uploads(api.control_plane, clock.now_ms() + 25 * 3_600_000)
        await api["ada"].upload(b"d" * 100_000)


async def test_what_is_collected_while_it_is_sent_again_is_stored(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = api.control_plane
    real = plane.hold_uploads

    async def hold_uploads(*arguments: Any) -> None:
        await real(*arguments)
        api.store._path(digest_of(b"old")).unlink()

    monkeypatch.setattr(plane, "hold_uploads", hold_uploads)
    digest = await api["ada"].upload(b"old")
    assert api.store.has(digest)
