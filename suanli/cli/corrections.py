"""suanli ledger correct."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import click

from protos.suanli.v1 import usage_pb2
from suanli.cli import human
from suanli.cli.asking import confirm
from suanli.cli.exits import NOT_FOUND
from suanli.cli.output import Output, output_option
from suanli.cli.records import COLUMNS
from suanli.cli.runtime import Failure, Link, connected
from suanli.cli.values import Cpus, Gpus, Instant, Memory

_FIELDS = ("project", "start_ms", "end_ms", "cpu_milli", "memory_mib", "gpu_milli")


@click.command("correct")
@click.argument("sequence", metavar="NO", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; kept with the new records. At most 1,000 characters.")
@click.option("--project", default=None, help="Charge this project of the same institution instead.")
@click.option("--start", "start_ms", type=Instant(), default=None, metavar="TIME", help="It was held only since then.")
@click.option("--end", "end_ms", type=Instant(), default=None, metavar="TIME", help="It was held only until then.")
@click.option("--cpu", "cpu_milli", type=Cpus(), default=None, help="Cores that were held.")
@click.option("--memory", "memory_mib", type=Memory(), default=None, help="Memory that was held, as in 2GiB.")
@click.option("--gpus", "gpu_milli", type=Gpus(), default=None, help="GPUs that were held.")
@click.option("--credit", is_flag=True, help="Give the money back and leave the hours.")
@click.option("--reverse", is_flag=True, help="Only take it back; nothing stands in its place.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@connected
async def correct(
    link: Link, /, sequence: int, reason: str, credit: bool, reverse: bool, yes: bool, out: Output, **given: Any
) -> None:
    """Correct record NO of the ledger: take it back, and put another in its place. The record itself stays.

    What is not given is in the new record as it was. Once for each record; the new record may be corrected in its turn.
    What is about a closed month is posted to the first open one.

    \b
    suanli ledger correct 1234 --reason 'Charged to the wrong project' --project thesis
    suanli ledger correct 1234 --reason 'Node was broken' --credit
    suanli ledger correct 1234 --reason 'A test of the operators' --reverse
    """
    changes = {name: given[name] for name in _FIELDS if given[name] is not None}
    if bool(changes) + credit + reverse != 1:
        raise click.UsageError(
            "Give what is to be otherwise (--project, --start, --end, --cpu, --memory, --gpus), or --credit, or --reverse."
        )
    request = usage_pb2.CorrectLedgerRequest(sequence=sequence, reason=reason, credit=credit)
    if changes:
        request.replacement.CopyFrom(usage_pb2.LedgerReplacement(**changes))
    if not yes:
        out.notes.print(f"Record {sequence} as it is:")
        Output("table", out.color).table([await _record(link, sequence)], COLUMNS, "")
        confirm(f"{_meant(changes, credit)} Post this correction?", yes)
    response = await link.call("UsageService/CorrectLedger", request)
    out.listing(list(response.records), COLUMNS, "")


async def _record(link: Link, sequence: int) -> usage_pb2.LedgerRecord:
    """A record by number; a ``Failure`` when there is none that the caller may see."""
    request = usage_pb2.StreamLedgerRequest(after_sequence=sequence - 1)
    async with aclosing(link.stream("UsageService/StreamLedger", lambda: request)) as responses:
        async for response in responses:
            for record in response.records:
                if record.sequence == sequence:
                    return record  # type: ignore[no-any-return]
                break
            break
    raise Failure(f"There is no ledger record {sequence}; 'suanli ledger' lists them.", NOT_FOUND)


def _meant(changes: dict[str, Any], credit: bool) -> str:
    """What will be posted, in words."""
    if credit:
        return "Its cost is credited; its hours stay."
    if not changes:
        return "It is taken back, and nothing stands in its place."
    write: dict[str, Callable[[Any], str]] = {
        "project": str,
        "start_ms": human.instant,
        "end_ms": human.instant,
        "cpu_milli": human.cpus,
        "memory_mib": human.memory,
        "gpu_milli": human.cpus,
    }
    words = [f"{name.partition('_')[0]} {write[name](value)}" for name, value in changes.items()]
    return f"It is taken back, and the same with {', '.join(words)} stands in its place."
