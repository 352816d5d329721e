"""Why one pool does or does not take a shape now."""

from __future__ import annotations

from scheduler.domain.spec import Shape
from scheduler.planning import wording
from scheduler.planning.feasible import lacks, shortage
from scheduler.planning.fit import (
    SiteKey,
    accelerator_allowed,
    labels_match,
    pool_allowed,
    region_allowed,
    replicas_on,
    replicas_when_empty,
    site_of,
)
from scheduler.planning.types import NodeView, PoolKey, PoolReason, Snapshot


def explain_pool(snapshot: Snapshot, pool: PoolKey, shape: Shape) -> PoolReason:
    """The pool's code, sentence and counts for one job of the shape; quotas and other jobs in the queue aside."""
    view = snapshot.pools[pool]
    nodes = [view[node_id] for node_id in sorted(view)]
    total = len(nodes)
    if not region_allowed(pool.region, shape):
        allowed = wording.listing(shape.required_regions, "or")
        return PoolReason(pool, "REGION_NOT_ALLOWED", f"the job must run in region {allowed}", total)
    if not pool_allowed(pool, shape):
        return PoolReason(
            pool, "POOL_NOT_ALLOWED", f"the job must run in pool {wording.listing(shape.pools, 'or')}", total
        )
    typed = [node for node in nodes if accelerator_allowed(node.accelerator, node.capacity.gpu_milli > 0, shape)]
    if not typed:
        wanted = wording.listing(shape.accelerators, "or") if shape.accelerators else "a GPU"
        return PoolReason(
            pool, "ACCELERATOR_MISMATCH", f"none of its {wording.count(total, 'node')} has {wanted}", total
        )
    selected = [node for node in typed if labels_match(node, shape)]
    if not selected:
        labels = wording.listing([f"{key}={value}" for key, value in shape.node_selector])
        message = f"none of its {wording.count(total, 'node')} has the labels {labels}"
        return PoolReason(pool, "SELECTOR_MISMATCH", message, total)
    return _explain_room(snapshot, pool, shape, selected, total)


def _explain_room(snapshot: Snapshot, pool: PoolKey, shape: Shape, nodes: list[NodeView], total: int) -> PoolReason:
    """The pool is allowed and has suitable nodes: is there room?"""
    request = shape.request
    serving = [node for node in nodes if node.schedulable and pool.region in snapshot.online_regions]
    now = _Room(shape, [(node, replicas_on(request, node.free, node.gpu_free)) for node in serving])
    empty = _Room(shape, [(node, replicas_when_empty(request, node)) for node in nodes])
    in_service = _Room(shape, [(node, replicas_when_empty(request, node)) for node in serving])
    lacking = dict.fromkeys(wording.RESOURCE_NAMES, 0)
    for node in serving:
        for name in _lacks_now(shape, node):
            lacking[name] += 1
    lacking = {name: number for name, number in lacking.items() if number}

    def reason(code: str, message: str) -> PoolReason:
        return PoolReason(pool, code, message, total, now.nodes, empty.nodes, lacking)

    if not empty.nodes:
        nearest = min(nodes, key=lambda node: (*shortage(request, node.capacity), node.node_id))
        lack = wording.listing([wording.amount(*each) for each in lacks(request, nearest.capacity).items()])
        what = f"the nearest, {nearest.name}, is {lack} short" if lack else "its GPUs cannot be divided so"
        return reason("TOO_SMALL", f"no node can hold {wording.replicas(1, request)} even when empty: {what}")
    if empty.replicas < shape.replicas:
        held = f"holds {empty.replicas:,} of the {shape.replicas:,} replicas even when empty"
        return reason("GANG_DOES_NOT_FIT", f"the pool {held}; a gang starts whole or not at all")
    if pool.region not in snapshot.online_regions:
        return reason("REGION_OFFLINE", f"region {pool.region} is not connected; the pool is used again when it is")
    if in_service.replicas < shape.replicas:
        away = len(nodes) - len(serving)
        message = (
            f"{wording.count(away, 'suitable node')} of {len(nodes):,} {'is' if away == 1 else 'are'} draining or down"
        )
        return reason("DRAINING", f"{message}, and the others cannot hold the job even when empty")
    if now.replicas >= shape.replicas:
        return reason("FITS", f"{wording.count(now.nodes, 'node')} of {total:,} could hold a replica now")
    if not now.nodes:
        return reason("BUSY", _busy_message(shape, serving, lacking))
    held = f"{now.replicas:,} of the {shape.replicas:,} replicas would fit now, on {wording.count(now.nodes, 'node')}"
    return reason("GANG_DOES_NOT_FIT", f"{held}; a gang starts whole or not at all, so it waits until all fit at once")


class _Room:
    """How many nodes hold at least one replica, and how many replicas the best site holds."""

    def __init__(self, shape: Shape, counts: list[tuple[NodeView, int]]) -> None:
        self.nodes = sum(1 for _, count in counts if count)
        by_site: dict[SiteKey, int] = {}
        for node, count in counts:
            site = site_of(node)
            by_site[site] = min(shape.replicas, by_site.get(site, 0) + count)
        self.replicas = max(by_site.values(), default=0)


def _lacks_now(shape: Shape, node: NodeView) -> dict[str, int]:
    """What a node lacks now for one replica. GPUs free in sum but not on the right indexes count as lacking."""
    lacking = lacks(shape.request, node.free)
    if not lacking and not replicas_on(shape.request, node.free, node.gpu_free):
        lacking["gpu"] = shape.request.gpu_milli
    return lacking


def _busy_message(shape: Shape, nodes: list[NodeView], lacking: dict[str, int]) -> str:
    """'3 of 40 nodes lack 16 GiB of free memory; the nearest, n7, is 4 GiB of memory short'."""
    wanted = dict(zip(wording.RESOURCE_NAMES, shape.request, strict=True))
    nodes_say = wording.count(len(nodes), "node")
    parts = [
        f"{number:,} of {nodes_say} {'lacks' if number == 1 else 'lack'} {wording.free_amount(name, wanted[name])}"
        for name, number in lacking.items()
    ]
    nearest = min(nodes, key=lambda node: (*shortage(shape.request, node.free), node.node_id))
    short = lacks(shape.request, nearest.free)
    if not short:
        return f"{wording.listing(parts)}; on {nearest.name} enough is free in sum but not on one GPU or on whole GPUs"
    amounts = wording.listing([wording.amount(*each) for each in short.items()])
    return f"{wording.listing(parts)}; the nearest, {nearest.name}, is {amounts} short"
