"""Why one pool does or does not take a job now, from the planner's own arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import Shape
from scheduler.planning import kernels, wording
from scheduler.planning.explanation import PoolReason
from scheduler.planning.feasible import lacks
from scheduler.planning.fit import (
    accelerator_allowed,
    data_regions,
    needs_isolation,
    pool_allowed,
    region_allowed,
    spot_allowed,
    trust_allowed,
)
from scheduler.planning.guarantees import Guarantees, Standing
from scheduler.planning.kernels import Flags, Ints
from scheduler.planning.places import gang_nodes
from scheduler.planning.policy import Policy
from scheduler.planning.sites import Site
from scheduler.planning.types import GroupKey, PoolKey


class Pool(NamedTuple):
    """A pool with all its sites; ``nodes`` is how many nodes it has."""

    key: PoolKey
    sites: tuple[Site, ...]
    nodes: int


def explain_pool(pool: Pool, key: GroupKey, policy: Policy, guarantees: Guarantees) -> PoolReason:
    """The pool's code, sentence and counts for one job of the line; quotas and other jobs in the queue aside."""
    barred = _barred(pool, key, policy)
    if barred is not None:
        return barred
    shape = key.shape
    sites = [site for site in pool.sites if site.key.isolated] if needs_isolation(shape, policy) else pool.sites
    if not sites:
        return PoolReason(pool.key, "NOT_ISOLATED", wording.UNISOLATED, pool.nodes)
    typed = [site for site in sites if accelerator_allowed(site.key.accelerator, site.key.has_gpus, shape)]
    if not typed:
        wanted = wording.listing(shape.accelerators, "or") if shape.accelerators else "a GPU"
        message = f"none of its {wording.count(pool.nodes, 'node')} has {wanted}"
        return PoolReason(pool.key, "ACCELERATOR_MISMATCH", message, pool.nodes)
    selected = [(site, _selected(site, shape)) for site in typed]
    if not any(mask.any() for _, mask in selected):
        labels = wording.listing([f"{name}={value}" for name, value in shape.node_selector])
        message = f"none of its {wording.count(pool.nodes, 'node')} has the labels {labels}"
        return PoolReason(pool.key, "SELECTOR_MISMATCH", message, pool.nodes)
    return _Room(pool, key, selected).reason(guarantees)


def _barred(pool: Pool, key: GroupKey, policy: Policy) -> PoolReason | None:
    """The rule, if any, that forbids the whole pool."""
    shape = key.shape
    if not region_allowed(pool.key.region, shape):
        allowed = wording.listing(shape.required_regions, "or")
        return PoolReason(pool.key, "REGION_NOT_ALLOWED", f"the job must run in region {allowed}", pool.nodes)
    if not pool_allowed(pool.key, shape):
        named = wording.listing(shape.pools, "or")
        return PoolReason(pool.key, "POOL_NOT_ALLOWED", f"the job must run in pool {named}", pool.nodes)
    regions = data_regions(shape, policy)
    if regions is not None and pool.key.region not in regions:
        return PoolReason(pool.key, "DATA_RESIDENCY", wording.residency(pool.key.region, shape, policy), pool.nodes)
    if not trust_allowed(pool.key, shape, policy):
        return PoolReason(pool.key, "DATA_RESIDENCY", wording.UNTRUSTED, pool.nodes)
    if not spot_allowed(pool.key, policy, key.preemptible):
        return PoolReason(pool.key, "SPOT", "it is a spot pool, which takes preemptible jobs only", pool.nodes)
    return None


def _selected(site: Site, shape: Shape) -> Flags:
    mask = site.labelled(shape.node_selector)
    return np.ones(len(site.ids), np.bool_) if mask is None else mask


def rooms_when_empty(site: Site, shape: Shape) -> Ints:
    """How many replicas each node would hold if nothing stood on it, whether it takes work or not; labels aside."""
    index = np.arange(site.gpus.shape[1])
    gpus = np.where(index[None, :] < site.capacity[:, 2:3] // GPU_UNIT, GPU_UNIT, 0)
    found: Ints = kernels.rooms(site.capacity, gpus, *shape.request)
    return found


def nearest_node(request: Resources, room: Ints, among: Flags) -> int:
    """The number of the node that lacks least of one replica: the fewest resources, then the smallest missing parts, then the
    first by id."""
    wanted = np.array(request, np.int64)
    missing = np.maximum(0, wanted - np.maximum(0, room))
    parts = (missing * 1_000_000 // np.maximum(1, wanted)).sum(axis=1)
    distance = ((missing > 0).sum(axis=1) << 40) + parts
    return int(np.where(among, distance, np.iinfo(np.int64).max).argmin())


class _Room:
    """A pool that is allowed and has suitable nodes: is there room? ``suitable`` are its sites with the nodes selected."""

    def __init__(self, pool: Pool, key: GroupKey, suitable: list[tuple[Site, Flags]]) -> None:
        self.pool, self.key, self.shape = pool, key, key.shape
        self.suitable = suitable
        self.sites = [site for site, _ in suitable]
        empty = [rooms_when_empty(site, self.shape) * mask for site, mask in suitable]
        self.empty = empty
        self.serving = [site.in_service & mask & site.online for site, mask in suitable]
        self.empty_serving = [rooms * serving for rooms, serving in zip(empty, self.serving, strict=True)]
        self.now = [site.rooms(self.shape) * serving for site, serving in zip(self.sites, self.serving, strict=True)]
        self.nodes = sum(int(mask.sum()) for _, mask in suitable)
        self.nodes_serving = sum(int(serving.sum()) for serving in self.serving)
        self.nodes_now = _nodes(self.now)
        self.lacking = self._lacking()

    def reason(self, guarantees: Guarantees) -> PoolReason:
        """The first of all possible reasons that holds, from what can never change to what changes by the minute."""
        code, message = self._reason(guarantees)
        return PoolReason(
            self.pool.key, code, message, self.pool.nodes, self.nodes_now, _nodes(self.empty), self.lacking
        )

    def _reason(self, guarantees: Guarantees) -> tuple[str, str]:
        shape, region = self.shape, self.pool.key.region
        if not _nodes(self.empty):
            return "TOO_SMALL", self._too_small()
        held = self._replicas(self.empty)
        if held < shape.replicas:
            held_words = f"holds {held:,} of the {shape.replicas:,} replicas even when empty"
            return "GANG_DOES_NOT_FIT", f"the pool {held_words}; a gang starts whole or not at all"
        if not self._holds(self.empty):
            return "TOPOLOGY", self._topology(self.empty, "even when empty")
        if not self.sites[0].online:
            return "REGION_OFFLINE", f"region {region} is not connected; the pool is used again when it is"
        if not self._holds(self.empty_serving):
            return "DRAINING", self._draining()
        standing = guarantees.standing(self.key.institution, self.pool.key, shape.total, self.key.preemptible)
        if not standing.allowed:
            return "BORROWING", borrowing_message(standing, self.key, self.pool.key, guarantees)
        if self._holds(self.now):
            return "FITS", f"{wording.count(self.nodes_now, 'node')} of {self.pool.nodes:,} could hold a replica now"
        if not self.nodes_now:
            return "BUSY", self._busy()
        held = self._replicas(self.now)
        if held >= shape.replicas:
            return "TOPOLOGY", self._topology(self.now, "now")
        held_words = (
            f"{held:,} of the {shape.replicas:,} replicas would fit now, on {wording.count(self.nodes_now, 'node')}"
        )
        return (
            "GANG_DOES_NOT_FIT",
            f"{held_words}; a gang starts whole or not at all, so it waits until all fit at once",
        )

    def _holds(self, rooms: list[Ints]) -> bool:
        return any(gang_nodes(site, self.shape, each) is not None for site, each in zip(self.sites, rooms, strict=True))

    def _replicas(self, rooms: list[Ints]) -> int:
        """How many replicas the best site holds."""
        return min(self.shape.replicas, max(int(np.minimum(each, self.shape.replicas).sum()) for each in rooms))

    def _lacking(self) -> dict[str, int]:
        """On how many nodes in service which resource is short of one replica. GPUs free in sum but not on the right indexes count
        as lacking."""
        lacking = dict.fromkeys(wording.RESOURCE_NAMES, 0)
        wanted = np.array(self.shape.request, np.int64)
        for site, serving, now in zip(self.sites, self.serving, self.now, strict=True):
            short = (wanted > np.maximum(0, site.free)) & serving[:, None]
            for name, number in zip(wording.RESOURCE_NAMES, short.sum(axis=0), strict=True):
                lacking[name] += int(number)
            lacking["gpu"] += int((serving & (now == 0) & ~short.any(axis=1)).sum())
        return {name: number for name, number in lacking.items() if number}

    def _too_small(self) -> str:
        request = self.shape.request
        name, room = self._nearest([site.capacity for site in self.sites], [mask for _, mask in self.suitable])
        lack = wording.listing([wording.amount(*each) for each in lacks(request, room).items()])
        what = f"the nearest, {name}, is {lack} short" if lack else "its GPUs cannot be divided so"
        return f"no node can hold {wording.replicas(1, request)} even when empty: {what}"

    def _draining(self) -> str:
        away = self.nodes - self.nodes_serving
        message = (
            f"{wording.count(away, 'suitable node')} of {self.nodes:,} {'is' if away == 1 else 'are'} draining or down"
        )
        return f"{message}, and the others cannot hold the job even when empty"

    def _topology(self, rooms: list[Ints], when: str) -> str:
        most = 0
        for site, each in zip(self.sites, rooms, strict=True):
            domain_of, count = site.domains(self.shape.pack)
            if count:
                most = max(most, int(np.bincount(domain_of, weights=each, minlength=count).max()))
        return (
            f"no single {self.shape.pack} holds all {self.shape.replicas:,} replicas {when}; the roomiest holds {most:,}, "
            "and the job must not be spread over several"
        )

    def _busy(self) -> str:
        """'3 of 40 nodes lack 16 GiB of free memory; the nearest, n7, is 4 GiB of memory short'."""
        request = self.shape.request
        wanted = dict(zip(wording.RESOURCE_NAMES, request, strict=True))
        nodes_say = wording.count(self.nodes_serving, "node")
        parts = [
            f"{number:,} of {nodes_say} {'lacks' if number == 1 else 'lack'} {wording.free_amount(name, wanted[name])}"
            for name, number in self.lacking.items()
        ]
        name, room = self._nearest([site.free for site in self.sites], self.serving)
        short = lacks(request, room)
        if not short:
            return f"{wording.listing(parts)}; on {name} enough is free in sum but not on one GPU or on whole GPUs"
        amounts = wording.listing([wording.amount(*each) for each in short.items()])
        return f"{wording.listing(parts)}; the nearest, {name}, is {amounts} short"

    def _nearest(self, rooms: list[Ints], among: list[Flags]) -> tuple[str, Resources]:
        """The name of the node that lacks least, and what it has."""
        request = self.shape.request
        found = []
        for site, each, mask in zip(self.sites, rooms, among, strict=True):
            if mask.any():
                number = nearest_node(request, each, mask)
                room = Resources(*(int(amount) for amount in each[number]))
                missing = lacks(request, room)
                wanted = dict(zip(wording.RESOURCE_NAMES, request, strict=True))
                parts = sum(lack * 1_000_000 // wanted[name] for name, lack in missing.items())
                found.append((len(missing), parts, site.ids[number], site.views[number].name, room))
        return min(found)[3:]


def _nodes(rooms: list[Ints]) -> int:
    return sum(int(np.count_nonzero(each)) for each in rooms)


def borrowing_message(standing: Standing, key: GroupKey, pool: PoolKey, guarantees: Guarantees) -> str:
    """Which limit of the guarantees in a pool the job would break, in words."""
    asked = key.shape.total
    resource, needed = next(
        (name, amount)
        for index, (name, amount) in enumerate(zip(wording.RESOURCE_NAMES, asked, strict=True))
        if guarantees.standing(key.institution, pool, _only(asked, index), key.preemptible) == standing
    )
    index = wording.RESOURCE_NAMES.index(resource)
    own = guarantees.of(key.institution, pool)
    holds = guarantees.holds(key.institution, pool)[index]
    mine = own.amount[index] if own else 0
    says = (
        f"institution {key.institution} holds {wording.amount(resource, holds)} of the {wording.amount(resource, mine)}"
    )
    says += f" it is guaranteed here, and this job needs {wording.amount(resource, needed)}"
    if standing is Standing.OVER_BORROWING_LIMIT:
        borrowing = own.borrowing[index] if own and own.borrowing else 0
        return f"{says}: more than the {wording.amount(resource, borrowing)} it may borrow"
    if standing is Standing.OTHERS_DO_NOT_LEND:
        return f"{says}: what else is free is guaranteed to others, who do not lend it"
    return f"{says}: what else there is, is guaranteed to others, and only preemptible jobs may stand on it"


def _only(amounts: Resources, index: int) -> Resources:
    return Resources(*(amount if at == index else 0 for at, amount in enumerate(amounts))) if any(amounts) else ZERO
