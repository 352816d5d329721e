"""Who holds how much of the platform: weighted dominant shares, and the accounts of a round.

A share is an integer: parts of ``ONE``, rounded down, so that every comparison is exact and the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import LEVELS, OrderPolicy
from scheduler.planning.types import GroupKey, Snapshot, TenantView

ONE = 1 << 40
"""The share of somebody of weight 1000 who holds all there is of some resource."""
USUAL_WEIGHT = 1000
_MAX_KEPT = 1_000_000
_NO_ONE = TenantView(USUAL_WEIGHT)


def dominant_share(held: Resources, capacity: Resources) -> int:
    """The largest part held of any resource that there is, in parts of ``ONE`` (Ghodsi et al., NSDI 2011)."""
    share = 0
    for amount, total in zip(held, capacity, strict=True):
        if total > 0 and amount > 0:
            share = max(share, amount * ONE // total)
    return share


class Account:
    """What one tenant holds in the course of a round.

    ``share`` is its weighted dominant share of what it holds and, to the part the policy says, has held on average.
    ``view`` is the view it was made from.
    """

    __slots__ = ("_capacity", "_past", "_past_milli", "in_use", "quota", "share", "view", "weight")

    def __init__(self, view: TenantView, capacity: Resources, past_milli: int) -> None:
        self.view = view
        self.weight = max(1, view.weight)
        self.quota = view.quota
        self.in_use = view.in_use
        self._capacity = capacity
        self._past_milli = past_milli
        self._past = view.past.times(past_milli)
        self.share = self._weighted(view.in_use)

    def _weighted(self, held: Resources) -> int:
        now_milli = 1000 - self._past_milli
        mixed = Resources(
            (held.cpu_milli * now_milli + self._past.cpu_milli) // 1000,
            (held.memory_mib * now_milli + self._past.memory_mib) // 1000,
            (held.gpu_milli * now_milli + self._past.gpu_milli) // 1000,
        )
        return dominant_share(mixed, self._capacity) * USUAL_WEIGHT // self.weight

    def allows(self, more: Resources) -> bool:
        """Whether ``more`` can be added without going over the quota in any resource it has a part of."""
        used, quota = self.in_use, self.quota
        return (
            (not more.cpu_milli or used.cpu_milli + more.cpu_milli <= quota.cpu_milli)
            and (not more.memory_mib or used.memory_mib + more.memory_mib <= quota.memory_mib)
            and (not more.gpu_milli or used.gpu_milli + more.gpu_milli <= quota.gpu_milli)
        )

    def add(self, more: Resources) -> None:
        """Hold ``more`` from now on."""
        self.in_use = self.in_use.plus(more)
        self.share = self._weighted(self.in_use)

    def held_share(self, change: Resources = ZERO) -> int:
        """The weighted dominant share of what is held now alone, after a change."""
        return dominant_share(self.in_use.plus(change), self._capacity) * USUAL_WEIGHT // self.weight


Path = tuple[str, ...]
"""Names a tenant from the top: (institution,), (institution, project) or (institution, project, user)."""


class Accounts:
    """The accounts of a snapshot's tenants, made when they are first asked for and carried over while their view is the same."""

    def __init__(self) -> None:
        self._kept: dict[Path, Account] = {}
        self._basis: tuple[Resources, int] = (ZERO, 0)
        self._changed: dict[Path, Account] = {}
        self.capacity = ZERO

    def begin(self, snapshot: Snapshot, capacity: Resources, order: OrderPolicy) -> None:
        """Forget what the last round added; drop everything when the capacity or the policy is another."""
        self._institutions, self._projects, self._users = snapshot.institutions, snapshot.projects, snapshot.users
        for path in self._changed:
            del self._kept[path]
        self._changed.clear()
        basis = (capacity, order.past_milli)
        if basis != self._basis or len(self._kept) > _MAX_KEPT:
            self._kept.clear()
            self._basis = basis
        self.capacity = capacity

    def _view(self, path: Path) -> TenantView:
        if len(path) == 1:
            return self._institutions[path[0]]
        if len(path) == 2:
            return self._projects[path[0], path[1]]
        return self._users.get((path[0], path[1], path[2]), _NO_ONE)

    def at(self, path: Path) -> Account:
        """The account of a tenant."""
        account = self._kept.get(path)
        view = self._view(path)
        if account is None or (account.view is not view and path not in self._changed):
            account = self._kept[path] = Account(view, *self._basis)
        return account

    def allow(self, key: GroupKey, more: Resources) -> bool:
        """Whether neither the institution's nor the project's quota would be exceeded."""
        return self.at(key.path(1)).allows(more) and self.at(key.path(2)).allows(more)

    def add(self, key: GroupKey, more: Resources) -> None:
        """Count a start."""
        for depth in range(1, len(LEVELS) + 1):
            path = key.path(depth)
            account = self.at(path)
            account.add(more)
            self._changed[path] = account

    @property
    def institutions(self) -> Mapping[str, TenantView]:
        """The snapshot's."""
        return self._institutions


class FairParts:
    """Who holds less than the part of the platform that the weights of all active tenants give them.

    Active is who holds something or has a line in the queue. Looked at only down to the levels the policy shares fairly.
    """

    def __init__(self, accounts: Accounts, snapshot: Snapshot, levels: int) -> None:
        self._accounts = accounts
        self._levels = levels
        self._weights: dict[Path, int] = {}
        self._known: dict[Path, bool] = {}
        waiting: set[Path] = set()
        for key in snapshot.queue.groups():
            waiting.update(key.path(depth) for depth in range(1, levels + 1))
        if levels >= 1:
            self._count([(name,) for name in snapshot.institutions], waiting)
        if levels >= 2:
            self._count(list(snapshot.projects), waiting)
        if levels >= 3:
            self._count(list({*snapshot.users, *(path for path in waiting if len(path) == 3)}), waiting)

    def _count(self, paths: list[Path], waiting: set[Path]) -> None:
        for path in paths:
            account = self._accounts.at(path)
            if path in waiting or any(account.in_use):
                above = path[:-1]
                self._weights[above] = self._weights.get(above, 0) + account.weight

    def below(self, key: GroupKey) -> bool:
        """Whether the line's tenants, at each level, hold less than their fair part now."""
        path = key.path(self._levels)
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._is_below(path)
        return known

    def _is_below(self, path: Path) -> bool:
        whole, part = 1, ONE
        for depth in range(1, len(path) + 1):
            account = self._accounts.at(path[:depth])
            part *= account.weight
            whole *= self._weights[path[: depth - 1]]
            if dominant_share(account.in_use, self._accounts.capacity) * whole >= part:
                return False
        return True
