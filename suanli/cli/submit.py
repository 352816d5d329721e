"""Submitting jobs: from the command line, from files, or a command after ``--``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from protos.suanli.v1 import jobs_pb2
from suanli.cli import exits
from suanli.cli.follow import detachable, wait_and_tell
from suanli.cli.job_file import JobFile, read_job_file
from suanli.cli.logs import follow_job
from suanli.cli.output import Output, output_option, to_data
from suanli.cli.runtime import Failure, Link, connected
from suanli.cli.values import Duration, Pair
from suanli.errors import SuanliError

F = TypeVar("F", bound=Callable[..., Any])
_WORKLOADS = ("command", "shell", "script", "module", "algorithm")
_LISTS = ("gpu_types", "regions", "only_regions", "pools", "data_sets", "packages", "after", "after_any")
_MAPPINGS = ("env", "labels", "node_labels")
_MAX_COUNT = 2_147_483_647


def options(*groups: Sequence[Callable[[Any], Any]]) -> Callable[[F], F]:
    """A decorator that adds these options to a command, in order."""

    def add(function: F) -> F:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return add


_COUNT = click.IntRange(0, _MAX_COUNT)
WHAT = (
    click.option("-f", "--file", "path", metavar="FILE", help="Jobs from a YAML file, one a document; - for stdin."),
    click.option("--shell", metavar="LINE", help="A line for /bin/sh -c."),
    click.option("--script", metavar="FILE", help="A Python script; sent along, or relative to --folder."),
    click.option("--module", metavar="NAME", help="A Python module of --folder, as for python -m."),
    click.option("--algorithm", metavar="NAME[@VERSION]", help="An algorithm of the catalogue."),
    click.option(
        "-p",
        "--parameter",
        "parameters",
        type=Pair(),
        multiple=True,
        metavar="NAME=VALUE",
        help="Of the algorithm; VALUE is JSON or text.",
    ),
    click.option(
        "--folder", metavar="FOLDER", help="The working folder to send along, but for what .suanliignore names."
    ),
)
WHO = (
    click.option("--name", help="Default: from what it runs."),
    click.option("--institution", help="Default: yours."),
    click.option("--project", help="Default: default."),
    click.option(
        "-l", "--label", "labels", type=Pair(), multiple=True, metavar="KEY=VALUE", help="For people and filters."
    ),
    click.option("--purpose", help="What the data is used for."),
)
NEEDS = (
    click.option("--cpus", metavar="N", help="Cores per replica, as in 2, 0.5 or 500m. [default: 1]"),
    click.option("--memory", metavar="SIZE", help="Per replica, as in 2GiB. [default: 1GiB]"),
    click.option("--gpus", metavar="N", help="Per replica: whole ones, or a share such as 0.25. [default: 0]"),
    click.option("--gpu-type", "gpu_types", multiple=True, help="May be repeated: the best first."),
    click.option("--replicas", type=_COUNT, help="Processes that start together or not at all. [default: 1]"),
    click.option("--pack", metavar="LEVEL", help="Replicas together on one node, rack, zone or other node label."),
    click.option("--pack-required", is_flag=True, default=None, help="Wait for such a place; never be spread."),
    click.option("--ray", is_flag=True, default=None, help="In a Ray cluster of its own: one node per replica."),
    click.option("--ray-object-store", metavar="SIZE", help="Per node, of the job's memory. [default: 3/10 of it]"),
    click.option("--region", "regions", multiple=True, help="Rather here; may be repeated: the best first."),
    click.option("--only-region", "only_regions", multiple=True, help="Nowhere but here; may be repeated."),
    click.option("--pool", "pools", multiple=True, help="Only in this pool: POOL, or REGION/POOL; may be repeated."),
    click.option(
        "--node-label", "node_labels", type=Pair(), multiple=True, metavar="KEY=VALUE", help="Only on such nodes."
    ),
    click.option("--data-set", "data_sets", multiple=True, help="A data set it reads; may be repeated."),
    click.option("-e", "--env", type=Pair(), multiple=True, metavar="NAME=VALUE", help="An environment variable."),
    click.option("--package", "packages", multiple=True, help="A pip requirement; may be repeated."),
)
HOW = (
    click.option("--priority", type=click.Choice(["low", "normal", "high", "urgent"])),
    click.option("--preemptible", is_flag=True, default=None, help="May be stopped with notice and queued again."),
    click.option("--max-runtime", metavar="DURATION", help="Stopped after so long, as in 2h. [default: 1d]"),
    click.option("--retries", type=_COUNT, help="How often it is tried again after a failure. [default: 0]"),
    click.option("--retry-backoff", metavar="DURATION", help="Wait before the first retry; doubles each time."),
    click.option("--after", multiple=True, metavar="JOB", help="Once this job has succeeded; may be repeated."),
    click.option(
        "--after-any", multiple=True, metavar="JOB", help="Once this job has ended, however; may be repeated."
    ),
    click.option("--array", type=_COUNT, metavar="N", help="N tasks, with SUANLI_ARRAY_INDEX 0 to N-1."),
    click.option("--array-parallel", type=_COUNT, metavar="N", help="At most so many tasks at once."),
    click.option("--grace-period", metavar="DURATION", help="Between SIGTERM and SIGKILL. [default: 30s]"),
    click.option(
        "--on-partition", type=click.Choice(["wait", "move"]), help="When its region is cut off. [default: wait]"
    ),
)
_THEN = (
    click.option("--wait", is_flag=True, help="Wait until it has ended, and exit with its fate."),
    click.option("--follow", is_flag=True, help="Print its log as it is written, and exit with its fate."),
    click.option(
        "--timeout", "timeout_ms", type=Duration(), default=None, help="Wait no longer than this; it goes on."
    ),
    click.option("--check", is_flag=True, help="Only say whether it would be accepted."),
    click.option("--request-id", default="", help="Submitting again with the same id does nothing more."),
)


@click.command(context_settings={"allow_interspersed_args": False})
@options(WHAT, WHO, NEEDS, HOW, _THEN)
@output_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARG]...]")
@connected
async def submit(
    link: Link,
    /,
    path: str | None,
    wait: bool,
    follow: bool,
    timeout_ms: int | None,
    check: bool,
    request_id: str,
    out: Output,
    **flags: Any,
) -> None:
    """Submit jobs; prints their ids, each on a line.

    What to run is a command after --, or one of --shell, --script, --module, --algorithm, or -f FILE. Arguments after
    -- belong to --script or --module when one is given. Other options change every job of a file.

    \b
    suanli submit --cpus 2 --memory 4GiB -- python -c 'print(6 * 7)'
    suanli submit --script train.py --replicas 2 --follow -- --epochs 3
    suanli submit --algorithm irt -p model=2pl --wait
    suanli submit -f jobs.yaml --project thesis
    """
    if check and (wait or follow):
        raise click.UsageError("--check submits nothing that could be waited for.")
    if timeout_ms is not None and (follow or not wait):
        raise click.UsageError("--timeout goes with --wait alone.")
    file = jobs_of(path, given_flags(flags))
    if follow and len(file.jobs) > 1:
        raise click.UsageError(f"--follow shows one log, and {len(file.jobs)} jobs are submitted; use --wait.")
    try:
        if check:
            await link.client.check(file.jobs)
        else:
            submitted = await link.client.submit_many(file.jobs, request_id=request_id)
    except SuanliError as error:
        raise file.locate(error) from error
    if check:
        out.note(f"{len(file.jobs)} {'job' if len(file.jobs) == 1 else 'jobs'} would be accepted.")
        return
    await _then(link, [job.id for job in submitted], wait, follow, timeout_ms, out)


async def _then(link: Link, ids: list[str], wait: bool, follow: bool, timeout_ms: int | None, out: Output) -> None:
    """Print the ids, and wait when that is asked for."""
    if follow:
        out.note(f"Submitted {ids[0]}.")
        with detachable(out, ids):
            job = await follow_job(link, jobs_pb2.TailLogsRequest(job_id=ids[0], follow=True), first=1)
        click.get_current_context().exit(exits.of_job(job))
    if out.form == "table":
        for job_id in ids:
            out.text(job_id)
    elif not wait:
        out.data({"job_ids": ids})
    if wait:
        ended = await wait_and_tell(link, ids, timeout_ms, out)
        if out.form != "table":
            out.data([to_data(job) for job in ended])
        click.get_current_context().exit(exits.of_jobs(ended))


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, in the words of ``JobOptions``."""
    given: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        if name in _LISTS:
            given[name] = list(value)
        elif name in _MAPPINGS:
            given[name] = dict(value)
        elif name == "parameters":
            given[name] = {key: _parameter(text) for key, text in value}
        else:
            given[name] = list(value) if name == "command" else value
    if "command" in given and ("script" in given or "module" in given):
        given["args"] = given.pop("command")
    return given


def _parameter(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def jobs_of(path: str | None, given: dict[str, Any]) -> JobFile:
    """The jobs of the file with the flags over them, or the one job that the flags describe."""
    what = [name for name in (*_WORKLOADS, "args") if name in given]
    if path is None:
        if not what:
            raise click.UsageError("Nothing to run: give a command after --, --script, --algorithm or -f FILE.")
        if len(what) > 1 and what not in (["script", "args"], ["module", "args"]):
            raise click.UsageError(f"More than one thing to run: {' and '.join(what)}.")
        return JobFile("", [given])
    if what:
        raise click.UsageError(f"The file says what to run; leave {what[0]} out, or the file.")
    try:
        file = read_job_file(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}", exits.USAGE) from error
    for job in file.jobs:
        for name, value in given.items():
            merged = name in (*_MAPPINGS, "parameters") and isinstance(job.get(name), dict)
            job[name] = {**job[name], **value} if merged else value
    return file
