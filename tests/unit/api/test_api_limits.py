"""Limits on callers, over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from protos.suanli.v1 import admin_pb2, jobs_pb2, usage_pb2
from scheduler.api.limiting import HEAVY, Limiting
from scheduler.api.metrics import Metrics
from scheduler.api.permissions import PERMISSIONS, Role, Scope
from scheduler.api.visibility import Caller
from scheduler.domain.errors import ResourceExhausted
from scheduler.domain.records import RegionRecord
from scheduler.domain.resources import ZERO
from scheduler.governance.limits import Limits
from scheduler.service.contract import RegionStatus
from scheduler.service.state import Settings
from tests.support.api import Agent, Api, digest_of, info_of, running_api

Code = grpc.StatusCode
MIB = 1 << 20
TIGHT = Limits(
    user_calls_per_s=1,
    user_calls_burst=3,
    user_heavy_calls_per_s=1,
    user_heavy_calls_burst=1,
    user_streams=2,
    user_upload_mib_per_day=1,
    unary_deadline_ms=50,
)


@pytest.fixture
async def tight(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path, limits=TIGHT, settings=Settings(max_project_jobs=3)) as api:
        yield api


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    return caught.value


def limited(api: Api, method: str, limit: str) -> float | None:
    labels = {"method": f"suanli.v1.{method}", "limit": limit}
    return api.metrics.registry.get_sample_value("suanli_rpc_limited_total", labels)


async def test_too_many_calls_are_told_when_to_come_again(tight: Api) -> None:
    for _ in range(3):
        await tight["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
    error = await refused(tight["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest()))
    assert (info_of(error).reason, info_of(error).metadata["limit"]) == ("RATE_LIMITED", "user_calls")
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert 0 < retry.retry_delay.ToMilliseconds() <= 1000
    assert "try again in" in error.details()
    assert limited(tight, "AdminService/WhoAmI", "user_calls") == 1
    # Others are not disturbed, and the heavy calls are counted apart.
    await tight["abe"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
    await tight["ada"].usage.GetUsage(usage_pb2.GetUsageRequest())
    error = await refused(tight["ada"].usage.GetUsage(usage_pb2.GetUsageRequest()))
    assert info_of(error).metadata["limit"] == "user_heavy_calls"


async def test_streams_are_counted_until_they_end(tight: Api) -> None:
    def watch() -> Any:
        return tight["ben"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))

    held = [watch(), watch()]
    for stream in held:
        await stream.read()
    error = await refused(watch().read())
    assert info_of(error).metadata["limit"] == "user_streams"
    assert limited(tight, "JobService/WatchJobs", "user_streams") == 1
    limiter = tight.server._gate._limiting._limiter
    assert limiter._streams == {("user", "ben"): 2, ("institution", "uni-b"): 2}
    for stream in held:
        stream.cancel()
    async with asyncio.timeout(10):
        while limiter._streams:
            await tight["op"].channel.unary_unary("/suanli.v1.X/Y")(b"", timeout=5, wait_for_ready=True).code()


async def test_an_upload_over_the_day_is_cut_short(tight: Api) -> None:
    def blob(size: int) -> Any:
        data = b"x" * size
        parts = [jobs_pb2.UploadBlobRequest(digest=digest_of(data))]
        parts += [jobs_pb2.UploadBlobRequest(data=data[at : at + MIB]) for at in range(0, size, MIB)]
        return tight["ada"].jobs.UploadBlob(iter(parts))

    await blob(MIB)
    error = await refused(blob(MIB // 2))
    assert info_of(error).metadata["limit"] == "user_upload_day"
    assert list(tight.uploads.iterdir()) == []
    await tight["abe"].jobs.UploadBlob(iter([jobs_pb2.UploadBlobRequest(digest=digest_of(b"a"), data=b"a")]))


async def test_a_call_without_a_deadline_gets_one(tight: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def stuck(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(tight.control_plane, "list_regions", stuck)
    call = tight["op"].channel.unary_unary("/suanli.v1.AdminService/ListRegions")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=tight["op"].metadata)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert info_of(caught.value).reason == "DEADLINE_EXCEEDED"
    assert ended.is_set()


async def test_a_failure_of_time_within_a_call_is_not_its_deadline(tight: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(tight.control_plane, "list_regions", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tight["op"].channel.unary_unary("/suanli.v1.AdminService/ListRegions")(b"", metadata=tight["op"].metadata)
    assert caught.value.code() is Code.INTERNAL


async def test_a_project_without_a_quota_is_bounded_too(tight: Api) -> None:
    await tight["ada"].submit(array=jobs_pb2.ArraySpec(size=3))
    assert info_of(await refused(tight["ada"].submit())).reason == "QUOTA_JOBS"
    quota = admin_pb2.Quota(institution="uni-a", project="default", cpu_milli=-1, memory_mib=-1, gpu_milli=-1)
    quota.pending_jobs = 4
    await tight["op"].admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))
    await tight["abe"].submit()
    assert info_of(await refused(tight["abe"].submit())).reason == "QUOTA_JOBS"


async def test_an_agent_is_never_limited(tight: Api) -> None:
    agent = Agent(tight)
    await agent.enrol()
    for _ in range(5):
        assert (await agent.client.admin.WhoAmI(admin_pb2.WhoAmIRequest())).role == Role.AGENT


async def test_what_a_compressed_message_holds_is_bounded_too(tight: Api) -> None:
    channel = grpc.aio.insecure_channel(tight.address, options=[("grpc.max_send_message_length", -1)])
    call = channel.unary_unary("/suanli.v1.JobService/SubmitJobs")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * (17 * MIB), metadata=tight["ada"].metadata, timeout=20, compression=grpc.Compression.Gzip)
    await channel.close()
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert "Decompressed" in caught.value.details()


async def test_an_answer_is_bounded(tight: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(*_: object) -> list[object]:
        return [RegionStatus(RegionRecord("r" * (65 * MIB), "", 0, "", 0, 0), False, 0, ZERO, ZERO, 0)]

    monkeypatch.setattr(tight.control_plane, "list_regions", endless)
    error = await refused(tight["op"].admin.ListRegions(admin_pb2.ListRegionsRequest()))
    assert "larger than max" in error.details()


@pytest.mark.parametrize(
    ("limits", "burst", "sentence"),
    [
        (Limits(user_calls_per_s=1, user_calls_burst=1), 1, "You have made as many calls"),
        (
            Limits(institution_calls_per_s=1, institution_calls_burst=20),
            20,
            "Your institution has made as many calls",
        ),
    ],
)
def test_the_sentence_says_who_and_how_long(limits: Limits, burst: int, sentence: str) -> None:
    limiting = Limiting(limits, Metrics(), lambda: 0)
    caller = Caller("ada", "uni-a", int(Role.RESEARCHER), "", Scope.OWN)
    for _ in range(burst):
        limiting.enter("suanli.v1.JobService/GetJob", caller, False)
    with pytest.raises(ResourceExhausted, match=sentence) as caught:
        limiting.enter("suanli.v1.JobService/GetJob", caller, False)
    assert "1,000 ms" in caught.value.message


def test_the_defaults_let_normal_use_through() -> None:
    limiting = Limiting(Limits(), Metrics(), lambda: 0)
    caller = Caller("ada", "uni-a", int(Role.RESEARCHER), "", Scope.OWN)
    for _ in range(10_000):
        limiting.enter("suanli.v1.JobService/SubmitJobs", caller, False)
        limiting.enter("suanli.v1.JobService/GetJob", caller, False)
    for _ in range(1_000):
        limiting.enter("suanli.v1.JobService/ExplainJob", caller, False)
    for _ in range(200):
        limiting.enter("suanli.v1.JobService/WatchJobs", caller, True)


def test_heavy_calls_exist() -> None:
    assert set(PERMISSIONS) >= HEAVY
