"""Waiting for jobs, and watching what happens to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

import click

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.cli import exits, human
from suanli.cli.output import Output, output_option, short_name, to_data
from suanli.cli.runtime import Failure, Link, connected
from suanli.cli.values import Duration

WATCHED = 1_000
"""The control plane takes so many ids in one call of WatchJobs."""
_AT_ONCE = 16
_REFRESH_S = 0.5
OnJob = Callable[[jobs_pb2.Job], None]


async def jobs_of(link: Link, job_ids: Sequence[str]) -> list[jobs_pb2.Job]:
    """The jobs as they are now, in order."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(job_id: str) -> jobs_pb2.Job:
        async with gate:
            return await link.job(job_id)

    tasks = [asyncio.ensure_future(one(job_id)) for job_id in job_ids]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def wait_for(link: Link, job_ids: Sequence[str], on_job: OnJob) -> list[jobs_pb2.Job]:
    """Wait until all these jobs have ended, and return them in order; ``on_job`` hears of each change on the way."""
    found = {job.id: job for job in await jobs_of(link, list(dict.fromkeys(job_ids)))}
    for job in found.values():
        on_job(job)
    waiting = [job for job in found.values() if not exits.has_ended(job)]
    for start in range(0, len(waiting), WATCHED // 2):
        async for job in _changes(link, waiting[start : start + WATCHED // 2]):
            found[job.id] = job
            on_job(job)
    return [found[job_id] for job_id in job_ids]


async def _changes(link: Link, jobs: Sequence[jobs_pb2.Job]) -> AsyncGenerator[jobs_pb2.Job, None]:
    """These jobs again whenever something has happened to them, until all have ended."""
    waiting = {job.id for job in jobs}
    # A task that never started ends with its array, without an event of its own.
    watched = sorted(waiting | {job.array_id for job in jobs if job.array_id})
    after = min(job.sequence for job in jobs)
    refreshed = 0.0
    request = jobs_pb2.WatchJobsRequest(after_sequence=after, job_ids=watched)
    async with aclosing(link.watch(request)) as responses:
        async for response in responses:
            ids = {event.job_id for event in response.events}
            changed = {job.id for job in jobs if job.id in waiting and (job.id in ids or job.array_id in ids)}
            if time.monotonic() - refreshed >= _REFRESH_S:
                # An array hears of each of its tasks: its counts are looked at now and then.
                refreshed = time.monotonic()
                changed |= waiting & {event.array_id for event in response.events}
            for job in await jobs_of(link, sorted(changed)):
                yield job
                if exits.has_ended(job):
                    waiting.discard(job.id)
            if not waiting:
                return


def describe(job: jobs_pb2.Job) -> str:
    """How a job stands, in a line."""
    state = (short_name(common_pb2.JobState.DESCRIPTOR, job.state) or "").lower().replace("_", " ")
    text = f"{job.id} ({job.spec.name}): {state}"
    if job.HasField("array"):
        array = job.array
        ended = array.succeeded + array.failed + array.cancelled
        return f"{text}, {ended} of {array.size} tasks ended, {array.active} active"
    if exits.has_ended(job):
        took = f" after {human.duration(job.end_time_ms - job.start_time_ms)}" if job.start_time_ms else ""
        return f"{text}{took}" + (f": {job.message}" if job.message else "")
    if job.region:
        text += f" in {job.region}/{job.pool}"
    return f"{text}: {job.message}" if job.message else text


@contextmanager
def detachable(out: Output, job_ids: Sequence[str]) -> Iterator[None]:
    """Around waiting: Ctrl-C ends the waiting only, and says so."""
    try:
        yield
    except asyncio.CancelledError:
        some = " ".join(job_ids[:3]) + (" …" if len(job_ids) > 3 else "")
        goes = "The job goes on." if len(job_ids) == 1 else "The jobs go on."
        out.note(f"{goes} 'suanli wait {some}' waits again; 'suanli cancel {some}' stops {_them(job_ids)}.")
        raise


def _them(job_ids: Sequence[str]) -> str:
    return "it" if len(job_ids) == 1 else "them"


async def wait_and_tell(link: Link, job_ids: Sequence[str], timeout_ms: int | None, out: Output) -> list[jobs_pb2.Job]:
    """``wait_for`` with progress on stderr; a ``Failure`` with code 124 when ``timeout_ms`` has passed."""
    told: dict[str, str] = {}
    ended: set[str] = set()
    many = len(job_ids) > 1

    with detachable(out, job_ids), out.progress("waiting") as progress:

        def on_job(job: jobs_pb2.Job) -> None:
            words = describe(job)
            if told.get(job.id) == words:
                return
            told[job.id] = words
            if exits.has_ended(job):
                ended.add(job.id)
                out.note(words)
            progress(f"{len(ended)} of {len(job_ids)} ended; {words}" if many else words)

        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms is not None else None):
                return await wait_for(link, job_ids, on_job)
        except TimeoutError:
            raise Failure(
                f"Not ended within {human.duration(timeout_ms or 0)}; {'they go' if many else 'it goes'} on.",
                exits.TIMED_OUT,
            ) from None


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option(
    "--timeout", "timeout_ms", type=Duration(), default=None, help="Wait no longer than this, as in 90s or 2h."
)
@output_option
@connected
async def wait(link: Link, jobs: tuple[str, ...], timeout_ms: int | None, out: Output) -> None:
    """Wait until jobs have ended, and exit with their fate: 0 when all succeeded, else the first other one's code."""
    ended = await wait_and_tell(link, jobs, timeout_ms, out)
    if out.form != "table":
        out.data([to_data(job) for job in ended])
    click.get_current_context().exit(exits.of_jobs(ended))


@click.command()
@click.argument("jobs", nargs=-1)
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Of this project.")
@click.option(
    "--after",
    type=click.IntRange(-1),
    default=-1,
    help="After this sequence number; 0: from the oldest kept. Default: new ones.",
)
@click.option("--count", type=click.IntRange(1), default=None, help="Stop after so many.")
@output_option
@connected
async def watch(
    link: Link, jobs: tuple[str, ...], institution: str, project: str, after: int, count: int | None, out: Output
) -> None:
    """Print what happens to jobs (all that you may see, or these) as it happens, until Ctrl-C.

    An interrupted connection is taken up again without gap or repeat. With -o json each event is a line.
    """
    if len(jobs) > WATCHED:
        raise click.UsageError(f"{len(jobs):,} jobs are too many; give at most {WATCHED:,}, or none for all.")
    request = jobs_pb2.WatchJobsRequest(after_sequence=after, job_ids=jobs, institution=institution, project=project)
    left = count
    async with aclosing(link.watch(request)) as responses:
        async for response in responses:
            for event in response.events:
                if out.form == "table":
                    out.text(_event_line(event))
                else:
                    out.event(to_data(event))
                left = None if left is None else left - 1
                if left == 0:
                    return


def _event_line(event: jobs_pb2.JobEvent) -> str:
    state = short_name(common_pb2.JobState.DESCRIPTOR, event.state) or ""
    what = state if event.kind == "STATE" else f"{event.kind} ({state})"
    place = f"  {event.region}/{event.pool}" if event.region else ""
    said = human.one_line(event.message or event.reason)
    return f"{human.instant(event.time_ms)}  {event.job_id}  {what}{place}" + (f"  {said}" if said else "")
