"""Calls: the key, retries, resumed streams, our errors, TLS; against a server of the test's own."""

from __future__ import annotations

import pickle
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from protos.suanli.v1 import common_pb2, jobs_pb2
from protos.suanli.v1.jobs_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from scheduler.api.errors import CODES, status_of
from scheduler.domain import errors as server_errors
from suanli import AsyncClient, errors
from suanli.connection import Backoff, Connection, connect
from suanli.folder import LocalBlob
from suanli.settings import Settings
from suanli.transfer import NOBODY, _send

Answer = Callable[[Any, Any], Awaitable[Any]]
AWAY = server_errors.Unavailable("Not now.", reason="NOT_LEADER")


class Fake(JobServiceServicer):  # type: ignore[misc]
    """Fails as often as it is told, then answers."""

    def __init__(self) -> None:
        self.failures: list[server_errors.SuanliError] = []
        self.requests: list[Any] = []
        self.keys: list[Any] = []
        self.streams: list[list[jobs_pb2.WatchJobsResponse]] = []
        self.logs: list[list[jobs_pb2.TailLogsResponse]] = []

    async def _take(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.keys.append(dict(context.invocation_metadata()).get("authorization"))
        if self.failures:
            await context.abort(*status_of(self.failures.pop(0)))

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self._take(request, context)
        return jobs_pb2.GetJobResponse(job=jobs_pb2.Job(id=request.job_id, state=common_pb2.JOB_STATE_RUNNING))

    async def SubmitJobs(self, request: Any, context: Any) -> Any:
        await self._take(request, context)
        return jobs_pb2.SubmitJobsResponse(job_ids=["j1"])

    async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._take(request, context)
        for response in self.streams.pop(0):
            yield response
        await context.abort(*status_of(AWAY))

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._take(request, context)
        for response in self.logs.pop(0):
            yield response
        if self.logs:
            await context.abort(*status_of(AWAY))

    async def UploadBlob(self, requests: Any, context: Any) -> Any:
        await self._take(None, context)
        data = b"".join([request.data async for request in requests])
        return jobs_pb2.UploadBlobResponse(size_bytes=len(data))


@pytest.fixture
async def fake() -> AsyncIterator[tuple[Fake, Connection]]:
    server, servicer = grpc.aio.server(), Fake()
    add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(Settings(f"127.0.0.1:{port}", "the-key"), patience_s=5) as connection:
        yield servicer, connection
    await server.stop(None)


ASK = jobs_pb2.GetJobRequest(job_id="j1")


async def test_every_kind_of_call_carries_the_key(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake
    servicer.streams = [[]]

    async def blob() -> AsyncIterator[jobs_pb2.UploadBlobRequest]:
        yield jobs_pb2.UploadBlobRequest(data=b"ab")
        yield jobs_pb2.UploadBlobRequest(data=b"c")

    await connection.call(connection.jobs.GetJob, ASK)
    assert (await connection.jobs.UploadBlob(blob())).size_bytes == 3
    with pytest.raises(errors.Unavailable):
        async for _ in connection.stream(connection.jobs.WatchJobs, jobs_pb2.WatchJobsRequest()):
            pass
    assert servicer.keys == ["Bearer the-key"] * 3


async def test_an_idempotent_call_is_tried_again_and_no_other(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake
    servicer.failures = [AWAY, AWAY]
    assert (await connection.call(connection.jobs.GetJob, ASK, idempotent=True)).job.id == "j1"
    assert len(servicer.requests) == 3
    servicer.failures = [AWAY]
    with pytest.raises(errors.Unavailable) as caught:
        await connection.call(connection.jobs.GetJob, ASK)
    assert (caught.value.reason, caught.value.message, len(servicer.requests)) == ("NOT_LEADER", "Not now.", 4)


async def test_what_will_not_be_better_later_is_not_tried_again(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake
    servicer.failures = [server_errors.NotFound("None.", reason="JOB_NOT_FOUND", field="job_id")]
    with pytest.raises(errors.NotFound) as caught:
        await connection.call(connection.jobs.GetJob, ASK, idempotent=True)
    assert (caught.value.field, caught.value.exit_code, len(servicer.requests)) == ("job_id", 3, 1)


async def test_a_submission_is_repeated_under_one_request_id(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake
    servicer.failures = [AWAY, AWAY]
    settings = connection.settings
    async with AsyncClient(settings.address, settings.api_key) as client:
        await client.submit(command=["true"])
        await client.submit(command=["true"])
    ids = [request.request_id for request in servicer.requests]
    assert len(set(ids[:3])) == 1
    assert ids[3] not in ("", ids[0])


async def test_a_watch_goes_on_where_it_was_when_the_connection_broke(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake

    def events(*numbers: int) -> jobs_pb2.WatchJobsResponse:
        found = [jobs_pb2.JobEvent(sequence=number) for number in numbers]
        return jobs_pb2.WatchJobsResponse(events=found, sequence=numbers[-1])

    servicer.streams = [[events(4, 5), events(7)], [jobs_pb2.WatchJobsResponse(sequence=9)], [], [events(11)]]
    seen = []
    # What has been heard once is waited for however long it takes.
    async with AsyncClient(connection.settings.address, "k", patience_s=0.01) as client:
        async for event in client.watch(after_sequence=3):
            seen.append(event.sequence)
            if event.sequence == 11:
                break
    assert seen == [4, 5, 7, 11]
    assert [request.after_sequence for request in servicer.requests] == [3, 7, 9, 9]


async def test_a_log_has_each_byte_once_though_the_connection_broke(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake

    def part(stream: int, offset: int, data: bytes) -> jobs_pb2.TailLogsResponse:
        return jobs_pb2.TailLogsResponse(stream=stream, offset=offset, data=data, attempt=2)

    out, err = jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR
    servicer.logs = [
        [part(out, 0, b"one\ntw"), part(err, 0, b"o")],
        [part(out, 1, b"ne\ntwo\n"), part(err, 1, b"h\n")],
    ]
    async with AsyncClient(connection.settings.address, "k") as client:
        lines = [(line.stream, line.text) async for line in client.job("j1").logs(follow=True)]
    assert lines == [("stdout", "one"), ("stdout", "two"), ("stderr", "oh")]
    # Both streams go on from the lower of the two, in the attempt that was being read.
    assert [(ask.offset, ask.attempt, ask.follow) for ask in servicer.requests] == [(0, 0, True), (1, 2, True)]


async def test_each_error_of_the_server_is_its_namesake_here() -> None:
    for kind, code in CODES.items():
        error = kind("A sentence.", field="jobs[0].name")
        status = status_of(error)
        rpc = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.metadata), "A sentence.")
        found = errors.from_rpc(rpc, "a:1")
        assert (found.message, found.reason, found.field) == ("A sentence.", error.reason, "jobs[0].name")
        # Two that a caller need not tell from what they are kinds of.
        also = {server_errors.Deposed: "Unavailable", server_errors.Hidden: "NotFound"}
        name = also.get(kind, kind.__name__)
        assert type(found).__name__ == name


async def test_a_server_that_is_not_there_is_told_soon(free_address: str) -> None:
    async with connect(Settings(free_address, "k"), patience_s=0.3) as connection:
        with pytest.raises(errors.Unavailable, match=f"{free_address} cannot be reached: nothing listens") as caught:
            await connection.call(connection.jobs.GetJob, ASK, idempotent=True)
        assert caught.value.exit_code == 5
        with pytest.raises(errors.Unavailable):
            async for _ in connection.resume(connection.jobs.WatchJobs, jobs_pb2.WatchJobsRequest):
                pass


async def test_a_message_that_is_too_large_is_a_sentence(fake: tuple[Fake, Connection]) -> None:
    _, connection = fake
    request = jobs_pb2.GetJobRequest(job_id="x" * (17 << 20))
    with pytest.raises(errors.ResourceExhausted, match="larger than max"):
        await connection.call(connection.jobs.GetJob, request, idempotent=True)


async def test_a_strange_certificate_is_not_trusted_and_a_known_one_is(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    server = grpc.aio.server()
    add_JobServiceServicer_to_server(Fake(), server)
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    for issuer, trusted in ((authority, True), (trustme.CA(), False)):
        issuer.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        settings = Settings(f"localhost:{port}", "k", ca=str(tmp_path / "ca.pem"))
        async with connect(settings, patience_s=0) as connection:
            if trusted:
                await connection.call(connection.jobs.GetJob, ASK)
            else:
                with pytest.raises(errors.Unavailable, match="certificate"):
                    await connection.call(connection.jobs.GetJob, ASK)
    async with connect(Settings(f"localhost:{port}", "k"), patience_s=0) as connection:
        with pytest.raises(errors.Unavailable, match="SUANLI_CA"):
            await connection.call(connection.jobs.GetJob, ASK)
    await server.stop(None)


async def test_unusable_keys_and_certificates_are_named_before_any_call() -> None:
    with pytest.raises(errors.ConfigurationError, match="characters"):
        connect(Settings("127.0.0.1:1", "line\nbreak"))
    with pytest.raises(errors.ConfigurationError, match=r"nowhere\.pem"):
        connect(Settings("example.org:1", "k", ca="nowhere.pem"))


def test_pauses_double_to_a_bound_and_start_anew() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.pause_s() for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    backoff.reset()
    assert backoff.pause_s() == 0.1
    assert Backoff(lambda: 0.0).pause_s() == 0.05


def test_errors_survive_being_pickled() -> None:
    error = errors.JobFailed("It failed.", reason="R", job_id="j1", exit_code=7)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, vars(again)) == (errors.JobFailed, error.args, vars(error))
    remote = pickle.loads(pickle.dumps(errors.RemoteError("m", kind="ValueError", traceback_text="t", job_id="j")))
    assert (remote.kind, str(remote)) == ("ValueError", "m\n\nt")


@pytest.fixture
def free_address() -> str:
    """An address at which nothing listens."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def limited(retry_ms: int) -> server_errors.ResourceExhausted:
    return server_errors.ResourceExhausted("Too much.", reason="RATE_LIMITED", retry_ms=retry_ms)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_call_comes_again_when_it_is_told_to(fake: tuple[Fake, Connection], idempotent: bool) -> None:
    servicer, connection = fake
    servicer.failures = [limited(20), limited(30)]
    waits: list[tuple[float, errors.SuanliError]] = []
    connection.on_wait = lambda seconds, error: waits.append((seconds, error))
    began = time.monotonic()
    response = await connection.call(connection.jobs.GetJob, ASK, idempotent=idempotent)
    assert response.job.id == "j1"
    # Never earlier than told.
    assert time.monotonic() - began >= 0.05
    assert [0.02 <= waits[0][0] <= 0.13, 0.03 <= waits[1][0] <= 0.14] == [True, True]
    assert (waits[0][1].reason, waits[0][1].retry_s) == ("RATE_LIMITED", 0.02)


async def test_a_stream_and_an_upload_come_again_when_told_to(fake: tuple[Fake, Connection]) -> None:
    servicer, connection = fake
    servicer.failures = [limited(20)]
    servicer.logs = [[jobs_pb2.TailLogsResponse(data=b"x")]]
    answers = [
        one async for one in connection.resume(connection.jobs.TailLogs, lambda: jobs_pb2.TailLogsRequest(job_id="j"))
    ]
    assert [one.data for one in answers] == [b"x"]
    servicer.failures = [limited(20)]
    blob = LocalBlob("sha256:" + "0" * 64, 3, None, b"abc")
    await connection.persist(lambda: _send(connection, blob, NOBODY))
    assert len(servicer.requests) == 4


@pytest.mark.parametrize("retry_ms", [0, 3_600_000])
async def test_who_is_told_nothing_or_too_long_a_time_is_refused_at_once(
    fake: tuple[Fake, Connection], retry_ms: int
) -> None:
    servicer, connection = fake
    servicer.failures = [limited(retry_ms)]
    with pytest.raises(errors.ResourceExhausted) as caught:
        await connection.call(connection.jobs.GetJob, ASK, idempotent=True)
    assert (caught.value.reason, caught.value.retry_s) == ("RATE_LIMITED", retry_ms / 1000)
    assert len(servicer.requests) == 1


async def test_waiting_as_told_ends(fake: tuple[Fake, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    servicer, connection = fake
    monkeypatch.setattr("suanli.connection.TOLD_S", 0.3)
    servicer.failures = [limited(30) for _ in range(50)]
    with pytest.raises(errors.ResourceExhausted):
        await connection.call(connection.jobs.GetJob, ASK)
    assert 3 <= len(servicer.requests) <= 11
