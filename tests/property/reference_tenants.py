"""Shares, quotas and guarantees, plainly: everything is summed up anew at each question."""

from __future__ import annotations

from typing import Any

from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import Guarantee, Policy
from scheduler.planning.types import GroupKey, PoolKey, PoolUse, Snapshot
from tests.property.reference_rooms import Node

WHOLE = 1 << 60


class Tenants:
    """Shares, quotas and guarantees, from what is held now."""

    def __init__(self, snapshot: Snapshot, policy: Policy, nodes: list[Node]) -> None:
        self.snapshot, self.policy = snapshot, policy
        self.held: dict[tuple[str, ...], Resources] = {(name,): v.in_use for name, v in snapshot.institutions.items()}
        self.held |= {key: view.in_use for key, view in snapshot.projects.items()}
        self.held |= {key: view.in_use for key, view in snapshot.users.items()}
        self.use = dict(snapshot.pool_use)
        self.capacity: dict[PoolKey, Resources] = {}
        for node in nodes:
            if node.serves and node.view.region in snapshot.online_regions:
                pool = PoolKey(node.view.region, node.view.pool)
                self.capacity[pool] = self.capacity.get(pool, ZERO).plus(node.view.capacity)
        self.whole = ZERO
        for amount in self.capacity.values():
            self.whole = self.whole.plus(amount)

    def view(self, path: tuple[str, ...]) -> Any:
        if len(path) == 1:
            return self.snapshot.institutions[path[0]]
        return self.snapshot.projects[path] if len(path) == 2 else self.snapshot.users.get(path)  # type: ignore[index,call-overload]

    def dominant(self, held: Resources) -> int:
        return max(each * (WHOLE // whole) if whole else 0 for each, whole in zip(held, self.whole, strict=True))

    def weight(self, path: tuple[str, ...]) -> int:
        view = self.view(path)
        return view.weight if view else 1000

    def share(self, path: tuple[str, ...]) -> int:
        view, past = self.view(path), self.policy.order.past_milli
        before = view.past if view else ZERO
        mixed = self.held.get(path, ZERO).times(1000 - past).plus(before.times(past))
        return self.dominant(mixed) // self.weight(path)

    def charge(self, key: GroupKey, pool: PoolKey) -> None:
        self._count(key, pool, key.shape.total)

    def release(self, key: GroupKey, pool: PoolKey) -> None:
        self._count(key, pool, ZERO.minus(key.shape.total))

    def _count(self, key: GroupKey, pool: PoolKey, change: Resources) -> None:
        for depth in (1, 2, 3):
            path = key.path(depth)
            self.held[path] = self.held.get(path, ZERO).plus(change)
        use = self.use.get((key.institution, pool), PoolUse(ZERO, ZERO))
        self.use[key.institution, pool] = PoolUse(
            use.held.plus(change), use.firm if key.preemptible else use.firm.plus(change)
        )

    def within_quota(self, key: GroupKey) -> bool:
        for path in (key.path(1), key.path(2)):
            for used, more, most in zip(self.held[path], key.shape.total, self.view(path).quota, strict=True):
                if more and used + more > most:
                    return False
        return True

    # --- guarantees ---------------------------------------------------------------------------------------------------

    def of_pool(self, pool: PoolKey) -> dict[str, Guarantee]:
        return {each.institution: each for each in self.policy.guarantees if each.pool == str(pool)}

    def standing(self, key: GroupKey, pool: PoolKey) -> int:
        """0 within the guarantee, 1 borrowed, 2 not at all."""
        guarantees = self.of_pool(pool)
        if not guarantees:
            return 0
        users = {name for name, where in self.use if where == pool} | set(guarantees)

        def used(name: str) -> PoolUse:
            return self.use.get((name, pool), PoolUse(ZERO, ZERO))

        me, worst = key.institution, 0
        for r, asked in enumerate(key.shape.total):
            amount = {name: guarantees[name].amount[r] if name in guarantees else 0 for name in {*users, me}}
            if not asked or used(me).held[r] + asked <= amount[me]:
                continue
            mine = guarantees.get(me)
            limit = mine.borrowing if mine else None
            free = self.capacity.get(pool, ZERO)[r] - sum(used(name).held[r] for name in users) - asked
            unlent = sum(
                max(0, each.amount[r] - each.lending[r] - used(name).held[r])
                for name, each in guarantees.items()
                if name != me and each.lending is not None
            )
            firm = {name: used(name).firm[r] for name in {*users, me}}
            firm[me] += asked
            for_all = sum(max(amount[name], firm[name]) for name in {*users, me})
            refused = (
                (limit is not None and used(me).held[r] + asked > amount[me] + limit[r])
                or free < unlent
                or (not key.preemptible and for_all > self.capacity.get(pool, ZERO)[r])
            )
            worst = max(worst, 2 if refused else 1)
        return worst

    def borrowed(self, name: str) -> int:
        total = ZERO
        for pool in {PoolKey(*each.pool.split("/")) for each in self.policy.guarantees}:
            own = self.of_pool(pool).get(name)
            held = self.use.get((name, pool), PoolUse(ZERO, ZERO)).held
            over = held.minus(own.amount if own else ZERO)
            total = total.plus(Resources(*(max(0, each) for each in over)))
        return self.dominant(total)
