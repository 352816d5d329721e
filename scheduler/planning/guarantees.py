"""Guaranteed quota of pools, borrowing and lending.

For institution i and pool f: g the guaranteed amount, u what it holds, b and l its borrowing and lending limits (Kueue's nominal
quota, borrowing limit and lending limit), C the pool's capacity in service. Everything is compared resource by resource, and only for
the resources a job asks for. A job may stand

* within the guarantee, if u + request <= g; or
* beyond it, if u + request <= g + b; if the others' parts that they do not lend stay free: C - held - request >= sum over the others
  of max(0, g - l - u); and, for a job that cannot be stopped, if every guarantee could still be met by stopping those that can:
  sum over all of max(g, firm) <= C with the request counted as firm.

So whatever was borrowed can be taken back within the notice of preemptible jobs.
"""

from __future__ import annotations

from enum import IntEnum

from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import Guarantee, Policy
from scheduler.planning.shares import Scale
from scheduler.planning.types import PoolKey, PoolUse, Snapshot

_NOTHING = PoolUse(ZERO, ZERO)


class Standing(IntEnum):
    """How a job would stand in a pool; a lower one is taken first."""

    OWN = 0
    BORROWED = 1
    OVER_BORROWING_LIMIT = 2
    OTHERS_DO_NOT_LEND = 3
    NOT_PREEMPTIBLE = 4

    @property
    def allowed(self) -> bool:
        """Whether the job may be placed so."""
        return self <= Standing.BORROWED


class Guarantees:
    """The guarantees of a policy against what is held in the course of a round. Pools without guarantees are anybody's."""

    def __init__(self, policy: Policy) -> None:
        self._by_pool: dict[PoolKey, dict[str, Guarantee]] = {}
        for guarantee in policy.guarantees:
            region, _, pool = guarantee.pool.partition("/")
            self._by_pool.setdefault(PoolKey(region, pool), {})[guarantee.institution] = guarantee
        self._use: dict[PoolKey, dict[str, PoolUse]] = {}
        self._capacity: dict[PoolKey, Resources] = {}
        self._scale = Scale(ZERO)

    def __bool__(self) -> bool:
        return bool(self._by_pool)

    def begin(self, snapshot: Snapshot, capacity: dict[PoolKey, Resources], total: Resources) -> None:
        """Take the round's snapshot; ``capacity`` is that of each pool in service."""
        self._capacity = capacity
        if total != self._scale.capacity:
            self._scale = Scale(total)
        self._use = {}
        if self:
            for (institution, pool), use in snapshot.pool_use.items():
                if pool in self._by_pool:
                    self._use.setdefault(pool, {})[institution] = use

    def of(self, institution: str, pool: PoolKey) -> Guarantee | None:
        """The institution's guarantee in the pool."""
        return self._by_pool.get(pool, {}).get(institution)

    def holds(self, institution: str, pool: PoolKey) -> Resources:
        """What it holds there now."""
        return self._use.get(pool, {}).get(institution, _NOTHING).held

    def add(self, institution: str, pool: PoolKey, amount: Resources, preemptible: bool) -> None:
        """Count a start (or, with negative amounts, an eviction)."""
        if pool in self._by_pool:
            uses = self._use.setdefault(pool, {})
            use = uses.get(institution, _NOTHING)
            firm = use.firm if preemptible else use.firm.plus(amount)
            uses[institution] = PoolUse(use.held.plus(amount), firm)

    def standing(self, institution: str, pool: PoolKey, request: Resources, preemptible: bool) -> Standing:
        """How a job that asks for ``request`` in all would stand in the pool."""
        guarantees = self._by_pool.get(pool)
        if guarantees is None:
            return Standing.OWN
        uses = self._use.get(pool, {})
        worst = Standing.OWN
        for resource, asked in enumerate(request):
            if asked:
                worst = max(worst, self._standing(institution, pool, resource, asked, preemptible, guarantees, uses))
        return worst

    def _standing(
        self,
        institution: str,
        pool: PoolKey,
        resource: int,
        asked: int,
        preemptible: bool,
        guarantees: dict[str, Guarantee],
        uses: dict[str, PoolUse],
    ) -> Standing:
        own = guarantees.get(institution)
        mine = uses.get(institution, _NOTHING)
        nominal = own.amount[resource] if own else 0
        if mine.held[resource] + asked <= nominal:
            return Standing.OWN
        if own and own.borrowing is not None and mine.held[resource] + asked > nominal + own.borrowing[resource]:
            return Standing.OVER_BORROWING_LIMIT
        capacity = self._capacity.get(pool, ZERO)[resource]
        held = sum(use.held[resource] for use in uses.values())
        kept = 0
        for other, guarantee in guarantees.items():
            if other != institution and guarantee.lending is not None:
                unlent = guarantee.amount[resource] - guarantee.lending[resource]
                kept += max(0, unlent - uses.get(other, _NOTHING).held[resource])
        if capacity - held - asked < kept:
            return Standing.OTHERS_DO_NOT_LEND
        if not preemptible:
            needed = max(nominal, mine.firm[resource] + asked)
            for other in {*guarantees, *uses} - {institution}:
                guarantee_of = guarantees.get(other)
                firm = uses.get(other, _NOTHING).firm[resource]
                needed += max(guarantee_of.amount[resource] if guarantee_of else 0, firm)
            if needed > capacity:
                return Standing.NOT_PREEMPTIBLE
        return Standing.BORROWED

    def borrowed_share(self, institution: str) -> int:
        """The dominant share, of the whole platform, of what it holds beyond its guarantees; 0 when nobody has any."""
        if not self._by_pool:
            return 0
        borrowed = ZERO
        for pool, guarantees in self._by_pool.items():
            held = self._use.get(pool, {}).get(institution)
            if held is None:
                continue
            own = guarantees.get(institution)
            over = held.held.minus(own.amount) if own else held.held
            borrowed = borrowed.plus(Resources(*(max(0, each) for each in over)))
        return self._scale.dominant_share(borrowed)

    def borrows(self, institution: str, pool: PoolKey) -> Resources:
        """What it holds in the pool beyond its guarantee."""
        own = self.of(institution, pool)
        over = self.holds(institution, pool).minus(own.amount if own else ZERO)
        return Resources(*(max(0, each) for each in over))
