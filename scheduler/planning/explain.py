"""Why a job waits, in words and in data, from the live planner's own state.

A round is begun and run dry: what it starts, stops and keeps free is read off and nothing of it is applied. The planner undoes all
of it when its next round begins, as it does after every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scheduler.planning import kernels, wording
from scheduler.planning.explain_pool import Pool, explain_pool
from scheduler.planning.explanation import NOT_EXPECTED, Blocker, ExpectedStart, Explanation, PoolReason
from scheduler.planning.fit import site_allowed
from scheduler.planning.kernels import Ints
from scheduler.planning.places import gang_nodes
from scheduler.planning.plan import Planner
from scheduler.planning.policy import Policy
from scheduler.planning.position import Before, places_before
from scheduler.planning.remedies import Remedies
from scheduler.planning.shares import Account
from scheduler.planning.sites import Site
from scheduler.planning.types import Changes, GroupKey, PendingJob, Plan, PoolKey, Reservation, Snapshot
from scheduler.planning.what_if import Change, ChangedQueue, changed

# Of the codes of pools: from the one that needs the least to change to the one that needs the most.
NEARNESS = (
    "FITS",
    "RESERVED",
    "BUSY",
    "BORROWING",
    "GANG_DOES_NOT_FIT",
    "TOPOLOGY",
    "DRAINING",
    "REGION_OFFLINE",
    "SPOT",
    "TOO_SMALL",
    "DATA_RESIDENCY",
    "NOT_ISOLATED",
    "SELECTOR_MISMATCH",
    "ACCELERATOR_MISMATCH",
    "POOL_NOT_ALLOWED",
    "REGION_NOT_ALLOWED",
)
_OWN_CODE = frozenset({"BORROWING", "TOPOLOGY", "SPOT", "DATA_RESIDENCY", "NOT_ISOLATED"})
"""Codes of pools that are blockers of their own; the others are FIT."""


def explain(
    planner: Planner, snapshot: Snapshot, policy: Policy, now_ms: int, job: tuple[GroupKey, PendingJob]
) -> Explanation:
    """Say why a queued job has not been started, and what would change that.

    What is not planning's business (dependencies, back-off, an array's own limit) the caller adds. As with ``Planner.plan``,
    ``snapshot.changes`` names what has changed since the planner was last given one.
    """
    return _Explaining(planner, snapshot, policy, now_ms, job).explain()


def explain_instead(
    planner: Planner,
    snapshot: Snapshot,
    policy: Policy,
    now_ms: int,
    job: tuple[GroupKey, PendingJob],
    gone: tuple[GroupKey, int] | None = None,
) -> Explanation:
    """Say the same of a job that does not stand in the queue, as if it did, in place of ``gone`` (a line and a job's number).

    Its tenants must be known. Nothing is changed, and the planner is left as the snapshot says.
    """
    lines = {job[0]} if gone is None else {job[0], gone[0]}
    changes = snapshot.changes
    if changes is not None:
        changes = Changes(set(changes.nodes), changes.groups | lines, set(changes.running))
    supposed = replace(snapshot, queue=ChangedQueue(snapshot.queue, gone, job), changes=changes)
    try:
        return explain(planner, supposed, policy, now_ms, job)
    finally:
        planner.begin(replace(snapshot, changes=Changes(groups=lines)), policy, now_ms)


def explain_changed(
    planner: Planner,
    snapshot: Snapshot,
    policy: Policy,
    now_ms: int,
    job: tuple[GroupKey, PendingJob],
    change: Change,
) -> Explanation:
    """Say of a queued job what would be said of it if it asked for something else."""
    key, pending = job
    as_asked = changed(key, pending, change, policy)
    return explain_instead(planner, snapshot, policy, now_ms, as_asked, (key, pending.job_no))


class _Held(NamedTuple):
    """Room that is kept for others: where, for which reservation, and until when it may be used at most."""

    site: Site
    reservation: Reservation | None
    until_ms: int


class _Explaining:
    """One explanation. What is read before the round is run, and what after it, is kept apart by the two halves of ``explain``."""

    def __init__(
        self, planner: Planner, snapshot: Snapshot, policy: Policy, now_ms: int, job: tuple[GroupKey, PendingJob]
    ) -> None:
        self.planner, self.snapshot, self.policy, self.now_ms = planner, snapshot, policy, now_ms
        self.key, self.job = job
        self.round = planner.begin(snapshot, policy, now_ms)
        self.allowed_sites = [
            site
            for site in planner.board.sites
            if site.online and site_allowed(site.key, self.key.shape, policy, self.key.preemptible)
        ]

    def explain(self) -> Explanation:
        planner, key = self.planner, self.key
        quotas = self._quotas()
        pools = tuple(explain_pool(pool, key, self.policy, planner.guarantees) for pool in self._pools())
        before = places_before(self.snapshot.queue, planner.forest, planner.accounts, self.policy.order, key, self.job)
        plan = self.round.run()
        place = next((at for at, start in enumerate(plan.starts) if start.job_no == self.job.job_no), None)
        if place is not None:
            return self._next(pools, plan, place)
        reservation = next((each for each in plan.reservations if each.job_no == self.job.job_no), None)
        held = self._held(plan) if not quotas else []
        pools = tuple(self._with_reservation(reason, held) for reason in pools)
        blockers = (*quotas, *self._preempting(plan), *self._blockers(pools, before, held, plan))
        remedies = Remedies(self.round, self.key, self.job, plan, [(each.site, each.until_ms) for each in held]).find()
        first = blockers[0]
        ahead = (
            f"; {wording.count(before.total, 'job')} planned before it" if before.total and first.code == "FIT" else ""
        )
        return Explanation(
            first.code,
            first.message + ahead,
            before.total,
            pools,
            before.exact,
            blockers,
            remedies,
            self._expected(plan, reservation, blockers),
            reservation,
        )

    def _pools(self) -> Iterable[Pool]:
        sites: dict[PoolKey, list[Site]] = {}
        for site in self.planner.board.sites:
            sites.setdefault(site.key.pool_key, []).append(site)
        for pool in sorted(self.snapshot.pools):
            yield Pool(pool, tuple(sites.get(pool, ())), len(self.snapshot.pools[pool]))

    def _next(self, pools: tuple[PoolReason, ...], plan: Plan, place: int) -> Explanation:
        start = plan.starts[place]
        where = PoolKey(start.region, start.pool)
        message = f"there is room in {where} and the job is next; it starts with the next planning round"
        expected = ExpectedStart(self.now_ms, self.now_ms, 0, "HIGH", "PLAN")
        return Explanation("NEXT", message, place, pools, blockers=(), expected=expected)

    # --- what blocks it -------------------------------------------------------------------------------------------------

    def _quotas(self) -> tuple[Blocker, ...]:
        """The quotas that forbid the start."""
        key = self.key
        institution, project, _ = self.planner.accounts.of(key)
        named = ((institution, f"institution {key.institution}"), (project, f"project {key.institution}/{key.project}"))
        return tuple(_over(account, name, key) for account, name in named if not account.allows(key.shape.total))

    def _preempting(self, plan: Plan) -> tuple[Blocker, ...]:
        """Whether others are being stopped for it, or will be by the next round."""
        claims = self.job.job_no in self.snapshot.claims
        running = self.snapshot.running.values() if claims else ()
        victims = [each for each in running if each.for_job_no == self.job.job_no]
        chosen = [each for each in plan.evictions if each.for_job_no == self.job.job_no]
        if not victims and not chosen:
            return ()
        due_ms = max([each.stopped_by_ms for each in victims] + [self.now_ms + each.grace_ms for each in chosen])
        number = len(victims) + len(chosen)
        what = f"{wording.count(number, 'running job')} {'is' if number == 1 else 'are'} being stopped for it"
        when = f"in {wording.duration(due_ms - self.now_ms)} at the latest" if due_ms > self.now_ms else "at any moment"
        return (Blocker("PREEMPTING", f"{what}; it starts {when}", {"victims": number, "due_ms": due_ms}),)

    def _blockers(
        self, pools: tuple[PoolReason, ...], before: Before, held: list[_Held], plan: Plan
    ) -> tuple[Blocker, ...]:
        found: list[Blocker] = []
        if not pools:
            found.append(Blocker("FIT", "no pool is known yet; the job starts when a region with suitable nodes joins"))
        elif not any(reason.code in ("FITS", "RESERVED") for reason in pools):
            found.append(_no_pool(pools))
        elif held:
            found.append(self._reserved(held))
        else:
            names = [str(reason.pool) for reason in pools if reason.code == "FITS"]
            found += _order(before, names, self.key)
        known = {blocker.code for blocker in found}
        for code in ("BORROWING", "SPOT", "DATA_RESIDENCY", "NOT_ISOLATED", "TOPOLOGY"):
            with_code = [reason for reason in pools if reason.code == code]
            if with_code and code not in known:
                listed = wording.listing([str(reason.pool) for reason in with_code[:5]])
                more = f" and {len(with_code) - 5} more" if len(with_code) > 5 else ""
                found.append(Blocker(code, f"in {listed}{more}: {with_code[0].message}", {"pools": len(with_code)}))
        return tuple(found)

    def _held(self, plan: Plan) -> list[_Held]:
        """Where the job would have room after the round if nothing were kept free for others; empty when room is left over or there
        is none at all."""
        held: list[_Held] = []
        for site in self.allowed_sites:
            usual = site.rooms(self.key.shape)
            if gang_nodes(site, self.key.shape, usual) is not None:
                if self._may_stand(site):
                    return []
                continue
            real = _real_rooms(site, self.key)
            if site.kept and gang_nodes(site, self.key.shape, real) is not None and self._may_stand(site):
                hidden = [number for number in site.kept if real[number] > usual[number]]
                until_ms = max((site.kept[number].until_ms for number in hidden), default=self.now_ms)
                held.append(_Held(site, self._reservation_on(site, hidden, plan), until_ms))
        return held

    def _may_stand(self, site: Site) -> bool:
        key = self.key
        return self.planner.guarantees.standing(
            key.institution, site.key.pool_key, key.shape.total, key.preemptible
        ).allowed

    def _reservation_on(self, site: Site, numbers: Sequence[int], plan: Plan) -> Reservation | None:
        ids = {site.ids[number] for number in numbers}
        where = (site.key.region, site.key.pool, site.key.accelerator)
        found = [each for each in plan.reservations if each[1:4] == where and ids & set(each.nodes)]
        return max(found, key=lambda each: (each.start_ms, -each.job_no), default=None)

    def _with_reservation(self, reason: PoolReason, held: list[_Held]) -> PoolReason:
        here = next((each for each in held if each.site.key.pool_key == reason.pool), None)
        if here is None or reason.code != "FITS":
            return reason
        soon = wording.duration(max(0, here.until_ms - self.now_ms))
        message = f"{reason.message}, but the room is kept for another job, which will start in {soon} at the latest"
        return replace(reason, code="RESERVED", message=message)

    def _reserved(self, held: list[_Held]) -> Blocker:
        where = wording.listing(list(dict.fromkeys(str(each.site.key.pool_key) for each in held)))
        latest = max(held, key=lambda each: each.until_ms)
        needs_ms = self.job.limit_ms + self.job.grace_ms
        numbers = {"until_ms": latest.until_ms, "limit_ms": self.job.limit_ms}
        if latest.reservation is not None:
            numbers["for_job_no"] = latest.reservation.job_no
        left = wording.duration(max(0, latest.until_ms - self.now_ms))
        message = f"there is room in {where}, but it is kept for another job, which will start in {left} at the latest"
        if self.now_ms + needs_ms > latest.until_ms:
            limit = wording.duration(self.job.limit_ms)
            message += f"; this job could start first only if it were sure to end by then, and its limit is {limit}"
        return Blocker("RESERVATION", message, numbers)

    # --- when ---------------------------------------------------------------------------------------------------------

    def _expected(self, plan: Plan, reservation: Reservation | None, blockers: tuple[Blocker, ...]) -> ExpectedStart:
        """What the round itself says of the start; the forecast says the rest."""
        preempting = next((each for each in blockers if each.code == "PREEMPTING"), None)
        if preempting is not None:
            due_ms = max(self.now_ms, preempting.numbers["due_ms"])
            return ExpectedStart(due_ms, self.now_ms, due_ms, "HIGH", "PREEMPTION")
        if reservation is not None:
            return ExpectedStart(reservation.start_ms, self.now_ms, reservation.start_ms, "MEDIUM", "RESERVATION")
        return NOT_EXPECTED


def _over(account: Account, name: str, key: GroupKey) -> Blocker:
    sentences: list[str] = []
    releases: list[str] = []
    numbers: dict[str, int] = {}
    amounts = zip(wording.RESOURCE_NAMES, account.in_use, key.shape.total, account.quota, strict=True)
    for resource, used, more, quota in amounts:
        if more and used + more > quota:
            holds, limit, needs = (wording.amount(resource, value) for value in (used, quota, more))
            sentences.append(f"holds {holds} of a quota of {limit}, and this job needs {needs}")
            numbers |= {f"{resource}_held": used, f"{resource}_quota": quota, f"{resource}_needed": more}
            if more <= quota:
                releases.append(wording.amount(resource, used + more - quota))
    cure = f"when {wording.listing(releases)} {wording.are(releases)} released or the quota is raised"
    never = any(more > quota for more, quota in zip(key.shape.total, account.quota, strict=True))
    cure = "only after the quota is raised, because the job alone is larger" if never else cure
    return Blocker("QUOTA", f"{name} {wording.listing(sentences)}; it can start {cure}", numbers)


def _no_pool(pools: tuple[PoolReason, ...]) -> Blocker:
    """No pool has room: what the nearest says."""
    nearest = min(pools, key=lambda reason: (NEARNESS.index(reason.code), -reason.nodes_fit_now, reason.pool))
    numbers = {
        "nodes": nearest.nodes_total,
        "nodes_fit_now": nearest.nodes_fit_now,
        "nodes_fit_empty": nearest.nodes_fit_empty,
        **{f"nodes_lacking_{name}": number for name, number in nearest.nodes_lacking.items()},
    }
    code = nearest.code if nearest.code in _OWN_CODE else "FIT"
    message = f"no pool can take the job now; the nearest is {nearest.pool}: {nearest.message}"
    return Blocker(code, message, numbers)


def _order(before: Before, names: list[str], key: GroupKey) -> list[Blocker]:
    """Pools have room, but others go first."""
    room = f"there is room in {wording.listing(names)}"
    about = "" if before.exact else "about "
    found: list[Blocker] = []
    if before.by_rank:
        whose = (
            (before.higher_class, "of a higher priority class"),
            (before.older, "submitted earlier"),
            (before.shorter, "expected to be shorter, or urgent"),
            (before.earlier, "of an earlier place in line"),
        )
        parts = [f"{number:,} {what}" for number, what in whose if number]
        jobs = wording.count(before.by_rank, "job")
        goes = "goes" if before.by_rank == 1 else "go"
        message = f"{room}, but {jobs} of institution {key.institution} {goes} first: {wording.listing(parts)}"
        numbers = {name: getattr(before, name) for name in ("higher_class", "older", "shorter", "earlier")}
        found.append(Blocker("PRIORITY", message, {name: number for name, number in numbers.items() if number}))
    if before.same_institution or before.other_institutions:
        of_others = (
            (before.same_institution, f"of others in {key.institution}"),
            (before.other_institutions, "of institutions that hold less of their share"),
        )
        parts = [f"{number:,} {what}" for number, what in of_others if number]
        jobs = wording.count(before.same_institution + before.other_institutions, "job")
        message = f"{room}, but {about}{jobs} {wording.are_of(jobs)} planned first: {wording.listing(parts)}"
        numbers = {name: getattr(before, name) for name in ("same_institution", "other_institutions")}
        found.append(Blocker("FAIR_SHARE", message, {name: number for name, number in numbers.items() if number}))
    if not found:
        found.append(Blocker("FAIR_SHARE", f"{room}, but other jobs are planned first and take it in the next round"))
    return found


def _real_rooms(site: Site, key: GroupKey) -> Ints:
    """How many replicas each node has room for, with what is kept for reservations."""
    free, gpus = site.free.copy(), site.gpus.copy()
    for number, kept in site.kept.items():
        free[number] = np.maximum(free[number], kept.free)
        gpus[number] = np.maximum(gpus[number], kept.gpus)
    found: Ints = kernels.rooms(free, gpus, *key.shape.request)
    selected = site.labelled(key.shape.node_selector)
    return found if selected is None else found * selected
