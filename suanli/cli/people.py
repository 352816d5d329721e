"""Users and their keys."""

from __future__ import annotations

import base64
import secrets

import click

from protos.suanli.v1 import admin_pb2, common_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND, REFUSED
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Failure, Link, connected, listed, pages
from suanli.cli.values import Duration, Role

_role = click.option(
    "--role",
    type=Role(),
    default=None,
    help="researcher, project-lead, institution-admin, finance, steward, auditor or operator.",
)
_leads = click.option(
    "--leads", multiple=True, metavar="PROJECT", help="A project that a project lead leads; repeatable."
)
_title = click.option("--title", default=None, help="The name for people.")


def role_name(role: int) -> str:
    """ "institution-admin"."""
    return (short_name(common_pb2.Role.DESCRIPTOR, role) or "").lower().replace("_", "-")


def _user_columns() -> list[Column[admin_pb2.User]]:
    now = human.now_ms()
    return [
        Column("USER", lambda u: u.id, whole=True),
        Column("INSTITUTION", lambda u: u.institution or "(platform)"),
        Column("ROLE", lambda u: role_name(u.role)),
        Column("LEADS", lambda u: ", ".join(u.projects)),
        Column("TITLE", lambda u: u.title),
        Column("CREATED", lambda u: human.age(u.create_time_ms, now)),
        Column("", lambda u: "disabled" if u.disabled else ""),
    ]


@click.group()
def user() -> None:
    """Users: create, change and list."""


@user.command("list")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@output_option
@connected
async def list_users(link: Link, institution: str, out: Output) -> None:
    """List users."""
    request = admin_pb2.ListUsersRequest(institution=institution)
    found = await listed(link, "AdminService/ListUsers", request, "users")
    out.listing(found, _user_columns(), "There is no user; 'suanli user create ID' makes one.")


@user.command("create")
@click.argument("id_", metavar="ID")
@click.option("--institution", default="", help="Left out: a user of the platform itself.")
@_role
@_leads
@_title
@output_option
@connected
async def create_user(
    link: Link, id_: str, institution: str, role: int | None, leads: tuple[str, ...], title: str | None, out: Output
) -> None:
    """Create the user ID, a researcher unless --role says otherwise. 'suanli key create ID' then makes a key."""
    if await _user(link, id_):
        raise Failure(f"There is a user {id_!r} already; 'suanli user set' changes them.", REFUSED)
    made = admin_pb2.User(
        id=id_,
        institution=institution,
        role=role or common_pb2.ROLE_RESEARCHER,  # type: ignore[arg-type]
        title=title or "",
        projects=leads,
    )
    await _put(link, made, out)


@user.command("disable")
@click.argument("id_", metavar="ID")
@output_option
@connected
async def disable_user(link: Link, id_: str, out: Output) -> None:
    """Refuse a user's keys and tokens from now on, and end what they have open. 'suanli user set ID --enable' undoes it."""
    found = await _user(link, id_)
    if found is None:
        raise Failure(f"There is no user {id_!r}; 'suanli user list' shows them.", NOT_FOUND)
    found.disabled = True
    await _put(link, found, out)


@user.command("set")
@click.argument("id_", metavar="ID")
@_role
@_leads
@_title
@click.option("--disable/--enable", "disabled", default=None, help="Whether the user's keys and tokens are refused.")
@output_option
@connected
async def set_user(
    link: Link,
    id_: str,
    role: int | None,
    leads: tuple[str, ...],
    title: str | None,
    disabled: bool | None,
    out: Output,
) -> None:
    """Change a user; what is not given stays, but another role than project-lead leads no projects."""
    found = await _user(link, id_)
    if found is None:
        raise Failure(f"There is no user {id_!r}; 'suanli user list' shows them.", NOT_FOUND)
    if role is not None:
        found.role = role  # type: ignore[assignment]
    if leads or found.role != common_pb2.ROLE_PROJECT_LEAD:
        found.projects[:] = leads
    if title is not None:
        found.title = title
    if disabled is not None:
        found.disabled = disabled
    await _put(link, found, out)


async def _user(link: Link, id_: str) -> admin_pb2.User | None:
    async for one in pages(link, "AdminService/ListUsers", admin_pb2.ListUsersRequest(), "users"):
        if one.id == id_:
            return one  # type: ignore[no-any-return]
    return None


async def _put(link: Link, one: admin_pb2.User, out: Output) -> None:
    response = await link.call("AdminService/PutUser", admin_pb2.PutUserRequest(user=one))
    out.one(response.user, _user_columns())


def _limits(key: admin_pb2.ApiKey) -> str:
    role = f"as {role_name(key.limit_role)}" if key.limit_role else ""
    project = f"project {key.project}" if key.project else ""
    return ", ".join(filter(None, (role, project, "read-only" if key.read_only else "")))


def _key_columns() -> list[Column[admin_pb2.ApiKey]]:
    now = human.now_ms()

    def standing(key: admin_pb2.ApiKey) -> str:
        if key.revoked:
            return "revoked"
        return "expired" if key.expire_time_ms and key.expire_time_ms <= now else "valid"

    return [
        Column("PREFIX", lambda k: k.prefix, whole=True),
        Column("USER", lambda k: k.user or f"(agent of {k.region})"),
        Column("INSTITUTION", lambda k: k.institution or "(platform)"),
        Column("ROLE", lambda k: role_name(k.role)),
        Column("TITLE", lambda k: k.title),
        Column("CREATED", lambda k: human.age(k.create_time_ms, now)),
        Column("EXPIRES", lambda k: human.instant(k.expire_time_ms) or "never"),
        Column("LIMITS", _limits),
        Column("USED", lambda k: human.age(k.last_used_time_ms, now) if k.last_used_time_ms else "never"),
        Column("STATE", standing),
    ]


@click.group()
def key() -> None:
    """API keys: create, list, revoke and generate."""


@key.command("list")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--user", default="", help="Of this user.")
@output_option
@connected
async def list_keys(link: Link, institution: str, user: str, out: Output) -> None:
    """List keys by their public prefix; secrets are not kept anywhere."""
    request = admin_pb2.ListApiKeysRequest(institution=institution, user=user)
    out.listing(await listed(link, "AdminService/ListApiKeys", request, "keys"), _key_columns(), "There is no key.")


@key.command("create")
@click.argument("user", default="")
@click.option("--title", default="", help="What it is for.")
@click.option("--expires", type=Duration(), default=None, metavar="DURATION", help="Ends after so long, as in 90d.")
@click.option("--role", type=Role(), default=None, help="The key may do what this role may; never more than the user.")
@click.option("--project", default="", help="The key is for this project only.")
@click.option("--read-only", is_flag=True, help="The key only reads.")
@output_option
@connected
async def create_key(
    link: Link,
    user: str,
    title: str,
    expires: int | None,
    role: int | None,
    project: str,
    read_only: bool,
    out: Output,
) -> None:
    """Make a key for USER (default: you). It is printed alone on stdout, this once only."""
    expire_ms = human.now_ms() + expires if expires else 0
    request = admin_pb2.CreateApiKeyRequest(
        user=user,
        title=title,
        expire_time_ms=expire_ms,
        limit_role=role or 0,  # type: ignore[arg-type]
        project=project,
        read_only=read_only,
    )
    response = await link.call("AdminService/CreateApiKey", request, idempotent=False)
    if out.form == "table":
        out.text(response.secret)
        until = f"until {human.instant(expire_ms)}" if expire_ms else "until it is revoked"
        out.note(f"A key of {response.key.user}, good {until}. It is not shown again; keep it safe.")
    else:
        out.one(response, [])


@key.command("generate")
def generate_key() -> None:
    """Print a new key that no server knows yet, for the file a first start takes its operator's key from."""
    prefix, secret = (base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower() for size in (8, 32))
    click.echo(f"suanli_{prefix}_{secret}")


@key.command("revoke")
@click.argument("prefix")
@output_option
@connected
async def revoke_key(link: Link, prefix: str, out: Output) -> None:
    """End the key with this PREFIX at once. A whole key, suanli_PREFIX_SECRET, is understood too."""
    parts = prefix.split("_")
    public = parts[1] if len(parts) == 3 and parts[0] == "suanli" else prefix
    request = admin_pb2.RevokeApiKeyRequest(prefix=public)
    response = await link.call("AdminService/RevokeApiKey", request)
    out.one(response.key, _key_columns())
