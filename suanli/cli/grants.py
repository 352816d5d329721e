"""Grants: asking for the use of data, and deciding on it."""

from __future__ import annotations

import click

from protos.suanli.v1 import data_pb2
from suanli.cli import human
from suanli.cli.asking import confirm
from suanli.cli.data import reference
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Link, connected, listed
from suanli.cli.values import Instant

_ACTIONS = {"read": data_pb2.GRANT_ACTION_READ, "export": data_pb2.GRANT_ACTION_EXPORT}
_STATUSES = {
    "requested": data_pb2.GRANT_STATUS_REQUESTED,
    "approved": data_pb2.GRANT_STATUS_APPROVED,
    "refused": data_pb2.GRANT_STATUS_REFUSED,
    "revoked": data_pb2.GRANT_STATUS_REVOKED,
}
_reason = click.option("--reason", required=True, help="Why; kept with the grant. At most 1,000 characters.")


def _actions(one: data_pb2.Grant) -> str:
    names = (short_name(data_pb2.GrantAction.DESCRIPTOR, number) or "" for number in one.actions)
    return ", ".join(name.lower() for name in names)


def _status(one: data_pb2.Grant) -> str:
    return (short_name(data_pb2.GrantStatus.DESCRIPTOR, one.status) or "").lower()


_COLUMNS: list[Column[data_pb2.Grant]] = [
    Column("GRANT", lambda g: g.id, whole=True),
    Column("STATUS", _status, whole=True),
    Column("FOR", lambda g: f"{g.institution}/{g.project or '*'}"),
    Column("DATA SET", lambda g: f"{g.data_set}@{g.version}", whole=True),
    Column("PURPOSE", lambda g: g.purpose),
    Column("ACTIONS", _actions),
    Column("UNTIL", lambda g: human.instant(g.to_ms) or "no end"),
    Column("ASKED BY", lambda g: g.requester),
    Column("DECIDED BY", lambda g: g.revoker or g.decider),
    Column("REASON", lambda g: g.revoke_reason or g.decision_reason or g.request_reason),
]


@click.group()
def grant() -> None:
    """Grants to use data: request, decide, list.

    docs/howto/data.md tells more.
    """


@grant.command("request")
@click.argument("name", metavar="NAME[@VERSION]")
@click.option("--purpose", required=True, help="What for; jobs have to name the same.")
@_reason
@click.option("--institution", default="", help="Who is to use it. Default: yours.")
@click.option("--project", default="", help="Of this project only. Default: all of the institution's.")
@click.option(
    "--action", "actions", type=click.Choice(list(_ACTIONS)), multiple=True, help="May be repeated. Default: read."
)
@click.option("--from", "from_ms", type=Instant(), default=0, metavar="TIME", help="Default: at once.")
@click.option("--to", "to_ms", type=Instant(), default=0, metavar="TIME", help="It ends then. Default: without end.")
@click.option("--deidentification", type=click.IntRange(0, 3), default=0, help="Only versions of this level or more.")
@output_option
@connected
async def request_grant(
    link: Link,
    name: str,
    purpose: str,
    reason: str,
    institution: str,
    project: str,
    actions: tuple[str, ...],
    from_ms: int,
    to_ms: int,
    deidentification: int,
    out: Output,
) -> None:
    """Ask the steward of a data set for a grant; * in the version stands for anything, and none is all versions.

    \b
    suanli grant request census --purpose thesis --to 2027-07-01 --reason "PhD of Li, board no. 12"
    suanli grant request census@2024 --purpose thesis --action read --action export --reason "Tables"
    """
    data_set, version = reference(name)
    asked = data_pb2.Grant(
        institution=institution,
        project=project,
        data_set=data_set,
        version=version,
        purpose=purpose,
        actions=[_ACTIONS[action] for action in actions],
        deidentification=deidentification,
        from_ms=from_ms,
        to_ms=to_ms,
    )
    request = data_pb2.RequestGrantRequest(grant=asked, reason=reason)
    out.one((await link.call("DataService/RequestGrant", request)).grant, _COLUMNS)


@grant.command("list")
@click.argument("name", metavar="[NAME]", default="", required=False)
@click.option("--status", "statuses", type=click.Choice(list(_STATUSES)), multiple=True, help="May be repeated.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@output_option
@connected
async def list_grants(link: Link, name: str, statuses: tuple[str, ...], limit: int, out: Output) -> None:
    """List the grants of your institution and of its data sets, newest first.

    \b
    suanli grant list --status requested
    """
    request = data_pb2.ListGrantsRequest(data_set=name, statuses=[_STATUSES[each] for each in statuses])
    found = await listed(link, "DataService/ListGrants", request, "grants", limit)
    out.listing(found, _COLUMNS, "There is no grant.")


@grant.command("approve")
@click.argument("id_", metavar="ID")
@click.option("--reason", default="", help="Kept with the grant. At most 1,000 characters.")
@output_option
@connected
async def approve(link: Link, id_: str, reason: str, out: Output) -> None:
    """Approve what somebody else has asked for."""
    request = data_pb2.DecideGrantRequest(id=id_, approve=True, reason=reason)
    out.one((await link.call("DataService/DecideGrant", request)).grant, _COLUMNS)


@grant.command("refuse")
@click.argument("id_", metavar="ID")
@_reason
@output_option
@connected
async def refuse(link: Link, id_: str, reason: str, out: Output) -> None:
    """Refuse what was asked for."""
    request = data_pb2.DecideGrantRequest(id=id_, approve=False, reason=reason)
    out.one((await link.call("DataService/DecideGrant", request)).grant, _COLUMNS)


@grant.command("revoke")
@click.argument("id_", metavar="ID")
@_reason
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@connected
async def revoke(link: Link, id_: str, reason: str, yes: bool, out: Output) -> None:
    """Take a grant back: jobs that need it are held, running ones stopped if the data set says so."""
    confirm(f"Revoke grant {id_}? Jobs that need it are held or stopped.", yes)
    request = data_pb2.RevokeGrantRequest(id=id_, reason=reason)
    out.one((await link.call("DataService/RevokeGrant", request)).grant, _COLUMNS)
