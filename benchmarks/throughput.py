"""How many `true` jobs a second run end to end, and how soon a job runs: `python -m benchmarks.throughput`.

Starts a platform of its own (control plane on SQLite, one region on a local Ray cluster). End to end means: submitted over gRPC,
durable, placed, started as a process of its own below a node executor, its end accepted and metered. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
import uuid

import grpc

from benchmarks.server import Server, running_platform
from protos.suanli.v1 import admin_pb2, admin_pb2_grpc, common_pb2, jobs_pb2, jobs_pb2_grpc, usage_pb2, usage_pb2_grpc


def spec() -> jobs_pb2.JobSpec:
    """The smallest job there is."""
    message = jobs_pb2.JobSpec(institution="bench", name="true")
    message.command.argv.append("/bin/true")
    message.resources.cpu_milli, message.resources.memory_mib = 1000, 64
    return message


async def ended(jobs: jobs_pb2_grpc.JobServiceStub, server: Server, after: int, wanted: set[str]) -> int:
    """Watch until all these jobs have ended; returns the sequence number seen."""
    terminal = {common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_FAILED, common_pb2.JOB_STATE_CANCELLED}
    request = jobs_pb2.WatchJobsRequest(after_sequence=after)
    async for page in jobs.WatchJobs(request, metadata=server.metadata):
        for event in page.events:
            if event.state in terminal and event.job_id in wanted:
                if event.state != common_pb2.JOB_STATE_SUCCEEDED:
                    raise SystemExit(f"job {event.job_id} ended otherwise than it should: {event.message}")
                wanted.discard(event.job_id)
        after = page.sequence
        if not wanted:
            return after
    raise SystemExit("the stream of events ended")


async def measure(server: Server, count: int, probes: int) -> dict[str, float]:
    """First single jobs on the idle cluster, then all at once."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        admin, jobs = admin_pb2_grpc.AdminServiceStub(channel), jobs_pb2_grpc.JobServiceStub(channel)
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        institution = admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="bench"))
        await admin.PutInstitution(institution, metadata=server.metadata)

        async def submit(number: int) -> list[str]:
            request = jobs_pb2.SubmitJobsRequest(jobs=[spec()] * number, request_id=str(uuid.uuid4()))
            return list((await jobs.SubmitJobs(request, metadata=server.metadata)).job_ids)

        after, waits = 0, []
        for _ in range(probes + 3):
            job_id = (await submit(1))[0]
            after = await ended(jobs, server, after, {job_id})
            answer = await jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id), metadata=server.metadata)
            waits.append(answer.job.start_time_ms - answer.job.submit_time_ms)
        waits = sorted(waits[3:])
        begin = time.perf_counter()
        wanted: set[str] = set()
        for first in range(0, count, 1000):
            wanted.update(await submit(min(1000, count - first)))
        await ended(jobs, server, after, wanted)
        seconds = time.perf_counter() - begin
        total = (await usage.GetUsage(usage_pb2.GetUsageRequest(), metadata=server.metadata)).total
    if total.attempts != count + probes + 3:
        raise SystemExit(f"the ledger has {total.attempts} attempts, and {count + probes + 3} were made")
    return {
        "jobs_per_s": round(count / seconds, 1),
        "submit_to_running_ms_p50": statistics.median(waits),
        "submit_to_running_ms_p99": waits[int(len(waits) * 0.99)],
        "jobs": count,
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5_000, help="`true` jobs submitted at once")
    parser.add_argument("--probes", type=int, default=100, help="single jobs on the idle cluster, for the latency")
    parser.add_argument("--cpus", type=int, default=16, help="cores the node declares")
    parser.add_argument("--tier", choices=["process", "sandbox"], default="process", help="how jobs are kept apart")
    arguments = parser.parse_args()
    with running_platform(arguments.cpus, arguments.tier) as server:
        figures = asyncio.run(measure(server, arguments.jobs, arguments.probes))
    for name, value in figures.items():
        print(f"{name:>26}: {value:,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
