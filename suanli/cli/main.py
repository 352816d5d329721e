"""The group of all commands. A command's module is imported when it is asked for, so that each starts quickly."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from suanli.cli import exits
from suanli.cli.runtime import Failure, Session

SECTIONS: dict[str, dict[str, str]] = {
    "On this machine": {
        "up": "suanli.local.commands:up",
        "down": "suanli.local.commands:down",
        "status": "suanli.local.commands:status",
        "demo": "suanli.local.commands:demo",
    },
    "Jobs": {
        "submit": "suanli.cli.submit:submit",
        "ps": "suanli.cli.jobs:ps",
        "show": "suanli.cli.jobs:show",
        "why": "suanli.cli.why:why",
        "wait": "suanli.cli.follow:wait",
        "watch": "suanli.cli.follow:watch",
        "logs": "suanli.cli.logs:logs",
        "cancel": "suanli.cli.jobs:cancel",
        "fetch": "suanli.cli.files:fetch",
        "algorithms": "suanli.cli.catalogue:algorithms",
    },
    "Data": {
        "data": "suanli.cli.data:data",
        "grant": "suanli.cli.grants:grant",
    },
    "Storage": {
        "artifacts": "suanli.cli.artifacts:artifacts",
    },
    "Usage": {
        "usage": "suanli.cli.usage:usage",
        "ledger": "suanli.cli.ledger:ledger",
        "statement": "suanli.cli.statement:statement",
        "price": "suanli.cli.price:price",
        "month": "suanli.cli.months:month",
    },
    "Places": {
        "regions": "suanli.cli.places:regions",
        "pools": "suanli.cli.places:pools",
        "nodes": "suanli.cli.places:nodes",
        "drain": "suanli.cli.places:drain",
        "undrain": "suanli.cli.places:undrain",
        "region": "suanli.cli.places:region",
    },
    "Planning ahead": {
        "simulate": "suanli.cli.simulate:simulate",
    },
    "People and limits": {
        "institution": "suanli.cli.tenants:institution",
        "project": "suanli.cli.tenants:project",
        "user": "suanli.cli.people:user",
        "key": "suanli.cli.people:key",
        "quota": "suanli.cli.quotas:quota",
        "budget": "suanli.cli.budgets:budget",
        "policy": "suanli.cli.policy:policy",
        "audit": "suanli.cli.audit:audit",
    },
    "System": {
        "health": "suanli.cli.system:health",
        "login": "suanli.cli.login:login",
        "logout": "suanli.cli.login:logout",
        "whoami": "suanli.cli.system:whoami",
        "server": "suanli.cli.system:server",
        "agent": "suanli.cli.system:agent",
        "completion": "suanli.cli.system:completion",
    },
}
"""Every command and where it is, in the order of the help text."""


class Commands(click.Group):
    """Finds commands lazily, prints them by section, and ends every known failure with a sentence and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the sections."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        for section in SECTIONS.values():
            if cmd_name in section:
                module, _, attribute = section[cmd_name].partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the message for an unknown one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx), 1, 0.5)
            hint = f"Did you mean {near[0]!r}?" if near else "'suanli --help' lists the commands."
            raise click.UsageError(f"There is no command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands below the headings of their sections."""
        for title, section in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in section]
            rows = [(name, command.get_short_help_str(200)) for name, command in commands if command]
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; failures that a person can do something about become click's own, which print no traceback."""
        try:
            return super().invoke(ctx)
        except Failure:
            raise
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(exits.INTERRUPTED)
        except BrokenPipeError:
            # The reader has left (`suanli ps | head`): nothing to say, and nothing more may be written at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(exits.FAILED)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}") from error


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="'suanli COMMAND --help' tells more. Exit codes and all options: docs/reference/cli.md.",
)
@click.option(
    "--address", envvar="SUANLI_ADDRESS", metavar="HOST:PORT", help="The control plane. [env: SUANLI_ADDRESS]"
)
@click.option("--api-key", envvar="SUANLI_API_KEY", metavar="KEY", help="Your key. [env: SUANLI_API_KEY]")
@click.option("--ca", envvar="SUANLI_CA", metavar="FILE", help="Certificates to trust, PEM. [env: SUANLI_CA]")
@click.option(
    "--state-dir",
    envvar="SUANLI_STATE_DIR",
    metavar="FOLDER",
    help="Where 'suanli up' keeps its state. [env: SUANLI_STATE_DIR]",
)
@click.option("--no-color", is_flag=True, help="No colours. [env: NO_COLOR]")
@click.version_option(package_name="suanli", message="suanli %(version)s")
@click.pass_context
def cli(
    ctx: click.Context, address: str | None, api_key: str | None, ca: str | None, state_dir: str | None, no_color: bool
) -> None:
    """Run analytics and training jobs on compute shared between institutions and regions.

    Without --address and --api-key, the profile file or a running 'suanli up' says where the control plane is.
    """
    del no_color  # suanli.cli.output asks the context for it
    ctx.obj = Session(address, api_key, ca, state_dir)


def main() -> NoReturn:
    """The console script."""
    cli(prog_name="suanli")
    sys.exit(exits.OK)
