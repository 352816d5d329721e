"""The log of an ended job is there when nothing of its region is left: no agent, no Ray, no folder on the node."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2
from tests.support.api import Client, info_of
from tests.support.jobs import ended, spec, submit
from tests.support.platform import Platform, eventually, running_platform

OUT, ERR = jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR
LINES = "".join(f"line {number}\n" for number in range(200_000)).encode()


async def read(client: Client, job_id: str, **more: int) -> dict[int, bytes]:
    """A log by stream; each part continues the one before."""
    got: dict[int, bytes] = {}
    begins: dict[int, int] = {}
    request = jobs_pb2.TailLogsRequest(job_id=job_id, **more)
    async for part in client.jobs.TailLogs(request):
        assert len(part.data) <= 1 << 20
        begin = begins.setdefault(part.stream, part.offset)
        assert part.offset == begin + len(got.get(part.stream, b""))
        got[part.stream] = got.get(part.stream, b"") + part.data
    return got


async def remove_region(platform: Platform, client: Client) -> None:
    """End the agent and its Ray cluster, and wait until the control plane knows."""
    assert await asyncio.to_thread(platform.agent.end) == 0
    await asyncio.to_thread(platform.cluster.stop)

    async def offline() -> bool:
        regions = (await client.admin.ListRegions(admin_pb2.ListRegionsRequest())).regions
        return not any(region.online for region in regions)

    await eventually(offline)


async def test_logs_outlive_their_region(tmp_path: Path) -> None:
    talks = "import sys\nfor n in range(200_000): print('line', n)\nprint('oops', file=sys.stderr)\nsys.exit(3)"
    gang = "import os\nprint('here is rank', os.environ['RANK'])"
    with running_platform(tmp_path) as platform:
        client = platform.client()
        argvs = [[sys.executable, "-S", "-c", program] for program in (talks, gang)]
        specs = [spec(argvs[0]), spec(argvs[1], replicas=2), spec(["true"])]
        ids = await submit(client, *specs)
        jobs = await ended(client, *ids)
        expected = [common_pb2.JOB_STATE_FAILED, common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_SUCCEEDED]
        assert [job.state for job in jobs] == expected
        assert [bool(job.attempts[0].logs) for job in jobs] == [True, True, False]
        before = await read(client, ids[0])
        await remove_region(platform, client)
        failed, both, silent = ids
        assert await read(client, failed) == before == {OUT: LINES, ERR: b"oops\n"}
        assert await read(client, failed, offset=-7, stream=OUT) == {OUT: LINES[-7:]}
        assert await read(client, failed, offset=1_234_567, stream=OUT) == {OUT: LINES[1_234_567:]}
        for rank in (0, 1):
            assert await read(client, both, rank=rank) == {OUT: f"here is rank {rank}\n".encode()}
        # Nothing was written, so nothing was stored, and only the agent could say so.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(client, silent)
        assert info_of(caught.value).reason == "REGION_OFFLINE"
        await client.channel.close()
