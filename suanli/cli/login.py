"""Logging in and out."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import click

from protos.suanli.v1 import admin_pb2
from suanli.cli import exits, human
from suanli.cli.output import Output, output_option, plain_output
from suanli.cli.people import role_name
from suanli.cli.runtime import Failure, failure_of, session
from suanli.connection import connect
from suanli.errors import SuanliError
from suanli.settings import Settings, logins_file
from suanli.sign_in.issuer import DeviceCode, Provider
from suanli.sign_in.logins import Login, forget_login, keep_login

_KEY_BYTES = 512


@click.command()
@click.option("--key", "by_key", is_flag=True, help="Store an API key: asked for, or read from stdin.")
@click.option("--issuer", default="", metavar="URL", help="Where to log in, when the control plane trusts several.")
@output_option
def login(by_key: bool, issuer: str, out: Output) -> None:
    """Log in to the control plane, and stay known until 'suanli logout'.

    Shows a code to confirm in a browser, on any device. What it gets is kept in the settings folder, readable by you only, and
    renewed by itself.
    """
    try:
        given = session()
        settings = Settings.resolve(given.address, None, given.state_dir, given.ca)
        ours = Login(settings.address, settings.ca)
        made = replace(ours, api_key=_asked_key()) if by_key else _by_device(settings, ours, issuer)
        who = asyncio.run(_who(settings, made))
        keep_login(logins_file(), made)
    except SuanliError as error:
        raise failure_of(error) from error
    if out.form != "table":
        out.one(who, [])
        return
    home = f" of {who.institution}" if who.institution else ""
    out.note(f"You are {who.user}{home}, {role_name(who.role)}, at {settings.address}. 'suanli logout' ends it.")


@click.command()
def logout() -> None:
    """Forget what 'suanli login' got for the control plane of --address, or for the one logged in to last."""
    try:
        found = forget_login(logins_file(), session().address or "")
    except SuanliError as error:
        raise failure_of(error) from error
    if found is None:
        raise Failure("You are not logged in; there is nothing to forget.", exits.NOT_FOUND)
    out = plain_output()
    if found.refresh_token:
        try:
            Provider(found.issuer, found.client_id).revoke(found.refresh_token)
        except SuanliError as error:
            out.note(f"The issuer could not be told: {human.safe(error.message)}")
    out.note(f"Logged out of {found.address}.")


def _asked_key() -> str:
    """A key that appears neither on the screen nor in the list of processes."""
    if sys.stdin.isatty():
        return str(click.prompt("API key", hide_input=True, err=True)).strip()
    return sys.stdin.readline(_KEY_BYTES).strip()


def _by_device(settings: Settings, ours: Login, issuer: str) -> Login:
    method = _chosen(asyncio.run(_methods(settings)), issuer)
    provider = Provider(method.issuer, method.client_id)
    code = provider.begin(tuple(method.scopes))
    _show(code)
    tokens = provider.wait(code)
    return replace(
        ours,
        issuer=method.issuer,
        client_id=method.client_id,
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expire_ms=tokens.expire_ms,
    )


def _show(code: DeviceCode) -> None:
    out = plain_output()
    out.note(f"Open {human.safe(code.url)} in a browser and confirm this code: {human.safe(code.user_code)}")
    if code.complete_url:
        out.note(f"Or open {human.safe(code.complete_url)} and see that it shows the same code.")


def _chosen(methods: list[admin_pb2.OidcLogin], issuer: str) -> admin_pb2.OidcLogin:
    """The issuer that is meant; a ``Failure`` when it is not clear which."""
    if not methods:
        raise Failure("The control plane takes API keys only; store one with 'suanli login --key'.", exits.REFUSED)
    found = [one for one in methods if issuer in ("", one.issuer)]
    if len(found) == 1:
        return found[0]
    names = "; ".join(f"{one.issuer} ({one.title})" if one.title else one.issuer for one in methods)
    raise Failure(f"Say with --issuer where to log in: {names}.", exits.USAGE)


async def _methods(settings: Settings) -> list[admin_pb2.OidcLogin]:
    async with connect(replace(settings, api_key="", login=None)) as connection:
        request = admin_pb2.GetLoginMethodsRequest()
        response = await connection.call(connection.admin.GetLoginMethods, request, idempotent=True)
        return list(response.oidc)


async def _who(settings: Settings, made: Login) -> admin_pb2.WhoAmIResponse:
    """Who the new login makes one: what does not work is not kept."""
    shown = replace(settings, api_key=made.api_key or made.access_token, login=None)
    async with connect(shown) as connection:
        return await connection.call(connection.admin.WhoAmI, admin_pb2.WhoAmIRequest(), idempotent=True)
