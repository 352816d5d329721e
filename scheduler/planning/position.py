"""How many places of the queue are planned before a given one.

Exact within the job's own project. Other tenants are counted from the sizes of their groups: those of their places that start
until the tenant's share reaches what this job's tenant will hold when its turn comes. So it is an estimate, and cheap: it walks
only the lines of the job's own project and class, and those no further than ``MAX_WALK``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from scheduler.domain.resources import Resources
from scheduler.planning.shares import Account, Accounts
from scheduler.planning.types import GroupKey, PendingJob, Snapshot

MAX_WALK = 20_000
"""A line is read this far; what stands behind is not counted, so that the position is then a lower bound."""


class Before(NamedTuple):
    """Places planned before a job, by why they are. ``same_project`` are older ones of the same class."""

    higher_class: int = 0
    same_project: int = 0
    other_projects: int = 0
    other_institutions: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def places_before(snapshot: Snapshot, accounts: Accounts, key: GroupKey, job: PendingJob) -> Before:
    """Count the places planned before ``job`` of group ``key``."""
    groups = snapshot.queue.groups()
    own = [group for group in groups if group[:2] == key[:2]]
    siblings = [group for group in groups if group.institution == key.institution and group.project != key.project]
    others = [group for group in groups if group.institution != key.institution]

    ahead: list[tuple[GroupKey, int]] = []
    higher = same = 0
    for group in own:
        if group.priority > key.priority:
            size = snapshot.queue.size(group)
            higher += size
            ahead.append((group, size))
        elif group.priority == key.priority:
            older = _older(snapshot, group, job)
            same += older
            ahead.append((group, older))
    project = accounts.projects[key.institution, key.project]
    project_then = _share_with(project, ahead)
    sibling_ahead = _until(snapshot, accounts, siblings, project_then, key.project, by_project=True)
    institution = accounts.institutions[key.institution]
    institution_then = _share_with(institution, [*ahead, *sibling_ahead])
    other_ahead = _until(snapshot, accounts, others, institution_then, key.institution, by_project=False)
    return Before(higher, same, sum(number for _, number in sibling_ahead), sum(number for _, number in other_ahead))


def _older(snapshot: Snapshot, group: GroupKey, job: PendingJob) -> int:
    """How many places of a line stand before the job's."""
    mark = (job.rank, job.job_no)
    number = 0
    for pending in islice(snapshot.queue.jobs(group), MAX_WALK):
        if (pending.rank, pending.job_no) >= mark:
            break
        number += 1
    return number


def _share_with(account: Account, ahead: Iterable[tuple[GroupKey, int]]) -> int:
    """The tenant's share when those ahead have started."""
    held = account.in_use
    for group, number in ahead:
        held = held.plus(group.shape.total.times(number))
    return account.share_of(held)


def _until(
    snapshot: Snapshot, accounts: Accounts, groups: list[GroupKey], share: int, name: str, *, by_project: bool
) -> list[tuple[GroupKey, int]]:
    """What of other tenants' groups starts before their share exceeds ``share``; ties go by id."""
    tenants: dict[str, list[GroupKey]] = {}
    for group in groups:
        tenants.setdefault(group.project if by_project else group.institution, []).append(group)
    ahead: list[tuple[GroupKey, int]] = []
    for tenant in sorted(tenants):
        account = (
            accounts.projects[tenants[tenant][0].institution, tenant] if by_project else accounts.institutions[tenant]
        )
        # A tenant whose id is later starts only while its share is strictly lower.
        limit = share if tenant < name else share - 1
        held = account.in_use
        queue = snapshot.queue
        for group in sorted(tenants[tenant], key=lambda each: (-each.priority, queue.head(each)[:2])):
            number = min(queue.size(group), _starts_until(account, held, group.shape.total, limit))
            ahead.append((group, number))
            held = held.plus(group.shape.total.times(number))
            if account.share_of(held) > limit:
                break
    return ahead


def _starts_until(account: Account, held: Resources, each: Resources, limit: int) -> int:
    """How many starts of ``each`` are made while the share before the start is at most ``limit``."""
    if account.share_of(held) > limit:
        return 0
    low, high = 1, 2
    while high < MAX_WALK and account.share_of(held.plus(each.times(high - 1))) <= limit:
        low, high = high, high * 2
    while low + 1 < high:
        middle = (low + high) // 2
        if account.share_of(held.plus(each.times(middle - 1))) <= limit:
            low = middle
        else:
            high = middle
    return low
