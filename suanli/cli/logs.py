"""Logs of jobs, as they are written."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import click

from protos.suanli.v1 import jobs_pb2
from suanli.cli import exits
from suanli.cli.follow import detachable
from suanli.cli.output import plain_output
from suanli.cli.runtime import Failure, Link, connected
from suanli.errors import FailedPrecondition, NotFound

BOTH, STDOUT, STDERR = jobs_pb2.LOG_STREAM_UNSPECIFIED, jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR
_MAX_RANK = 4_095
_MAX_TAIL = 1 << 40


@click.command()
@click.argument("job")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on as it is written, over retries, until the job ends; exit as it did."
)
@click.option(
    "--rank", type=click.IntRange(0, _MAX_RANK), default=0, show_default=True, help="Which replica of a gang."
)
@click.option("--attempt", type=click.IntRange(1), default=None, help="Which attempt. Default: the newest.")
@click.option("--stdout", "only", flag_value="stdout", help="Standard output only.")
@click.option("--stderr", "only", flag_value="stderr", help="Standard error only, printed to stdout.")
@click.option(
    "--tail",
    type=click.IntRange(1, _MAX_TAIL),
    default=None,
    metavar="BYTES",
    help="Begin so many bytes before the end.",
)
@connected
async def logs(
    link: Link, job: str, follow: bool, rank: int, attempt: int | None, only: str | None, tail: int | None
) -> None:
    """Print a job's log: what it wrote to stdout goes to stdout, and what it wrote to stderr to stderr."""
    stream = {"stdout": STDOUT, "stderr": STDERR}.get(only or "", BOTH)
    request = jobs_pb2.TailLogsRequest(
        job_id=job, rank=rank, attempt=attempt or 0, stream=stream, offset=-(tail or 0), follow=follow
    )
    if not follow or attempt:
        await print_log(link, request)
        return
    with detachable(plain_output(), [job]):
        ended = await follow_job(link, request)
    click.get_current_context().exit(exits.of_job(ended))


async def follow_job(link: Link, request: jobs_pb2.TailLogsRequest, first: int = 0) -> jobs_pb2.Job:
    """Print the logs of a job's attempts, from ``first`` on (0: the newest), until it has ended; the job as it ended."""
    job = await link.job(request.job_id)
    if job.HasField("array"):
        raise Failure(f"{job.id} is an array; each task has a log of its own: suanli logs {job.id}.0", exits.USAGE)
    following = first or max(1, job.attempt)
    async with aclosing(_attempts(link, job)) as attempts:
        async for job in attempts:
            # Short attempts may have come and gone between two looks at the job.
            while following <= job.attempt:
                request.attempt = following
                if await _print_attempt(link, request, newest=following == job.attempt):
                    request.offset = 0
                following += 1
    return job


async def _attempts(link: Link, job: jobs_pb2.Job) -> AsyncGenerator[jobs_pb2.Job, None]:
    """The job whenever something has happened to it, until it has ended; a new attempt shows once it is under way."""
    yield job
    if exits.has_ended(job):
        return
    watched = [job.id, job.array_id] if job.array_id else [job.id]
    request = jobs_pb2.WatchJobsRequest(after_sequence=job.sequence, job_ids=watched)
    async with aclosing(link.watch(request)) as responses:
        async for response in responses:
            if not any(event.job_id in watched for event in response.events):
                continue
            job = await link.job(job.id)
            yield job
            if exits.has_ended(job):
                return


async def _print_attempt(link: Link, request: jobs_pb2.TailLogsRequest, newest: bool) -> bool:
    """Print the log of an attempt until it ends; False when there is none: it never started, or is no longer kept."""
    try:
        await print_log(link, request)
    except FailedPrecondition:
        return False
    except NotFound:
        if newest:
            raise
        return False
    return True


async def print_log(link: Link, request: jobs_pb2.TailLogsRequest) -> None:
    """Copy a log to stdout and stderr byte by byte, without gap or repeat across disconnects."""
    wanted: Sequence[int] = (STDOUT, STDERR) if request.stream == BOTH else (request.stream,)
    seen: dict[int, int] = {}

    def ask() -> jobs_pb2.TailLogsRequest:
        again = jobs_pb2.TailLogsRequest()
        again.CopyFrom(request)
        if seen:
            # Both streams are asked for from one number: from the lower, and what was printed is left out.
            again.offset = min(seen.get(stream, 0) for stream in wanted)
        return again

    async with aclosing(link.stream("JobService/TailLogs", ask)) as parts:
        async for part in parts:
            request.attempt = request.attempt or part.attempt
            printed = seen.get(part.stream, part.offset)
            data = part.data[max(0, printed - part.offset) :]
            seen[part.stream] = max(printed, part.offset + len(part.data))
            if data:
                target = sys.stderr if part.stream == STDERR and request.stream == BOTH else sys.stdout
                target.buffer.write(data)
                target.buffer.flush()
