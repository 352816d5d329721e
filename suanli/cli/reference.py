"""Writes docs/reference/cli.md from the commands themselves: ``python -m suanli.cli.reference [--check] [FILE]``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from suanli.cli import exits
from suanli.cli.main import SECTIONS, cli

PAGE = "docs/reference/cli.md"
_HEAD = """# The command line

<!-- Written by `python -m suanli.cli.reference`; change the commands, not this page. -->

`suanli [GLOBAL OPTIONS] COMMAND [OPTIONS] [ARGS]`. Results go to stdout; notes, progress and errors go to stderr.
Reading commands take `-o table|json|yaml`. JSON and YAML have the field names of the
[contract](../../protos/suanli/v1): integers are integers, instants are milliseconds since 1970 UTC (names end in
`_ms`), enum values go by their short names (`RUNNING`), and what is not set is `null`. `watch -o json` prints an
event a line. Nothing ever asks a question, so every command can stand in a script.
"""
_EXITS_TEXT = """
`submit --wait`, `submit --follow`, `wait` and `logs --follow` exit with the job's own fate: 0 when it succeeded; its
program's exit code when that is 1 to 125; 128 + the signal's number when a signal ended it; 124 when its max runtime
passed; 130 when it was cancelled; 1 when it failed otherwise. Of several jobs, the first that did not succeed
decides. A job's own code may be one of those above; `suanli show JOB -o json` tells them apart.
"""
_COMPLETION = """
## Completion

Bash: `eval "$(suanli completion bash)"` in `~/.bashrc`. Zsh: the same with `zsh` in `~/.zshrc`. Fish:
`suanli completion fish > ~/.config/fish/completions/suanli.fish`.
"""


def page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="suanli")
    parts = [
        _HEAD,
        "\n## Global options\n",
        *_options(cli, root),
        "\n## Exit codes\n\n| code | meaning |\n| --- | --- |\n",
    ]
    parts += [f"| {code} | {meaning} |\n" for code, meaning in exits.MEANINGS.items()]
    parts += [_EXITS_TEXT, _COMPLETION]
    for title, section in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for name in section:
            command = cli.get_command(root, name)
            assert command is not None, f"no command {name}"
            parts += _command(command, click.Context(command, info_name=name, parent=root))
    return "".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield f"\n### {context.command_path}\n\n{_text(command)}\n"
        for name, inner in command.commands.items():
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n### {context.command_path}\n\n```\n{context.command_path} {usage}\n```\n\n{_text(command)}\n"
    yield from _options(command, context)


def _text(command: click.Command) -> str:
    """The help text; paragraphs that click must not wrap are code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        "```\n" + one.removeprefix("\b\n") + "\n```" if one.startswith("\b") else one for one in paragraphs
    )


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts
        if (record := parameter.get_help_record(context)) is not None
    ]
    if rows:
        yield "\n| option | |\n| --- | --- |\n"
        for names, text in rows:
            yield f"| `{_cell(names)}` | {_cell(text)} |\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    check = "--check" in arguments
    files = [Path(argument) for argument in arguments if argument != "--check"] or [Path(PAGE)]
    wanted = page()
    if check:
        same = files[0].exists() and files[0].read_text(encoding="utf-8") == wanted
        if not same:
            print(f"{files[0]} is not what the commands say; run: python -m suanli.cli.reference", file=sys.stderr)
        return 0 if same else 1
    files[0].parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
