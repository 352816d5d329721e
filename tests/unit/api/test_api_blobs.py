"""Blobs and results."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from protos.suanli.v1 import jobs_pb2
from tests.support.api import Agent, Api, digest_of, info_of, running_api
from tests.unit.api.test_api_tenancy import failure

Code = grpc.StatusCode
MIB = 1 << 20


def upload(api: Api, digest: str, *chunks: bytes):
    messages = [jobs_pb2.UploadBlobRequest(data=chunk) for chunk in chunks]
    messages.insert(0, jobs_pb2.UploadBlobRequest(digest=digest))
    return api["ada"].jobs.UploadBlob(iter(messages))


async def missing(api: Api, *digests: str) -> list[str]:
    response = await api["ada"].jobs.FindMissingBlobs(jobs_pb2.FindMissingBlobsRequest(digests=digests))
    return list(response.digests)


def leftovers(api: Api) -> list[Path]:
    return list(api.uploads.iterdir()) if api.uploads.exists() else []


async def test_a_blob_is_stored_once_whole(api: Api) -> None:
    data = b"abc" * 500_000
    digest, other = digest_of(data), digest_of(b"other")
    assert await missing(api, other, digest) == [other, digest]
    response = await upload(api, digest, data[:MIB], data[MIB:])
    assert (response.digest, response.size_bytes) == (digest, len(data))
    assert await missing(api, other, digest) == [other]
    assert (await upload(api, digest, data[:MIB], data[MIB:])).size_bytes == len(data)
    assert (await upload(api, digest_of(b""))).size_bytes == 0
    assert leftovers(api) == []


@pytest.mark.parametrize(
    ("digest", "chunks", "code", "field"),
    [
        (digest_of(b"abc"), [b"abd"], Code.INVALID_ARGUMENT, "digest"),
        ("sha256:abc", [b"abd"], Code.INVALID_ARGUMENT, "digest"),
        ("", [b"abd"], Code.INVALID_ARGUMENT, "digest"),
        (digest_of(b"x" * (MIB + 1)), [b"x" * (MIB + 1)], Code.INVALID_ARGUMENT, "data"),
        (digest_of(b"x" * (4 * MIB)), [b"x" * MIB] * 4, Code.RESOURCE_EXHAUSTED, "data"),
    ],
)
async def test_what_is_not_right_leaves_nothing(
    api: Api, digest: str, chunks: list[bytes], code: grpc.StatusCode, field: str
) -> None:
    error = await failure(upload(api, digest, *chunks))
    assert error.code() is code
    assert info_of(error).metadata["field"] == field
    assert leftovers(api) == []
    assert [path.name for path in api.store.root.iterdir()] == []


async def test_an_upload_that_breaks_off_leaves_nothing(api: Api) -> None:
    data = b"x" * 1000
    call = api["ada"].jobs.UploadBlob()
    await call.write(jobs_pb2.UploadBlobRequest(digest=digest_of(data), data=data[:10]))
    async with asyncio.timeout(10):
        while not leftovers(api):
            await missing(api)
    call.cancel()
    async with asyncio.timeout(10):
        while leftovers(api):
            await missing(api)
    assert await missing(api, digest_of(data)) == [digest_of(data)]


async def test_uploads_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.api.blobs.MAX_UPLOADS", 0)
    assert info_of(await failure(upload(api, digest_of(b"a"), b"a"))).reason == "UPLOADS"


async def test_an_upload_that_stands_still_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.api.blobs.IDLE_TIMEOUT_S", 0.05)
    call = api["ada"].jobs.UploadBlob()
    await call.write(jobs_pb2.UploadBlobRequest(digest=digest_of(b"abc"), data=b"a"))
    assert (await failure(call)).code() is Code.INVALID_ARGUMENT
    assert leftovers(api) == []


async def test_digests_are_checked_and_bounded(api: Api) -> None:
    for digests, field in ((["x"], "digests[0]"), ([digest_of(b"")] * 10_001, "digests")):
        error = await failure(api["ada"].jobs.FindMissingBlobs(jobs_pb2.FindMissingBlobsRequest(digests=digests)))
        assert info_of(error).metadata["field"] == field


async def test_results_are_listed_and_fetched(api: Api) -> None:
    big = bytes(range(256)) * 10_000
    files = {"big.bin": big, "empty.txt": b"", "sub/résumé.csv": b"1,2\n"}
    entries = [(path, api.store.put(data), len(data)) for path, data in sorted(files.items())]
    manifest = api.store.put(json.dumps(entries).encode())
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job_id = await api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    assert list((await api["ada"].jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=job_id))).files) == []
    await agent.finished(launch, results=manifest)
    listed = await api["ada"].jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=job_id))
    assert listed.manifest == manifest
    assert [(f.path, f.digest, f.size_bytes) for f in listed.files] == entries
    for path, data in files.items():
        assert await fetched(api, job_id, path) == data
    assert await fetched(api, job_id, "big.bin", 1_500_000) == big[1_500_000:]
    for path, offset, code in (("nope", 0, Code.NOT_FOUND), ("big.bin", len(big) + 1, Code.INVALID_ARGUMENT)):
        request = jobs_pb2.DownloadResultRequest(job_id=job_id, path=path, offset=offset)
        assert (await failure(api["ada"].jobs.DownloadResult(request))).code() is code
    for path in api.store.root.iterdir():
        path.unlink()
    error = await failure(api["ada"].jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=job_id)))
    assert info_of(error).reason == "ARTIFACT_NOT_FOUND"


async def fetched(api: Api, job_id: str, path: str, offset: int = 0) -> bytes:
    request = jobs_pb2.DownloadResultRequest(job_id=job_id, path=path, offset=offset)
    data, at = b"", offset
    async for part in api["ada"].jobs.DownloadResult(request):
        assert part.offset == at
        assert len(part.data) <= MIB
        data += part.data
        at += len(part.data)
    return data


async def test_a_storage_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> bool:
        raise ConnectionRefusedError("s3.example.org says no")

    async with running_api(tmp_path) as api:
        digest = await api["ada"].upload(b"")
        monkeypatch.setattr(api.store, "has", away)
        digests = jobs_pb2.FindMissingBlobsRequest(digests=[digest])
        error = await failure(api["ada"].jobs.FindMissingBlobs(digests))
        assert error.code() is Code.UNAVAILABLE
        assert "example" not in error.details()
