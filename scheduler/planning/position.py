"""How many places of the queue are planned before a given one, and why.

The order is the planner's: down the tenant tree by shares, then by rank. Within the lowest tenant that the policy shares fairly the
count is exact. Of other tenants those places are counted that start until the tenant's share reaches what this job's tenant will
hold when its turn comes; that is an estimate, and the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.order import Branch, Forest
from scheduler.planning.policy import OrderPolicy
from scheduler.planning.shares import MILLI, Account, Accounts, Path, allowed
from scheduler.planning.types import GroupKey, PendingJob, PendingQueue

MAX_WALK = 20_000
"""So many jobs of a line are read when the queue cannot count them itself; what stands behind is not counted."""
MAX_LINES = 4_000
"""So many lines of the same tenant are looked at; what the others add is estimated from those."""
MAX_LINES_OF_OTHERS = 1_000
"""The same for the lines of other tenants, on each level."""
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
        self.counting = queue if isinstance(queue, CountingQueue) else None
        self.looks = MAX_LOOKED
        self.exact = True

    def before(self, key: GroupKey, job: PendingJob) -> Before:
        trail = [self.forest.root]
        for name in key.path(self.forest.depth):
            trail.append(trail[-1].children[name])
        counts = dict.fromkeys(("higher_class", "older", "shorter", "earlier"), 0)
        ahead = self._of_tenant(trail[-1], key, job, counts)
        institution = others = 0
        for level in range(self.forest.depth, 0, -1):
            if len(trail[level - 1].children) == 1:
                continue
            path = key.path(level)
            account = self.accounts.at(path)
            held = account.in_use.plus(ahead)
            share = Account(replace(account.view, in_use=held), self.accounts.scale, self.order.past_milli).share
            number, more = self._until(level, share, path)
            if level == 1:
                others += number
            else:
                institution += number
            ahead = ahead.plus(more)
            self.exact = self.exact and not number
        return Before(**counts, same_institution=institution, other_institutions=others, exact=self.exact)

    def _of_tenant(self, branch: Branch, key: GroupKey, job: PendingJob, counts: dict[str, int]) -> Resources:
        """Count those of the same tenant; returns what they ask for together."""
        mark = (job.rank, job.job_no)
        lines = [line for line, head in branch.lines.items() if head < mark]
        looked = lines[:MAX_LINES]
        ahead = ZERO
        for line in looked:
            if allowed(self.accounts.of(line), line.shape.total):
                number = self._in_line(line, job)
                ahead = ahead.plus(line.shape.total.times(number))
                self._sort(line, number, key, job, counts)
        if len(lines) > len(looked):
            self.exact = False
            counts["earlier"] += sum(counts.values()) * (len(lines) - len(looked)) // len(looked)
            ahead = Resources(*(each * len(lines) // len(looked) for each in ahead))
        return ahead

    def _in_line(self, line: GroupKey, job: PendingJob) -> int:
        """How many places of a line stand before the job's."""
        if self.counting is not None:
            return self.counting.before(line, job.rank, job.job_no)
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
        if not looked:
            counts["earlier"] += number
            return
        for pending in islice(self.queue.jobs(line), looked):
            older = (pending.submit_ms, pending.job_no) < (job.submit_ms, job.job_no)
            counts["older" if older else "shorter"] += 1
        counts["earlier"] += number - looked

    def _until(self, level: int, share: int, path: Path) -> tuple[int, Resources]:
        """What of a tenant's siblings starts before their shares exceed ``share`` (ties go by name), and what it asks for: the lines
        are gone through by the ranks of their first jobs."""
        above, name = path[:-1], path[-1]
        rooms: dict[Path, _Room] = {}
        looked = passed = 0
        for line in self.forest.heads.values():
            passed += 1
            sibling = line[:level]
            if sibling[:-1] != above or sibling[-1] == name:
                continue
            room = rooms.get(sibling)
            if room is None:
                # A tenant whose name is later starts only while its share is strictly lower.
                limit = share if sibling[-1] < name else share - 1
                room = rooms[sibling] = _Room(self.accounts, self.accounts.at(sibling), limit, self.order.past_milli)
            if room.open and allowed(self.accounts.of(line), line.shape.total):
                room.start(line.shape.total, self.queue.size(line))
            looked += 1
            if looked >= MAX_LINES_OF_OTHERS:
                break
        later = len(self.forest) - passed
        number, ahead = 0, ZERO
        for room in rooms.values():
            if later:
                room.start_more(later, passed)
            number += room.started
            ahead = ahead.plus(room.ahead)
        return number, ahead


class _Room:
    """How much more a tenant starts before its share exceeds a limit; ``started`` and ``ahead``: what it has started."""

    def __init__(self, accounts: Accounts, account: Account, limit: int, past_milli: int) -> None:
        now_milli = MILLI - past_milli
        scale = (accounts.scale.cpu, accounts.scale.memory, accounts.scale.gpu)
        highest = (limit + 1) * account.weight - 1
        self._left: list[int] | None = None
        """What it may hold more of each resource while the next start is still made."""
        if now_milli:
            self._left = [
                (highest // each - past * past_milli) // now_milli - held if each else 1 << 62
                for each, held, past in zip(scale, account.in_use, account.view.past, strict=True)
            ]
        self.open = account.share <= limit
        self.started = 0
        self.ahead = ZERO

    def start(self, each: Resources, at_most: int) -> None:
        """Start as many of a line as go before the limit."""
        count = at_most
        if self._left is not None:
            counts = [left // asked + 1 for left, asked in zip(self._left, each, strict=True) if asked]
            count = max(0, min(at_most, *counts)) if counts else at_most
            self._left = [left - count * asked for left, asked in zip(self._left, each, strict=True)]
            self.open = min(self._left) >= 0
        self.started += count
        self.ahead = self.ahead.plus(each.times(count))

    def start_more(self, later: int, passed: int) -> None:
        """Go on as before for the lines behind those that were looked at: ``later`` after ``passed``."""
        if self.open and self.started:
            usual = Resources(*(amount // self.started for amount in self.ahead))
            self.start(usual, self.started * later // passed)
