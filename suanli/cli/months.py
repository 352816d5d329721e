"""Accounting months: which are closed, and closing one."""

from __future__ import annotations

import click

from protos.suanli.v1 import usage_pb2
from suanli.cli import human
from suanli.cli.asking import confirm
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Link, connected, listed
from suanli.cli.values import Month

_COLUMNS: list[Column[usage_pb2.AccountingMonth]] = [
    Column("MONTH", lambda m: m.month, whole=True),
    Column("STATE", lambda m: "closed" if m.closed else "open"),
    Column("CLOSED", lambda m: human.instant(m.close_time_ms), whole=True),
    Column("BY", lambda m: m.author),
    Column("RECORDS", lambda m: f"{m.records:,}" if m.closed else "", right=True),
    Column("HEAD", lambda m: f"{m.ledger_sequence}:{m.head_hash.hex()[:16]}" if m.closed else ""),
    Column("DIGEST", lambda m: m.digest.hex()[:16]),
]


@click.group()
def month() -> None:
    """Accounting months. A closed one does not change any more.

    docs/howto/close-a-month.md tells when and how.
    """


@month.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=24, show_default=True, help="At most so many.")
@output_option
@connected
async def list_months(link: Link, limit: int, out: Output) -> None:
    """List accounting months that are closed or have records, newest first. -o json has hashes in full.

    \b
    suanli month list
    """
    request = usage_pb2.ListMonthsRequest()
    out.listing(
        await listed(link, "UsageService/ListMonths", request, "months", limit), _COLUMNS, "There is no record yet."
    )


@month.command()
@click.argument("name", metavar="MONTH", type=Month())
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@connected
async def close(link: Link, name: str, yes: bool, out: Output) -> None:
    """Close an accounting MONTH, as in 2026-10, for good: what comes later goes to the next one.

    It must be over (in UTC), and every earlier month with records closed. A month that is closed already is shown as it is.

    \b
    suanli month close 2026-10
    """
    confirm(f"Close {name} for good? Nothing is posted to it any more.", yes)
    response = await link.call("UsageService/CloseMonth", usage_pb2.CloseMonthRequest(month=name))
    out.one(response.month, _COLUMNS)
