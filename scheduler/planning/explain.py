"""Why a job waits, in words and in data, from the same rules and the same order as the planner's."""

from __future__ import annotations

from scheduler.planning import wording
from scheduler.planning.explain_pool import explain_pool
from scheduler.planning.plan import Round
from scheduler.planning.policy import Policy
from scheduler.planning.position import Before, places_before
from scheduler.planning.shares import Account
from scheduler.planning.types import Explanation, GroupKey, PendingJob, PoolReason, Snapshot

# Of the codes of pools: from the one that needs the least to change to the one that needs the most.
_NEARNESS = (
    "FITS",
    "BUSY",
    "GANG_DOES_NOT_FIT",
    "DRAINING",
    "REGION_OFFLINE",
    "TOO_SMALL",
    "SELECTOR_MISMATCH",
    "ACCELERATOR_MISMATCH",
    "POOL_NOT_ALLOWED",
    "REGION_NOT_ALLOWED",
)


def explain(snapshot: Snapshot, policy: Policy, now_ms: int, job: tuple[GroupKey, PendingJob]) -> Explanation:
    """Say why a queued job has not been started, and what would change that.

    Codes: QUOTA (its institution or project holds what it may), FIT (no pool has room), PRIORITY (jobs of a higher class of its
    project go first), FAIR_SHARE (others go first, or it is next). What is not planning's business (dependencies, back-off,
    an array's own limit) the caller adds. Reads the nodes once and the job's own lines up to the job; changes nothing.
    """
    key, pending = job
    pools = tuple(explain_pool(snapshot, pool, key.shape) for pool in sorted(snapshot.pools))
    current = Round(snapshot)
    before = places_before(snapshot, current.accounts, key, pending)
    position = before.total
    quota = _quota_message(current, key)
    if quota:
        return Explanation("QUOTA", quota, position, pools)
    fitting = [reason for reason in pools if reason.code == "FITS"]
    if not fitting:
        return Explanation("FIT", _fit_message(pools, before), position, pools)
    held_back = _held_back_message(current, policy, now_ms, key, pending, fitting)
    if held_back:
        return Explanation("FAIR_SHARE", held_back, position, pools)
    code, message = _order_message(before, key, fitting)
    return Explanation(code, message, position, pools)


def _quota_message(current: Round, key: GroupKey) -> str:
    """Which quota forbids the start, or ''."""
    institution = current.accounts.institutions[key.institution]
    project = current.accounts.projects[key.institution, key.project]
    named = ((institution, f"institution {key.institution}"), (project, f"project {key.institution}/{key.project}"))
    return "; ".join(_over(account, name, key) for account, name in named if not account.allows(key.shape.total))


def _over(account: Account, name: str, key: GroupKey) -> str:
    sentences: list[str] = []
    releases: list[str] = []
    amounts = zip(wording.RESOURCE_NAMES, account.in_use, key.shape.total, account.quota, strict=True)
    for resource, used, more, quota in amounts:
        if more and used + more > quota:
            holds, limit, needs = (wording.amount(resource, value) for value in (used, quota, more))
            sentences.append(f"holds {holds} of a quota of {limit}, and this job needs {needs}")
            if more <= quota:
                releases.append(wording.amount(resource, used + more - quota))
    cure = f"when {wording.listing(releases)} are released or the quota is raised" if releases else ""
    never = any(more > quota for more, quota in zip(key.shape.total, account.quota, strict=True))
    cure = "only after the quota is raised, because the job alone is larger" if never else cure
    return f"{name} {wording.listing(sentences)}; it can start {cure}"


def _fit_message(pools: tuple[PoolReason, ...], before: Before) -> str:
    if not pools:
        return "no pool is known yet; the job starts when a region with suitable nodes joins"
    nearest = min(pools, key=lambda reason: (_NEARNESS.index(reason.code), -reason.nodes_fit_now, reason.pool))
    ahead = f"; {wording.count(before.total, 'job')} planned before it" if before.total else ""
    return f"no pool can take the job now; the nearest is {nearest.pool}: {nearest.message}{ahead}"


def _held_back_message(
    current: Round, policy: Policy, now_ms: int, key: GroupKey, pending: PendingJob, fitting: list[PoolReason]
) -> str:
    """Whether the pools with room are kept free for a job that has waited too long, in words; '' when they are not."""
    overdue = current.overdue(policy, now_ms)
    if overdue is None or overdue.job is None or overdue.job.job_no == pending.job_no:
        return ""
    places = current.places_of(overdue.key)
    if places.place() is not None:
        return ""
    kept = {site.key.pool_key for site in places.usable_when_empty()}
    if any(reason.pool not in kept for reason in fitting):
        return ""
    names = wording.listing([str(reason.pool) for reason in fitting])
    waited = wording.duration(now_ms - overdue.job.submit_ms)
    return f"{names} has room but is kept free for a larger job that has waited for {waited}; this job can start when that one has"


def _order_message(before: Before, key: GroupKey, fitting: list[PoolReason]) -> tuple[str, str]:
    names = wording.listing([str(reason.pool) for reason in fitting])
    room = f"{names} {'has' if len(fitting) == 1 else 'have'} room"
    if before.higher_class:
        jobs = wording.count(before.higher_class, "job")
        return "PRIORITY", f"{room}, but {jobs} of a higher priority class in project {key.project} are planned first"
    if before.total:
        parts = [
            f"{number:,} {what}"
            for number, what in (
                (before.same_project, f"submitted earlier in project {key.project}"),
                (before.other_projects, f"of other projects of {key.institution}"),
                (before.other_institutions, "of institutions that hold less of their share"),
            )
            if number
        ]
        return (
            "FAIR_SHARE",
            f"{room}, but {wording.count(before.total, 'job')} are planned first: {wording.listing(parts)}",
        )
    return "FAIR_SHARE", f"{room} and the job is next; it starts with the next planning round"
