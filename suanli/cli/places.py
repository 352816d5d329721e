"""Regions, pools and nodes: reading them, closing nodes, and letting a new region's agent in."""

from __future__ import annotations

import click

from protos.suanli.v1 import admin_pb2
from suanli.cli import human
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Link, connected, listed
from suanli.cli.values import Duration

_GPU = "GPU"


def _region_columns() -> list[Column[admin_pb2.Region]]:
    now = human.now_ms()
    return [
        Column("REGION", lambda r: r.id, whole=True),
        Column("STATE", lambda r: "online" if r.online else "offline"),
        Column("SEEN", lambda r: human.age(r.last_seen_ms, now) or "never"),
        Column("NODES", lambda r: str(r.nodes), right=True),
        Column("CPU", lambda r: human.share(r.allocated.cpu_milli, r.capacity.cpu_milli, human.cpus), right=True),
        Column(
            "MEMORY", lambda r: human.share(r.allocated.memory_mib, r.capacity.memory_mib, human.memory), right=True
        ),
        Column(_GPU, lambda r: human.share(r.allocated.gpu_milli, r.capacity.gpu_milli, human.cpus), right=True),
        Column("RUNNING", lambda r: str(r.active_attempts), right=True),
        Column("AGENT", lambda r: r.agent_version),
    ]


_POOL_COLUMNS: list[Column[admin_pb2.Pool]] = [
    Column("POOL", lambda p: f"{p.region}/{p.id}", whole=True),
    Column("NODES", lambda p: str(p.nodes), right=True),
    Column("DRAINING", lambda p: str(p.nodes_draining), right=True),
    Column("ISOLATED", lambda p: str(p.nodes_isolated), right=True),
    Column("CPU", lambda p: human.share(p.allocated.cpu_milli, p.capacity.cpu_milli, human.cpus), right=True),
    Column("MEMORY", lambda p: human.share(p.allocated.memory_mib, p.capacity.memory_mib, human.memory), right=True),
    Column(_GPU, lambda p: human.share(p.allocated.gpu_milli, p.capacity.gpu_milli, human.cpus), right=True),
    Column("ACCELERATOR", lambda p: p.accelerator),
]


def _node_state(status: admin_pb2.NodeStatus) -> str:
    if not status.up:
        return "down"
    return "draining" if status.draining else "up"


_NODE_COLUMNS: list[Column[admin_pb2.NodeStatus]] = [
    Column("NODE", lambda n: n.node.name or n.node.id, whole=True),
    Column("POOL", lambda n: f"{n.region}/{n.node.pool}", whole=True),
    Column("STATE", _node_state),
    Column("CPU", lambda n: human.share(n.allocated.cpu_milli, n.node.capacity.cpu_milli, human.cpus), right=True),
    Column(
        "MEMORY",
        lambda n: human.share(n.allocated.memory_mib, n.node.capacity.memory_mib, human.memory),
        right=True,
    ),
    Column(_GPU, lambda n: human.share(n.allocated.gpu_milli, n.node.capacity.gpu_milli, human.cpus), right=True),
    Column("ACCELERATOR", lambda n: n.node.accelerator),
    Column("RUNNING", lambda n: str(n.active_attempts), right=True),
]


@click.command()
@output_option
@connected
async def regions(link: Link, out: Output) -> None:
    """List regions: whether their agents are connected, and what is held of what there is."""
    found = await listed(link, "AdminService/ListRegions", admin_pb2.ListRegionsRequest(), "regions")
    out.listing(found, _region_columns(), "There is no region yet; 'suanli region enrol-token NAME' makes one.")


@click.command()
@click.option("--region", default="", help="Of this region only.")
@output_option
@connected
async def pools(link: Link, region: str, out: Output) -> None:
    """List pools: the nodes of one kind in one region."""
    found = await listed(link, "AdminService/ListPools", admin_pb2.ListPoolsRequest(region=region), "pools")
    out.listing(found, _POOL_COLUMNS, "There is no pool: no agent has reported nodes.")


@click.command()
@click.option("--region", default="", help="Of this region only.")
@click.option("--pool", default="", help="Of this pool only: POOL in any region, or REGION/POOL.")
@output_option
@connected
async def nodes(link: Link, region: str, pool: str, out: Output) -> None:
    """List nodes, and what is held of each."""
    in_region, slash, name = pool.rpartition("/")
    if slash and region and region != in_region:
        raise click.BadParameter(f"{pool!r} is not in the region {region!r}.", param_hint="--pool")
    request = admin_pb2.ListNodesRequest(region=region or in_region, pool=name)
    found = await listed(link, "AdminService/ListNodes", request, "nodes")
    out.listing(found, _NODE_COLUMNS, "There is no such node.")


@click.command()
@click.argument("region")
@click.argument("node")
@click.option("--evict", is_flag=True, help="Also stop what runs there, with notice, and queue it again.")
@output_option
@connected
async def drain(link: Link, region: str, node: str, evict: bool, out: Output) -> None:
    """Close a node (its id or name) to new work; what runs there goes on, unless --evict is given."""
    await _drain(link, region, node, True, evict, out)


@click.command()
@click.argument("region")
@click.argument("node")
@output_option
@connected
async def undrain(link: Link, region: str, node: str, out: Output) -> None:
    """Open a drained node again."""
    await _drain(link, region, node, False, False, out)


async def _drain(link: Link, region: str, node: str, draining: bool, evict: bool, out: Output) -> None:
    request = admin_pb2.DrainNodeRequest(region=region, node=node, draining=draining, evict=evict)
    response = await link.call("AdminService/DrainNode", request)
    out.listing([response.node], _NODE_COLUMNS, "")


@click.group()
def region() -> None:
    """Let a new region in."""


@region.command("enrol-token")
@click.argument("region")
@click.option(
    "--ttl", type=Duration(), default="1h", show_default=True, help="How long it may be used, as in 30m or 7d."
)
@output_option
@connected
async def enrol_token(link: Link, region: str, ttl: int, out: Output) -> None:
    """Make a token with which one agent may enrol for REGION; the region is made when it is new.

    The token is printed alone on stdout, so that it can go straight into a file.
    """
    request = admin_pb2.CreateEnrolmentTokenRequest(region=region, ttl_ms=ttl)
    response = await link.call("AdminService/CreateEnrolmentToken", request, idempotent=False)
    if out.form == "table":
        out.text(response.token)
        out.note(f"Good for one agent of {region}, until {human.instant(response.expire_time_ms)}.")
    else:
        out.sheet(response, [])
