"""Which running attempts to stop for a waiting job: the cheapest that make room for it.

Who may be stopped is ``PreemptionPolicy``; every rule is a strict order, so that no two jobs can evict each other in turn. The
price of an eviction is the work that is lost (since the last checkpoint, times the size) and a minute of the victim's size, so that
among equal losses fewer are evicted. The search is greedy: node by node the cheapest victims until one more replica fits, then the
cheapest nodes; at the end, whoever need not go stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np

from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.board import Board, end_at_latest_ms
from scheduler.planning.fit import SiteKey
from scheduler.planning.guarantees import Guarantees, Standing
from scheduler.planning.kernels import Ints
from scheduler.planning.places import Places
from scheduler.planning.policy import INSTITUTION, Policy
from scheduler.planning.rank import gpu_equivalents_milli, rank_of, service_ms
from scheduler.planning.reserving import Opening
from scheduler.planning.shares import Accounts
from scheduler.planning.sites import Site
from scheduler.planning.types import Eviction, GroupKey, PendingJob, RunningView, Snapshot
from scheduler.planning.victims import MOVE, Candidate, Offer, Spare, offers

EVICTION_MS = 60_000
"""What an eviction costs beside the work lost: so much time of all that the victim holds."""
MAX_TRIES = 16
"""So often in a round victims are looked for in vain among the candidates for an institution's blocked lines."""
MAX_OFFERS = 64
"""So many ways to make room on a site are looked at, the cheapest first."""
RECLAIM, FAIR_SHARE, PRIORITY, SHORTER = "RECLAIM", "FAIR_SHARE", "PRIORITY", "SHORTER"


class Victims(NamedTuple):
    """Whom to stop, by which rules, and where the job will stand then."""

    opening: Opening
    evictions: tuple[Eviction, ...]
    freed: tuple[Ints, ...]


class Evictor:
    """Finds victims in the course of a round."""

    def __init__(
        self,
        board: Board,
        snapshot: Snapshot,
        policy: Policy,
        accounts: Accounts,
        guarantees: Guarantees,
        now_ms: int,
    ) -> None:
        self._board, self._snapshot, self._policy = board, snapshot, policy
        self._accounts, self._guarantees, self._now_ms = accounts, guarantees, now_ms
        self._rules = policy.preemption
        self._left = self._rules.per_round
        self._gone: set[int] = set()
        self._leaving: dict[str, list[RunningView]] = {}
        """Whom this round stops, by institution."""
        self._lost: dict[str, int] = {}
        self._tries: dict[str, int] = {}
        self._remaining: dict[int, int] = {}
        self._in_order: dict[tuple[str, SiteKey, int, bool], list[RunningView]] = {}

    @property
    def possible(self) -> bool:
        """Whether the policy lets anything be evicted in this round."""
        rules = self._rules
        return self._left > 0 and (
            rules.reclaim or rules.fair_share or rules.priority or rules.shorter_milli > 0 or rules.move
        )

    def find(self, key: GroupKey, job: PendingJob, places: Places) -> Victims | None:
        """The victims that make room for the job, counted as gone from now on; None: none may be stopped, or it would not help."""
        if self._tries.get(key.institution, 0) >= MAX_TRIES:
            return None
        best: tuple[tuple[int, int], Site, list[int], list[Candidate]] | None = None
        searched = False
        for _, site in places.usable_when_empty():
            candidates = self._candidates(key, job, site)
            searched = searched or bool(candidates)
            found = self._choose(key, site, candidates)
            if found is not None:
                numbers, victims = found
                price = (sum(each.price for each in victims), len(victims))
                if best is None or price < best[0]:
                    best = (price, site, numbers, victims)
        if best is None:
            self._tries[key.institution] = self._tries.get(key.institution, 0) + searched
            return None
        _, site, numbers, victims = best
        return self._evict(site, numbers, victims, job)

    def _evict(self, site: Site, numbers: list[int], victims: list[Candidate], job: PendingJob) -> Victims:
        evictions = []
        for running, rule, _ in victims:
            self._gone.add(running.launch_seq)
            self._left -= 1
            key = running.group
            if rule != RECLAIM:
                self._lost[key.institution] = self._lost.get(key.institution, 0) + 1
            self._leaving.setdefault(key.institution, []).append(running)
            grace_ms = min(running.grace_ms, self._policy.reclaim_within_ms) if rule == RECLAIM else running.grace_ms
            evictions.append(Eviction(running.launch_seq, running.job_no, job.job_no, rule, grace_ms))
        start_ms = self._now_ms + max(each.grace_ms for each in evictions)
        # Who is gone by then anyway is expected by the site already.
        late = [each.running for each in victims if end_at_latest_ms(each.running) > start_ms]
        freed = tuple(row for running in late for row in _rows(site, running))
        return Victims(Opening(site, tuple(numbers), start_ms), tuple(evictions), freed)

    def _within_budgets(self, victims: list[Candidate]) -> bool:
        """Whether no institution loses more in an hour than it may, all these together."""
        lost = Counter(each.running.group.institution for each in victims if each.rule != RECLAIM)
        return all(self._lost_before(name) + count <= self._rules.per_hour for name, count in lost.items())

    def _may_stand(self, key: GroupKey, site: Site, victims: list[Candidate]) -> bool:
        """Whether the job may have what the victims leave, and fairness is served by all of them together."""
        stopped = [each.running for each in victims]
        for name in {each.running.group.institution for each in victims if each.rule == FAIR_SHARE}:
            if not self._stays_below(key, name, [each for each in stopped if each.group.institution == name]):
                return False
        return self.standing_without(key, site, stopped).allowed

    def standing_without(self, key: GroupKey, site: Site, stopped: Iterable[RunningView]) -> Standing:
        """How a job would stand on a site when these attempts, which stand in its pool, have gone."""
        guarantees, pool = self._guarantees, site.key.pool_key
        stopped = list(stopped) if guarantees else []
        for each in stopped:
            guarantees.add(each.group.institution, pool, ZERO.minus(each.group.shape.total), each.group.preemptible)
        standing = guarantees.standing(key.institution, pool, key.shape.total, key.preemptible)
        for each in stopped:
            guarantees.add(each.group.institution, pool, each.group.shape.total, each.group.preemptible)
        return standing

    def _stays_below(self, key: GroupKey, institution: str, stopped: Iterable[RunningView]) -> bool:
        """Whether the job's institution would still hold less than the other, with the job and without these and all that go."""
        mine, theirs = self._accounts.at(key.path(1)), self._accounts.at((institution,))
        loss = total_of(stopped).plus(total_of(self._all_leaving(institution)))
        return mine.held_share(key.shape.total) < theirs.held_share(ZERO.minus(loss))

    def _all_leaving(self, institution: str) -> list[RunningView]:
        """The institution's attempts that are being stopped: it still holds what they have, but not for long."""
        return [*self._board.leaving.get(institution, {}).values(), *self._leaving.get(institution, ())]

    # --- who may be stopped -------------------------------------------------------------------------------------------

    def _candidates(self, key: GroupKey, job: PendingJob, site: Site) -> list[Candidate]:
        """Who may be stopped on a site for this job, each by the first rule that allows it."""
        rules, guarantees, pool = self._rules, self._guarantees, site.key.pool_key
        owner = (
            rules.reclaim
            and bool(guarantees.of(key.institution, pool))
            and guarantees.standing(key.institution, pool, key.shape.total, key.preemptible) is Standing.OWN
        )
        found: list[Candidate] = []
        if rules.priority or rules.shorter_milli or rules.move:
            most = key.priority if rules.shorter_milli or rules.move else key.priority - 1
            for running in self._sorted(key.institution, site, most, ripe=True):
                self._consider(found, key, job, running, ZERO)
                if (
                    found
                    and found[-1].running is running
                    and found[-1].rule == MOVE
                    and site.ranking(running.group.shape).best() < 0
                ):
                    found.pop()
        if owner or rules.fair_share:
            for institution, where in self._board.evictable:
                if institution != key.institution and where == site.key:
                    self._of_other(found, key, job, institution, site, owner=owner)
        return found

    def _of_other(
        self, found: list[Candidate], key: GroupKey, job: PendingJob, institution: str, site: Site, *, owner: bool
    ) -> None:
        """Candidates of another institution: all that it has, as long as it borrows, and those it holds more than fairly.

        Nobody loses what is guaranteed to it to anybody's fairness: it would take it back at once.
        """
        over = self._over(institution, site)
        borrows = _overlap(over, key.shape.total)
        fair = self._rules.fair_share and (borrows or self._guarantees.of(institution, site.key.pool_key) is None)
        if not (owner and borrows) and not fair:
            return
        for running in self._sorted(institution, site, PriorityClass.URGENT, ripe=not (owner and borrows)):
            self._consider(found, key, job, running, over if owner else ZERO)

    def _together(self, key: GroupKey, site: Site, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of the candidates, in their order, that may go together: an institution's, until it borrows no more."""
        left: dict[str, Resources] = {}
        found = []
        for each in candidates:
            group = each.running.group
            limited = self._guarantees.of(group.institution, site.key.pool_key) is not None
            if group.institution != key.institution and (limited or each.rule == RECLAIM):
                if group.institution not in left:
                    left[group.institution] = self._over(group.institution, site)
                over = left[group.institution]
                if not _overlap(over, key.shape.total, group.shape.total):
                    continue
                left[group.institution] = over.minus(group.shape.total)
            found.append(each)
        return found

    def _choose(self, key: GroupKey, site: Site, candidates: list[Candidate]) -> Offer | None:
        """The cheapest victims of a site that may go, all together, and the nodes they leave.

        Moving is the last resort: it helps one job of an institution by disturbing another that is its equal.
        """
        for some in ([each for each in candidates if each.rule != MOVE], candidates):
            if not some:
                continue
            for offer in islice(offers(site, key.shape, some), MAX_OFFERS):
                if self._acceptable(key, site, offer):
                    return offer
            # Of an institution no more than it borrows: those that may go together, cheapest first.
            together = self._together(key, site, some)
            for offer in islice(offers(site, key.shape, together), 1) if len(together) < len(some) else ():
                if self._acceptable(key, site, offer):
                    return offer
            if len(some) == len(candidates):
                break
        return None

    def _acceptable(self, key: GroupKey, site: Site, offer: Offer) -> bool:
        """Whether these victims may go together."""
        numbers, victims = offer
        by_size = sorted(victims, key=lambda each: gpu_equivalents_milli(each.running.group.shape.total))
        return (
            len(victims) <= self._left
            and len(self._together(key, site, by_size)) == len(victims)
            and self._within_budgets(victims)
            and self._may_stand(key, site, victims)
            and self._have_room_elsewhere(site, numbers, victims)
        )

    def _over(self, institution: str, site: Site) -> Resources:
        """What an institution holds in the pool beyond its guarantee and is not about to give back."""
        pool = site.key.pool_key
        gone = total_of(each for each in self._all_leaving(institution) if (each.region, each.pool) == pool)
        return Resources(
            *(max(0, has - less) for has, less in zip(self._guarantees.borrows(institution, pool), gone, strict=True))
        )

    def _sorted(self, institution: str, site: Site, most: int, *, ripe: bool) -> list[RunningView]:
        """An institution's attempts on a site that may be stopped, of classes up to ``most``, the cheapest first.

        ``ripe``: only those that have run long enough to be stopped by any rule, if the institution may lose more of them.
        """
        by_class = self._board.evictable.get((institution, site.key))
        if by_class is None or (ripe and not self._may_lose(institution)):
            return []
        search = (institution, site.key, most, ripe)
        known = self._in_order.get(search)
        if known is None:
            since_ms = self._now_ms - (self._rules.min_runtime_ms if ripe else 0)
            found = [
                (self._price(each), launch_seq)
                for of_class, attempts in by_class.items()
                if of_class <= most
                for launch_seq, each in attempts.items()
                if each.start_ms <= since_ms
            ]
            found.sort()
            known = self._in_order[search] = [self._board.running[launch_seq] for _, launch_seq in found]
        return known

    def _may_lose(self, institution: str) -> bool:
        return self._lost_before(institution) < self._rules.per_hour

    def _lost_before(self, institution: str) -> int:
        return self._snapshot.evictions.get(institution, 0) + self._lost.get(institution, 0)

    def _consider(
        self, found: list[Candidate], key: GroupKey, job: PendingJob, running: RunningView, over: Resources
    ) -> None:
        rule = None if running.launch_seq in self._gone else self._rule(key, job, running, over)
        if rule is not None:
            found.append(Candidate(running, rule, self._price(running)))

    def _rule(self, key: GroupKey, job: PendingJob, running: RunningView, over: Resources) -> str | None:
        group, rules = running.group, self._rules
        if _overlap(over, key.shape.total, group.shape.total):
            return RECLAIM
        if self._now_ms - running.start_ms < rules.min_runtime_ms or not self._may_lose(group.institution):
            return None
        if group.institution == key.institution:
            if rules.priority and group.priority < key.priority:
                return PRIORITY
            if rules.shorter_milli and group.priority <= key.priority and self._is_longer(running, key, job):
                return SHORTER
            # Only a larger job moves a smaller one, so that no two move each other in turn.
            small = gpu_equivalents_milli(group.shape.total) < gpu_equivalents_milli(key.shape.total)
            movable = rules.move and small and group.shape.replicas == 1 and group.priority <= key.priority
            return MOVE if movable else None
        fair = rules.fair_share and INSTITUTION in self._policy.order.fair_levels
        return FAIR_SHARE if fair and self._stays_below(key, group.institution, [running]) else None

    def _is_longer(self, running: RunningView, key: GroupKey, job: PendingJob) -> bool:
        """Whether an attempt still needs so much more than the job that it makes way, and would stand behind it in line."""
        remaining_ms = self._remaining.get(running.launch_seq)
        if remaining_ms is None:
            remaining_ms = self._snapshot.runtimes.remaining_ms(running, self._now_ms)
            self._remaining[running.launch_seq] = remaining_ms
        group = running.group
        total = group.shape.total
        own = service_ms(key.shape.total, job.expected_ms)
        if service_ms(total, remaining_ms) * 1000 < own * self._rules.shorter_milli:
            return False
        return rank_of(self._policy.order, running.submit_ms, group.priority, total, remaining_ms) > job.rank

    def _have_room_elsewhere(self, site: Site, numbers: list[int], victims: list[Candidate]) -> bool:
        """Whether all that are to be moved find room at once on nodes that the job does not use."""
        moved = [each for each in victims if each.rule == MOVE]
        moves = Spare(site, moved).beside(*numbers)
        moved.sort(key=lambda each: (-gpu_equivalents_milli(each.running.group.shape.total), each.running.launch_seq))
        return all(moves.place(each.running) for each in moved)

    def _price(self, running: RunningView) -> int:
        lost_ms = max(0, self._now_ms - running.saved_ms) + EVICTION_MS
        return lost_ms * gpu_equivalents_milli(running.group.shape.total)


def _overlap(over: Resources, *amounts: Resources) -> bool:
    """Whether something is over of a resource of which all these amounts have a part."""
    return any(has > 0 and all(each[resource] > 0 for each in amounts) for resource, has in enumerate(over))


def total_of(attempts: Iterable[RunningView]) -> Resources:
    """What they hold together."""
    total = ZERO
    for each in attempts:
        total = total.plus(each.group.shape.total)
    return total


def _rows(site: Site, running: RunningView) -> list[Ints]:
    """What an attempt's replicas give back, as ``reserving.keep`` reads it."""
    request = running.group.shape.request
    rows = []
    for replica in running.replicas:
        number = site.number.get(replica.node_id)
        if number is not None:
            mask = sum(1 << index for index in replica.gpu_indexes)
            rows.append(np.array((number, *request, min(request.gpu_milli, GPU_UNIT), mask), np.int64))
    return rows
