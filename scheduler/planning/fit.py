"""What fits where: the hard rules, the order of preference, and the arithmetic of one replica on one node.

A *site* is the part of a pool whose nodes have the same accelerator type, either all have GPUs or none has, and either all keep
jobs apart or none does (a pool of one flavour is one site). A gang stands on one site, because an allocation names one pool and
one accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import HOUR_MS, Policy, PoolPolicy
from scheduler.planning.types import NodeView, PoolKey

NO_RANK = 1 << 30
"""The rank of what a list of preferences does not name."""
MAX_REPLICAS = 1 << 20
"""More than any gang has: what fits of a request that asks for nothing."""

DEFAULT_BANDWIDTH_MIB_S = 100
MINOR_UNITS = 100
"""Minor units of currency in a major one."""
NO_POOL_POLICY = PoolPolicy()


class SiteKey(NamedTuple):
    """Names a site; sorts by region, pool, accelerator."""

    region: str
    pool: str
    accelerator: str
    has_gpus: bool
    isolated: bool = False

    @property
    def pool_key(self) -> PoolKey:
        """The pool it is part of."""
        return PoolKey(self.region, self.pool)


class Rank(NamedTuple):
    """How well a site suits a job before packing is looked at; lower is better, compared field by field.

    ``spare_gpus`` is 1 when a job without GPUs would stand on GPU nodes, which is the last resort; ``region`` and
    ``accelerator`` are the places in the job's own lists; ``cost`` the policy's weighted terms (``site_cost``).
    """

    spare_gpus: int
    region: int
    cost: int
    accelerator: int


def site_of(node: NodeView) -> SiteKey:
    """The site a node belongs to."""
    return SiteKey(node.region, node.pool, node.accelerator, node.capacity.gpu_milli > 0, node.isolated)


def region_allowed(region: str, shape: Shape) -> bool:
    """Whether the job may run in the region."""
    return not shape.required_regions or region in shape.required_regions


def pool_allowed(pool: PoolKey, shape: Shape) -> bool:
    """Whether the job's list of pools, if it has one, names this pool, alone or with its region."""
    return not shape.pools or pool.pool in shape.pools or str(pool) in shape.pools


def accelerator_allowed(accelerator: str, has_gpus: bool, shape: Shape) -> bool:
    """Whether nodes of this type will do. A list of types is a hard rule; without one, a job with GPUs takes any."""
    if shape.accelerators:
        return accelerator in shape.accelerators
    return has_gpus or shape.request.gpu_milli == 0


def data_regions(shape: Shape, policy: Policy) -> frozenset[str] | None:
    """The regions in which all of the job's data sets may be processed; None: any."""
    allowed: frozenset[str] | None = None
    for name in shape.data_sets:
        data_set = policy.data_sets.get(name)
        if data_set is not None and data_set.allowed_regions:
            here = frozenset(data_set.allowed_regions)
            allowed = here if allowed is None else allowed & here
    return allowed


def spot_allowed(pool: PoolKey, policy: Policy, preemptible: bool) -> bool:
    """Whether the pool takes such jobs: nodes of a spot pool may go at any time."""
    return preemptible or not policy.pools.get(str(pool), NO_POOL_POLICY).spot


def trust_allowed(pool: PoolKey, shape: Shape, policy: Policy) -> bool:
    """Whether the pool is trusted with each of the job's data sets."""
    if not shape.data_sets:
        return True
    trust = policy.pools.get(str(pool), NO_POOL_POLICY).trust
    found = (policy.data_sets.get(name) for name in shape.data_sets)
    return all(data_set is None or data_set.level <= trust for data_set in found)


def needs_isolation(shape: Shape, policy: Policy) -> bool:
    """Whether one of the job's data sets is kept so closely that only nodes which keep jobs apart may have it."""
    if not shape.data_sets:
        return False
    found = (policy.data_sets.get(name) for name in shape.data_sets)
    return any(data_set is not None and data_set.level.needs_isolation for data_set in found)


def site_allowed(site: SiteKey, shape: Shape, policy: Policy, preemptible: bool) -> bool:
    """Whether all rules about region, data, pool and accelerator hold."""
    regions = data_regions(shape, policy)
    return (
        region_allowed(site.region, shape)
        and (regions is None or site.region in regions)
        and trust_allowed(site.pool_key, shape, policy)
        and (site.isolated or not needs_isolation(shape, policy))
        and pool_allowed(site.pool_key, shape)
        and spot_allowed(site.pool_key, policy, preemptible)
        and accelerator_allowed(site.accelerator, site.has_gpus, shape)
    )


def labels_match(node: NodeView, shape: Shape) -> bool:
    """Whether the node carries every label of the node selector with its value."""
    return all(pair in node.labels for pair in shape.node_selector)


def rank(site: SiteKey, shape: Shape, home_region: str, policy: Policy) -> Rank:
    """How the site stands in the job's preferences; ``home_region`` is its institution's (empty: none)."""
    return Rank(
        int(site.has_gpus and shape.request.gpu_milli == 0),
        _position(site.region, shape.preferred_regions),
        site_cost(site, shape, home_region, policy),
        _position(site.accelerator, shape.accelerators) if policy.score.accelerator_order else 0,
    )


def site_cost(site: SiteKey, shape: Shape, home_region: str, policy: Policy) -> int:
    """The policy's weighted terms, in thousandths of a point: 1 point is being away from home, an hour of moving data, one major
    unit of currency an hour, or running at half the usual speed (``ScorePolicy``)."""
    weights = policy.score
    cost = weights.home if home_region and site.region != home_region else 0
    if weights.locality and shape.data_sets:
        cost += weights.locality * move_ms(site.region, shape, policy) // HOUR_MS
    if weights.price:
        prices = policy.pools.get(str(site.pool_key), NO_POOL_POLICY)
        total = shape.total
        per_hour = total.cpu_milli * prices.cpu_core_hour + total.gpu_milli * prices.gpu_hour
        cost += weights.price * per_hour // (1000 * MINOR_UNITS)
    if weights.speed and site.accelerator:
        speed = policy.speed_milli.get(site.accelerator, 1000)
        cost += weights.speed * (1_000_000 // max(1, speed) - 1000) // 1000
    return cost


def move_ms(region: str, shape: Shape, policy: Policy) -> int:
    """How long it takes to bring the job's data sets to a region, each from the nearest region that has it."""
    total = 0
    for name in shape.data_sets:
        data_set = policy.data_sets.get(name)
        if data_set is not None and data_set.regions and region not in data_set.regions:
            total += min(data_set.size_mib * 1000 // _bandwidth(source, region, policy) for source in data_set.regions)
    return total


def _bandwidth(source: str, target: str, policy: Policy) -> int:
    known = policy.bandwidth_mib_s
    return max(1, known.get(f"{source}/{target}", known.get("", DEFAULT_BANDWIDTH_MIB_S)))


def _position(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else NO_RANK


def replicas_on(request: Resources, free: Resources, gpu_free: Sequence[int]) -> int:
    """How many replicas of ``request`` fit side by side into what is free on one node.

    Exact, because replicas are alike: whole GPUs are taken from the wholly free ones, shares from each GPU by itself.
    """
    count = MAX_REPLICAS
    if request.cpu_milli:
        count = min(count, free.cpu_milli // request.cpu_milli)
    if request.memory_mib:
        count = min(count, free.memory_mib // request.memory_mib)
    gpu_milli = request.gpu_milli
    if gpu_milli:
        count = min(count, free.gpu_milli // gpu_milli)
        if gpu_milli < GPU_UNIT:
            count = min(count, sum(max(0, each) // gpu_milli for each in gpu_free))
        elif gpu_milli % GPU_UNIT:
            return 0
        else:
            whole = sum(1 for each in gpu_free if each >= GPU_UNIT)
            count = min(count, whole // (gpu_milli // GPU_UNIT))
    return max(0, count)


def empty_gpus(node: NodeView) -> tuple[int, ...]:
    """What would be free per GPU index if nothing stood on the node."""
    return (GPU_UNIT,) * (node.capacity.gpu_milli // GPU_UNIT)


def replicas_when_empty(request: Resources, node: NodeView) -> int:
    """How many replicas the node holds when nothing else stands on it."""
    return replicas_on(request, node.capacity, empty_gpus(node))


def choose_gpus(gpu_milli: int, gpu_free: Sequence[int]) -> tuple[int, ...] | None:
    """The GPU indexes one replica takes, or None when there are not enough.

    Whole GPUs: the lowest indexes that are wholly free. A share: the fullest GPU that still has room for it.
    """
    if gpu_milli == 0:
        return ()
    if gpu_milli < GPU_UNIT:
        room = [(free, index) for index, free in enumerate(gpu_free) if free >= gpu_milli]
        return (min(room)[1],) if room else None
    if gpu_milli % GPU_UNIT:
        return None
    count = gpu_milli // GPU_UNIT
    whole = [index for index, free in enumerate(gpu_free) if free >= GPU_UNIT]
    return tuple(whole[:count]) if len(whole) >= count else None
