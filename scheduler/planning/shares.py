"""Who holds how much of the platform: weighted dominant shares, and the accounts of a round.

A share is an integer: the sum of held amounts times ``ONE // capacity``, so that every comparison is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import OrderPolicy
from scheduler.planning.types import UNLIMITED, GroupKey, Snapshot, TenantView

ONE = 1 << 60
"""The share of somebody of weight 1 who holds all there is of some resource, but for rounding."""
MILLI = 1000
_MAX_KEPT = 1_000_000
_NO_ONE = TenantView(1000)


class Scale:
    """Turns amounts into shares. A resource nobody offers counts for nothing."""

    def __init__(self, capacity: Resources) -> None:
        self.capacity = capacity
        self.cpu, self.memory, self.gpu = (ONE // each if each > 0 else 0 for each in capacity)

    def dominant_share(self, held: Resources) -> int:
        """The largest part held of any resource (Ghodsi et al., NSDI 2011), in parts of ``ONE``."""
        return max(held[0] * self.cpu, held[1] * self.memory, held[2] * self.gpu)


class Account:
    """What one tenant holds in the course of a round; ``view`` is the view it was made from.

    ``share`` is its weighted dominant share of what it holds and, to the part the policy says, has held on average, times
    ``MILLI``; ``changed``: something was added in this round.
    """

    __slots__ = ("_now_milli", "_past", "_scale", "_share", "changed", "in_use", "quota", "view", "weight")

    def __init__(self, view: TenantView, scale: Scale, past_milli: int) -> None:
        self.view = view
        self.weight = max(1, view.weight)
        self.quota = view.quota
        self.in_use = view.in_use
        self.changed = False
        self._scale = scale
        self._now_milli = MILLI - past_milli
        self._past = view.past.times(past_milli) if past_milli else ZERO
        self._share = -1

    @property
    def share(self) -> int:
        """See the class."""
        if self._share < 0:
            held, past, now = self.in_use, self._past, self._now_milli
            scale = self._scale
            self._share = (
                max(
                    (held[0] * now + past[0]) * scale.cpu,
                    (held[1] * now + past[1]) * scale.memory,
                    (held[2] * now + past[2]) * scale.gpu,
                )
                // self.weight
            )
        return self._share

    def allows(self, more: Resources) -> bool:
        """Whether ``more`` can be added without going over the quota in any resource it has a part of."""
        used, quota = self.in_use, self.quota
        if quota is UNLIMITED:
            return True
        return (
            (not more[0] or used[0] + more[0] <= quota[0])
            and (not more[1] or used[1] + more[1] <= quota[1])
            and (not more[2] or used[2] + more[2] <= quota[2])
        )

    def add(self, more: Resources) -> None:
        """Hold ``more`` from now on."""
        used = self.in_use
        self.in_use = Resources(used[0] + more[0], used[1] + more[1], used[2] + more[2])
        self.changed = True
        self._share = -1

    def held_share(self, change: Resources = ZERO) -> int:
        """The weighted dominant share of what is held now alone, after a change."""
        return self._scale.dominant_share(self.in_use.plus(change)) // self.weight


Path = tuple[str, ...]
"""Names a tenant from the top: (institution,), (institution, project) or (institution, project, user)."""


class Accounts:
    """The accounts of a snapshot's tenants, made when they are first asked for and carried over while their view is the same."""

    def __init__(self) -> None:
        self._kept: dict[Path, Account] = {}
        self._now: dict[Path, Account] = {}
        self._past_milli = 0
        self.scale = Scale(ZERO)

    def begin(self, snapshot: Snapshot, capacity: Resources, order: OrderPolicy) -> None:
        """Forget what the last round added; drop everything when the capacity or the policy is another."""
        self._institutions, self._projects, self._users = snapshot.institutions, snapshot.projects, snapshot.users
        self._now.clear()
        if (capacity, order.past_milli) != (self.scale.capacity, self._past_milli) or len(self._kept) > _MAX_KEPT:
            self._kept.clear()
            self.scale = Scale(capacity)
            self._past_milli = order.past_milli

    def _view(self, path: Path) -> TenantView:
        if len(path) == 1:
            return self._institutions[path[0]]
        if len(path) == 2:
            return self._projects[path[0], path[1]]
        return self._users.get((path[0], path[1], path[2]), _NO_ONE)

    def at(self, path: Path) -> Account:
        """The account of a tenant."""
        account = self._now.get(path)
        if account is None:
            view = self._view(path)
            account = self._kept.get(path)
            if account is None or account.view is not view or account.changed:
                account = self._kept[path] = Account(view, self.scale, self._past_milli)
            self._now[path] = account
        return account

    def of(self, key: GroupKey) -> tuple[Account, Account, Account]:
        """The accounts of a line's institution, project and user."""
        institution, project, user = key[0], key[1], key[2]
        return self.at((institution,)), self.at((institution, project)), self.at((institution, project, user))

    def add(self, key: GroupKey, more: Resources) -> None:
        """Count a start (or, with negative amounts, an eviction)."""
        for account in self.of(key):
            account.add(more)

    @property
    def institutions(self) -> Mapping[str, TenantView]:
        """The snapshot's."""
        return self._institutions


def allowed(accounts: tuple[Account, Account, Account], more: Resources) -> bool:
    """Whether neither the institution's nor the project's quota would be exceeded."""
    return accounts[0].allows(more) and accounts[1].allows(more)


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
            if self._accounts.scale.dominant_share(account.in_use) * whole >= part:
                return False
        return True
