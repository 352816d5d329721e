"""Reports as files: CSV, and Parquet with integers and decimals, never floats. Rows are written as they come."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, Literal, Protocol, TypeVar, cast

import click

from suanli.cli import exits
from suanli.cli.runtime import Failure

FORMS: Final = ("table", "json", "yaml", "csv", "parquet")
FILE_FORMS: Final = ("csv", "parquet")
BATCH = 10_000
_DIGITS = 38
T = TypeVar("T")
Kind = Literal["text", "integer", "big", "boolean", "instant"]


@dataclass(frozen=True)
class Field(Generic[T]):
    """A column of a file. ``kind``: "integer" has 64 bits, "big" 38 decimal digits, an int is so many digits after the point."""

    name: str
    kind: Kind | int
    value: Callable[[T], str | int | bool | Decimal | None]


class Writer(Protocol):
    """Takes the rows of a file, in order."""

    def add(self, row: Any) -> None:
        """One more."""
        ...

    def close(self) -> None:
        """No more."""
        ...


class CsvWriter(Generic[T]):
    """RFC 4180 with line feeds, UTF-8, a header; empty for what is not there."""

    def __init__(self, stream: BinaryIO, fields: Sequence[Field[T]]) -> None:
        self._fields = fields
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self._csv = csv.writer(self._text, lineterminator="\n")
        self._csv.writerow([field.name for field in fields])

    def add(self, row: T) -> None:
        """One more."""
        self._csv.writerow([_cell(field.value(row)) for field in self._fields])

    def close(self) -> None:
        """The stream stays open."""
        self._text.flush()
        self._text.detach()


class ParquetWriter(Generic[T]):
    """A row group for every ``BATCH`` rows. Needs pyarrow, of the extra ``reports``."""

    def __init__(self, stream: BinaryIO, fields: Sequence[Field[T]]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise Failure("Parquet needs pyarrow: pip install 'suanli[reports]'.", exits.USAGE) from None
        self._arrow = pyarrow
        self._fields = fields
        self._schema = pyarrow.schema([(field.name, _arrow_type(pyarrow, field.kind)) for field in fields])
        self._writer = pyarrow.parquet.ParquetWriter(stream, self._schema)
        self._rows: list[list[Any]] = []

    def add(self, row: T) -> None:
        """One more."""
        self._rows.append([_exact(field, field.value(row)) for field in self._fields])
        if len(self._rows) == BATCH:
            self._write()

    def close(self) -> None:
        """Write what is left, and the file's end."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(self._fields)
        arrays = [
            self._arrow.array(list(column), kind) for column, kind in zip(columns, self._schema.types, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


def _arrow_type(arrow: Any, kind: Kind | int) -> Any:
    if isinstance(kind, int):
        return arrow.decimal128(_DIGITS, kind)
    types: dict[str, Any] = {
        "text": arrow.string(),
        "integer": arrow.int64(),
        "big": arrow.decimal128(_DIGITS, 0),
        "boolean": arrow.bool_(),
        "instant": arrow.timestamp("ms", "UTC"),
    }
    return types[kind]


def _exact(field: Field[T], value: Any) -> Any:
    return Decimal(value) if value is not None and (field.kind == "big" or isinstance(field.kind, int)) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return f"{value:f}"
    text = str(value)
    # People chose some of it: no spreadsheet may take it for a formula.
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@") and text else text


def writer_of(form: str, stream: BinaryIO, fields: Sequence[Field[T]]) -> Writer:
    """The writer of "csv" or "parquet"."""
    return ParquetWriter(stream, fields) if form == "parquet" else CsvWriter(stream, fields)


@contextmanager
def target(out: Path | None, *, binary: bool = False) -> Iterator[BinaryIO]:
    """Where a report goes: FILE, which is there only when it is whole, or stdout (bytes that are no text not to a terminal)."""
    if out is None:
        if binary and sys.stdout.isatty():
            raise click.UsageError("That is no text for a terminal; give --out FILE or redirect the output.")
        sys.stdout.flush()
        yield cast(BinaryIO, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def report_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--out FILE``; beside ``output_option(FORMS)``."""
    return click.option(
        "--out",
        "file",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        default=None,
        metavar="FILE",
        help="Write to FILE, which appears when it is whole. Default: stdout.",
    )(function)
