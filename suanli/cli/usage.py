"""Usage, as the ledger has it: exact in JSON and YAML, in hours and rounded in tables."""

from __future__ import annotations

from typing import Any

import click

from protos.suanli.v1 import common_pb2, usage_pb2
from suanli.cli import human
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Link, connected, listed
from suanli.cli.values import Dimensions, Instant

MAX_RECORDS = 1_000_000
_AMOUNTS = ("cpu_milli_ms", "memory_mib_ms", "gpu_milli_ms")


def dimension_name(value: int) -> str:
    """ "month"."""
    return (short_name(usage_pb2.UsageDimension.DESCRIPTOR, value) or "").lower()


@click.command()
@click.option("--by", type=Dimensions(), default="institution", show_default=True, help=Dimensions.HELP)
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Of this project.")
@click.option("--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Since: 2026-10, 2026-10-01, 7d.")
@click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="Before.")
@click.option("--running", is_flag=True, help="Also count what running jobs have used so far.")
@output_option
@connected
async def usage(
    link: Link,
    by: list[int],
    institution: str,
    project: str,
    from_ms: int | None,
    to_ms: int | None,
    running: bool,
    out: Output,
) -> None:
    """Sum up what jobs held, and for how long.

    Times are UTC. Records that straddle --from or --to count with the part inside.
    """
    request = usage_pb2.GetUsageRequest(
        institution=institution,
        project=project,
        from_ms=from_ms or 0,
        to_ms=to_ms or 0,
        group_by=by,  # type: ignore[arg-type]
        include_running=running,
    )
    answer = await link.call("UsageService/GetUsage", request)
    names = [dimension_name(value) for value in by]
    if out.form != "table":
        out.data(_data(answer, names))
        return
    if answer.rows:
        rows = [*answer.rows, _total(answer.total, len(names))] if len(answer.rows) > 1 else list(answer.rows)
        out.table(rows, _columns(names), "")
    else:
        out.note("Nothing has been used.")
    if answer.as_of_ms:
        out.note(f"Running jobs are counted up to {human.instant(answer.as_of_ms)}.")


def _total(total: usage_pb2.UsageRow, width: int) -> usage_pb2.UsageRow:
    row = usage_pb2.UsageRow()
    row.CopyFrom(total)
    row.key[:] = ["TOTAL", *[""] * (width - 1)]
    return row


def _columns(names: list[str]) -> list[Column[usage_pb2.UsageRow]]:
    def key(index: int) -> Column[usage_pb2.UsageRow]:
        return Column(names[index].upper(), lambda row: row.key[index])

    return [
        *(key(index) for index in range(len(names))),
        Column("CPU-HOURS", lambda r: human.unit_hours(r.cpu_milli_ms), right=True, whole=True),
        Column("GIB-HOURS", lambda r: human.unit_hours(r.memory_mib_ms, 1024), right=True, whole=True),
        Column("GPU-HOURS", lambda r: human.unit_hours(r.gpu_milli_ms), right=True, whole=True),
        Column("ATTEMPTS", lambda r: f"{r.attempts:,}", right=True),
    ]


def _data(answer: usage_pb2.GetUsageResponse, names: list[str]) -> dict[str, Any]:
    def amounts(row: usage_pb2.UsageRow) -> dict[str, int]:
        exact = {name: int(getattr(row, name) or 0) for name in _AMOUNTS}
        return {**exact, "segments": row.segments, "attempts": row.attempts}

    return {
        "rows": [{**dict(zip(names, row.key, strict=True)), **amounts(row)} for row in answer.rows],
        "total": amounts(answer.total),
        "ledger_sequence": answer.ledger_sequence,
        "as_of_ms": answer.as_of_ms,
    }


_OUTCOMES = common_pb2.AttemptOutcome.DESCRIPTOR
_LEDGER_COLUMNS: list[Column[usage_pb2.LedgerRecord]] = [
    Column("NO", lambda r: str(r.sequence), right=True),
    Column("JOB", lambda r: r.job_id, whole=True),
    Column("ATTEMPT", lambda r: str(r.attempt), right=True),
    Column("PART", lambda r: str(r.segment), right=True),
    Column("PROJECT", lambda r: f"{r.institution}/{r.project}"),
    Column("USER", lambda r: r.user),
    Column("POOL", lambda r: f"{r.region}/{r.pool}"),
    Column("FROM", lambda r: human.instant(r.start_ms), whole=True),
    Column("HELD", lambda r: human.duration(r.end_ms - r.start_ms), right=True),
    Column("CPU", lambda r: human.cpus(r.cpu_milli), right=True),
    Column("MEMORY", lambda r: human.memory(r.memory_mib), right=True),
    Column("GPU", lambda r: human.cpus(r.gpu_milli), right=True),
    Column("OUTCOME", lambda r: short_name(_OUTCOMES, r.outcome) or ""),
]


@click.command()
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Of this project.")
@click.option("--job", "job_id", default="", help="Of this job.")
@click.option("--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Ended since.")
@click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="Ended before.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, MAX_RECORDS), default=1000, show_default=True, help="The oldest so many."
)
@output_option
@connected
async def ledger(
    link: Link,
    institution: str,
    project: str,
    job_id: str,
    from_ms: int | None,
    to_ms: int | None,
    limit: int,
    out: Output,
) -> None:
    """List the records that usage is made of, oldest first: who held what, where, from when to when."""
    request = usage_pb2.ListLedgerRequest(
        institution=institution, project=project, job_id=job_id, from_ms=from_ms or 0, to_ms=to_ms or 0
    )
    found = await listed(link, "UsageService/ListLedger", request, "records", limit)
    out.listing(found, _LEDGER_COLUMNS, "There is no record.")
    if len(found) == limit:
        out.note(f"Only the oldest {limit} are shown; --limit shows more.")
