"""What is allowed in a policy and yet probably not meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from scheduler.domain.document_values import first_warnings
from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import Policy

_NAMES = ("CPU", "memory", "GPUs")


def warnings(
    policy: Policy,
    institutions: Collection[str],
    pools: Mapping[str, Resources],
    accelerators: Collection[str],
    unisolated: Collection[str] = (),
) -> list[str]:
    """Sentences about a policy on a platform as it is now.

    ``pools``: the capacity of each pool that has nodes, by "region/pool"; ``accelerators``: the types that nodes have;
    ``unisolated``: those pools none of whose nodes keeps jobs apart.
    """
    found = [
        *_of_guarantees(policy, institutions, pools),
        *_of_places(policy, pools, accelerators),
        *_of_trust(policy, unisolated),
        *_of_preemption(policy),
    ]
    return first_warnings(found)


def _of_guarantees(policy: Policy, institutions: Collection[str], pools: Mapping[str, Resources]) -> Iterator[str]:
    promised: dict[str, Resources] = {}
    for index, guarantee in enumerate(policy.guarantees):
        path = f"policy.guarantees[{index}]"
        if guarantee.institution not in institutions:
            yield f'{path}.institution: there is no institution "{guarantee.institution}" (yet).'
        if guarantee.pool not in pools:
            yield f'{path}.pool: there is no pool "{guarantee.pool}" (yet).'
        if guarantee.amount == ZERO:
            yield f"{path}.amount: nothing is guaranteed."
        promised[guarantee.pool] = promised.get(guarantee.pool, ZERO).plus(guarantee.amount)
    for pool, total in promised.items():
        for name, amount, capacity in zip(_NAMES, total, pools.get(pool, total), strict=True):
            if amount > capacity:
                yield (
                    f'policy.guarantees: {_percent(amount, capacity)} of the {name} of pool "{pool}" is guaranteed; '
                    "not all guarantees can be kept at once."
                )
        if policy.pools.get(pool) is not None and policy.pools[pool].spot:
            yield f'policy.guarantees: pool "{pool}" is a spot pool; its guarantees hold for preemptible jobs only.'


def _percent(amount: int, capacity: int) -> str:
    return f"{amount * 100 // capacity:,} %" if capacity else "more than there is"


def _of_places(policy: Policy, pools: Mapping[str, Resources], accelerators: Collection[str]) -> Iterator[str]:
    regions = {pool.partition("/")[0] for pool in pools}
    for pool in policy.pools:
        if pool not in pools:
            yield f'policy.pools: there is no pool "{pool}" (yet).'
    for name, data_set in policy.data_sets.items():
        for part, named in (("regions", data_set.regions), ("allowed_regions", data_set.allowed_regions)):
            for region in named:
                if region not in regions:
                    yield f'policy.data_sets.{name}.{part}: region "{region}" has no nodes (yet).'
        if data_set.allowed_regions and data_set.regions and not set(data_set.regions) & set(data_set.allowed_regions):
            yield f"policy.data_sets.{name}: it lies in no region in which it may be processed."
    for accelerator in policy.speed_milli:
        if accelerator not in accelerators:
            yield f'policy.speed: no node has an accelerator "{accelerator}" (yet).'
    for link in policy.bandwidth_mib_s:
        for region in filter(None, link.split("/")):
            if region not in regions:
                yield f'policy.bandwidth: region "{region}" of "{link}" has no nodes (yet).'


def _of_trust(policy: Policy, unisolated: Collection[str]) -> Iterator[str]:
    for pool, rules in policy.pools.items():
        if rules.trust.needs_isolation and pool in unisolated:
            level = rules.trust.name.lower()
            yield f"policy.pools.{pool}.trust: none of its nodes keeps jobs apart, so {level} data does not go there."


def _of_preemption(policy: Policy) -> Iterator[str]:
    preemption = policy.preemption
    if policy.guarantees and not preemption.reclaim:
        yield "policy.preemption.reclaim: it is off, so what others borrow comes back only when their jobs end."
    if preemption.shorter_milli == 1000:
        yield "policy.preemption.shorter: at 1, jobs that expect nearly the same stop each other in turn."
    if preemption.per_round == 0 and (preemption.reclaim or preemption.fair_share or preemption.priority):
        yield "policy.preemption.per_round: it is 0, so nothing is ever stopped, not even to reclaim."
