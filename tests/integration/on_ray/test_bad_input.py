"""What is wrong in itself, and jobs that misbehave: each ends in a clear state and with a sentence. Real processes throughout."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from protos.suanli.v1 import common_pb2, jobs_pb2
from tests.support.api import Client, digest_of, info_of
from tests.support.jobs import assert_sums_agree, assert_usage_exact, ended, in_state, spec, submit
from tests.support.platform import DEADLINE_S, Platform, alive, eventually, running_platform

Code = grpc.StatusCode
FAILED, CANCELLED, TIMED_OUT, RUNNING = (
    common_pb2.JOB_STATE_FAILED,
    common_pb2.JOB_STATE_CANCELLED,
    common_pb2.JOB_STATE_TIMED_OUT,
    common_pb2.JOB_STATE_RUNNING,
)
SUBMIT = "/suanli.v1.JobService/SubmitJobs"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("bad")) as platform:
        yield platform


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    client = platform.client("ann")
    yield client
    await client.channel.close()


def of(argv: str = "true", **changes: Any) -> jobs_pb2.JobSpec:
    return spec([argv], **changes)


def after(index: int) -> jobs_pb2.Dependency:
    return jobs_pb2.Dependency(batch_index=index)


REFUSED = {
    "unknown institution": (
        [of(institution="uni-x")],
        "admin",
        (Code.NOT_FOUND, "INSTITUTION_NOT_FOUND", "jobs[0].institution"),
        'There is no institution "uni-x"; `suanli institution list` shows those you may use.',
    ),
    "another's institution": (
        [of(institution="uni-x")],
        "ada",
        (Code.PERMISSION_DENIED, "OTHER_INSTITUTION", "jobs[0].institution"),
        "your key is for institution 'uni-a'",
    ),
    "unknown project": (
        [of(), of(project="no-such")],
        "ann",
        (Code.NOT_FOUND, "PROJECT_NOT_FOUND", "jobs[1].project"),
        'Institution "uni-a" has no project "no-such"',
    ),
    "less than nothing": (
        [of(resources=common_pb2.Resources(cpu_milli=-1))],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].resources.cpu_milli"),
        "1 to 1,024,000",
    ),
    "more than there is anywhere": (
        [of(resources=common_pb2.Resources(memory_mib=1 << 62))],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].resources.memory_mib"),
        "1 to 67,108,864",
    ),
    "a GPU and a half": (
        [of(resources=common_pb2.Resources(gpu_milli=1500))],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].resources.gpu_milli"),
        "1500 is neither a share of one GPU nor whole GPUs",
    ),
    "a gang of none": (
        [of(replicas=-3)],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].replicas"),
        "1 to 4,096",
    ),
    "a job that waits for itself": (
        [of(dependencies=[after(0)])],
        "ann",
        (Code.INVALID_ARGUMENT, "DEPENDENCY_CYCLE", "jobs[0].dependencies"),
        "form a cycle; none of them could ever start.",
    ),
    "a circle of three": (
        [of(), of(dependencies=[after(3)]), of(dependencies=[after(1)]), of(dependencies=[after(2)])],
        "ann",
        (Code.INVALID_ARGUMENT, "DEPENDENCY_CYCLE", "jobs[1].dependencies"),
        "The dependencies of jobs 1, 2, 3 of this call form a cycle",
    ),
    "a script outside its folder": (
        [jobs_pb2.JobSpec(python=jobs_pb2.PythonEntryPoint(script="../x.py"), working_folder=digest_of(b""))],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].python.script"),
        "is not a path within the working folder",
    ),
    "no workload": (
        [jobs_pb2.JobSpec()],
        "ann",
        (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "jobs[0].workload"),
        "command",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_wrong_submission_is_refused_with_the_field_and_a_sentence(platform: Platform, case: str) -> None:
    specs, user, expected, words = REFUSED[case]
    client = platform.client(user)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(client, *specs)
    info = info_of(caught.value)
    assert (caught.value.code(), info.reason, info.metadata["field"]) == expected
    assert words in str(caught.value.details())
    assert (
        await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(project="no-such")))
    ).jobs == []
    await client.channel.close()


async def test_a_job_that_no_pool_can_hold_is_refused_naming_the_nearest(client: Client) -> None:
    for changes, lacking, words in (
        (
            {"resources": {"cpu_milli": 64_000, "memory_mib": 100}},
            {"lacking_cpu": "60000"},
            "whose largest node has 4 CPU",
        ),
        ({"resources": {"cpu_milli": 1000, "memory_mib": 4096}}, {"lacking_memory": "2048"}, "2 GiB"),
        ({"resources": {"cpu_milli": 1000, "gpu_milli": 1000}}, {}, "which has no accelerators"),
        ({"resources": {"cpu_milli": 3000}, "replicas": 2}, {}, "which holds 1 of them at once"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(client, of(**changes))
        info = info_of(caught.value)
        assert (caught.value.code(), info.reason) == (Code.FAILED_PRECONDITION, "NEVER_FITS")
        assert (info.metadata["field"], info.metadata["nearest_pool"]) == ("jobs[0].resources", "east/cpu")
        assert {k: v for k, v in info.metadata.items() if k.startswith("lacking_")} == lacking
        assert "the nearest is east/cpu" in str(caught.value.details())
        assert words in str(caught.value.details())


async def test_nothing_asked_is_the_default(client: Client) -> None:
    job_ids = await submit(client, jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"])))
    job = (await ended(client, *job_ids))[0]
    assert (job.spec.resources.cpu_milli, job.spec.resources.memory_mib, job.spec.replicas) == (1000, 1024, 1)
    assert job.state == common_pb2.JOB_STATE_SUCCEEDED


async def test_a_request_id_is_for_one_body(client: Client) -> None:
    first = await submit(client, of(name="once"), request_id="the-id")
    again = await client.jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[of(name="once")], request_id="the-id"))
    assert (list(again.job_ids), again.duplicate) == (first, True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(client, of(name="twice"), request_id="the-id")
    info = info_of(caught.value)
    assert (caught.value.code(), info.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert info.metadata["field"] == "request_id"
    assert 'request_id "the-id" was used before with another body' in str(caught.value.details())
    await ended(client, *first)
    listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(name="once")))
    assert [job.id for job in listed.jobs] == first


# --- messages that are none -------------------------------------------------------------------------------------------


async def raw_submit(client: Client, body: bytes) -> grpc.aio.AioRpcError:
    call: Any = client.channel.unary_unary(SUBMIT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(body, metadata=client.metadata, timeout=DEADLINE_S)
    return caught.value


async def test_text_that_is_not_utf8_is_named_as_such(client: Client) -> None:
    body = jobs_pb2.SubmitJobsRequest(jobs=[of(name="MARK")]).SerializeToString().replace(b"MARK", b"\xff\xfe\xc3\x28")
    error = await raw_submit(client, body)
    assert (error.code(), info_of(error).reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert "a string in it is not valid UTF-8" in str(error.details())
    error = await raw_submit(client, body[:-3])
    assert (error.code(), info_of(error).reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_a_message_over_the_limit_is_refused_and_the_next_is_taken(client: Client) -> None:
    # Under the limits of each field, so that only the message's size is wrong.
    filler = {f"V{n}": "x" * 1000 for n in range(100)}
    big = jobs_pb2.SubmitJobsRequest(jobs=[of(environment=filler)] * 210)
    assert big.ByteSize() > 20 << 20
    error = await raw_submit(client, big.SerializeToString())
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "larger than max" in str(error.details())
    await ended(client, *await submit(client, of()))


def http2_frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def test_a_gigabyte_announced_is_refused_before_it_comes(platform: Platform) -> None:
    """By hand, because a client of gRPC's would send it: a call whose message says that it has 1 GiB."""
    headers = {":method": "POST", ":scheme": "http", ":path": SUBMIT, ":authority": "x", "te": "trailers"}
    headers |= {"content-type": "application/grpc", "authorization": f"Bearer {platform.keys['ann']}"}
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    assert platform.server.process is not None
    process = psutil.Process(platform.server.process.pid)
    before = process.memory_info().rss
    host, port = platform.address.split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as peer:
        stream = peer.makefile("rb")
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b"") + http2_frame(1, 4, 1, block))
        peer.sendall(http2_frame(0, 0, 1, b"\x00" + struct.pack(">I", 1 << 30) + b"\x0a" * 1000))
        while True:
            length, kind, flags = struct.unpack(">I", b"\0" + stream.read(3))[0], *stream.read(2)
            on = struct.unpack(">I", stream.read(4))[0]
            stream.read(length)
            # The end of the call: trailers, or a reset.
            if on == 1 and (kind == 3 or (kind == 1 and flags & 1)):
                break
    assert process.memory_info().rss - before < 64 << 20
    assert platform.nodes_up()


# --- jobs that misbehave ----------------------------------------------------------------------------------------------


async def test_a_command_that_is_not_there_or_no_program(client: Client, tmp_path: Path) -> None:
    plain = tmp_path / "data.txt"
    plain.write_text("no program")
    job_ids = await submit(client, of("no-such-program"), of("/no/such/script.sh"), of(str(plain)))
    jobs = await ended(client, *job_ids)
    assert [job.state for job in jobs] == [FAILED] * 3
    assert [job.reason for job in jobs] == ["SPAWN_FAILED"] * 3
    for job, words in zip(jobs, ("no-such-program", "there is no file '/no/such/script.sh'", "data.txt"), strict=True):
        assert words in job.message
        assert job.attempts[0].outcome == common_pb2.ATTEMPT_OUTCOME_SPAWN_FAILED
    await assert_usage_exact(client, job_ids)


async def test_a_script_that_its_folder_lacks_is_refused(client: Client) -> None:
    manifest = b'{"files":[],"version":1}'
    folder = digest_of(manifest)

    async def upload() -> AsyncIterator[jobs_pb2.UploadBlobRequest]:
        yield jobs_pb2.UploadBlobRequest(digest=folder, data=manifest)

    await client.jobs.UploadBlob(upload())
    for digest, field, words in (
        (folder, "jobs[0].python.script", "the working folder has no file 'train.py'"),
        (digest_of(b"?"), "jobs[0].working_folder", f"the artifact store has no folder {digest_of(b'?')}"),
    ):
        entry = jobs_pb2.PythonEntryPoint(script="train.py")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(client, jobs_pb2.JobSpec(python=entry, working_folder=digest))
        assert (caught.value.code(), info_of(caught.value).metadata["field"]) == (Code.INVALID_ARGUMENT, field)
        assert words in str(caught.value.details())


async def test_packages_that_cannot_be_had(client: Client) -> None:
    job_ids = await submit(client, of(packages=["suanli-nothing @ file:///no/such/folder"]))
    job = (await ended(client, *job_ids))[0]
    assert (job.state, job.reason) == (FAILED, "ENVIRONMENT_FAILED")
    assert "/no/such/folder" in job.message
    await assert_usage_exact(client, job_ids)


async def test_an_end_by_a_signal_is_named(client: Client) -> None:
    job_ids = await submit(client, spec(["sh", "-c", "kill -SEGV $$"]), spec(["sh", "-c", "exit 7"]))
    died, exited = await ended(client, *job_ids)
    assert (died.state, died.reason, died.exit_signal) == (FAILED, "FAILED", 11)
    assert "SIGSEGV" in died.message
    assert (exited.state, exited.exit_code, exited.exit_signal) == (FAILED, 7, 0)
    assert "exit code 7" in exited.message
    await assert_usage_exact(client, job_ids)


async def test_more_memory_than_asked_for(client: Client) -> None:
    program = "import time; held = bytearray(b'x') * (400 << 20); time.sleep(600)"
    job_ids = await submit(client, spec([sys.executable, "-S", "-c", program], resources={"memory_mib": 64}))
    job = (await ended(client, *job_ids))[0]
    assert (job.state, job.reason) == (FAILED, "OUT_OF_MEMORY")
    assert "of 64 MiB" in job.message
    assert job.attempts[0].peak_memory_mib > 64
    await assert_usage_exact(client, job_ids)


async def test_longer_than_its_limit(client: Client) -> None:
    job_ids = await submit(client, spec(["sleep", "600"], max_runtime_ms=1000))
    job = (await ended(client, *job_ids))[0]
    assert (job.state, job.reason) == (TIMED_OUT, "TIMED_OUT")
    assert "longer than its limit of 1 s" in job.message
    # From the grant, which is the control plane's own instant and before the start: a reported one is late by its message's way.
    attempt = job.attempts[-1]
    assert 1000 <= attempt.end_time_ms - attempt.grant_time_ms < 30_000
    await assert_usage_exact(client, job_ids)


async def test_a_tree_that_ignores_sigterm_dies_whole_when_cancelled(client: Client, tmp_path: Path) -> None:
    """It forks into sessions of their own, and every one of them ignores SIGTERM."""
    pids = tmp_path / "pids"
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for depth in range(3):\n"
        "    if os.fork() == 0: os.setsid()\n"
        "os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), b'%d\\n' % os.getpid())\n"
        "time.sleep(600)\n"
    )
    argv = [sys.executable, "-S", "-c", program, str(pids)]
    job_ids = await submit(client, spec(argv, grace_period_ms=300))
    await eventually(lambda: pids.exists() and len(pids.read_text().splitlines()) == 8)
    family = [int(line) for line in pids.read_text().split()]
    await in_state(client, job_ids[0], RUNNING)
    assert all(alive(pid) for pid in family)
    answer = await client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=job_ids, reason="enough"))
    assert list(answer.cancelling) == job_ids
    job = (await ended(client, *job_ids))[0]
    assert (job.state, job.reason, job.message) == (CANCELLED, "CANCELLED", "Cancelled by ann: enough")
    assert [pid for pid in family if alive(pid)] == [], "CANCELLED says that nothing of it runs any more"
    again = await client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=job_ids))
    assert list(again.already_ended) == job_ids
    await assert_usage_exact(client, job_ids)


async def test_a_flood_of_output_is_bounded_and_its_end_can_be_read(
    platform: Platform, client: Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    program = (
        "import os, pathlib, sys, time\n"
        "block = b'flood flood flood flood flood flood flood flood flood flood\\n' * 16384\n"
        "for _ in range(150): sys.stdout.buffer.write(block)\n"
        "print('the very end', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\n"
    )
    job_ids = await submit(client, spec([sys.executable, "-S", "-c", program, str(go)]))
    await in_state(client, job_ids[0], RUNNING)

    async def tail(offset: int) -> tuple[int, bytes]:
        request = jobs_pb2.TailLogsRequest(job_id=job_ids[0], stream=jobs_pb2.LOG_STREAM_STDOUT, offset=offset)
        first, data = -1, b""
        async for chunk in client.jobs.TailLogs(request):
            first = chunk.offset if first < 0 else first
            data += chunk.data
            if len(data) > 1 << 20:
                break
        return first, data

    async def at_its_end() -> bool:
        return (await tail(-100))[1].endswith(b"the very end\n")

    await eventually(at_its_end)
    first, data = await tail(-100)
    assert (first, len(data)) == (150 * 16384 * 60 + 13 - 100, 100), "offsets count every byte that was written"
    assert (await tail(0))[1].startswith(b"flood flood")
    kept = sum(os.stat(found).st_blocks * 512 for found in platform.folder.glob("agent/nodes/*/attempts/**/*.log"))
    assert 0 < kept < 80 << 20
    go.touch()
    job = (await ended(client, *job_ids))[0]
    assert job.state == common_pb2.JOB_STATE_SUCCEEDED
    assert (await tail(-100))[1].endswith(b"the very end\n"), "after its end as well"


async def test_the_sums_agree_after_all_that(client: Client, platform: Platform) -> None:
    await assert_sums_agree(client)
    assert platform.server.process is not None
    assert platform.server.process.poll() is None
    for line in platform.server.log.read_text().splitlines():
        assert "incident" not in line, line
