"""How many durable submissions a second the front door takes: `python -m benchmarks.frontdoor`.

Starts a control plane of its own (embedded SQLite, or --database-url) and, side by side in the same run, a bare grpcio echo
server, so that figures can be read as ratios of what gRPC itself does on this machine. Every acknowledgement counted is
durable. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import grpc

from benchmarks.server import Server, running_server
from protos.suanli.v1 import admin_pb2, admin_pb2_grpc, jobs_pb2, jobs_pb2_grpc

ECHO = """
import asyncio, grpc
async def main():
    server = grpc.aio.server()
    async def echo(request, context):
        return request
    handler = grpc.method_handlers_generic_handler("echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def spec(name: str = "bench") -> jobs_pb2.JobSpec:
    """A small job that finds no node, so that only the front door works."""
    message = jobs_pb2.JobSpec(institution="bench", name=name)
    message.command.argv.extend(["true"])
    message.resources.cpu_milli, message.resources.memory_mib = 1000, 256
    return message


async def in_flight(total: int, width: int, call: Callable[[], Awaitable[object]]) -> tuple[float, list[float]]:
    """Make ``total`` calls, ``width`` at a time; the seconds it took and each call's ms."""
    left, latencies = total, []

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begin = time.perf_counter()
            await call()
            latencies.append((time.perf_counter() - begin) * 1000)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(width)))
    return time.perf_counter() - begin, latencies


async def echo_rate(calls: int) -> float:
    """Unary calls a second to a bare grpcio server, 64 in flight."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            echo = channel.unary_unary("/echo/Echo")
            payload = jobs_pb2.SubmitJobsRequest(jobs=[spec()], request_id=str(uuid.uuid4())).SerializeToString()
            seconds, _ = await in_flight(calls, 64, lambda: echo(payload))
        return calls / seconds
    finally:
        process.terminate()
        await process.wait()


async def measure(server: Server, arguments: argparse.Namespace) -> dict[str, float]:
    """Submit in every way and time it."""
    metadata = server.metadata
    async with grpc.aio.insecure_channel(server.address) as channel:
        admin, jobs = admin_pb2_grpc.AdminServiceStub(channel), jobs_pb2_grpc.JobServiceStub(channel)
        institution = admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="bench"))
        await admin.PutInstitution(institution, metadata=metadata)

        async def submit(request: jobs_pb2.SubmitJobsRequest) -> None:
            request.request_id = str(uuid.uuid4())
            await jobs.SubmitJobs(request, metadata=metadata)

        one = jobs_pb2.SubmitJobsRequest(jobs=[spec()])
        await in_flight(500, 64, lambda: submit(jobs_pb2.SubmitJobsRequest(jobs=one.jobs)))
        unary_s, unary_ms = await in_flight(
            arguments.unary, 64, lambda: submit(jobs_pb2.SubmitJobsRequest(jobs=one.jobs))
        )
        names = [spec(f"bench-{index}") for index in range(1000)]
        batch = jobs_pb2.SubmitJobsRequest(jobs=names)
        batch_s, batch_ms = await in_flight(
            arguments.batches, 2, lambda: submit(jobs_pb2.SubmitJobsRequest(jobs=batch.jobs))
        )
        array = spec()
        array.array.size = 100_000
        _, array_ms = await in_flight(20, 1, lambda: submit(jobs_pb2.SubmitJobsRequest(jobs=[array])))
    echo = await echo_rate(arguments.unary)
    unary_ms.sort()
    return {
        "batch_jobs_per_s": round(arguments.batches * 1000 / batch_s, 1),
        "batch_ms_p50": round(statistics.median(batch_ms), 2),
        "unary_jobs_per_s": round(arguments.unary / unary_s, 1),
        "echo_per_s": round(echo, 1),
        "unary_per_echo": round(arguments.unary / unary_s / echo, 3),
        "p50_ms": round(statistics.median(unary_ms), 2),
        "p99_ms": round(unary_ms[int(len(unary_ms) * 0.99)], 2),
        "array_100k_ms_p50": round(statistics.median(array_ms), 2),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unary", type=int, default=5_000, help="unary submissions (and echo calls)")
    parser.add_argument("--batches", type=int, default=50, help="batches of 1,000 jobs")
    parser.add_argument("--database-url", default="", help="another store than a fresh SQLite file")
    arguments = parser.parse_args()
    with running_server(arguments.database_url) as server:
        figures = asyncio.run(measure(server, arguments))
    for name, value in figures.items():
        print(f"{name:>20}: {value:,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
