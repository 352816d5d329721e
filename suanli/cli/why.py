"""`suanli why`: why a job waits, when it will probably start, and what would help; also if it asked for something else."""

from __future__ import annotations

from typing import Any

import click

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.cli import human
from suanli.cli.exits import USAGE
from suanli.cli.job_file import read_job_file
from suanli.cli.jobs import state_name
from suanli.cli.output import Column, Output, output_option, short_name, to_data
from suanli.cli.runtime import Failure, Link, connected
from suanli.errors import SuanliError
from suanli.spec import build_change

_SURE = {"HIGH": "likely", "MEDIUM": "roughly", "LOW": "a guess"}
_CHANGES = (
    click.option("--cpus", metavar="N", help="What if it asked for so many cores per replica?"),
    click.option("--memory", metavar="SIZE", help="What if it asked for so much memory per replica?"),
    click.option("--gpus", metavar="N", help="What if it asked for so many GPUs per replica?"),
    click.option("--gpu-type", "gpu_types", multiple=True, help="What if it took these types? 'any' for any."),
    click.option("--replicas", type=click.IntRange(1), help="What if it had so many replicas?"),
    click.option("--region", "only_regions", multiple=True, help="What if it ran only here? 'any' for anywhere."),
    click.option("--pool", "pools", multiple=True, help="What if it ran only in this pool? 'any' for any."),
    click.option("--max-runtime", metavar="DURATION", help="What if it were stopped after so long?"),
    click.option(
        "--preemptible/--not-preemptible", default=None, help="What if it could (not) be stopped with notice?"
    ),
    click.option("--priority", type=click.Choice(["low", "normal", "high", "urgent"]), help="What if it had this?"),
    click.option("--pack", metavar="LEVEL", help="What if its replicas stood together: node, rack, zone or a label?"),
    click.option("--pack-required/--pack-preferred", default=None, help="What if they had to, or not?"),
)


def _changes(function: Any) -> Any:
    for option in reversed(_CHANGES):
        function = option(function)
    return function


@click.command()
@click.argument("job", required=False)
@click.option("-f", "--file", "path", metavar="FILE", help="Of a job file, before it is submitted; - for stdin.")
@_changes
@output_option
@connected
async def why(link: Link, /, job: str | None, path: str | None, out: Output, **flags: Any) -> None:
    """Say why a job waits: in a sentence, and pool by pool; when it will probably start, and what would help.

    With options that change what it asks for, say also what would come of that. Nothing is changed.

    \b
    suanli why JOB --memory 8GiB --max-runtime 30m
    suanli why -f job.yaml --region any
    """
    if (job is None) == (path is None):
        raise click.UsageError("Name a job, or a file with -f.")
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    for name in ("gpu_types", "only_regions", "pools"):
        if given[name] == ["any"]:
            given[name] = []
        elif not given[name]:
            del given[name]
    change = build_change({name: value for name, value in given.items() if value is not None})
    as_asked = await _ask(link, job, path, None)
    changed = await _ask(link, job, path, change) if change.ListFields() else None
    if out.form != "table":
        data = {"as_asked": to_data(as_asked), "changed": to_data(changed)} if changed else to_data(as_asked)
        out.data(data)
        return
    name = job or "It"
    if changed is None:
        _tell(as_asked, name, out)
        return
    out.text(f"as asked: {_brief(as_asked)}")
    out.text(f"{_words(change)}: {_brief(changed)}")
    _tell_more(changed, out)


async def _ask(
    link: Link, job: str | None, path: str | None, change: jobs_pb2.JobChange | None
) -> jobs_pb2.ExplainJobResponse:
    if job is not None:
        request = jobs_pb2.ExplainJobRequest(job_id=job, what_if=change)
        answer: jobs_pb2.ExplainJobResponse = await link.call("JobService/ExplainJob", request)
        return answer
    assert path is not None
    try:
        file = read_job_file(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}", USAGE) from error
    if len(file.jobs) > 1:
        raise Failure(f"{path} has {len(file.jobs)} jobs; ask about one.", USAGE)
    try:
        return await link.client.explain(file.jobs[0], change)
    except SuanliError as error:
        raise file.locate(error) from error


def _tell(answer: jobs_pb2.ExplainJobResponse, name: str, out: Output) -> None:
    state = f"is {state_name(answer.state)}" if answer.state else "would wait"
    if answer.code == "NEXT" and not answer.state:
        state = "would start at once"
    out.text(f"{name} {state}" + (f": {answer.message}" if answer.message else "."))
    if answer.HasField("expected_start") and answer.code != "NONE":
        out.text(expected(answer.expected_start, human.now_ms()))
    if answer.position:
        about = "" if answer.position_is_exact else "About "
        stand = "job stands" if answer.position == 1 else "jobs stand"
        out.text(f"{about}{answer.position:,} {stand} before it.")
    if answer.waiting_for:
        out.text(f"It waits for: {', '.join(answer.waiting_for)}")
    _tell_more(answer, out)


def _tell_more(answer: jobs_pb2.ExplainJobResponse, out: Output) -> None:
    """What else keeps it, the pools, and what would help."""
    others = answer.blockers[1:]
    if others:
        out.text("")
        out.text("It is also kept by:")
        for blocker in others:
            out.text(f"  - {_lower(blocker.message)}")
    if answer.remedies:
        out.text("")
        out.text("What would help:")
        for remedy in answer.remedies:
            out.text(f"  - {_lower(remedy.message)}")
    if answer.pools:
        out.text("")
        out.table(answer.pools, _POOL_COLUMNS, "")


def expected(start: jobs_pb2.ExpectedStart, now: int) -> str:
    """'Expected to start about 14:30, between 14:10 and 16:00 (likely).', in the time zone of this machine."""
    if not start.at_ms:
        return (start.message[:1].upper() + start.message[1:] + ".") if start.message else "No estimate of its start."
    if start.at_ms <= now + 1000 and start.basis == "PLAN":
        return "Expected to start at once."
    bounds = ""
    if start.earliest_ms and start.latest_ms and start.latest_ms > start.earliest_ms:
        early = "now" if start.earliest_ms <= now else human.clock(start.earliest_ms, now)
        bounds = f", between {early} and {human.clock(start.latest_ms, now)}"
    elif start.latest_ms:
        bounds = f", by {human.clock(start.latest_ms, now)} at the latest"
    elif start.earliest_ms > now:
        bounds = f", not before {human.clock(start.earliest_ms, now)}"
    return (
        f"Expected to start about {human.clock(start.at_ms, now)}{bounds} ({_SURE.get(start.confidence, 'a guess')})."
    )


def _brief(answer: jobs_pb2.ExplainJobResponse) -> str:
    """One line: whether it could start now, else why not and when."""
    if answer.code == "NEXT":
        return f"could start now. {answer.message}"
    if answer.code == "NONE":
        return answer.message
    return f"{answer.message} {expected(answer.expected_start, human.now_ms())}"


def _words(change: jobs_pb2.JobChange) -> str:
    """'with 8 GiB, 2 replicas'."""
    parts: list[str] = []
    if change.HasField("cpu_milli"):
        parts.append(f"{human.cpus(change.cpu_milli)} CPU")
    if change.HasField("memory_mib"):
        parts.append(human.memory(change.memory_mib))
    if change.HasField("gpu_milli"):
        parts.append(f"{human.cpus(change.gpu_milli)} GPU")
    if change.HasField("replicas"):
        parts.append(f"{change.replicas} {'replica' if change.replicas == 1 else 'replicas'}")
    if change.HasField("accelerators"):
        parts.append(f"GPU type {', '.join(change.accelerators.names) or 'any'}")
    if change.HasField("required_regions"):
        parts.append(f"region {', '.join(change.required_regions.names) or 'any'}")
    if change.HasField("pools"):
        parts.append(f"pool {', '.join(change.pools.names) or 'any'}")
    if change.HasField("max_runtime_ms"):
        parts.append(f"at most {human.duration(change.max_runtime_ms)}")
    if change.HasField("preemptible"):
        parts.append("preemptible" if change.preemptible else "not preemptible")
    if change.priority_class:
        parts.append(
            f"priority {(short_name(common_pb2.PriorityClass.DESCRIPTOR, change.priority_class) or '').lower()}"
        )
    if change.HasField("topology"):
        must = "all" if change.topology.required else "if possible"
        parts.append(f"{must} in one {change.topology.level}" if change.topology.level else "anywhere in the pool")
    return f"with {', '.join(parts)}"


def _lower(sentence: str) -> str:
    """A sentence as an item of a list. Names and amounts keep their case."""
    first = sentence.split(" ", 1)[0]
    return sentence[:1].lower() + sentence[1:] if first.isalpha() else sentence


_POOL_COLUMNS: list[Column[jobs_pb2.PoolExplanation]] = [
    Column("POOL", lambda p: p.pool, whole=True),
    Column("", lambda p: p.code.replace("_", " ").lower()),
    Column("FITS NOW", lambda p: str(p.nodes_fit_now), right=True),
    Column("WHEN EMPTY", lambda p: str(p.nodes_fit_empty), right=True),
    Column("NODES", lambda p: str(p.nodes_total), right=True),
    Column("WHY", lambda p: p.message),
]
