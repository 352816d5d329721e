"""kill -9 while content comes in, and while it is removed: nothing acknowledged is lost, nothing is counted twice or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc

from artifacts import ArtifactStore, Sweeper
from artifacts.sweeping import PREFIXES
from protos.suanli.v1 import admin_pb2, artifacts_pb2, jobs_pb2
from tests.integration.test_api_server import ROOT, server
from tests.support.api import Client

KILLS = 3
UPLOADS = 60


async def _prepare(client: Client) -> None:
    await client.admin.PutInstitution(admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="uni-a")))
    project = admin_pb2.Project(institution="uni-a", id="lab")
    await client.admin.PutProject(admin_pb2.PutProjectRequest(project=project))


async def _listed(client: Client) -> list[artifacts_pb2.Artifact]:
    found: list[artifacts_pb2.Artifact] = []
    request = artifacts_pb2.ListArtifactsRequest(filter=artifacts_pb2.ArtifactFilter(institution="uni-a"))
    while True:
        page = await client.artifacts.ListArtifacts(request)
        found += page.artifacts
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def _uploads(client: Client, turn: int, acknowledged: dict[tuple[str, str], int]) -> list[asyncio.Task[None]]:
    """Begin to send, some of it again in each life, and some for both projects; returns once a third has been taken."""
    enough, target = asyncio.Event(), len(acknowledged) + UPLOADS // 3

    async def send(number: int) -> None:
        data = bytes([number]) * (number * 100 + 1)
        for project in ("default", "lab")[: 1 + number % 2]:
            with contextlib.suppress(grpc.aio.AioRpcError):
                digest = await client.upload(data, institution="uni-a", project=project)
                acknowledged[digest, project] = len(data)
                if len(acknowledged) >= target:
                    enough.set()

    sending = [asyncio.create_task(send(number)) for number in range(UPLOADS * turn // 2, UPLOADS * (turn + 2) // 2)]
    waiting = asyncio.create_task(enough.wait())
    await asyncio.wait([waiting, asyncio.gather(*sending)], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return sending


async def test_kills_leave_no_upload_uncounted_or_counted_twice(tmp_path: Path) -> None:
    acknowledged: dict[tuple[str, str], int] = {}
    for turn in range(KILLS):
        async with server(tmp_path) as one:
            client = Client((await one.ready())["listen"], one.key_file.read_text().strip())
            if not turn:
                await _prepare(client)
            sending = await _uploads(client, turn, acknowledged)
            await one.end(signal.SIGKILL)
            await asyncio.gather(*sending)
            await client.channel.close()

    async with server(tmp_path) as one:
        client = Client((await one.ready())["listen"], one.key_file.read_text().strip())
        held = await _listed(client)
        by_key = {(each.digest, each.project): each.size_bytes for each in held}
        assert len(acknowledged) >= UPLOADS
        assert len(by_key) == len(held)
        assert acknowledged.items() <= by_key.items()
        storage = (await client.artifacts.GetStorage(artifacts_pb2.GetStorageRequest(institution="uni-a"))).storage
        assert [each.project for each in storage] == sorted({"", *(row.project for row in held)})
        for each in storage:
            rows = [row for row in held if each.project in ("", row.project)]
            assert (each.items, each.size_bytes) == (len(rows), sum(row.size_bytes for row in rows)), each.project
        digests = sorted({digest for digest, _ in by_key})
        request = jobs_pb2.FindMissingBlobsRequest(digests=digests, institution="uni-a")
        assert list((await client.jobs.FindMissingBlobs(request)).digests) == []
        await client.channel.close()
        assert await one.end() == 0


SWEEP = """
import sys, time
from artifacts import ArtifactStore, Sweeper
from artifacts.sweeping import PREFIXES
sweeper = Sweeper(ArtifactStore(sys.argv[1]))
sweeper.recover()
print("ready", flush=True)
for prefix in PREFIXES:
    for blob in list(sweeper.blobs(prefix)):
        sweeper.remove(blob.ref, int(time.time() * 1000) - 7_200_000)
print("done", flush=True)
"""


def test_what_is_stored_again_survives_a_sweep_and_its_death(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    contents = [b"%d" % number for number in range(3_000)]
    deaths = 0
    for turn in range(8):
        for content in contents:
            store.put_bytes(content)
        old_s = time.time() - 86_400
        for path in (tmp_path / "store" / "sha256").glob("*/*"):
            os.utime(path, (old_s, old_s))
        process = subprocess.Popen(
            [sys.executable, "-c", SWEEP, str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Every blob is old, and nobody's: those that are stored again meanwhile must be there afterwards.
        again = [store.put_bytes(content) for content in contents[turn :: 10 + turn]]
        if turn % 2:
            process.kill()
        said = process.communicate(timeout=60)[0]
        deaths += "done" not in said
        sweeper = Sweeper(store)
        sweeper.recover()
        left = {blob.ref for prefix in PREFIXES for blob in sweeper.blobs(prefix)}
        assert set(again) <= left
        assert turn % 2 or left == set(again)
        for ref in again:
            store.get_bytes(ref, 10)
    assert deaths
