"""Price lists: reading, checking and putting them; and what a job would cost."""

from __future__ import annotations

import difflib
import json
import sys
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import click
import yaml

from protos.suanli.v1 import prices_pb2
from suanli.cli import human
from suanli.cli.budgets import amount_text
from suanli.cli.exits import USAGE
from suanli.cli.output import Column, Output, output_option
from suanli.cli.policy import named, text_of
from suanli.cli.runtime import Failure, Link, connected, listed
from suanli.cli.submit import HOW, NEEDS, WHAT, WHO, given_flags, jobs_of, options
from suanli.errors import InvalidArgument, NotFound, SuanliError

_FILE = click.argument("file", metavar="FILE")
_FINE_PLACES = 4
"""So many more digits for what is less than the smallest coin."""


@click.group()
def price() -> None:
    """What use costs: price lists, each for its time, and estimates.

    docs/howto/prices.md tells what a list may say.
    """


@price.command()
@_FILE
@click.option("--comment", default="", help="Why, for the history; at most 1,000 characters.")
@output_option
@connected
async def put(link: Link, file: str, comment: str, out: Output) -> None:
    """Put the price list in FILE ('-' is stdin); it is in force in its window, from now on if it names none.

    What has been metered keeps its price. The newest list for a time is the one that holds.

    \b
    suanli price check prices.yaml
    suanli price put prices.yaml --comment 'Senate decision of 12 November'
    """
    request = prices_pb2.PutPriceListRequest(document=text_of(file), comment=comment)
    response = await _put(link, file, request)
    if out.form != "table":
        out.one(response, [])
        return
    _warn(response, out)
    found = response.price_list
    out.note(f"Version {found.version} ({found.currency}) is in force {_window(found)}.")


@price.command()
@_FILE
@output_option
@connected
async def check(link: Link, file: str, out: Output) -> None:
    """Check the price list in FILE ('-' is stdin) and show what it would change. Nothing is changed.

    \b
    suanli price check prices.yaml
    """
    request = prices_pb2.PutPriceListRequest(document=text_of(file), validate_only=True)
    response = await _put(link, file, request)
    if out.form != "table":
        out.one(response, [])
        return
    try:
        current = (await link.call("UsageService/GetPriceList", prices_pb2.GetPriceListRequest())).price_list
    except NotFound:
        current = prices_pb2.PriceList(effective="{}")
    lines = difflib.unified_diff(
        _yaml(current).splitlines() if current.version else [],
        _yaml(response.price_list).splitlines(),
        f"version {current.version}" if current.version else "no prices",
        named(file),
        lineterm="",
    )
    for line in lines:
        out.text(line)
    _warn(response, out)
    out.note(f"{named(file)} is a good price list; it would be in force {_window(response.price_list)}.")


async def _put(link: Link, file: str, request: prices_pb2.PutPriceListRequest) -> prices_pb2.PutPriceListResponse:
    try:
        response: prices_pb2.PutPriceListResponse = await link.call("UsageService/PutPriceList", request)
    except InvalidArgument as error:
        raise Failure(f"{named(file)}: {error.message}", error.exit_code) from error
    return response


def _warn(response: prices_pb2.PutPriceListResponse, out: Output) -> None:
    for warning in response.warnings:
        out.note(f"warning: {warning}")


def _window(found: prices_pb2.PriceList) -> str:
    until = f" until {human.instant(found.to_ms)}" if found.to_ms else " on"
    return f"from {human.instant(found.from_ms)}{until}"


def _yaml(found: prices_pb2.PriceList) -> str:
    text: str = yaml.safe_dump(
        json.loads(found.effective), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text


@price.command()
@click.option("--version", "number", type=click.IntRange(min=1), default=None, metavar="N", help="Another version.")
@click.option(
    "--effective", is_flag=True, help="Every setting with its value, instead of the document as it was given."
)
@output_option
@connected
async def show(link: Link, number: int | None, effective: bool, out: Output) -> None:
    """Print the price list in force: the document on stdout, who put it on stderr.

    \b
    suanli price show > prices.yaml
    suanli price show --version 3 --effective
    """
    request = prices_pb2.GetPriceListRequest(version=number or 0)
    found = (await link.call("UsageService/GetPriceList", request)).price_list
    if out.form != "table":
        out.one(found, [])
        return
    comment = f": {human.one_line(found.comment)}" if found.comment else ""
    put_at = f"put at {human.instant(found.create_time_ms)} by {found.author}{comment}"
    out.note(f"Version {found.version}, for the time {_window(found)}, {put_at}")
    document = _yaml(found) if effective else found.document
    text = human.safe(document) if sys.stdout.isatty() else document
    click.echo(text, nl=not text.endswith("\n"))


@price.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@output_option
@connected
async def list_lists(link: Link, limit: int, out: Output) -> None:
    """List all versions, newest first. Of those for a time the newest is in force.

    \b
    suanli price list
    """
    request = prices_pb2.ListPriceListsRequest()
    found = await listed(link, "UsageService/ListPriceLists", request, "price_lists", limit)
    out.listing(found, _LIST_COLUMNS, "There is no price list yet; what is held costs nothing.")


_LIST_COLUMNS: list[Column[prices_pb2.PriceList]] = [
    Column("VERSION", lambda one: str(one.version), right=True),
    Column("NAME", lambda one: one.name),
    Column("CURRENCY", lambda one: one.currency),
    Column("FROM", lambda one: human.instant(one.from_ms), whole=True),
    Column("TO", lambda one: human.instant(one.to_ms), whole=True),
    Column("PUT", lambda one: human.instant(one.create_time_ms), whole=True),
    Column("BY", lambda one: one.author),
    Column("COMMENT", lambda one: one.comment),
]


@price.command(context_settings={"allow_interspersed_args": False})
@options(WHAT, WHO, NEEDS, HOW)
@output_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARG]...]")
@connected
async def estimate(link: Link, /, path: str | None, out: Output, **flags: Any) -> None:
    """Say what a job would cost in each pool where it could run; nothing is submitted. Options as those of submit.

    At most: if it runs to its time limit and uses its grace period. Expected: if it runs as long as such jobs do. Free hours are not taken off.

    \b
    suanli price estimate --gpus 4 --max-runtime 12h -- python train.py
    suanli price estimate -f job.yaml
    """
    file = jobs_of(path, given_flags(flags))
    if len(file.jobs) > 1:
        raise Failure(f"{path} has {len(file.jobs)} jobs; ask about one.", USAGE)
    try:
        answer = await link.client.estimate(file.jobs[0])
    except SuanliError as error:
        raise file.locate(error) from error
    if out.form != "table":
        out.one(answer, [])
        return
    out.table(answer.estimates, _estimate_columns(answer), "No pool is known yet in which it could run.")
    if answer.estimates and not answer.currency:
        out.note("There is no price list yet; what is held costs nothing.")
    for one in answer.estimates if answer.currency else ():
        if one.unpriced:
            out.note(f"No price applies to it in {one.pool}; there it costs nothing.")
    for status in answer.budgets:
        kind = "hard" if status.budget.hard else "gives notice only"
        out.note(f"Budget {status.budget.id} ({kind}) has {amount_text(status.available, status)} available.")
    if not answer.covered:
        out.note(f"It would be refused: {answer.message}")


def _estimate_columns(answer: prices_pb2.EstimateCostResponse) -> list[Column[prices_pb2.CostEstimate]]:
    whole, digits = Decimal(answer.cost_units_per_minor), answer.currency_digits

    def money(units: str) -> str:
        return f"{_rounded(units, whole * 10**digits, digits)} {answer.currency}".rstrip()

    def service(units: str) -> str:
        return _rounded(units, whole, 3)

    columns: list[Column[prices_pb2.CostEstimate]] = [
        Column("POOL", lambda one: one.pool, whole=True),
        Column("GPU TYPE", lambda one: one.accelerator),
        Column("AT MOST", lambda one: money(one.max_cost_units), right=True, whole=True),
        Column("IN", lambda one: human.duration(one.max_runtime_ms), right=True),
        Column("EXPECTED", lambda one: money(one.expected_cost_units), right=True, whole=True),
        Column("IN", lambda one: human.duration(one.expected_runtime_ms), right=True),
    ]
    if any(one.max_service_units != "0" for one in answer.estimates):
        columns.append(Column("SERVICE UNITS", lambda one: service(one.max_service_units), right=True))
        columns.append(Column("EXPECTED", lambda one: service(one.expected_service_units), right=True))
    return columns


def _rounded(units: str, whole: Decimal, digits: int) -> str:
    """Half to even, for the eye; what is less than the last digit with some more of them."""
    with localcontext() as context:
        context.prec = len(units) + 60
        amount = Decimal(units) / whole
        places = digits + _FINE_PLACES if 0 < amount < Decimal(1).scaleb(-digits) else digits
        return f"{amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN):,f}"
