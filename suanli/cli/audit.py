"""The audit log: who did what, whether the log is whole, and all of it as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import click

from protos.suanli.v1 import audit_pb2, common_pb2
from suanli.cli import exits, human
from suanli.cli.groups import DefaultGroup
from suanli.cli.output import Column, Output, output_option, output_option_of, short_name, to_data
from suanli.cli.reports import Field, target, writer_of
from suanli.cli.runtime import Failure, Link, connected, listed
from suanli.cli.values import Instant
from suanli.cli.verify import Head
from suanli.reports.audit_chain import AuditChain

Record = audit_pb2.AuditRecord
OUTCOMES: Final = {
    "allowed": audit_pb2.AUDIT_OUTCOME_ALLOWED,
    "refused": audit_pb2.AUDIT_OUTCOME_REFUSED,
    "failed": audit_pb2.AUDIT_OUTCOME_FAILED,
}
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 100_000
_NAMES: Final[dict[int, str]] = {number: name for name, number in OUTCOMES.items()}
_KEY_BYTES: Final = 32


class PublicKey(click.ParamType[bytes]):
    """An Ed25519 public key in hexadecimal."""

    name = "KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The 32 bytes."""
        if isinstance(value, bytes):
            return value
        try:
            key = bytes.fromhex(value)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            self.fail(f'"{value}" is no public key; give the 64 hexadecimal digits of `suanli audit key`.', param, ctx)
        return key


def _outcome(record: Record) -> str:
    name = _NAMES.get(record.outcome, str(record.outcome))
    return name if record.calls == 1 else f"{name} ×{record.calls:,}"


def _role(record: Record) -> str:
    return short_name(common_pb2.Role.DESCRIPTOR, record.role) or ""


_COLUMNS: Final[list[Column[Record]]] = [
    Column("RECORD", lambda each: str(each.sequence), right=True, whole=True),
    Column("TIME", lambda each: human.instant(each.time_ms), whole=True),
    Column("WHO", lambda each: each.actor or f"({each.peer or 'unknown'})"),
    Column("WHAT", lambda each: each.action, whole=True),
    Column("TO", lambda each: each.target),
    Column("FOR", lambda each: each.on_behalf_of),
    Column("OUTCOME", _outcome, whole=True),
    Column("WHY", lambda each: each.reason),
]
_FAULTS: Final[list[Column[audit_pb2.AuditFault]]] = [
    Column("RECORD", lambda each: str(each.sequence), right=True),
    Column("FAULT", lambda each: each.code, whole=True),
    Column("WHAT", lambda each: each.message),
]


def _fields() -> list[Field[Record]]:
    def plain(name: str) -> Field[Record]:
        kind: Any = "instant" if name == "time_ms" else "integer" if name in ("sequence", "calls") else "text"
        return Field(name, kind, lambda each: getattr(each, name))

    special: dict[str, Callable[[Record], str]] = {
        "role": _role,
        "outcome": lambda each: _NAMES.get(each.outcome, ""),
        "hash": lambda each: each.hash.hex(),
    }
    names = [field.name for field in Record.DESCRIPTOR.fields]
    return [Field(name, "text", special[name]) if name in special else plain(name) for name in names]


def _filters(command: Any) -> Any:
    """The options that say which records."""
    for option in (
        click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="Before."),
        click.option("--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Since."),
        click.option("--outcome", type=click.Choice(list(OUTCOMES)), default=None, help="What came of it."),
        click.option("--action", default="", help="This method, as in SetQuota."),
        click.option("--institution", default="", help="By its people, or on its behalf. Default: all you may see."),
        click.option("--actor", default="", help="By this user."),
    ):
        command = option(command)
    return command


def _asked(
    actor: str, institution: str, action: str, outcome: str | None, from_ms: int | None, to_ms: int | None
) -> Any:
    return {
        "actor": actor,
        "institution": institution,
        "action": action,
        "outcome": OUTCOMES[outcome] if outcome else audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
        "from_ms": from_ms or 0,
        "to_ms": to_ms or 0,
    }


@click.group(cls=DefaultGroup, default="list")
def audit() -> None:
    """Who did what, on whose behalf, and what came of it.

    'suanli audit --actor USER' is short for 'suanli audit list --actor USER'.
    """


@audit.command("list")
@_filters
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="The newest so many.",
)
@output_option_of(("table", "json", "yaml", "csv"))
@connected
async def list_records(
    link: Link,
    actor: str,
    institution: str,
    action: str,
    outcome: str | None,
    from_ms: int | None,
    to_ms: int | None,
    limit: int,
    out: Output,
) -> None:
    """List records, newest first. With -o json or csv, what was before and after a change, too.

    \b
    suanli audit list --outcome refused --from 2026-10-01
    suanli audit list --action SetQuota -o json
    """
    request = audit_pb2.ListAuditRequest(**_asked(actor, institution, action, outcome, from_ms, to_ms))
    found = await listed(link, "AuditService/ListAudit", request, "records", limit)
    if out.form != "csv":
        out.listing(found, _COLUMNS, "There is no record.")
    else:
        with target(None, binary=False) as stream:
            writer = writer_of("csv", stream, _fields())
            for record in found:
                writer.add(record)
            writer.close()
    if len(found) == limit:
        out.note(f"Only the newest {limit:,} are shown; --limit shows more.")


@audit.command("export")
@_filters
@click.option("--out", "file", type=click.Path(dir_okay=False, path_type=Path), default=None, help="The file to write.")
@connected
async def export(
    link: Link,
    actor: str,
    institution: str,
    action: str,
    outcome: str | None,
    from_ms: int | None,
    to_ms: int | None,
    file: Path | None,
) -> None:
    """Write all records, oldest first, as JSON lines: {"record": …}, and (unless filtered) {"head": …} for signed heads.

    \b
    suanli audit export --out audit.jsonl
    """
    asked = _asked(actor, institution, action, outcome, from_ms, to_ms)
    after = 0

    def ask() -> audit_pb2.StreamAuditRequest:
        return audit_pb2.StreamAuditRequest(after_sequence=after, **asked)

    with target(file, binary=False) as stream:
        async with aclosing(link.stream("AuditService/StreamAudit", ask)) as responses:
            async for response in responses:
                lines = [("record", each) for each in response.records] + [("head", each) for each in response.heads]
                for name, message in lines:
                    stream.write(json.dumps({name: to_data(message)}, ensure_ascii=False).encode() + b"\n")
                after = max((each.sequence for each in response.records), default=after)


@audit.command("key")
@output_option
@connected
async def key(link: Link, out: Output) -> None:
    """Show the public key that the log's heads are signed with, and the newest head. Keep them elsewhere."""
    found = await link.call("AuditService/GetAuditKey", audit_pb2.GetAuditKeyRequest())
    if out.form != "table":
        out.data(to_data(found))
        return
    head = found.newest_head
    lines = [("Public key", found.public_key.hex())]
    lines += [("Earlier key", each.hex()) for each in found.earlier_public_keys]
    lines.append(("Newest head", f"{head.sequence}:{head.hash.hex()}" if head.sequence else "none yet"))
    if head.sequence:
        lines.append(("Signed", human.instant(head.time_ms)))
    out.lines(lines)


@audit.command("verify")
@click.option(
    "--from", "from_sequence", type=click.IntRange(1), default=1, metavar="NUMBER", help="Only from this record on."
)
@click.option("--head", type=Head(), default=None, help="A record's number and hash, as `suanli audit key` gave them.")
@click.option("--here", is_flag=True, help="Also fetch every record and check chain and signatures on this machine.")
@click.option(
    "--key",
    "keys",
    type=PublicKey(),
    multiple=True,
    help="With --here: trust this public key. Default: what the server says.",
)
@output_option
@connected
async def verify(
    link: Link, from_sequence: int, head: tuple[int, bytes] | None, here: bool, keys: tuple[bytes, ...], out: Output
) -> None:
    """Check that the log is whole: its chain of hashes and its signed heads. The first bad record is named first.

    With --head it also shows that nothing before that record was exchanged or cut off since. Exit code 1 when anything is wrong.

    \b
    suanli audit verify
    suanli audit verify --here --key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29
    """
    if here and from_sequence > 1:
        raise click.UsageError("--here begins at the first record: leave --from out.")
    if keys and not here:
        raise click.UsageError("--key goes with --here.")
    last = await _on_the_server(link, from_sequence, head, out)
    chain = await _on_this_machine(link, keys, out) if here else None
    if chain is not None and chain.fault is not None:
        last.faults.add(**chain.fault._asdict())
    elif chain is not None and not _same(chain, last):
        message = "the records as they were sent are not those that the server has checked."
        last.faults.add(sequence=min(chain.sequence, last.head_sequence) + 1, code="CHAIN_BROKEN", message=message)
    if out.form == "table":
        _tell(last, chain, out)
    else:
        out.data({**to_data(last), "checked_here": chain.records if chain else None})
    if last.faults:
        raise SystemExit(exits.FAILED)


async def _on_the_server(
    link: Link, from_sequence: int, head: tuple[int, bytes] | None, out: Output
) -> audit_pb2.VerifyAuditResponse:
    request = audit_pb2.VerifyAuditRequest(from_sequence=from_sequence)
    if head is not None:
        request.head_sequence, request.head_hash = head
    last = audit_pb2.VerifyAuditResponse()
    with out.progress("verifying") as tell:
        async with aclosing(link.connection.stream(link.connection.audit.VerifyAudit, request)) as responses:
            async for last in responses:
                tell(f"verifying: {last.checked:,} of {last.total:,} records, {last.heads:,} heads")
    if not last.done:
        raise Failure("The control plane went away before it had checked everything; try again.")
    return last


async def _on_this_machine(link: Link, keys: tuple[bytes, ...], out: Output) -> AuditChain:
    if not keys:
        told = await link.call("AuditService/GetAuditKey", audit_pb2.GetAuditKeyRequest())
        keys = (told.public_key, *told.earlier_public_keys)
    chain = AuditChain(keys)

    def ask() -> audit_pb2.StreamAuditRequest:
        return audit_pb2.StreamAuditRequest(after_sequence=chain.sequence)

    with out.progress("fetching") as tell:
        async with aclosing(link.stream("AuditService/StreamAudit", ask)) as responses:
            async for response in responses:
                chain.add(response)
                tell(f"fetching: {chain.records:,} records")
    return chain


def _same(chain: AuditChain, last: audit_pb2.VerifyAuditResponse) -> bool:
    """More may have been written between the two; less cannot be."""
    return chain.sequence > last.head_sequence or (chain.sequence, chain.head) == (last.head_sequence, last.head_hash)


def _tell(last: audit_pb2.VerifyAuditResponse, chain: AuditChain | None, out: Output) -> None:
    out.table(list(last.faults), _FAULTS, "Nothing is wrong.")
    lines = [
        ("Records", f"{last.checked:,}"),
        ("Signed heads", f"{last.heads:,}"),
        ("Head", f"{last.head_sequence}:{last.head_hash.hex()}" if last.head_sequence else "no record yet"),
    ]
    if chain is not None:
        lines.append(("Checked here", f"{chain.records:,} records, {chain.heads:,} heads"))
    out.lines(lines)
