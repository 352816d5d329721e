"""What commands print: tables for people; JSON and YAML for programs, with the field names of the protos.

In data, integers are integers, instants are milliseconds since 1970 UTC, enum values go by their short names
("RUNNING"; null when unspecified), hashes are hexadecimal and unset messages are null. Only results go to stdout; notes and errors go to
stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import click
import yaml
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from suanli.cli.human import one_line, safe

Form = Literal["table", "json", "yaml", "csv", "parquet"]
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_PIPE_WIDTH = 10_000
"""No terminal to fit: a table is as wide as it needs to be, so that programs such as grep see whole cells."""
_GAP = 2
_LEAST = 8
"""No column is made narrower than this."""
_STYLES = {
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "online": "green",
    "up": "green",
    "STARTING": "cyan",
    "QUEUED": "yellow",
    "HELD": "yellow",
    "draining": "yellow",
    "CANCELLED": "magenta",
    "FAILED": "red",
    "TIMED_OUT": "red",
    "offline": "red",
    "down": "red",
}


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column of a table: its heading and how to write the cell of a row."""

    title: str
    cell: Callable[[T], str]
    right: bool = False
    whole: bool = False
    """Never cut short: ids and other things people copy."""


@dataclass(frozen=True)
class Output:
    """Where and how a command prints."""

    form: Form = "table"
    color: bool = True

    @property
    def console(self) -> Console:
        """Stdout as it is now."""
        return _console(self.color, stderr=False)

    @property
    def notes(self) -> Console:
        """Stderr as it is now, for notes and progress."""
        return _console(self.color, stderr=True)

    def table(self, rows: Iterable[T], columns: Sequence[Column[T]], empty: str) -> None:
        """Print a table, or the sentence ``empty`` when there is no row."""
        console = self.console
        built = build_table(rows, columns, console.width)
        if built.row_count:
            # Whole columns may need more than a narrow terminal has: let it wrap the lines rather than lose cells.
            console.print(built, width=max(console.width, table_width(built)), crop=False, soft_wrap=False)
        else:
            self.note(empty)

    def listing(self, messages: Sequence[Message], columns: Sequence[Column[Any]], empty: str) -> None:
        """Print messages: one row each, or a list of their data."""
        if self.form == "table":
            self.table(messages, columns, empty)
        else:
            self.data([to_data(message) for message in messages])

    def one(self, message: Message, columns: Sequence[Column[Any]]) -> None:
        """Print one message: its row, or its data."""
        if self.form == "table":
            self.table([message], columns, "")
        else:
            self.data(to_data(message))

    def sheet(self, message: Message, lines: Iterable[tuple[str, str]]) -> None:
        """Print one message: its data, or ``lines`` of name and value; those without a value are left out."""
        if self.form == "table":
            self.lines(lines)
        else:
            self.data(to_data(message))

    def lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """Print names and values below one another."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for name, value in lines:
            if value:
                grid.add_row(Text(name), styled(safe(value)))
        self.console.print(grid)

    def data(self, data: object) -> None:
        """Print data as JSON or YAML, whatever the form says."""
        if self.form == "yaml":
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=False)
            click.echo(text, nl=False)
        else:
            click.echo(json.dumps(data, indent=2, ensure_ascii=False))

    def event(self, data: Mapping[str, object]) -> None:
        """Print one of a stream of things: a line of JSON, or a YAML document."""
        if self.form == "yaml":
            click.echo("---\n" + yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True), nl=False)
        else:
            click.echo(json.dumps(data, ensure_ascii=False))
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print a line, as it is, on stdout."""
        click.echo(safe(text))

    def note(self, text: str) -> None:
        """Say something on stderr."""
        self.notes.print(Text(safe(text)), soft_wrap=True)

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show on a terminal, and only there, that something goes on; gives a function that changes the words."""
        notes = self.notes
        if not notes.is_terminal:
            yield lambda words: None
            return
        with Status(Text(safe(text)), console=notes) as status:
            yield lambda words: status.update(Text(one_line(words)))


def output_option(function: F) -> F:
    """Add ``-o table|json|yaml``; the command gets ``out``, an ``Output``."""
    return output_option_of(get_args(Form)[:3])(function)


def output_option_of(forms: Sequence[str]) -> Callable[[F], F]:
    """The same with other forms; those beyond table, JSON and YAML are the command's to write."""

    def read(ctx: click.Context, parameter: click.Parameter, value: str) -> Output:
        del parameter
        return Output(cast(Form, value), color=_wants_color(ctx))

    beyond = ", ".join(form.upper() if form == "csv" else form.title() for form in forms[3:])
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Choice(forms),
        default="table",
        show_default=True,
        callback=read,
        help=f"How to print: a table for people, JSON{', ' if beyond else ' or '}YAML{f', {beyond}' if beyond else ''} for programs.",
    )


def plain_output() -> Output:
    """The output of a command that has no ``-o``."""
    return Output(color=_wants_color(click.get_current_context()))


def build_table(rows: Iterable[T], columns: Sequence[Column[T]], width: int) -> Table:
    """A table at most ``width`` wide, as far as ``whole`` columns allow it; CJK characters count as two."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    cells = [[one_line(column.cell(row)) for column in columns] for row in rows]
    natural = [
        max(cell_len(column.title), *(cell_len(row[index]) for row in cells)) if cells else cell_len(column.title)
        for index, column in enumerate(columns)
    ]
    least = [wide if column.whole else min(wide, _LEAST) for column, wide in zip(columns, natural, strict=True)]
    widths = _fitted(natural, least, width - _GAP * (len(columns) - 1))
    for column, wide in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=wide,
        )
    for row in cells:
        table.add_row(*map(styled, row))
    return table


def table_width(table: Table) -> int:
    """How wide a table of ``build_table`` is."""
    return sum(column.width or 0 for column in table.columns) + _GAP * (len(table.columns) - 1)


def _fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths with the widest made narrower, evenly and never below ``least``, until they fit."""
    widths = list(natural)
    while sum(widths) > room:
        spare = [index for index, wide in enumerate(widths) if wide > least[index]]
        if not spare:
            break
        widths[max(spare, key=lambda index: widths[index])] -= 1
    return widths


def styled(text: str) -> Text:
    """Text, coloured when it is a state."""
    return Text(text, style=_STYLES.get(text, ""))


def to_data(message: Message) -> dict[str, Any]:
    """A message as plain data. See the module's docstring for the form."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        optional = oneof is not None and len(oneof.fields) == 1
        if field.has_presence and not message.HasField(field.name):
            if oneof is None or optional:
                data[field.name] = None
            continue
        data[field.name] = _value(field, getattr(message, field.name))
    return data


def short_name(enum: EnumDescriptor, number: int) -> str | None:
    """``RUNNING`` for JOB_STATE_RUNNING; None for the unspecified; an unknown number as text."""
    if number == 0:
        return None
    value = enum.values_by_number.get(number)
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    return value.name.removeprefix(prefix) if value else str(number)


def _value(field: Any, value: Any) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of_value = inner.fields_by_name["value"]
        return {key: _single(of_value, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_data(value)
    if field.enum_type is not None:
        return short_name(field.enum_type, value)
    if isinstance(value, bytes):
        return (
            value.hex()
            if field.name.endswith(("hash", "digest", "public_key", "public_keys", "signature"))
            else value.decode("utf-8", "replace")
        )
    return value


def _wants_color(ctx: click.Context) -> bool:
    return not (os.environ.get("NO_COLOR") or ctx.find_root().params.get("no_color"))


def _console(color: bool, *, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, no_color=not color, highlight=False, markup=False, emoji=False)
