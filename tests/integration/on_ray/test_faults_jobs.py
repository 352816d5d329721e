"""Jobs from end to end over TLS, on two nodes: gangs, retries with their checkpoint, dependencies, arrays, logs, results."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2
from tests.support.api import Client, digest_of, info_of
from tests.support.jobs import Diary, assert_sums_agree, assert_usage_exact, ended, in_state, spec, submit
from tests.support.platform import Platform, eventually, running_platform

HELD, RUNNING, SUCCEEDED, FAILED, CANCELLED = (
    common_pb2.JOB_STATE_HELD,
    common_pb2.JOB_STATE_RUNNING,
    common_pb2.JOB_STATE_SUCCEEDED,
    common_pb2.JOB_STATE_FAILED,
    common_pb2.JOB_STATE_CANCELLED,
)
STDOUT, STDERR = jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR
AFTER_ANY = jobs_pb2.Dependency.CONDITION_AFTER_ANY


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("jobs"), second="second", tls=True) as platform:
        yield platform


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    client = platform.client("ann")
    yield client
    await client.channel.close()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


def python(program: str, *arguments: object, **changes: Any) -> jobs_pb2.JobSpec:
    return spec([sys.executable, "-S", "-c", program, *map(str, arguments)], **changes)


async def test_plaintext_and_strangers_are_refused_where_tls_is_spoken(platform: Platform, client: Client) -> None:
    assert (await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())).user == "ann"
    plain = Client(platform.address, platform.keys["ann"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plain.admin.WhoAmI(admin_pb2.WhoAmIRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await plain.channel.close()
    regions = (await client.admin.ListRegions(admin_pb2.ListRegionsRequest())).regions
    assert [(region.id, region.online, region.nodes) for region in regions] == [("east", True, 2)], (
        "the agent speaks TLS"
    )


async def test_plaintext_is_not_served_to_other_machines(platform: Platform, tmp_path: Path) -> None:
    config = tmp_path / "open.yaml"
    config.write_text(f"listen: 0.0.0.0:0\nmetrics_listen: ''\nstate_dir: {tmp_path / 'state'}\n")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler.server", "--config", str(config)), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(server.communicate(), 60)
    assert server.returncode == 2
    assert "keys would cross the network in plain text; give tls.cert and tls.key" in said.decode()


async def test_a_gang_over_two_nodes_has_torchruns_variables_and_reaches_its_master(client: Client) -> None:
    """Each rank says what it was given; rank 0 listens at MASTER_ADDR:MASTER_PORT and hears the other."""
    program = (
        "import json, os, pathlib, socket, time\n"
        "names = ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'MASTER_ADDR', 'MASTER_PORT']\n"
        "e = os.environ\n"
        "at = (e['MASTER_ADDR'], int(e['MASTER_PORT']))\n"
        "if e['RANK'] == '0':\n"
        "    listener = socket.create_server(at)\n"
        "    heard = listener.accept()[0].makefile().readline().strip()\n"
        "else:\n"
        "    heard = ''\n"
        "    until = time.monotonic() + 60\n"
        "    while True:\n"
        "        try: peer = socket.create_connection(at); break\n"
        "        except ConnectionError:\n"
        "            if time.monotonic() > until: raise\n"
        "            time.sleep(0.02)\n"
        "    peer.sendall(b'here is rank ' + e['RANK'].encode() + b'\\n')\n"
        "found = {name: e[name] for name in names} | {'heard': heard}\n"
        "pathlib.Path(e['SUANLI_RESULTS'], 'said.json').write_text(json.dumps(found))\n"
    )
    job_id = (await submit(client, python(program, replicas=2, resources={"cpu_milli": 3000})))[0]
    job = (await ended(client, job_id))[0]
    assert job.state == SUCCEEDED, job
    placements = job.attempts[0].replicas
    assert [placement.rank for placement in placements] == [0, 1]
    assert {placement.node_name for placement in placements} == {"east-head", "east-second"}
    said = [json.loads(await download(client, job_id, path)) for path in ("said.json", "rank-1/said.json")]
    for rank, found in enumerate(said):
        assert (found["RANK"], found["WORLD_SIZE"]) == (str(rank), "2")
        assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"], found["GROUP_RANK"]) == ("0", "1", str(rank))
        assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == (said[0]["MASTER_ADDR"], said[0]["MASTER_PORT"])
    assert said[0]["heard"] == "here is rank 1"
    await assert_usage_exact(client, [job_id])


async def test_when_one_rank_fails_the_gang_fails_and_says_which(client: Client) -> None:
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(5)\ntime.sleep(600)"
    job_id = (await submit(client, python(program, replicas=2, resources={"cpu_milli": 3000})))[0]
    job = (await ended(client, job_id))[0]
    assert (job.state, job.exit_code) == (FAILED, 5)
    assert job.message.startswith("rank 1:")
    await assert_usage_exact(client, [job_id])


async def test_a_retry_begins_with_the_checkpoint_of_the_attempt_before(client: Client) -> None:
    program = (
        "import os, pathlib, sys\n"
        "kept = pathlib.Path(os.environ['SUANLI_CHECKPOINT'], 'epochs')\n"
        "done = kept.read_text().split() if kept.exists() else []\n"
        "kept.write_text(' '.join([*done, os.environ['SUANLI_ATTEMPT']]))\n"
        "print(len(done), flush=True)\n"
        "if len(done) < 2: sys.exit(9)\n"
        "pathlib.Path(os.environ['SUANLI_RESULTS'], 'history').write_text(kept.read_text())\n"
    )
    job_id = (await submit(client, python(program, retry={"max_retries": 3, "backoff_ms": 100})))[0]
    job = (await ended(client, job_id))[0]
    assert (job.state, job.attempt, job.failures) == (SUCCEEDED, 3, 2), job
    assert [attempt.exit_code for attempt in job.attempts] == [9, 9, 0]
    assert await download(client, job_id, "history") == b"1 2 3"
    assert [(await tail(client, job_id, attempt=number))[STDOUT] for number in (1, 2, 3)] == [b"0\n", b"1\n", b"2\n"]
    await assert_usage_exact(client, [job_id])


async def test_no_retry_is_left(client: Client) -> None:
    job_id = (await submit(client, spec(["false"], retry={"max_retries": 2})))[0]
    job = (await ended(client, job_id))[0]
    assert (job.state, job.attempt, job.failures, job.exit_code) == (FAILED, 3, 3, 1)
    await assert_usage_exact(client, [job_id])


async def test_jobs_wait_for_those_they_depend_on(client: Client, diary: Diary) -> None:
    def after(index: int, **changes: Any) -> list[jobs_pb2.Dependency]:
        return [jobs_pb2.Dependency(batch_index=index, **changes)]

    jobs = await submit(
        client,
        spec(diary.argv("first"), name="first"),
        spec(["false"], name="fails", dependencies=after(0)),
        spec(["true"], name="any", dependencies=after(1, condition=AFTER_ANY)),
        spec(["true"], name="never", dependencies=after(1)),
        spec(["true"], name="never either", dependencies=after(3)),
    )
    first, fails, _, never, _ = jobs
    await in_state(client, first, RUNNING)
    for job_id in jobs[1:]:
        job = await client.job(job_id)
        assert (job.state, job.reason) == (HELD, "DEPENDENCY")
    why = await client.jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job_id=fails))
    assert (why.code, list(why.waiting_for)) == ("DEPENDENCY", [first])
    late = await submit(client, spec(["true"], dependencies=[jobs_pb2.Dependency(job_id=first)]))
    diary.let_go("first")
    done = await ended(client, *jobs, *late)
    assert [job.state for job in done] == [SUCCEEDED, FAILED, SUCCEEDED, CANCELLED, CANCELLED, SUCCEEDED]
    assert [(job.reason, job.attempt) for job in done[3:5]] == [("DEPENDENCY_FAILED", 0)] * 2
    assert fails in done[3].message
    assert never in done[4].message
    assert done[0].attempts[0].end_time_ms <= done[1].attempts[0].grant_time_ms
    assert done[1].attempts[0].end_time_ms <= done[2].attempts[0].grant_time_ms
    await assert_usage_exact(client, [*jobs, *late])


async def test_an_array_runs_each_index_once_within_its_limit(client: Client, diary: Diary) -> None:
    program = (
        "import os, sys\n"
        "e = os.environ\n"
        "with open(sys.argv[1], 'a') as file: file.write(e['SUANLI_ARRAY_INDEX'] + ' ' + e['SUANLI_ARRAY_SIZE'] + '\\n')\n"
        "sys.exit(e['SUANLI_ARRAY_INDEX'] == '7')\n"
    )
    tally = diary.folder / "tally"
    job_id = (await submit(client, python(program, tally, array={"size": 20, "max_parallel": 3})))[0]
    array = (await ended(client, job_id))[0]
    assert (array.state, array.reason, array.message) == (FAILED, "TASKS_FAILED", "1 of 20 tasks failed.")
    assert (array.array.size, array.array.succeeded, array.array.failed) == (20, 19, 1)
    assert sorted(tally.read_text().splitlines()) == sorted(f"{index} 20" for index in range(20))
    listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(array_id=job_id)))
    tasks = [await client.job(job.id) for job in listed.jobs]
    assert sorted(task.id for task in tasks) == sorted(f"{job_id}.{index}" for index in range(20))
    assert [task.array_index for task in tasks if task.state == FAILED] == [7]
    assert most_at_once([(t.attempts[0].grant_time_ms, t.attempts[0].end_time_ms) for t in tasks]) <= 3
    await assert_usage_exact(client, [task.id for task in tasks])


async def test_an_array_is_cancelled_with_the_tasks_that_run(client: Client, diary: Diary) -> None:
    job_id = (await submit(client, spec(diary.argv(), array={"size": 1000, "max_parallel": 2})))[0]
    await eventually(lambda: len(diary.runs()) == 2)
    await client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_id]))
    array = (await ended(client, job_id))[0]
    assert (array.state, array.array.cancelled) == (CANCELLED, 1000)
    assert len(diary.runs()) == 2
    await assert_usage_exact(client, [run.job_id for run in diary.runs()])


async def test_a_log_is_followed_while_its_job_runs(client: Client, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "print('one', flush=True)\n"
        "print('warning', file=sys.stderr, flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\n"
        "print('two')\n"
    )
    job_id = (await submit(client, python(program, tmp_path / "go")))[0]
    texts = {STDOUT: b"", STDERR: b""}
    # Asked for before it has begun: the stream waits for the start.
    async for chunk in client.jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job_id, follow=True), timeout=90):
        assert chunk.offset == len(texts[chunk.stream])
        texts[chunk.stream] += chunk.data
        if texts == {STDOUT: b"one\n", STDERR: b"warning\n"}:
            assert (await client.job(job_id)).state == RUNNING
            (tmp_path / "go").touch()
    assert texts == {STDOUT: b"one\ntwo\n", STDERR: b"warning\n"}
    assert await tail(client, job_id) == texts
    assert (await tail(client, job_id, offset=4))[STDOUT] == b"two\n"
    assert (await tail(client, job_id, offset=-4))[STDOUT] == b"two\n"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tail(client, job_id, rank=1)
    assert (caught.value.code(), info_of(caught.value).metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "rank")


async def test_a_folder_goes_in_and_results_come_back(client: Client) -> None:
    """A script in a working folder of its own; its results are listed and downloaded, whole and from an offset."""
    script = (
        b"import os, pathlib, sys\n"
        b"import helper\n"
        b"out = pathlib.Path(os.environ['SUANLI_RESULTS'])\n"
        b"(out / 'deep').mkdir()\n"
        b"(out / 'deep' / 'table.csv').write_text(helper.text(sys.argv[1]))\n"
        b"(out / 'big.bin').write_bytes(bytes(range(256)) * 12000)\n"
    )
    helper = b"def text(word): return 'word\\n' + word + '\\n'\n"
    folder = await upload_folder(client, {"pkg/train.py": script, "pkg/helper.py": helper})
    entry = jobs_pb2.PythonEntryPoint(script="pkg/train.py", args=["数据"])
    job_id = (await submit(client, jobs_pb2.JobSpec(python=entry, working_folder=folder)))[0]
    job = (await ended(client, job_id))[0]
    assert job.state == SUCCEEDED, (job, await tail(client, job_id))
    answer = await client.jobs.ListResults(jobs_pb2.ListResultsRequest(job_id=job_id))
    assert answer.manifest == job.results
    big, table = bytes(range(256)) * 12000, "word\n数据\n".encode()
    assert {file.path: (file.digest, file.size_bytes) for file in answer.files} == {
        "big.bin": (digest_of(big), len(big)),
        "deep/table.csv": (digest_of(table), len(table)),
    }
    assert await download(client, job_id, "deep/table.csv") == table
    assert await download(client, job_id, "big.bin") == big
    assert await download(client, job_id, "big.bin", offset=1_000_001) == big[1_000_001:]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await download(client, job_id, "../../etc/passwd")
    assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def test_the_sums_agree_after_all_that(client: Client) -> None:
    await assert_sums_agree(client)


def most_at_once(intervals: list[tuple[int, int]]) -> int:
    """How many of these half-open intervals overlap at the most."""
    steps = sorted((at, change) for start, end in intervals for at, change in ((start, 1), (end, -1)))
    now = most = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


async def tail(client: Client, job_id: str, **asked: Any) -> dict[int, bytes]:
    """What the log holds now, by stream."""
    texts = {int(STDOUT): b"", int(STDERR): b""}
    async for chunk in client.jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job_id, **asked)):
        texts[chunk.stream] += chunk.data
    return texts


async def download(client: Client, job_id: str, path: str, offset: int = 0) -> bytes:
    """One file of a job's results."""
    request = jobs_pb2.DownloadResultRequest(job_id=job_id, path=path, offset=offset)
    data = b""
    async for chunk in client.jobs.DownloadResult(request):
        assert chunk.offset == offset + len(data)
        data += chunk.data
    return data


async def upload_folder(client: Client, files: dict[str, bytes]) -> str:
    """Store what the store lacks; gives the folder's digest."""
    entries = [
        {"mode": 0o644, "path": path, "sha256": digest_of(data).removeprefix("sha256:"), "size": len(data)}
        for path, data in sorted(files.items())
    ]
    manifest = json.dumps({"files": entries, "version": 1}, separators=(",", ":"), sort_keys=True).encode()
    blobs = {digest_of(data): data for data in (*files.values(), manifest)}
    missing = await client.jobs.FindMissingBlobs(jobs_pb2.FindMissingBlobsRequest(digests=list(blobs)))

    async def pieces(digest: str, data: bytes) -> AsyncIterator[jobs_pb2.UploadBlobRequest]:
        yield jobs_pb2.UploadBlobRequest(digest=digest, data=data)

    for digest in missing.digests:
        await client.jobs.UploadBlob(pieces(digest, blobs[digest]))
    return digest_of(manifest)
