"""Whether a shape could run at all, judged by the nodes known, as if all were empty and in service.

For refusing at submit what could only wait for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from scheduler.domain.resources import Resources
from scheduler.domain.spec import Shape
from scheduler.planning import wording
from scheduler.planning.fit import (
    SiteKey,
    accelerator_allowed,
    data_regions,
    labels_match,
    needs_isolation,
    pool_allowed,
    region_allowed,
    replicas_when_empty,
    site_of,
    spot_allowed,
    trust_allowed,
)
from scheduler.planning.policy import Policy
from scheduler.planning.types import NodeView, PoolKey

_NO_RULES = Policy()


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No known pool could ever hold the job. ``pool`` is the nearest, ``lacking`` what the nearest node lacks for a replica
    (cpu in milli-cores, memory in MiB, gpu in milli-GPUs; empty when something else than an amount stands in the way)."""

    pool: PoolKey
    message: str
    lacking: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnknownPlace:
    """The job is bound to regions or pools (``names``) of which none has a known node; they may join later, or be misspelt."""

    names: tuple[str, ...]
    message: str


class _Miss(NamedTuple):
    """How far a pool is from holding the job; the smallest is the nearest.

    ``stage``: 0 the gang is too big, or not together, 1 it would have to be preemptible, 2 a node is too small, 3 the selector matches
    none, 4 the accelerator does not, 5 the data may not go there.
    """

    stage: int
    replicas_short: int
    resources_short: int
    shortage: Fraction
    pool: PoolKey


def could_ever_fit(
    pools: Mapping[PoolKey, Mapping[str, NodeView]],
    shape: Shape,
    policy: Policy = _NO_RULES,
    preemptible: bool = True,
) -> Infeasible | UnknownPlace | None:
    """None when the shape could run on some pool's nodes if these were empty (down and draining ones included), or when no node
    is known at all in a job free to go anywhere; else why not. ``policy`` says which pools are spot and where data may go."""
    unknown = _unknown_place(pools, shape)
    if unknown is not None:
        return unknown
    misses: list[tuple[_Miss, Infeasible]] = []
    for pool in sorted(pools):
        if not pools[pool] or not region_allowed(pool.region, shape) or not pool_allowed(pool, shape):
            continue
        nodes = [pools[pool][node] for node in sorted(pools[pool])]
        apart = [node for node in nodes if node.isolated] if needs_isolation(shape, policy) else nodes
        missed = (
            _barred(pool, shape, policy, preemptible) or _unisolated(pool, apart, shape) or _miss(pool, apart, shape)
        )
        if missed is None:
            return None
        misses.append(missed)
    return min(misses, key=lambda each: each[0])[1] if misses else None


def places_for(
    pools: Mapping[PoolKey, Mapping[str, NodeView]],
    shape: Shape,
    policy: Policy = _NO_RULES,
    preemptible: bool = True,
) -> list[tuple[PoolKey, str]]:
    """Where the shape could run if the nodes were empty, as in ``could_ever_fit``: pools, each with the accelerator of nodes that hold it."""
    found: set[tuple[PoolKey, str]] = set()
    isolated = needs_isolation(shape, policy)
    for pool, nodes in pools.items():
        if not region_allowed(pool.region, shape) or not pool_allowed(pool, shape):
            continue
        if _barred(pool, shape, policy, preemptible) is not None:
            continue
        sites: dict[SiteKey, list[NodeView]] = {}
        for node in nodes.values():
            if node.isolated or not isolated:
                sites.setdefault(site_of(node), []).append(node)
        found.update((pool, site.accelerator) for site, alike in sites.items() if _miss(pool, alike, shape) is None)
    return sorted(found)


def _unknown_place(pools: Mapping[PoolKey, Mapping[str, NodeView]], shape: Shape) -> UnknownPlace | None:
    """What the job names, when nothing of it is known."""
    known = sorted(pool for pool, nodes in pools.items() if nodes)
    if not any(region_allowed(pool.region, shape) for pool in known):
        if not shape.required_regions and not shape.pools:
            return None
        names, kind = (shape.required_regions, "region") if shape.required_regions else (shape.pools, "pool")
    elif not any(region_allowed(pool.region, shape) and pool_allowed(pool, shape) for pool in known):
        names, kind = shape.pools, "pool"
    else:
        return None
    have = sorted({pool.region for pool in known}) if kind == "region" else [str(pool) for pool in known]
    known_words = f"known {kind}s are {wording.listing(have[:8])}" if have else f"no {kind} is known yet"
    which = wording.listing(names, "or")
    where = (
        f" in region {wording.listing(shape.required_regions, 'or')}"
        if kind == "pool" and shape.required_regions
        else ""
    )
    return UnknownPlace(names, f"no node is known in {kind} {which}{where}; {known_words}")


def _barred(pool: PoolKey, shape: Shape, policy: Policy, preemptible: bool) -> tuple[_Miss, Infeasible] | None:
    """The rule, if any, that keeps the job out of the pool whatever its size."""
    asked = f"no pool can hold {wording.replicas(shape.replicas, shape.request)}: the nearest is {pool}, "
    regions = data_regions(shape, policy)
    if regions is not None and pool.region not in regions:
        why = f"but {wording.residency(pool.region, shape, policy)}"
        return _Miss(5, 0, 0, Fraction(0), pool), Infeasible(pool, asked + why)
    if not trust_allowed(pool, shape, policy):
        return _Miss(5, 0, 0, Fraction(0), pool), Infeasible(pool, f"{asked}but {wording.UNTRUSTED}")
    if not spot_allowed(pool, policy, preemptible):
        return _Miss(1, 0, 0, Fraction(0), pool), Infeasible(
            pool, f"{asked}a spot pool, which takes preemptible jobs only"
        )
    return None


def _unisolated(pool: PoolKey, apart: Sequence[NodeView], shape: Shape) -> tuple[_Miss, Infeasible] | None:
    """The pool has no node on which the job's data may be; ``apart`` are those that keep jobs apart as much as it demands."""
    if apart:
        return None
    message = f"no pool can hold {wording.replicas(shape.replicas, shape.request)}: the nearest is {pool}, "
    return _Miss(5, 0, 0, Fraction(0), pool), Infeasible(pool, f"{message}but {wording.UNISOLATED}")


def _miss(pool: PoolKey, nodes: Sequence[NodeView], shape: Shape) -> tuple[_Miss, Infeasible] | None:
    """Why the pool cannot hold the job; None when it can."""
    asked = f"no pool can hold {wording.replicas(shape.replicas, shape.request)}: the nearest is {pool}, "
    fitting_type = [n for n in nodes if accelerator_allowed(n.accelerator, n.capacity.gpu_milli > 0, shape)]
    if not fitting_type:
        types = sorted({node.accelerator for node in nodes if node.accelerator})
        has = f"whose accelerators are {wording.listing(types)}" if types else "which has no accelerators"
        wanted = f" but the job asks for {wording.listing(shape.accelerators, 'or')}" if shape.accelerators else ""
        return _Miss(4, 0, 0, Fraction(0), pool), Infeasible(pool, asked + has + wanted)
    selected = [node for node in fitting_type if labels_match(node, shape)]
    if not selected:
        labels = wording.listing([f"{key}={value}" for key, value in shape.node_selector])
        return _Miss(3, 0, 0, Fraction(0), pool), Infeasible(
            pool, f"{asked}none of whose nodes has the labels {labels}"
        )
    room: dict[object, int] = {}
    for node in selected:
        room[site_of(node)] = room.get(site_of(node), 0) + replicas_when_empty(shape.request, node)
    held = max(room.values())
    if held >= shape.replicas:
        return _apart(pool, selected, shape, asked)
    if held:
        short = shape.replicas - held
        message = f"{asked}which holds {held:,} of them at once"
        return _Miss(0, short, 0, Fraction(0), pool), Infeasible(pool, message)
    return _too_small(pool, selected, shape, asked)


def _apart(pool: PoolKey, nodes: Sequence[NodeView], shape: Shape, asked: str) -> tuple[_Miss, Infeasible] | None:
    """The pool holds the gang, but perhaps no single rack (zone, node) of it does, as the job requires."""
    if not (shape.pack and shape.pack_required):
        return None
    room: dict[object, int] = {}
    for node in nodes:
        value = node.node_id if shape.pack == "node" else dict(node.labels).get(shape.pack)
        domain = (site_of(node), ("", node.node_id) if value is None else value)
        room[domain] = room.get(domain, 0) + replicas_when_empty(shape.request, node)
    held = max(room.values())
    if held >= shape.replicas:
        return None
    message = f"{asked}where no single {shape.pack} holds more than {held:,} of them"
    return _Miss(0, shape.replicas - held, 0, Fraction(0), pool), Infeasible(pool, message)


def _too_small(pool: PoolKey, nodes: Sequence[NodeView], shape: Shape, asked: str) -> tuple[_Miss, Infeasible]:
    """No node of the pool holds even one replica."""
    request = shape.request
    nearest = min(nodes, key=lambda node: (*shortage(request, node.capacity), node.node_id))
    resources_short, relative = shortage(request, nearest.capacity)
    lacking = lacks(request, nearest.capacity)
    offers = [
        wording.amount(name, have)
        for name, have in zip(wording.RESOURCE_NAMES, nearest.capacity, strict=True)
        if name in lacking
    ]
    # Nothing lacks in sum only when the GPUs cannot be divided as asked, as 1500 milli-GPUs.
    largest = f"whose largest node has {wording.listing(offers)}" if offers else "whose GPUs cannot be divided so"
    message = asked + largest
    return _Miss(2, 0, resources_short, relative, pool), Infeasible(pool, message, lacking)


def lacks(request: Resources, room: Resources) -> dict[str, int]:
    """How much of each resource is missing for one replica; only what is missing."""
    return {
        name: want - max(0, have)
        for name, want, have in zip(wording.RESOURCE_NAMES, request, room, strict=True)
        if want > max(0, have)
    }


def shortage(request: Resources, room: Resources) -> tuple[int, Fraction]:
    """How many resources fall short, and the sum of the missing parts of each; for finding the nearest miss."""
    missing = lacks(request, room)
    wanted = dict(zip(wording.RESOURCE_NAMES, request, strict=True))
    return len(missing), sum((Fraction(lack, wanted[name]) for name, lack in missing.items()), Fraction(0))
