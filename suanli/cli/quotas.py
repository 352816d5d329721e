"""Quotas: the hard limits on what an institution or a project may hold at once."""

from __future__ import annotations

from collections.abc import Callable

import click

from protos.suanli.v1 import admin_pb2
from suanli.cli import human
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Link, connected, listed, own_institution, pages
from suanli.cli.values import Count, Cpus, Gpus, Limit, Memory

NO_LIMIT = -1


def _held(limit: int, held: int, write: Callable[[int], str]) -> str:
    return f"{write(held)} / {'no limit' if limit == NO_LIMIT else write(limit)}"


def _stored(quota: admin_pb2.Quota) -> str:
    limit = "no limit" if quota.stored_mib == NO_LIMIT else human.memory(quota.stored_mib)
    return f"{human.size(quota.stored_bytes)} / {limit}"


_COLUMNS: list[Column[admin_pb2.Quota]] = [
    Column("QUOTA OF", lambda q: f"{q.institution}/{q.project}" if q.project else q.institution, whole=True),
    Column("CPU", lambda q: _held(q.cpu_milli, q.in_use.cpu_milli, human.cpus), right=True),
    Column("MEMORY", lambda q: _held(q.memory_mib, q.in_use.memory_mib, human.memory), right=True),
    Column("GPU", lambda q: _held(q.gpu_milli, q.in_use.gpu_milli, human.cpus), right=True),
    Column("STORED", _stored, right=True),
    Column("JOBS", lambda q: "no limit" if q.pending_jobs == NO_LIMIT else f"{q.pending_jobs:,}", right=True),
]


@click.group()
def quota() -> None:
    """Hard limits on what an institution or a project may hold at once."""


@quota.command("list")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@output_option
@connected
async def list_quotas(link: Link, institution: str, out: Output) -> None:
    """List quotas, with what is held of each now. Who has none is not limited."""
    request = admin_pb2.ListQuotasRequest(institution=institution)
    out.listing(await listed(link, "AdminService/ListQuotas", request, "quotas"), _COLUMNS, "There is no quota.")


@quota.command("set")
@click.argument("institution", default="")
@click.option("--project", default="", help="Of this project. Default: of the institution as a whole.")
@click.option("--cpus", type=Limit(Cpus()), default=None, help="Cores, as in 64 or 500m, or 'none' for no limit.")
@click.option("--memory", type=Limit(Memory()), default=None, help="As in 256GiB, or 'none'.")
@click.option("--gpus", type=Limit(Gpus()), default=None, help="GPUs, as in 4 or 0.5, or 'none'.")
@click.option(
    "--stored", type=Limit(Memory()), default=None, help="Kept in the artifact store, as in 500GiB, or 'none'."
)
@click.option("--jobs", type=Limit(Count()), default=None, help="Jobs that have not ended, or 'none'.")
@output_option
@connected
async def set_quota(
    link: Link,
    institution: str,
    project: str,
    cpus: int | None,
    memory: int | None,
    gpus: int | None,
    stored: int | None,
    jobs: int | None,
    out: Output,
) -> None:
    """Set limits of INSTITUTION (default: yours), or of one of its projects; what is not given stays."""
    limits = {"cpu_milli": cpus, "memory_mib": memory, "gpu_milli": gpus, "stored_mib": stored, "pending_jobs": jobs}
    if all(value is None for value in limits.values()):
        raise click.UsageError("Nothing to set: give --cpus, --memory, --gpus, --stored or --jobs.")
    owner = await own_institution(link, institution)
    found = await _quota(link, owner, project)
    for name, value in limits.items():
        if value is not None:
            setattr(found, name, value)
    found.ClearField("in_use")
    found.ClearField("stored_bytes")
    request = admin_pb2.SetQuotaRequest(quota=found)
    response = await link.call("AdminService/SetQuota", request)
    out.one(response.quota, _COLUMNS)


async def _quota(link: Link, owner: str, project: str) -> admin_pb2.Quota:
    """The quota as it is; one without limits when there is none."""
    request = admin_pb2.ListQuotasRequest(institution=owner)
    async for one in pages(link, "AdminService/ListQuotas", request, "quotas"):
        if one.project == project:
            return one  # type: ignore[no-any-return]
    return admin_pb2.Quota(
        institution=owner,
        project=project,
        cpu_milli=NO_LIMIT,
        memory_mib=NO_LIMIT,
        gpu_milli=NO_LIMIT,
        stored_mib=NO_LIMIT,
        pending_jobs=NO_LIMIT,
    )
