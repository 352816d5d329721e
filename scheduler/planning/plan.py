"""The planner: who starts where, now.

``docs/explanation/fairness.md`` says the same in words and formulas.
"""

from __future__ import annotations

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.spec import Shape
from scheduler.planning.fit import SiteKey
from scheduler.planning.line import FairOrder, Line, lines_of
from scheduler.planning.overdue import overdue_line
from scheduler.planning.places import Places
from scheduler.planning.policy import Policy
from scheduler.planning.shares import Accounts
from scheduler.planning.sites import sites_of
from scheduler.planning.types import GroupKey, Plan, Snapshot, Start


def plan(snapshot: Snapshot, policy: Policy, now_ms: int) -> Plan:
    """Decide which pending jobs start now, and on which nodes and GPUs.

    A pure function of its arguments: the same snapshot, policy and time give the same plan. The starts stand in the order of
    planning; each is whole (all replicas placed), within quotas and capacity when applied after those before it. An array
    appears once for each task to start. Its cost grows with the nodes, the groups of the queue and the starts, not with the
    jobs waiting.
    """
    return Round(snapshot).run(policy, now_ms)


class Round:
    """One round of planning: the overlay of what has been handed out so far."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.sites = sites_of(snapshot)
        self.lines = lines_of(snapshot)
        self.accounts = Accounts(snapshot)
        self._institutions = snapshot.institutions
        self._places: dict[tuple[Shape, str], Places] = {}
        self._places_of_group: dict[GroupKey, Places] = {}

    def places_of(self, key: GroupKey) -> Places:
        """Where a group's jobs may go; the same for all groups of one shape and home region."""
        places = self._places_of_group.get(key)
        if places is None:
            shape_key = (key.shape, self._institutions[key.institution].home_region)
            places = self._places.get(shape_key)
            if places is None:
                places = self._places[shape_key] = Places(self.sites, *shape_key)
            self._places_of_group[key] = places
        return places

    def overdue(self, policy: Policy, now_ms: int) -> Line | None:
        """The line that goes first because it has waited too long, if there is one."""
        return overdue_line(self.lines, self.accounts, self.places_of, now_ms - policy.max_passed_over_ms)

    def run(self, policy: Policy, now_ms: int) -> Plan:
        """Make the plan. A round is run once."""
        starts: list[Start] = []
        if not self.sites or policy.max_starts_per_round < 1:
            return Plan()
        overdue = self.overdue(policy, now_ms)
        if overdue is not None:
            self._start_overdue(overdue, starts)
        order = FairOrder(self.lines, self.accounts)
        while (line := order.next()) is not None:
            key = line.key
            allowed = self.accounts.allow(key.institution, key.project, key.shape.total)
            found = self.places_of(key).place() if allowed else None
            if found is None:
                order.drop()
                continue
            if len(starts) >= policy.max_starts_per_round:
                return Plan(tuple(starts), truncated=True)
            starts.append(_start(line, *found))
            order.started()
        return Plan(tuple(starts))

    def _start_overdue(self, line: Line, starts: list[Start]) -> None:
        """Start the overdue job before all others, or else keep free what it could use."""
        key = line.key
        found = self.places_of(key).place()
        if found is None:
            for site in self.places_of(key).usable_when_empty():
                site.closed = True
            return
        starts.append(_start(line, *found))
        self.accounts.add(key.institution, key.project, key.shape.total)
        line.started()


def _start(line: Line, site: SiteKey, replicas: tuple[ReplicaPlacement, ...]) -> Start:
    job = line.job
    assert job is not None
    return Start(job.job_no, site.region, site.pool, site.accelerator, replicas)
