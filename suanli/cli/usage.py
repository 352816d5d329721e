"""Usage, as the ledger has it: exact in JSON, YAML and files, in hours and rounded in tables; and its export for finance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
import yaml

from protos.suanli.v1 import usage_pb2
from suanli.cli import human, usage_rows
from suanli.cli.groups import DefaultGroup
from suanli.cli.output import Output, output_option_of, plain_output
from suanli.cli.reports import FILE_FORMS, FORMS, report_options, target, writer_of
from suanli.cli.runtime import Link, connected
from suanli.cli.usage_rows import Shown, dimension_name, sorted_rows, total_row
from suanli.cli.values import Dimensions, Instant, Month


@click.group(cls=DefaultGroup, default="show")
def usage() -> None:
    """Sum up what jobs held, for how long and for how much, and export it.

    'suanli usage --by month' is short for 'suanli usage show --by month'.
    """


@usage.command()
@click.option("--by", type=Dimensions(), default="institution", show_default=True, help=Dimensions.HELP)
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Of this project.")
@click.option("--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Since: 2026-10, 2026-10-01, 7d.")
@click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="Before.")
@click.option("--running", is_flag=True, help="Also count what running jobs have used so far.")
@click.option(
    "--costs/--no-costs", default=None, help="With money, or without. Default: with, if there is a price list."
)
@click.option("--used", is_flag=True, help="With how much of what was held was used.")
@click.option("--energy", is_flag=True, help="With estimates of energy and carbon, by the price list's factors.")
@click.option(
    "--sort", type=click.Choice(list(usage_rows.SORTS)), default=None, help="The greatest first. Default: by key."
)
@click.option(
    "--top", type=click.IntRange(min=1), default=None, metavar="N", help="Only the first N; the total is of all."
)
@click.option("--chart", is_flag=True, help="Draw bars below the table.")
@output_option_of(FORMS)
@report_options
@connected
async def show(
    link: Link,
    by: list[int],
    institution: str,
    project: str,
    from_ms: int | None,
    to_ms: int | None,
    running: bool,
    costs: bool | None,
    used: bool,
    energy: bool,
    sort: str | None,
    top: int | None,
    chart: bool,
    out: Output,
    file: Path | None,
) -> None:
    """Sum up what jobs held, for how long, and what it costs.

    Times are UTC. Records that straddle --from or --to count with the part inside. Costs are after discounts and before free
    allowances, which only statements know. -o csv and parquet have exact integers beside hours and money.

    \b
    suanli usage --by project,month --from 2026-09 --to 2027-01
    suanli usage --by user --used --sort gpu --top 20 --chart
    suanli usage --by institution,pool,month -o parquet --out usage.parquet
    """
    if out.form == "table" and file is not None:
        raise click.UsageError("--out goes with -o json, yaml, csv or parquet.")
    if out.form != "table" and chart:
        raise click.UsageError("--chart goes with -o table.")
    request = usage_pb2.GetUsageRequest(
        institution=institution,
        project=project,
        from_ms=from_ms or 0,
        to_ms=to_ms or 0,
        group_by=by,  # type: ignore[arg-type]
        include_running=running,
        include_energy=energy or sort == "energy",
    )
    answer = await link.call("UsageService/GetUsage", request)
    priced = bool(answer.currency) if costs is None else costs
    shown = Shown(answer, [dimension_name(value) for value in by], priced, used, energy)
    rows = sorted_rows(answer.rows, sort or "")[:top]
    if out.form in FILE_FORMS:
        _write(shown, rows, out.form, file)
    elif out.form != "table":
        _print(usage_rows.data(shown, rows), out, file)
    else:
        _table(shown, rows, out)
        if chart and rows:
            heading, bars = usage_rows.chart(shown, rows, sort or "")
            out.console.print()
            out.text(heading)
            out.console.print(bars, width=min(out.console.width, 120))


def _table(shown: Shown, rows: Sequence[usage_pb2.UsageRow], out: Output) -> None:
    answer = shown.answer
    if rows:
        shown_rows = [*rows, total_row(answer.total, len(shown.dimensions))] if len(answer.rows) > 1 else rows
        out.table(shown_rows, usage_rows.columns(shown), "")
    else:
        out.note("Nothing has been used.")
    if len(rows) < len(answer.rows):
        out.note(f"{len(rows)} of {len(answer.rows)} rows are shown; the total is of all.")
    if answer.as_of_ms:
        out.note(f"Running jobs are counted up to {human.instant(answer.as_of_ms)}.")
    if shown.costs and not answer.currency:
        out.note("There is no price list yet, so nothing costs anything.")


def _write(shown: Shown, rows: Sequence[usage_pb2.UsageRow], form: str, file: Path | None) -> None:
    with target(file, binary=form == "parquet") as stream:
        writer = writer_of(form, stream, usage_rows.fields(shown))
        for row in rows:
            writer.add(row)
        writer.close()


def _print(data: dict[str, Any], out: Output, file: Path | None) -> None:
    if file is None:
        out.data(data)
        return
    if out.form == "yaml":
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=False)
    else:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    with target(file) as stream:
        stream.write(text.encode())


@usage.command()
@click.option(
    "--format", "form", type=click.Choice(["focus"]), default="focus", show_default=True, help="FOCUS 1.4, CSV."
)
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option(
    "--from",
    "from_month",
    default="",
    type=Month(),
    metavar="MONTH",
    help="The first. Default: the newest with use.",
)
@click.option("--to", "to_month", default="", type=Month(), metavar="MONTH", help="The last. Default: only the first.")
@report_options
@connected
async def export(link: Link, form: str, institution: str, from_month: str, to_month: str, file: Path | None) -> None:
    """Write every charge of some accounting months in the columns of FOCUS, the FinOps Open Cost and Usage Specification.

    A row for each ledger record and resource; with rows for rounding and free allowances, the sum of BilledCost by InvoiceDetailId is
    what the statement's line charges. docs/howto/focus.md tells more.

    \b
    suanli usage export --institution beishan --from 2026-10 --out october.csv
    suanli usage export --from 2026-01 --to 2026-12 > year.csv
    """
    out = plain_output()
    request = usage_pb2.ExportUsageRequest(
        format=usage_pb2.EXPORT_FORMAT_FOCUS_CSV, institution=institution, from_month=from_month, to_month=to_month
    )
    size = lines = 0
    with target(file) as stream, out.progress("exporting") as tell:
        async with aclosing(link.connection.stream(link.connection.usage.ExportUsage, request)) as pieces:
            async for piece in pieces:
                stream.write(piece.data)
                size += len(piece.data)
                lines += piece.data.count(b"\n")
                tell(f"exporting: {human.size(size)}")
    rows = max(0, lines - 1)
    out.note(f"{rows:,} {'row' if rows == 1 else 'rows'}, {human.size(size)}{f', in {file}' if file else ''}.")
