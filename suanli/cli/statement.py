"""What an institution is charged for a month, as a file for finance; and the check of such a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from protos.suanli.v1 import statements_pb2
from suanli.cli import exits, human
from suanli.cli.groups import DefaultGroup
from suanli.cli.output import Output, plain_output
from suanli.cli.reports import target
from suanli.cli.runtime import Failure, Link, connected, own_institution
from suanli.cli.values import Month
from suanli.reports import page, plain, tables, verifying
from suanli.reports.sheet import ledger_command
from suanli.reports.words import LANGUAGES, Language

MAX_BYTES: Final = 256 << 20
"""Of a file to check."""
Statement = statements_pb2.GetStatementResponse


def _pdf(statement: Statement, language: Language) -> bytes:
    try:
        from suanli.reports import document
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "reportlab":
            raise
        raise Failure("PDF needs reportlab: pip install 'suanli[reports]'.", exits.USAGE) from None
    return document.pdf(statement, language)


FORMATS: Final[dict[str, Callable[[Statement, Language], bytes]]] = {
    "text": lambda statement, language: human.safe(plain.text(statement, language)).encode(),
    "json": lambda statement, language: tables.json_text(statement).encode(),
    "csv": lambda statement, language: tables.csv_text(statement).encode(),
    "html": lambda statement, language: page.html(statement, language).encode(),
    "pdf": _pdf,
}
"""How each is made. JSON and CSV are the same in every language."""


@click.group(cls=DefaultGroup, default="show")
def statement() -> None:
    """What an institution is charged for a month: lines, totals, efficiency, and how to check them.

    'suanli statement --month 2026-10' is short for 'suanli statement show --month 2026-10'.
    """


@statement.command()
@click.option("--institution", default="", metavar="ID", help="Whose. Default: your own.")
@click.option(
    "--month", type=Month(), default=None, metavar="MONTH", help="As in 2026-10. Default: the last one that is over."
)
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), default="text", show_default=True, help="What to write."
)
@click.option(
    "--out",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default=None,
    metavar="FILE",
    help="Where; '-' is stdout. Default: stdout, and of a PDF a file with the statement's number as its name.",
)
@click.option("--energy", is_flag=True, help="With estimates of energy and carbon, by the price list's factors.")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="English or Chinese.")
@connected
async def show(
    link: Link, institution: str, month: str | None, form: str, file: Path | None, energy: bool, lang: Language
) -> None:
    """Write the statement of a month.

    It is final when the month is closed, and provisional before. PDF and HTML print on A4; JSON is exact, and what
    'suanli statement verify' checks.

    \b
    suanli statement --month 2026-10
    suanli statement --institution hua-uni --month 2026-10 --format pdf --lang zh
    suanli statement --month 2026-10 --format json --out hua-uni-2026-10.json
    """
    request = statements_pb2.GetStatementRequest(
        institution=await own_institution(link, institution),
        month=month or _last_month(),
        include_energy=energy,
    )
    found: Statement = await link.call("UsageService/GetStatement", request)
    out = plain_output()
    if form == "pdf" and file is None:
        file = Path(f"{found.number}.pdf")
    _write(FORMATS[form](found, lang), form, file, out)
    if not found.final:
        out.note(f"{found.month} is not closed yet, so this statement is provisional.")


def _write(content: bytes, form: str, file: Path | None, out: Output) -> None:
    to_stdout = file is None or str(file) == "-"
    with target(None if to_stdout else file, binary=form == "pdf") as stream:
        stream.write(content)
    if not to_stdout:
        out.note(f"Written to {file}.")


def _last_month() -> str:
    year, month = human.instant(human.now_ms())[:7].split("-")
    return f"{int(year) - 1}-12" if month == "01" else f"{year}-{int(month) - 1:02d}"


@statement.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
def verify(file: Path) -> None:
    """Check a statement that was written with --format json: every figure from the exact ones, and the digest.

    It asks nobody. Whether the ledger still holds what the statement was made of is checked with the command it prints.

    \b
    suanli statement verify hua-uni-2026-10.json
    """
    out = plain_output()
    try:
        found, problems = verifying.problems(_text_of(file))
        number, head = str(found["number"]), bytes.fromhex(found["head_hash"])
    except (verifying.NotAStatement, ValueError) as error:
        raise Failure(
            f"{file} is not a statement as --format json writes it: {human.one_line(str(error))[:200]}.", exits.USAGE
        ) from error
    for problem in problems:
        out.text(human.one_line(f"{number}: {problem}"))
    if problems:
        raise Failure(f"{number} does not agree with itself: it was changed after it was issued.")
    lines = len(found["lines"])
    out.text(f"{number}: {lines:,} lines, their total and the digest {found['digest']} agree.")
    out.note(f"The ledger: {ledger_command(int(found['ledger_sequence']), head)}")


def _text_of(file: Path) -> str:
    stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    with stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Failure(f"{file} is larger than {MAX_BYTES:,} bytes; is it the right file?", exits.USAGE)
    return raw.decode()
