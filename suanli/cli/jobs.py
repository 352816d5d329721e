"""Reading jobs, asking why they wait, and cancelling them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND, has_ended
from suanli.cli.live import show_live
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Failure, Link, connected, listed, who_am_i
from suanli.cli.values import Instant, Pair, State

MAX_SHOWN = 100_000
_BATCH = 10_000


def state_name(state: int) -> str:
    """ "RUNNING"."""
    return short_name(common_pb2.JobState.DESCRIPTOR, state) or ""


def workload(spec: jobs_pb2.JobSpec) -> str:
    """What the job runs, in a line."""
    kind = spec.WhichOneof("workload")
    if kind == "command":
        return " ".join(spec.command.argv)
    if kind == "python":
        entry = spec.python
        target = entry.script if entry.WhichOneof("target") == "script" else f"-m {entry.module}"
        return " ".join(["python", target, *entry.args])
    if kind == "algorithm":
        return f"algorithm {spec.algorithm.name} {spec.algorithm.version}".rstrip()
    return ""


def _took(job: jobs_pb2.Job, now: int) -> str:
    if not job.start_time_ms:
        return ""
    return human.duration((job.end_time_ms or now) - job.start_time_ms)


def _place(job: jobs_pb2.Job) -> str:
    return f"{job.region}/{job.pool}" if job.region else ""


def _tasks(job: jobs_pb2.Job) -> str:
    if not job.HasField("array"):
        return ""
    array = job.array
    return f"{array.succeeded + array.failed + array.cancelled} of {array.size} ended"


def _name(job: jobs_pb2.Job) -> str:
    if job.array_id:
        return f"{job.spec.name}[{job.array_index}]"
    return f"{job.spec.name}[0-{job.array.size - 1}]" if job.HasField("array") else job.spec.name


def columns(everyone: bool) -> list[Column[jobs_pb2.Job]]:
    """The columns of `ps`; with whose job it is when jobs of several people are shown."""
    now = human.now_ms()
    whose: list[Column[jobs_pb2.Job]] = [
        Column("PROJECT", lambda j: f"{j.spec.institution}/{j.spec.project}"),
        Column("USER", lambda j: j.user),
    ]
    return [
        Column("JOB", lambda j: j.id, whole=True),
        Column("NAME", _name),
        *(whose if everyone else []),
        Column("STATE", lambda j: state_name(j.state), whole=True),
        Column("AGE", lambda j: human.age(j.submit_time_ms, now)),
        Column("TOOK", lambda j: _took(j, now)),
        Column("PLACE", _place),
        Column("NOTE", lambda j: _tasks(j) or ("" if j.state == common_pb2.JOB_STATE_SUCCEEDED else j.reason)),
    ]


@click.command()
@click.option("-A", "--all", "everyone", is_flag=True, help="Of every user, project and institution that you may see.")
@click.option("--institution", default="", help="Of this institution.")
@click.option("--project", default="", help="Of this project.")
@click.option("--user", default="", help="Submitted by this user. Default: by you.")
@click.option("-s", "--state", "states", type=State(), multiple=True, help="In this state; may be repeated.")
@click.option("--name", default="", help="With exactly this name.")
@click.option("--array", "array_id", default="", metavar="JOB", help="The tasks of this array.")
@click.option("--region", default="", help="In this region.")
@click.option("-l", "--label", "labels", type=Pair(), multiple=True, metavar="KEY=VALUE", help="With this label.")
@click.option("--since", type=Instant(), default=None, metavar="TIME", help="Submitted since: 2h, 7d, 2026-10-01.")
@click.option("--until", type=Instant(), default=None, metavar="TIME", help="Submitted before.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, MAX_SHOWN), default=100, show_default=True, help="The newest so many."
)
@click.option("-w", "--watch", is_flag=True, help="Keep the table up to date until Ctrl-C.")
@output_option
@connected
async def ps(link: Link, /, everyone: bool, limit: int, watch: bool, out: Output, **filters: Any) -> None:
    """List jobs, the newest first: yours, unless -A or a filter says otherwise."""
    asked = _filter(filters)
    if not (everyone or asked.user or asked.institution or asked.project or asked.array_id):
        asked.user = (await who_am_i(link)).user
    shown = columns(everyone=not asked.user)

    async def load() -> list[jobs_pb2.Job]:
        request = jobs_pb2.ListJobsRequest(filter=asked)
        return await listed(link, "JobService/ListJobs", request, "jobs", limit)

    if watch:
        await show_live(link, load, lambda: columns(everyone=not asked.user), asked, out)
        return
    found = await load()
    out.listing(found, shown, "There is no such job." if asked.ByteSize() else "There is no job.")
    if len(found) == limit:
        out.note(f"Only the newest {limit} are shown; --limit shows more.")


def _filter(given: dict[str, Any]) -> jobs_pb2.JobFilter:
    return jobs_pb2.JobFilter(
        institution=given["institution"],
        project=given["project"],
        user=given["user"],
        states=given["states"],
        name=given["name"],
        array_id=given["array_id"],
        labels=dict(given["labels"]),
        region=given["region"],
        submitted_from_ms=given["since"] or 0,
        submitted_to_ms=given["until"] or 0,
    )


@click.command()
@click.argument("job")
@output_option
@connected
async def show(link: Link, job: str, out: Output) -> None:
    """Show all there is to know of a job."""
    response = await link.call("JobService/GetJob", jobs_pb2.GetJobRequest(job_id=job))
    out.sheet(response.job, _sheet(response.job))
    if out.form == "table" and response.job.attempts:
        out.console.print()
        out.table(response.job.attempts, _attempt_columns(), "")


def _sheet(job: jobs_pb2.Job) -> Iterator[tuple[str, str]]:
    spec, now = job.spec, human.now_ms()
    yield "Job", job.id
    yield "Name", _name(job)
    yield "State", state_name(job.state)
    yield "Reason", ": ".join(filter(None, (job.reason, job.message)))
    yield "Runs", workload(spec)
    yield "Project", f"{spec.institution}/{spec.project}"
    yield "User", job.user
    yield "Asks for", human.resources(spec.resources) + (f" × {spec.replicas} replicas" if spec.replicas > 1 else "")
    yield "Ray cluster", _ray(spec)
    yield "Accelerators", ", ".join(spec.accelerators)
    yield "Regions", ", ".join(spec.required_regions) or _preferred(spec)
    yield "Pools", ", ".join(spec.pools)
    yield "Priority", (short_name(common_pb2.PriorityClass.DESCRIPTOR, spec.priority_class) or "").lower()
    yield "Max runtime", human.duration(spec.max_runtime_ms)
    yield "Labels", ", ".join(f"{key}={spec.labels[key]}" for key in sorted(spec.labels))
    yield "Place", _place(job)
    yield "Submitted", _when(job.submit_time_ms, now)
    yield "Started", _when(job.start_time_ms, now)
    yield "Ended", _when(job.end_time_ms, now)
    yield "Took", _took(job, now)
    yield "Exit", _exit(job.exit_code, job.exit_signal) if has_ended(job) else ""
    yield "Array", _array(job)
    yield "Task of", job.array_id
    yield "Cancelling", "asked for" if job.cancel_requested and not has_ended(job) else ""
    yield "Results", job.results
    yield "Checkpoint", job.checkpoint


def _preferred(spec: jobs_pb2.JobSpec) -> str:
    return f"rather {', '.join(spec.preferred_regions)}" if spec.preferred_regions else ""


def _ray(spec: jobs_pb2.JobSpec) -> str:
    if not spec.HasField("ray"):
        return ""
    nodes = f"its own, {spec.replicas} {'node' if spec.replicas == 1 else 'nodes'}"
    store_mib = spec.ray.object_store_mib
    return f"{nodes}, object store {human.memory(store_mib)}" if store_mib else nodes


def _array(job: jobs_pb2.Job) -> str:
    if not job.HasField("array"):
        return ""
    a = job.array
    return (
        f"{a.size} tasks: {a.pending} pending, {a.active} active, {a.succeeded} succeeded, {a.failed} failed, "
        f"{a.cancelled} cancelled"
    )


def _when(ms: int, now: int) -> str:
    return f"{human.instant(ms)} ({human.age(ms, now)})" if ms else ""


def _exit(code: int, number: int) -> str:
    return f"signal {number}" if number else f"code {code}"


def _attempt_columns() -> list[Column[jobs_pb2.Attempt]]:
    outcome = common_pb2.AttemptOutcome.DESCRIPTOR
    return [
        Column("ATTEMPT", lambda a: str(a.number), right=True),
        Column("PLACE", lambda a: f"{a.region}/{a.pool}"),
        Column("NODES", lambda a: ", ".join(dict.fromkeys(r.node_name or r.node_id for r in a.replicas))),
        Column("STARTED", lambda a: human.instant(a.start_time_ms), whole=True),
        Column("ENDED", lambda a: human.instant(a.end_time_ms), whole=True),
        Column("OUTCOME", lambda a: short_name(outcome, a.outcome) or ""),
        Column("EXIT", lambda a: _exit(a.exit_code, a.exit_signal) if a.end_time_ms else ""),
        Column("CPU USED", lambda a: human.duration(a.cpu_used_ms) if a.end_time_ms else "", right=True),
        Column("PEAK MEMORY", lambda a: human.memory(a.peak_memory_mib) if a.peak_memory_mib else "", right=True),
        Column("MESSAGE", lambda a: a.message),
    ]


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option("--reason", default="", help="For the record.")
@output_option
@connected
async def cancel(link: Link, jobs: tuple[str, ...], reason: str, out: Output) -> None:
    """Cancel jobs. An array's id stands for all its tasks. Asking again does no harm."""
    cancelling: list[str] = []
    ended: list[str] = []
    unique = list(dict.fromkeys(jobs))
    for start in range(0, len(unique), _BATCH):
        request = jobs_pb2.CancelJobsRequest(job_ids=unique[start : start + _BATCH], reason=reason)
        response = await link.call("JobService/CancelJobs", request)
        cancelling += response.cancelling
        ended += response.already_ended
    if out.form != "table":
        out.data({"cancelling": cancelling, "already_ended": ended})
        return
    for job in cancelling:
        out.text(f"{job} is being cancelled.")
    for job in ended:
        out.text(f"{job} had already ended.")
    if not (cancelling or ended):
        raise Failure("No such job.", NOT_FOUND)
