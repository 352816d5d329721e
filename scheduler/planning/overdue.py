"""Which job, if any, has waited so long that others must make way.

Fair order alone can starve a big gang: small jobs take every piece of room before enough of it is free at once. So one job at a
time, the oldest that has waited ``Policy.max_passed_over_ms``, goes first; as long as it does not fit, the pools that could
hold it when empty are kept free for it. To keep this from turning a long backlog into first come, first served, it is granted
only to tenants below their fair part, and never ahead of a higher class of the same project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler.planning.line import Line
from scheduler.planning.places import Places
from scheduler.planning.shares import Accounts
from scheduler.planning.types import GroupKey


class FairParts:
    """Who holds less than the part of the platform that the weights of all active tenants give them.

    Active is who holds something or has a line in the queue.
    """

    def __init__(self, accounts: Accounts, lines: Sequence[Line]) -> None:
        self._accounts = accounts
        waiting = {(line.key.institution, line.key.project) for line in lines}
        waiting_institutions = {institution for institution, _ in waiting}
        self._institutions_weight = sum(
            account.weight
            for name, account in accounts.institutions.items()
            if name in waiting_institutions or not account.idle
        )
        self._projects_weight: dict[str, int] = {}
        for key, account in accounts.projects.items():
            if key in waiting or not account.idle:
                self._projects_weight[key[0]] = self._projects_weight.get(key[0], 0) + account.weight

    def below(self, institution: str, project: str) -> bool:
        """Whether both the institution and the project hold less than their fair part."""
        whole = self._accounts.scale.denominator
        upper = self._accounts.institutions[institution]
        if upper.numerator * self._institutions_weight >= upper.weight * whole:
            return False
        lower = self._accounts.projects[institution, project]
        weights = self._institutions_weight * self._projects_weight[institution]
        return lower.numerator * weights < upper.weight * lower.weight * whole


def overdue_line(
    lines: Sequence[Line],
    accounts: Accounts,
    places_of: Callable[[GroupKey], Places],
    waited_since_ms: int,
) -> Line | None:
    """The line whose first job goes before all others, or None.

    It was submitted at ``waited_since_ms`` or before, is within its quotas, could run on what is in service if that were empty,
    its tenants are below their fair part, and no line of a higher class of its project could run.
    """
    old = [line for line in lines if line.job is not None and line.job.submit_ms <= waited_since_ms]
    if not old:
        return None
    old.sort(key=lambda line: (line.job.submit_ms, line.job.job_no) if line.job else ())
    parts = FairParts(accounts, lines)

    def could_run(line: Line) -> bool:
        key = line.key
        allowed = accounts.allow(key.institution, key.project, key.shape.total)
        return allowed and bool(places_of(key).usable_when_empty())

    by_project: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        by_project.setdefault((line.key.institution, line.key.project), []).append(line)
    for line in old:
        key = line.key
        tenants = (key.institution, key.project)
        if not parts.below(*tenants) or not could_run(line):
            continue
        higher = (other for other in by_project[tenants] if other.key.priority > key.priority)
        if not any(could_run(other) for other in higher):
            return line
    return None
