"""Which job, if any, has waited so long that others must make way.

The order of fairness alone can starve a big gang: small jobs take every piece of room before enough of it is free at once. So one
job at a time, the first by rank of those ``Policy.max_passed_over_ms`` past their rank, goes before all others; as long as it does
not fit, it has the first reservation. To keep this from turning a long backlog into the order of ranks, it is granted only to tenants
below their fair part, at the levels the policy shares fairly.
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.planning.order import Forest
from scheduler.planning.shares import FairParts
from scheduler.planning.types import GroupKey


def overdue_line(
    forest: Forest, until_rank: int, parts: Callable[[], FairParts], could_run: Callable[[GroupKey], bool]
) -> GroupKey | None:
    """The line whose first job goes before all others, or None.

    Its rank is ``until_rank`` at most, its tenants are below their fair part, and ``could_run`` holds of it: it is within its quotas and
    could stand on what is in service if that were empty, by the guarantees of all, too.
    """
    fair: FairParts | None = None
    key: GroupKey
    for (rank, _), key in forest.heads.items():
        if rank > until_rank:
            return None
        if forest.depth:
            fair = fair or parts()
            if not fair.below(key):
                continue
        if could_run(key):
            return key
    return None
