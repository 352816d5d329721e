"""The scheduling policy: reading, checking and changing it, and who changed it when."""

from __future__ import annotations

import difflib
import sys

import click

from protos.suanli.v1 import admin_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND, REFUSED, USAGE
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Failure, Link, connected, listed
from suanli.errors import InvalidArgument

MAX_BYTES = 256 * 1024
_CONTEXT_LINES = 3
_FILE = click.argument("file", metavar="FILE")
_COMMENT = click.option("--comment", default="", help="Why, for the history; at most 1,000 characters.")
_EXPECT = click.option(
    "--expect",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="The version to replace. Default: the one that the differences were shown to.",
)
_YES = click.option("--yes", is_flag=True, help="Do it. Without this only the differences are shown, with exit code 6.")


def _version_columns() -> list[Column[admin_pb2.PolicyVersion]]:
    now = human.now_ms()
    return [
        Column("VERSION", lambda v: str(v.version), right=True),
        Column("PUT", lambda v: human.age(v.create_time_ms, now)),
        Column("AT", lambda v: human.instant(v.create_time_ms), whole=True),
        Column("BY", lambda v: v.author),
        Column("COMMENT", lambda v: v.comment),
    ]


_PRESET_COLUMNS: list[Column[admin_pb2.PolicyPreset]] = [
    Column("PRESET", lambda p: p.name, whole=True),
    Column("DESCRIPTION", lambda p: p.description),
]


@click.group()
def policy() -> None:
    """How jobs are ordered, placed and preempted: a document with a history.

    docs/howto/policy.md tells what it may say.
    """


@policy.command()
@click.option("--version", "number", type=click.IntRange(min=1), default=None, metavar="N", help="An older version.")
@click.option("--effective", is_flag=True, help="Every setting with its value, those from the preset included.")
@output_option
@connected
async def show(link: Link, number: int | None, effective: bool, out: Output) -> None:
    """Print the policy in force: the document on stdout, who put it on stderr.

    \b
    suanli policy show > policy.yaml
    suanli policy show --effective
    suanli policy show --version 3
    """
    found = await _policy(link, number or 0)
    if out.form != "table":
        out.one(found, [])
        return
    out.note(_heading(found))
    _print(found.effective_yaml if effective or not found.version else found.document_yaml)


def _print(document: str) -> None:
    """To a file letter by letter; to a terminal without what would steer it."""
    text = human.safe(document) if sys.stdout.isatty() else document
    click.echo(text, nl=not text.endswith("\n"))


def _heading(found: admin_pb2.Policy) -> str:
    if not found.version:
        return "No policy was put yet; this is the built-in one."
    comment = f": {human.one_line(found.comment)}" if found.comment else ""
    return f"Version {found.version}, put at {human.instant(found.create_time_ms)} by {found.author}{comment}"


@policy.command()
@_FILE
@output_option
@connected
async def check(link: Link, file: str, out: Output) -> None:
    """Check the policy in FILE ('-' is stdin) and show what it would change. Nothing is changed.

    \b
    suanli policy check policy.yaml
    """
    document = text_of(file)
    checked, _ = await _compared(link, file, document, None, out)
    if out.form != "table":
        out.one(checked, [])
    else:
        out.note(f"{named(file)} is a good policy.")


@policy.command("set")
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--preset", default="", metavar="NAME", help="A preset as it is, instead of a file.")
@_COMMENT
@_EXPECT
@_YES
@output_option
@connected
async def set_policy(
    link: Link, file: str | None, preset: str, comment: str, expect: int | None, yes: bool, out: Output
) -> None:
    """Put the policy in FILE ('-' is stdin) or a preset in force, from the next planning round on.

    Shows the differences to the policy in force first, and what in it is probably not meant.

    \b
    suanli policy set policy.yaml                 # only look
    suanli policy set policy.yaml --comment 'Exam weeks' --yes
    suanli policy set --preset fair --yes
    """
    if bool(file) == bool(preset):
        raise click.UsageError("Give either a FILE or --preset NAME.")
    document = text_of(file) if file else f"preset: {preset}\n"
    await _change(link, file or "--preset", document, comment, expect, yes, out)


@policy.command()
@click.argument("name", metavar="[NAME]", required=False)
@output_option
@connected
async def presets(link: Link, name: str | None, out: Output) -> None:
    """List the presets, or print one with every setting.

    \b
    suanli policy presets
    suanli policy presets fifo
    """
    request = admin_pb2.ListPolicyPresetsRequest()
    found = await listed(link, "AdminService/ListPolicyPresets", request, "presets")
    if name is None:
        out.listing(found, _PRESET_COLUMNS, "There is no preset.")
        return
    for one in found:
        if one.name == name:
            if out.form == "table":
                _print(one.effective_yaml)
            else:
                out.one(one, [])
            return
    names = ", ".join(one.name for one in found)
    raise Failure(f"There is no preset {name!r}; there are {names}.", NOT_FOUND)


@policy.command()
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@output_option
@connected
async def history(link: Link, limit: int, out: Output) -> None:
    """List who changed the policy, when and why; newest first.

    \b
    suanli policy history --limit 10
    """
    request = admin_pb2.ListPolicyVersionsRequest()
    found = await listed(link, "AdminService/ListPolicyVersions", request, "versions", limit)
    out.listing(found, _version_columns(), "No policy was put yet; 'suanli policy show' prints the built-in one.")


@policy.command()
@click.argument("version", type=click.IntRange(min=1))
@_COMMENT
@_EXPECT
@_YES
@output_option
@connected
async def rollback(link: Link, version: int, comment: str, expect: int | None, yes: bool, out: Output) -> None:
    """Put the document of an older VERSION in force again, as a new version.

    \b
    suanli policy rollback 3 --yes
    """
    older = await _policy(link, version)
    reason = comment or f"Back to version {version}"
    await _change(link, f"version {version}", older.document_yaml, reason, expect, yes, out)


async def _policy(link: Link, version: int) -> admin_pb2.Policy:
    request = admin_pb2.GetPolicyRequest(version=version)
    found: admin_pb2.Policy = (await link.call("AdminService/GetPolicy", request)).policy
    return found


async def _change(
    link: Link, source: str, document: str, comment: str, expect: int | None, yes: bool, out: Output
) -> None:
    """Show what would change, then change it if that was said."""
    _, against = await _compared(link, source, document, expect, out)
    if not yes:
        raise Failure("Nothing was changed; say it again with --yes to put this policy in force.", REFUSED)
    request = admin_pb2.PutPolicyRequest(document_yaml=document, comment=comment, expected_version=against)
    response = await link.call("AdminService/PutPolicy", request)
    if out.form != "table":
        out.one(response, [])
    else:
        out.note(f"Version {response.policy.version} is in force from the next planning round on.")


async def _compared(
    link: Link, source: str, document: str, expect: int | None, out: Output
) -> tuple[admin_pb2.PutPolicyResponse, int]:
    """The document, checked, with its differences to the policy in force and warnings printed; and that policy's version."""
    current = await _policy(link, 0)
    against = current.version if expect is None else expect
    request = admin_pb2.PutPolicyRequest(document_yaml=document, expected_version=against, validate_only=True)
    try:
        checked: admin_pb2.PutPolicyResponse = await link.call("AdminService/PutPolicy", request)
    except InvalidArgument as error:
        raise Failure(f"{named(source)}: {error.message}", error.exit_code) from error
    lines = list(
        difflib.unified_diff(
            current.effective_yaml.splitlines(),
            checked.policy.effective_yaml.splitlines(),
            f"version {current.version}" if current.version else "built-in",
            named(source),
            lineterm="",
            n=_CONTEXT_LINES,
        )
    )
    if out.form == "table":
        for line in lines:
            out.text(line)
        if not lines:
            out.note("It does not differ from the policy in force.")
        for warning in checked.warnings:
            out.note(f"warning: {warning}")
    return checked, against


def named(source: str) -> str:
    """A file as messages call it."""
    return "<stdin>" if source == "-" else source


def text_of(path: str) -> str:
    """A file's text, or that of stdin for ``-``; a ``Failure`` when it is too large or no text."""
    if path == "-":
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Failure(f"{named(path)} is larger than {MAX_BYTES:,} bytes; is it the right file?", USAGE)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Failure(f"{named(path)}:{line}: this is not UTF-8 text.", USAGE) from None
