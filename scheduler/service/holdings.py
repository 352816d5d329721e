"""What institutions, projects and users hold, hold on average, and may hold, with the views of it that planning reads.

A change costs a step for each of the three; a tenant at whom nothing changes is looked at again once a minute, so that planning sees
its past fade.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from scheduler.domain.records import FairUsageRecord
from scheduler.domain.resources import ZERO
from scheduler.planning.types import PoolKey, PoolUse, TenantView
from scheduler.planning.usage import Average, decayed
from scheduler.service.job import Job
from scheduler.service.model import Attempt, Tenant

USER_WEIGHT = 1000
"""Users of a project are equals."""
REFRESH_MS = 60_000
REFRESHED_AT_ONCE = 512
TenantKey = tuple[str, str, str]
"""Institution, project, user; the latter, or both, are empty for a project and an institution as a whole."""


class Holdings:
    """All tenants. ``tenants`` is by (institution, project), the institution as a whole with project ""."""

    def __init__(self, half_life_ms: int) -> None:
        self.tenants: dict[tuple[str, str], Tenant] = {}
        self.users: dict[TenantKey, Tenant] = {}
        """Those that hold something, or whose past has not faded yet."""
        self.institution_views: dict[str, TenantView] = {}
        self.project_views: dict[tuple[str, str], TenantView] = {}
        self.user_views: dict[TenantKey, TenantView] = {}
        self.pool_use: dict[tuple[str, PoolKey], PoolUse] = {}
        self._half_life_ms = half_life_ms
        self._unsaved: dict[TenantKey, Tenant] = {}
        self.shown_ms: OrderedDict[TenantKey, int] = OrderedDict()
        """When each tenant that has a past was last shown, oldest first."""

    # --- changes ----------------------------------------------------------------------------------------------------

    def settle(self, job: Job, now_ms: int) -> None:
        """Bring the averages of the job's tenants up to now, before what they hold changes; journalled."""
        for key in _keys(job):
            tenant = self._find(key)
            average = decayed(tenant.average, tenant.in_use, now_ms, self._half_life_ms)
            if average is not tenant.average:
                tenant.average = average
                self._unsaved[key] = tenant

    def hold(self, attempt: Attempt, sign: int, now_ms: int) -> None:
        """Count an allocation as held (1) or given back (-1)."""
        job = attempt.job
        total = job.spec.shape.total.times(sign)
        for key in _keys(job):
            tenant = self._find(key)
            tenant.in_use = tenant.in_use.plus(total)
            self.show(key, now_ms)
        pool = (job.spec.institution, PoolKey(attempt.region, attempt.pool))
        held, firm = self.pool_use.get(pool, _NOTHING)
        held = held.plus(total)
        if held == ZERO:
            del self.pool_use[pool]
        else:
            self.pool_use[pool] = PoolUse(held, firm if job.spec.preemptible else firm.plus(total))

    def use_half_life(self, half_life_ms: int, now_ms: int) -> None:
        """Let the past fade at this speed from now on."""
        if half_life_ms == self._half_life_ms:
            return
        for key, tenant in self.all_tenants():
            average = decayed(tenant.average, tenant.in_use, now_ms, self._half_life_ms)
            if average[:3] != (0, 0, 0):
                tenant.average = average
                self._unsaved[key] = tenant
        self._half_life_ms = half_life_ms

    # --- views ------------------------------------------------------------------------------------------------------

    def show(self, key: TenantKey, now_ms: int) -> None:
        """Let planning see a tenant as it is now; a user who has nothing and has had nothing for long is forgotten."""
        tenant = self._find(key)
        past = decayed(tenant.average, tenant.in_use, now_ms, self._half_life_ms).amount
        view = TenantView(tenant.weight, tenant.in_use, tenant.quota, tenant.home_region, past)
        institution, project, user = key
        if tenant.in_use != ZERO or past != ZERO:
            self.shown_ms[key] = now_ms
            self.shown_ms.move_to_end(key)
        else:
            self.shown_ms.pop(key, None)
            if user:
                del self.users[key]
                self.user_views.pop(key, None)
                return
        if user:
            self.user_views[key] = view
        elif project:
            self.project_views[institution, project] = view
        else:
            self.institution_views[institution] = view

    def view_of(self, key: TenantKey) -> TenantView:
        """A tenant as planning sees it."""
        institution, project, user = key
        if user:
            return self.user_views[key]
        return self.project_views[institution, project] if project else self.institution_views[institution]

    def refresh(self, now_ms: int) -> None:
        """Show those anew that were last shown a minute ago; a bounded number at a time, the others with the next calls."""
        for _ in range(REFRESHED_AT_ONCE):
            key = next(iter(self.shown_ms), None)
            if key is None or self.shown_ms[key] > now_ms - REFRESH_MS:
                return
            self.show(key, now_ms)

    # --- store ------------------------------------------------------------------------------------------------------

    def take_records(self) -> list[FairUsageRecord]:
        """The rows that have to be written."""
        unsaved, self._unsaved = self._unsaved, {}
        return [FairUsageRecord(*key, *tenant.average) for key, tenant in unsaved.items()]

    def load(self, records: Iterable[FairUsageRecord]) -> None:
        """Take the averages over from the store. What is held is counted from the attempts, and must be shown then."""
        for record in records:
            tenant = self._find((record.institution, record.project, record.user))
            tenant.average = Average(record.cpu_average, record.memory_average, record.gpu_average, record.as_of_ms)

    def show_all(self, now_ms: int) -> None:
        """Let planning see everybody."""
        for key, _ in list(self.all_tenants()):
            self.show(key, now_ms)

    def _find(self, key: TenantKey) -> Tenant:
        institution, project, user = key
        if not user:
            return self.tenants[institution, project]
        tenant = self.users.get(key)
        if tenant is None:
            tenant = self.users[key] = Tenant(USER_WEIGHT)
        return tenant

    def all_tenants(self) -> Iterator[tuple[TenantKey, Tenant]]:
        """Everybody, by key."""
        for (institution, project), tenant in self.tenants.items():
            yield (institution, project, ""), tenant
        yield from self.users.items()


_NOTHING = PoolUse(ZERO, ZERO)


def _keys(job: Job) -> tuple[TenantKey, TenantKey, TenantKey]:
    spec = job.spec
    return (
        (spec.institution, "", ""),
        (spec.institution, spec.project, ""),
        (spec.institution, spec.project, job.user),
    )
