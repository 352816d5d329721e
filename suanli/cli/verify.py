"""suanli ledger verify."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Final

import click

from protos.suanli.v1 import usage_pb2
from suanli.cli import exits
from suanli.cli.output import Column, Output, output_option, to_data
from suanli.cli.runtime import Link, connected
from suanli.reports.chain import Chain

_COLUMNS: Final[list[Column[usage_pb2.LedgerFault]]] = [
    Column("RECORD", lambda each: str(each.sequence or ""), right=True),
    Column("FAULT", lambda each: each.code, whole=True),
    Column("WHAT", lambda each: each.message),
]
_TELL_EVERY: Final = 10_000


class Head(click.ParamType[tuple[int, bytes]]):
    """A record's number and hash: 1234:9f86d081…"""

    name = "NUMBER:HASH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, bytes]:
        """Both as they are."""
        if isinstance(value, tuple):
            return value
        number, _, digest = value.partition(":")
        try:
            head = (int(number), bytes.fromhex(digest))
        except ValueError:
            head = (0, b"")
        if head[0] < 1 or len(head[1]) != 32:
            self.fail(
                f'"{value}" is not a record\'s number and its hash, as statements give them: 1234:9f86d081…', param, ctx
            )
        return head


@click.command("verify")
@click.option(
    "--from", "from_sequence", type=click.IntRange(1), default=1, metavar="NUMBER", help="Only from this record on."
)
@click.option(
    "--head", type=Head(), default=None, help="A record's number and hash, as a statement or a closed month gives them."
)
@click.option("--here", is_flag=True, help="Also fetch every record and reckon the chain on this machine.")
@output_option
@connected
async def verify(link: Link, from_sequence: int, head: tuple[int, bytes] | None, here: bool, out: Output) -> None:
    """Check that the ledger is whole and that every total follows from it.

    The control plane reads every record: the chain of hashes, that each attempt is metered for exactly what its allocation held, and that
    all sums, days, budgets and closed months are what the records make. With --head it also shows that nothing before that record was
    exchanged or cut off since. The first bad record is named first. Exit code 1 when anything is wrong.

    \b
    suanli ledger verify
    suanli ledger verify --head 1234:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    if here and from_sequence > 1:
        raise click.UsageError("--here begins at the first record: leave --from out.")
    last = await _on_the_server(link, from_sequence, head, out)
    chain = await _on_this_machine(link, out) if here else None
    if chain is not None and (chain.bad or not _same(chain, last)):
        number = chain.bad or min(chain.sequence, last.head_sequence) + 1
        message = f"Record {number}: the records as they were sent do not make the chain."
        last.faults.add(sequence=number, code="CHAIN_BROKEN", message=message)
    if out.form == "table":
        _tell(last, chain, out)
    else:
        out.data({**to_data(last), "checked_here": chain.records if chain else None})
    if last.faults:
        raise SystemExit(exits.FAILED)


async def _on_the_server(
    link: Link, from_sequence: int, head: tuple[int, bytes] | None, out: Output
) -> usage_pb2.VerifyLedgerResponse:
    request = usage_pb2.VerifyLedgerRequest(from_sequence=from_sequence)
    if head is not None:
        request.head_sequence, request.head_hash = head
    last = usage_pb2.VerifyLedgerResponse()
    with out.progress("verifying") as tell:
        async with aclosing(link.connection.stream(link.connection.usage.VerifyLedger, request)) as responses:
            async for last in responses:
                tell(f"verifying: {last.checked:,} of {last.total:,} records, {last.attempts:,} attempts")
    return last


async def _on_this_machine(link: Link, out: Output) -> Chain:
    chain = Chain()

    def ask() -> usage_pb2.StreamLedgerRequest:
        return usage_pb2.StreamLedgerRequest(after_sequence=chain.sequence)

    with out.progress("fetching") as tell:
        async with aclosing(link.stream("UsageService/StreamLedger", ask)) as responses:
            async for response in responses:
                for record in response.records:
                    chain.add(record)
                    if chain.records % _TELL_EVERY == 0:
                        tell(f"fetching: {chain.records:,} records")
    return chain


def _same(chain: Chain, last: usage_pb2.VerifyLedgerResponse) -> bool:
    """More may have been posted between the two; less cannot be."""
    return chain.sequence > last.head_sequence or (chain.sequence, chain.head) == (last.head_sequence, last.head_hash)


def _tell(last: usage_pb2.VerifyLedgerResponse, chain: Chain | None, out: Output) -> None:
    out.table(list(last.faults), _COLUMNS, "Nothing is wrong.")
    lines = [
        ("Records", f"{last.checked:,}"),
        ("Attempts", f"{last.attempts:,}"),
        ("Sums", f"{last.sums:,}"),
        ("Head", f"{last.head_sequence}:{last.head_hash.hex()}" if last.head_sequence else "no record yet"),
    ]
    if chain is not None:
        lines.append(("Checked here", f"{chain.records:,} records"))
    out.lines(lines)
