"""Institutions and their projects."""

from __future__ import annotations

import click

from protos.suanli.v1 import admin_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND, REFUSED
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Failure, Link, connected, listed, own_institution, pages

MAX_WEIGHT = 1_000_000
_weight = click.option(
    "--weight",
    type=click.IntRange(1, MAX_WEIGHT),
    default=None,
    help="Its share beside the others; 1000 is the usual one.",
)
_title = click.option("--title", default=None, help="Its name for people.")


def _institution_columns() -> list[Column[admin_pb2.Institution]]:
    now = human.now_ms()
    return [
        Column("INSTITUTION", lambda i: i.id, whole=True),
        Column("TITLE", lambda i: i.title),
        Column("WEIGHT", lambda i: str(i.weight), right=True),
        Column("HOME REGION", lambda i: i.home_region),
        Column("CREATED", lambda i: human.age(i.create_time_ms, now)),
    ]


@click.group()
def institution() -> None:
    """Institutions: create, change and list."""


@institution.command("list")
@output_option
@connected
async def list_institutions(link: Link, out: Output) -> None:
    """List institutions."""
    request = admin_pb2.ListInstitutionsRequest()
    found = await listed(link, "AdminService/ListInstitutions", request, "institutions")
    out.listing(found, _institution_columns(), "There is no institution; 'suanli institution create ID' makes one.")


@institution.command("create")
@click.argument("id_", metavar="ID")
@_title
@_weight
@click.option("--home-region", default="", help="Where its jobs go first.")
@output_option
@connected
async def create_institution(
    link: Link, id_: str, title: str | None, weight: int | None, home_region: str, out: Output
) -> None:
    """Create the institution ID (lower-case letters, digits and hyphens)."""
    if await _institution(link, id_):
        raise Failure(f"There is an institution {id_!r} already; 'suanli institution set' changes it.", REFUSED)
    made = admin_pb2.Institution(id=id_, title=title or "", weight=weight or 0, home_region=home_region)
    await _put_institution(link, made, out)


@institution.command("set")
@click.argument("id_", metavar="ID")
@_title
@_weight
@click.option("--home-region", default=None, help="Where its jobs go first; '' for none.")
@output_option
@connected
async def set_institution(
    link: Link, id_: str, title: str | None, weight: int | None, home_region: str | None, out: Output
) -> None:
    """Change an institution; what is not given stays."""
    found = await _institution(link, id_)
    if found is None:
        raise Failure(f"There is no institution {id_!r}; 'suanli institution list' shows them.", NOT_FOUND)
    if title is not None:
        found.title = title
    if weight is not None:
        found.weight = weight
    if home_region is not None:
        found.home_region = home_region
    await _put_institution(link, found, out)


async def _institution(link: Link, id_: str) -> admin_pb2.Institution | None:
    request = admin_pb2.ListInstitutionsRequest()
    async for one in pages(link, "AdminService/ListInstitutions", request, "institutions"):
        if one.id == id_:
            return one  # type: ignore[no-any-return]
    return None


async def _put_institution(link: Link, one: admin_pb2.Institution, out: Output) -> None:
    request = admin_pb2.PutInstitutionRequest(institution=one)
    response = await link.call("AdminService/PutInstitution", request)
    out.one(response.institution, _institution_columns())


def _project_columns() -> list[Column[admin_pb2.Project]]:
    now = human.now_ms()
    return [
        Column("PROJECT", lambda p: f"{p.institution}/{p.id}", whole=True),
        Column("TITLE", lambda p: p.title),
        Column("WEIGHT", lambda p: str(p.weight), right=True),
        Column("CREATED", lambda p: human.age(p.create_time_ms, now)),
    ]


@click.group()
def project() -> None:
    """Projects of an institution: create, change and list."""


_institution_option = click.option("--institution", default="", help="Default: yours.")


@project.command("list")
@_institution_option
@output_option
@connected
async def list_projects(link: Link, institution: str, out: Output) -> None:
    """List projects, of one institution or of all that you may see."""
    request = admin_pb2.ListProjectsRequest(institution=institution)
    found = await listed(link, "AdminService/ListProjects", request, "projects")
    out.listing(found, _project_columns(), "There is no project; 'suanli project create ID' makes one.")


@project.command("create")
@click.argument("id_", metavar="ID")
@_institution_option
@_title
@_weight
@output_option
@connected
async def create_project(
    link: Link, id_: str, institution: str, title: str | None, weight: int | None, out: Output
) -> None:
    """Create the project ID (lower-case letters, digits and hyphens)."""
    owner = await own_institution(link, institution)
    if await _project(link, owner, id_):
        raise Failure(f"There is a project {id_!r} of {owner!r} already; 'suanli project set' changes it.", REFUSED)
    made = admin_pb2.Project(institution=owner, id=id_, title=title or "", weight=weight or 0)
    await _put_project(link, made, out)


@project.command("set")
@click.argument("id_", metavar="ID")
@_institution_option
@_title
@_weight
@output_option
@connected
async def set_project(
    link: Link, id_: str, institution: str, title: str | None, weight: int | None, out: Output
) -> None:
    """Change a project; what is not given stays."""
    owner = await own_institution(link, institution)
    found = await _project(link, owner, id_)
    if found is None:
        raise Failure(f"There is no project {id_!r} of {owner!r}; 'suanli project list' shows them.", NOT_FOUND)
    if title is not None:
        found.title = title
    if weight is not None:
        found.weight = weight
    await _put_project(link, found, out)


async def _project(link: Link, owner: str, id_: str) -> admin_pb2.Project | None:
    request = admin_pb2.ListProjectsRequest(institution=owner)
    async for one in pages(link, "AdminService/ListProjects", request, "projects"):
        if one.id == id_:
            return one  # type: ignore[no-any-return]
    return None


async def _put_project(link: Link, one: admin_pb2.Project, out: Output) -> None:
    request = admin_pb2.PutProjectRequest(project=one)
    response = await link.call("AdminService/PutProject", request)
    out.one(response.project, _project_columns())
