"""How many places of the queue are planned before a given one, and why.

The order is the planner's: down the tenant tree by shares, then by rank. Within the lowest tenant that the policy shares fairly the
count is exact. Of other tenants those places are counted that start until the tenant's share reaches what this job's tenant will
hold when its turn comes; that is an estimate, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

from scheduler.domain.resources import Resources
from scheduler.planning.order import Branch, Forest
from scheduler.planning.policy import OrderPolicy
from scheduler.planning.shares import Account, Accounts, Path, allowed
from scheduler.planning.types import GroupKey, PendingJob, PendingQueue

MAX_WALK = 20_000
"""So many jobs of a line are read when the queue cannot count them itself; what stands behind is not counted."""
MAX_LOOKED = 2_000
"""So many jobs are looked at to say why they go first."""


@runtime_checkable
class CountingQueue(Protocol):
    """A queue that can count what stands before a place without a walk through the line."""

    def before(self, key: GroupKey, rank: int, job_no: int) -> int:
        """How many places of the line stand before (rank, job_no)."""
        ...


@dataclass(frozen=True, slots=True)
class Before:
    """Places planned before a job, by why they are.

    Of the same tenant (the lowest the policy shares fairly): ``higher_class``, ``older`` ones, ``shorter`` ones, and ``earlier`` ones
    that were not looked at. ``exact``: none of it is an estimate.
    """

    higher_class: int = 0
    older: int = 0
    shorter: int = 0
    earlier: int = 0
    same_institution: int = 0
    other_institutions: int = 0
    exact: bool = True

    @property
    def by_rank(self) -> int:
        """Those of the same tenant."""
        return self.higher_class + self.older + self.shorter + self.earlier

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_rank + self.same_institution + self.other_institutions


def places_before(
    queue: PendingQueue, forest: Forest, accounts: Accounts, order: OrderPolicy, key: GroupKey, job: PendingJob
) -> Before:
    """Count the places planned before ``job`` of line ``key``."""
    return _Count(queue, forest, accounts, order).before(key, job)


class _Count:
    def __init__(self, queue: PendingQueue, forest: Forest, accounts: Accounts, order: OrderPolicy) -> None:
        self.queue, self.forest, self.accounts, self.order = queue, forest, accounts, order
        self.looks = MAX_LOOKED
        self.exact = True

    def before(self, key: GroupKey, job: PendingJob) -> Before:
        trail = [self.forest.root]
        for name in key.path(self.forest.depth):
            trail.append(trail[-1].children[name])
        counts = dict.fromkeys(("higher_class", "older", "shorter", "earlier"), 0)
        ahead: list[tuple[GroupKey, int]] = []
        for line in trail[-1].lines:
            if allowed(self.accounts.of(line), line.shape.total):
                number = self._in_line(line, job)
                if number:
                    ahead.append((line, number))
                    self._sort(line, number, key, job, counts)
        institution = others = 0
        for level in range(self.forest.depth, 0, -1):
            path = key.path(level)
            then = self._share(path, ahead)
            found = self._until(trail[level - 1], then, path[-1])
            number = sum(each for _, each in found)
            if level == 1:
                others += number
            else:
                institution += number
            ahead += found
            self.exact = self.exact and not found
        return Before(**counts, same_institution=institution, other_institutions=others, exact=self.exact)

    def _in_line(self, line: GroupKey, job: PendingJob) -> int:
        """How many places of a line stand before the job's."""
        if self.forest.head_of(line) >= (job.rank, job.job_no):
            return 0
        if isinstance(self.queue, CountingQueue):
            return self.queue.before(line, job.rank, job.job_no)
        number = 0
        for pending in islice(self.queue.jobs(line), MAX_WALK):
            if (pending.rank, pending.job_no) >= (job.rank, job.job_no):
                return number
            number += 1
        self.exact = self.exact and number < MAX_WALK
        return number

    def _sort(self, line: GroupKey, number: int, key: GroupKey, job: PendingJob, counts: dict[str, int]) -> None:
        """Why those of a line go first."""
        if line.priority > key.priority:
            counts["higher_class"] += number
            return
        looked = min(number, self.looks)
        self.looks -= looked
        for pending in islice(self.queue.jobs(line), looked):
            older = (pending.submit_ms, pending.job_no) < (job.submit_ms, job.job_no)
            counts["older" if older else "shorter"] += 1
        counts["earlier"] += number - looked

    def _share(self, path: Path, ahead: Iterable[tuple[GroupKey, int]]) -> int:
        """The tenant's share when those ahead have started."""
        account = self.accounts.at(path)
        held = account.in_use
        for line, number in ahead:
            held = held.plus(line.shape.total.times(number))
        return self._share_of(account, held)

    def _share_of(self, account: Account, held: Resources) -> int:
        return Account(replace(account.view, in_use=held), self.accounts.scale, self.order.past_milli).share

    def _until(self, above: Branch, share: int, name: str) -> list[tuple[GroupKey, int]]:
        """What of a tenant's siblings starts before their shares exceed ``share``; ties go by name."""
        ahead: list[tuple[GroupKey, int]] = []
        for sibling, branch in above.children.items():
            if sibling == name:
                continue
            account = self.accounts.at(branch.path)
            # A tenant whose name is later starts only while its share is strictly lower.
            limit = share if sibling < name else share - 1
            held = account.in_use
            if account.share > limit:
                continue
            for _, line in sorted(_lines(branch)):
                total = line.shape.total
                if not allowed(self.accounts.of(line), total):
                    continue
                number = min(self.queue.size(line), self._starts_until(account, held, total, limit))
                ahead.append((line, number))
                held = held.plus(total.times(number))
                if self._share_of(account, held) > limit:
                    break
        return ahead

    def _starts_until(self, account: Account, held: Resources, each: Resources, limit: int) -> int:
        """How many starts of ``each`` are made while the share before the start is at most ``limit``."""
        if self._share_of(account, held) > limit:
            return 0
        low, high = 1, 2
        while high < MAX_WALK and self._share_of(account, held.plus(each.times(high - 1))) <= limit:
            low, high = high, high * 2
        while low + 1 < high:
            middle = (low + high) // 2
            if self._share_of(account, held.plus(each.times(middle - 1))) <= limit:
                low = middle
            else:
                high = middle
        return low


def _lines(branch: Branch) -> list[tuple[tuple[int, int], GroupKey]]:
    found = [(mark, line) for line, mark in branch.lines.items()]
    for child in branch.children.values():
        found += _lines(child)
    return found
