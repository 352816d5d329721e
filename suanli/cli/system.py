"""Health, who one is, the processes themselves, and completion."""

from __future__ import annotations

import os
import sys

import click
from click.shell_completion import get_completion_class
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.suanli.v1 import admin_pb2
from suanli.cli import human
from suanli.cli.exits import UNAVAILABLE
from suanli.cli.output import Output, output_option, plain_output
from suanli.cli.people import role_name
from suanli.cli.runtime import Failure, Link, connected, who_am_i

COMPLETE_VARIABLE = "_SUANLI_COMPLETE"
_INSTALL = {
    "bash": "echo 'eval \"$(suanli completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(suanli completion zsh)\"' >> ~/.zshrc",
    "fish": "suanli completion fish > ~/.config/fish/completions/suanli.fish",
}
_HEALTH_TIMEOUT_S = 10.0


@click.command()
@output_option
@connected
async def whoami(link: Link, out: Output) -> None:
    """Say who your key or login makes you, until when, and which version the server has."""
    answer = await who_am_i(link)
    kind = "token of" if answer.credential == admin_pb2.CREDENTIAL_KIND_TOKEN else "API key"
    limits = [f"project {answer.project}"] if answer.project else []
    if answer.read_only:
        limits.append("reading")
    if answer.limited_to_roles:
        limits.append("what a role may: " + (", ".join(map(role_name, answer.limit_roles)) or "none"))
    rows = [
        ("User", answer.user),
        ("Institution", answer.institution or "(platform)"),
        ("Role", role_name(answer.role)),
        ("Known by", f"{kind} {answer.credential_name}"),
        ("Until", human.instant(answer.expire_time_ms) or "it is revoked"),
    ]
    if limits:
        rows.append(("Limited to", "; ".join(limits)))
    if link.connection.settings.login is not None:
        rows.append(("Renewed", "by itself" if link.connection.settings.login.refresh_token else "by 'suanli login'"))
    out.sheet(answer, [*rows, ("Server", f"suanli {answer.server_version}")])


@click.command()
@output_option
@connected
async def health(link: Link, out: Output) -> None:
    """Ask the control plane whether it serves; needs no key. Exits with 5 when it does not."""
    stub = health_pb2_grpc.HealthStub(link.connection.channel)
    answer = await stub.Check(  # type: ignore[attr-defined] # its stubs say nothing of methods
        health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
    )
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if out.form == "table":
        out.text(status)
    else:
        out.data({"status": status})
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Failure(
            "The control plane answers and does not serve: it is starting, stopping or a standby.", UNAVAILABLE
        )


_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def server(args: tuple[str, ...]) -> None:
    """Run a control plane in this process: 'suanli server --config server.yaml'."""
    _become("scheduler.server", args)


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def agent(args: tuple[str, ...]) -> None:
    """Run a region's agent in this process: 'suanli agent --config agent.yaml'."""
    _become("workers.agent", args)


def _become(module: str, args: tuple[str, ...]) -> None:
    """Replace this process, so that signals and the exit code are the module's own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *args])  # noqa: S606 - no shell is wanted


@click.command()
@click.argument("shell", type=click.Choice(sorted(_INSTALL)))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(suanli completion bash)"       in ~/.bashrc
    zsh:  eval "$(suanli completion zsh)"        in ~/.zshrc
    fish: suanli completion fish > ~/.config/fish/completions/suanli.fish
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(root, {}, "suanli", COMPLETE_VARIABLE).source())
    if sys.stdout.isatty():
        plain_output().note(f"To keep it: {_INSTALL[shell]}")
