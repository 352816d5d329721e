"""The ledger's records, as a table, as data, and all of them as a file."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf.descriptor import FieldDescriptor

from protos.suanli.v1 import usage_pb2
from suanli.cli.corrections import correct
from suanli.cli.groups import DefaultGroup
from suanli.cli.output import Output, output_option_of, short_name, to_data
from suanli.cli.records import COLUMNS, Record
from suanli.cli.reports import FILE_FORMS, FORMS, Field, report_options, target, writer_of
from suanli.cli.runtime import Link, connected, pages
from suanli.cli.values import Instant
from suanli.cli.verify import verify

MAX_RECORDS = 1_000_000
DEFAULT_LIMIT = 1000
_TELL_EVERY = 10_000
_BIG: Final = {"cost_units"}


@click.group(cls=DefaultGroup, default="list")
def ledger() -> None:
    """The records that usage is made of.

    'suanli ledger --job JOB' is short for 'suanli ledger list --job JOB'.
    """


ledger.add_command(verify)
ledger.add_command(correct)


@ledger.command("list")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Of this project.")
@click.option("--job", "job_id", default="", help="Of this job.")
@click.option("--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Ended since.")
@click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="Begun before.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0, MAX_RECORDS),
    default=None,
    help=f"The oldest so many; 0: all. Default: {DEFAULT_LIMIT}; of CSV and Parquet all.",
)
@output_option_of(FORMS)
@report_options
@connected
async def list_records(
    link: Link,
    institution: str,
    project: str,
    job_id: str,
    from_ms: int | None,
    to_ms: int | None,
    limit: int | None,
    out: Output,
    file: Path | None,
) -> None:
    """List records, oldest first: who held what, where, from when to when, and what it costs.

    JSON, CSV and Parquet are written as the records come, so there may be millions.

    \b
    suanli ledger --job JOB
    suanli ledger list --from 2026-10 --to 2026-11 -o parquet --out october.parquet
    """
    if out.form == "table" and file is not None:
        raise click.UsageError("--out goes with -o json, yaml, csv or parquet.")
    most = (0 if out.form in FILE_FORMS else DEFAULT_LIMIT) if limit is None else limit
    asked = {"institution": institution, "project": project, "from_ms": from_ms or 0, "to_ms": to_ms or 0}
    records = _of_job(link, asked, job_id, most) if job_id else _streamed(link, asked, most)
    async with aclosing(records):
        if out.form in ("table", "yaml"):
            found = [record async for record in records]
            if file is None:
                out.listing(found, COLUMNS, "There is no record.")
            else:
                await _to_file(_again(found), out, file)
            count = len(found)
        else:
            count = await _to_file(records, out, file)
    if count == most:
        out.note(f"Only the oldest {most} are shown; --limit shows more.")


async def _of_job(link: Link, asked: dict[str, Any], job_id: str, most: int) -> AsyncGenerator[Record, None]:
    request = usage_pb2.ListLedgerRequest(job_id=job_id, **asked)
    async for record in pages(link, "UsageService/ListLedger", request, "records", most):
        yield record


async def _streamed(link: Link, asked: dict[str, Any], most: int) -> AsyncGenerator[Record, None]:
    """As one stream, which goes on where it was when the control plane goes away."""
    after = given = 0

    def ask() -> usage_pb2.StreamLedgerRequest:
        return usage_pb2.StreamLedgerRequest(after_sequence=after, **asked)

    async with aclosing(link.stream("UsageService/StreamLedger", ask)) as responses:
        async for response in responses:
            for record in response.records:
                yield record
                after = record.sequence
                given += 1
                if given == most:
                    return


async def _again(records: list[Record]) -> AsyncIterator[Record]:
    for record in records:
        yield record


async def _to_file(records: AsyncIterator[Record], out: Output, file: Path | None) -> int:
    """Write records as they come; how many there were."""
    count = 0
    with target(file, binary=out.form == "parquet") as stream, out.progress("reading the ledger") as tell:
        writer = _JsonWriter(stream) if out.form in ("json", "yaml") else writer_of(out.form, stream, _fields())
        async for record in records:
            writer.add(record)
            count += 1
            if count % _TELL_EVERY == 0:
                tell(f"reading the ledger: {count:,} records")
        writer.close()
    return count


class _JsonWriter:
    """A list, as ``Output.data`` writes it. JSON is YAML, too."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._before = b"["

    def add(self, row: Record) -> None:
        """One more."""
        text = json.dumps(to_data(row), indent=2, ensure_ascii=False).replace("\n", "\n  ")
        self._stream.write(self._before + b"\n  " + text.encode())
        self._before = b","

    def close(self) -> None:
        """The end of the list."""
        self._stream.write(b"[]\n" if self._before == b"[" else b"\n]\n")


def _fields() -> list[Field[Record]]:
    """The fields of the message; instants as such, kinds by name, hashes in hexadecimal."""
    return [_field(each) for each in Record.DESCRIPTOR.fields]


def _field(field: FieldDescriptor) -> Field[Record]:
    name, enum = field.name, field.enum_type
    if enum is not None:
        return Field(name, "text", lambda r: short_name(enum, getattr(r, name)))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return Field(name, "text", lambda r: getattr(r, name).hex())
    if name in _BIG:
        return Field(name, "big", lambda r: int(getattr(r, name) or 0))
    if field.type == FieldDescriptor.TYPE_STRING:
        return Field(name, "text", lambda r: getattr(r, name))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return Field(name, "boolean", lambda r: getattr(r, name))
    instant = name in ("start_ms", "end_ms", "posted_ms")
    return Field(name, "instant" if instant else "integer", lambda r: getattr(r, name))
