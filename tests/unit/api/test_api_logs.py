"""Logs, from the agent's stream to the reader."""

import asyncio
import itertools
import json

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, regions_pb2
from scheduler.api.logs import LogBroker, LogPull, LogTarget, RegionLink
from scheduler.domain.errors import NotFound, ResourceExhausted, Unavailable
from tests.support.api import Agent, Api, info_of
from tests.unit.api.test_api_tenancy import failure

OUT, ERR = jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR
TARGET = LogTarget("j1", 1, 0)


async def running_job(api: Api) -> tuple[Agent, regions_pb2.Launch]:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    await api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    return agent, launch


def tail(job_id: str, **more: object) -> jobs_pb2.TailLogsRequest:
    return jobs_pb2.TailLogsRequest(job_id=job_id, **more)


async def test_a_log_comes_through_and_ends(api: Api) -> None:
    agent, launch = await running_job(api)
    stream = api["ada"].jobs.TailLogs(tail(launch.job_id, follow=True))
    asked = {}
    for _ in range(2):
        request = (await agent.take("log_request")).log_request
        assert (request.job_id, request.attempt, request.rank, request.follow) == (launch.job_id, 1, 0, True)
        asked[request.stream] = request
    await agent.log(asked[OUT], 0, b"hello ")
    await agent.log(asked[ERR], 0, b"oops", end=True)
    await agent.log(asked[OUT], 6, b"x" * (2 << 20), end=True)
    got: dict[int, bytes] = {OUT: b"", ERR: b""}
    while (response := await stream.read()) is not grpc.aio.EOF:
        assert len(response.data) <= 1 << 20
        assert response.offset == len(got[response.stream])
        assert response.attempt == 1
        got[response.stream] += response.data
    assert got == {OUT: b"hello " + b"x" * (2 << 20), ERR: b"oops"}


async def test_a_reader_who_leaves_is_told_to_the_agent(api: Api) -> None:
    agent, launch = await running_job(api)
    stream = api["ada"].jobs.TailLogs(tail(launch.job_id, stream=OUT, offset=-5, follow=True))
    request = (await agent.take("log_request")).log_request
    assert (request.stream, request.offset) == (OUT, -5)
    await agent.log(request, 100, b"12345")
    assert (await stream.read()).offset == 100
    stream.cancel()
    assert (await agent.take("log_cancel")).log_cancel.request_id == request.request_id


async def test_what_the_agent_does_not_have_is_said(api: Api) -> None:
    agent, launch = await running_job(api)
    stream = api["ada"].jobs.TailLogs(tail(launch.job_id, stream=OUT))
    request = (await agent.take("log_request")).log_request
    await agent.log(request, 0, b"", error="the log was deleted")
    error = await failure(stream)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "the log was deleted" in error.details()


async def test_an_agent_that_is_away_or_goes_away_is_said(api: Api) -> None:
    agent, launch = await running_job(api)
    stream = api["ada"].jobs.TailLogs(tail(launch.job_id, follow=True))
    await agent.take("log_request")
    agent.call.cancel()
    error = await failure(stream)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(error).reason == "REGION_OFFLINE"
    error = await failure(api["ada"].jobs.TailLogs(tail(launch.job_id)))
    assert info_of(error).metadata["region"] == "east"
    assert not (await api["ada"].admin.ListRegions(admin_pb2.ListRegionsRequest())).regions[0].online


async def test_following_waits_for_the_start(api: Api) -> None:
    job_id = await api["ada"].submit()
    assert info_of(await failure(api["ada"].jobs.TailLogs(tail(job_id)))).reason == "NOT_STARTED"
    stream = api["ada"].jobs.TailLogs(tail(job_id, stream=OUT, follow=True))
    reading = asyncio.ensure_future(stream.read())
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    launch = await agent.launch()
    await agent.started(launch)
    request = (await agent.take("log_request")).log_request
    await agent.log(request, 0, b"late", end=True)
    async with asyncio.timeout(20):
        assert (await reading).data == b"late"
    await agent.finished(launch)
    again = api["ada"].jobs.TailLogs(tail(job_id, stream=OUT))
    request = (await agent.take("log_request")).log_request
    await agent.log(request, 0, b"kept", end=True)
    assert (await again.read()).data == b"kept"


async def test_following_a_job_that_never_starts_ends(api: Api) -> None:
    job_id = await api["ada"].submit()
    array_id = await api["ada"].submit(array=jobs_pb2.ArraySpec(size=3))
    streams = [api["ada"].jobs.TailLogs(tail(i, follow=True)) for i in (job_id, f"{array_id}.2")]
    ends = [asyncio.ensure_future(failure(stream)) for stream in streams]
    for _ in range(20):
        await api["ada"].job(job_id)
    await api["ada"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_id, array_id]))
    async with asyncio.timeout(20):
        for end in ends:
            assert info_of(await end).reason == "NOT_STARTED"
    assert (await api["ada"].job(job_id)).state == common_pb2.JOB_STATE_CANCELLED
    assert info_of(await failure(api["ada"].jobs.TailLogs(tail(array_id)))).reason == "IS_ARRAY"


@pytest.mark.parametrize(
    ("more", "field"),
    [({"rank": 1}, "rank"), ({"rank": -1}, "rank"), ({"attempt": -1}, "attempt"), ({"stream": 7}, "stream")],
)
async def test_a_faulty_request_names_its_field(api: Api, more: dict[str, int], field: str) -> None:
    _, launch = await running_job(api)
    error = await failure(api["ada"].jobs.TailLogs(tail(launch.job_id, **more)))
    assert info_of(error).metadata["field"] == field


async def kept_job(api: Api, files: dict[str, bytes], **changes: object) -> str:
    """A job that has ended and whose logs are stored; its agent is gone."""
    entries = [(path, api.store.put(data), len(data)) for path, data in files.items()]
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job_id = await api["ada"].submit(**changes)
    launch = await agent.launch()
    await agent.started(launch)
    await agent.finished(launch, logs=api.store.put(json.dumps(entries).encode()))
    agent.call.cancel()
    # The control plane has noticed when it says so.
    for _ in range(1000):
        if not (await api["ada"].admin.ListRegions(admin_pb2.ListRegionsRequest())).regions[0].online:
            return job_id
    raise AssertionError("the agent is still there")


async def read_all(api: Api, job_id: str, user: str = "ada", **more: object) -> dict[int, tuple[int, bytes]]:
    """By stream: the offset of its first byte, and its bytes."""
    got: dict[int, tuple[int, bytes]] = {}
    async for part in api[user].jobs.TailLogs(tail(job_id, **more)):
        assert 0 < len(part.data) <= 1 << 20
        first, data = got.get(part.stream, (part.offset, b""))
        assert part.offset == first + len(data)
        assert (part.attempt, part.rank) == (1, more.get("rank", 0))
        got[part.stream] = (first, data + part.data)
    return got


async def test_a_log_outlives_its_agent(api: Api) -> None:
    big = bytes(range(256)) * 10_000
    job_id = await kept_job(api, {"stderr.log": b"oops\n", "stdout.log": big})
    assert await read_all(api, job_id) == {OUT: (0, big), ERR: (0, b"oops\n")}
    assert await read_all(api, job_id, attempt=1, stream=ERR, follow=True) == {ERR: (0, b"oops\n")}
    assert await read_all(api, job_id, stream=OUT, offset=1_500_000) == {OUT: (1_500_000, big[1_500_000:])}
    assert await read_all(api, job_id, offset=-10) == {OUT: (len(big) - 10, big[-10:]), ERR: (0, b"oops\n")}
    assert await read_all(api, job_id, offset=len(big)) == {}
    assert (await api["ada"].job(job_id)).attempts[0].logs.startswith("sha256:")
    error = await failure(api["bob"].jobs.TailLogs(tail(job_id)))
    assert error.code() is grpc.StatusCode.NOT_FOUND, "it is another institution's"


async def test_each_replica_has_its_own_stored_log(api: Api) -> None:
    files = {"stderr.log": b"zero", "rank-1/stdout.log": b"one", "rank-11/stdout.log": b"eleven"}
    job_id = await kept_job(api, files, replicas=3)
    assert await read_all(api, job_id) == {ERR: (0, b"zero")}
    assert await read_all(api, job_id, stream=OUT) == {}
    assert await read_all(api, job_id, rank=1) == {OUT: (0, b"one")}
    # Nothing of it was stored: only its agent can know of it.
    assert info_of(await failure(api["ada"].jobs.TailLogs(tail(job_id, rank=2)))).reason == "REGION_OFFLINE"


async def test_a_stored_log_that_was_deleted_is_asked_of_the_agent(api: Api) -> None:
    job_id = await kept_job(api, {"stdout.log": b"gone"})
    for path in api.store.root.iterdir():
        path.unlink()
    assert info_of(await failure(api["ada"].jobs.TailLogs(tail(job_id)))).reason == "REGION_OFFLINE"


# --- the broker by itself -----------------------------------------------------------------------------------------------


def chunk(request: regions_pb2.LogRequest, offset: int, data: bytes, **more: object) -> regions_pb2.LogChunk:
    return regions_pb2.LogChunk(request_id=request.request_id, stream=request.stream, offset=offset, data=data, **more)


async def next_of(outgoing) -> regions_pb2.ConnectResponse:
    async with asyncio.timeout(10):
        return await anext(outgoing)


async def test_a_slow_reader_loses_nothing_and_holds_little() -> None:
    link = RegionLink("east", itertools.count(1))
    outgoing = link.outgoing()
    pull = LogPull(link, TARGET, (OUT,), 0, True, buffer_bytes=100)
    chunks = pull.chunks()
    first = asyncio.ensure_future(anext(chunks))
    request = (await next_of(outgoing)).log_request
    log = bytes(range(250))
    for start in range(0, 250, 50):
        link.deliver(chunk(request, start, log[start : start + 50]))
    got = (await first)[2]
    # Two chunks fit; the third did not, so the agent is told to stop, and what still comes is dropped.
    assert (await next_of(outgoing)).log_cancel.request_id == request.request_id
    got += (await anext(chunks))[2]
    rest = asyncio.ensure_future(anext(chunks))
    request = (await next_of(outgoing)).log_request
    assert request.offset == len(got) == 100
    link.deliver(chunk(request, 100, log[100:], end=True))
    got += (await rest)[2]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert got == log


async def test_a_reader_gets_what_came_before_the_agent_went() -> None:
    broker = LogBroker()
    link = broker.attach("east")
    outgoing = link.outgoing()
    chunks = broker.pull("east", TARGET, OUT, 0, True).chunks()
    first = asyncio.ensure_future(anext(chunks))
    request = (await next_of(outgoing)).log_request
    link.deliver(chunk(request, 0, b"a"))
    link.deliver(chunk(request, 1, b"b"))
    broker.detach(link)
    assert (await first)[2] == b"a"
    assert (await anext(chunks))[2] == b"b"
    with pytest.raises(Unavailable):
        await anext(chunks)
    with pytest.raises(Unavailable):
        broker.pull("east", TARGET, OUT, 0, True)


async def test_a_newer_agent_takes_the_region_over() -> None:
    broker = LogBroker()
    old = broker.attach("east")
    reader = asyncio.ensure_future(anext(broker.pull("east", TARGET, OUT, 0, True).chunks()))
    await next_of(old.outgoing())
    new = broker.attach("east")
    with pytest.raises(Unavailable):
        await reader
    broker.detach(old)
    chunks = broker.pull("east", TARGET, OUT, 0, False).chunks()
    first = asyncio.ensure_future(anext(chunks))
    request = (await next_of(new.outgoing())).log_request
    new.deliver(chunk(request, 0, b"", error="gone"))
    with pytest.raises(NotFound):
        await first


async def test_readers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.api.logs.MAX_PULLS", 1)
    broker = LogBroker()
    link = broker.attach("east")
    one = broker.pull("east", TARGET, OUT, 0, False).chunks()
    waiting = asyncio.ensure_future(anext(one))
    await next_of(link.outgoing())
    with pytest.raises(ResourceExhausted):
        await anext(broker.pull("east", TARGET, OUT, 0, False).chunks())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.ensure_future(anext(broker.pull("east", TARGET, OUT, 0, False).chunks()))
    await next_of(link.outgoing())
    broker.detach(link)
    with pytest.raises(Unavailable):
        await again
