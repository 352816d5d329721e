"""Which running attempts to stop for a waiting job: the cheapest that make room for it.

Who may be stopped is ``PreemptionPolicy``; every rule is a strict order, so that no two jobs can evict each other in turn. The
price of an eviction is the work that is lost (since the last checkpoint, times the size) and a minute of the victim's size, so that
among equal losses fewer are evicted. The search is greedy: node by node the cheapest victims until one more replica fits, then the
cheapest nodes; at the end, whoever need not go stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.board import Board, end_at_latest_ms
from scheduler.planning.fit import SiteKey, replicas_on
from scheduler.planning.guarantees import Guarantees, Standing
from scheduler.planning.kernels import Ints
from scheduler.planning.places import Places
from scheduler.planning.policy import INSTITUTION, Policy
from scheduler.planning.rank import gpu_equivalents_milli, service_ms
from scheduler.planning.reserving import Opening
from scheduler.planning.shares import Accounts
from scheduler.planning.sites import Site
from scheduler.planning.types import Eviction, GroupKey, PendingJob, RunningView, Snapshot

EVICTION_MS = 60_000
"""What an eviction costs beside the work lost: so much time of all that the victim holds."""
MAX_TRIES = 8
"""So often in a round victims are looked for in vain among the candidates for an institution's blocked lines."""
RECLAIM, FAIR_SHARE, PRIORITY, SHORTER = "RECLAIM", "FAIR_SHARE", "PRIORITY", "SHORTER"


class Victims(NamedTuple):
    """Whom to stop, by which rules, and where the job will stand then."""

    opening: Opening
    evictions: tuple[Eviction, ...]
    freed: tuple[Ints, ...]


class _Candidate(NamedTuple):
    running: RunningView
    rule: str
    price: int


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
        return self._left > 0 and (rules.reclaim or rules.fair_share or rules.priority or rules.shorter_milli > 0)

    def find(self, key: GroupKey, job: PendingJob, places: Places) -> Victims | None:
        """The victims that make room for the job, counted as gone from now on; None: none may be stopped, or it would not help."""
        if self._tries.get(key.institution, 0) >= MAX_TRIES:
            return None
        own_service = service_ms(key.shape.total, job.expected_ms)
        best: tuple[tuple[int, int], Site, list[int], list[_Candidate]] | None = None
        searched = False
        for _, site in places.usable_when_empty():
            candidates = self._candidates(key, own_service, site)
            searched = searched or bool(candidates)
            found = self._choose(key, site, candidates) if candidates else None
            if found is None or not self._within_budgets(found[1]) or not self._may_stand(key, site, found[1]):
                continue
            numbers, victims = found
            price = (sum(each.price for each in victims), len(victims))
            if len(victims) <= self._left and (best is None or price < best[0]):
                best = (price, site, numbers, victims)
        if best is None:
            self._tries[key.institution] = self._tries.get(key.institution, 0) + searched
            return None
        _, site, numbers, victims = best
        return self._evict(site, numbers, victims, job)

    def _evict(self, site: Site, numbers: list[int], victims: list[_Candidate], job: PendingJob) -> Victims:
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

    def _within_budgets(self, victims: list[_Candidate]) -> bool:
        """Whether no institution loses more in an hour than it may, all these together."""
        lost = Counter(each.running.group.institution for each in victims if each.rule != RECLAIM)
        return all(self._lost_before(name) + count <= self._rules.per_hour for name, count in lost.items())

    def _may_stand(self, key: GroupKey, site: Site, victims: list[_Candidate]) -> bool:
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

    def _candidates(self, key: GroupKey, own_service: int, site: Site) -> list[_Candidate]:
        """Who may be stopped on a site for this job, each by the first rule that allows it."""
        rules, guarantees, pool = self._rules, self._guarantees, site.key.pool_key
        owner = (
            rules.reclaim
            and bool(guarantees.of(key.institution, pool))
            and guarantees.standing(key.institution, pool, key.shape.total, key.preemptible) is Standing.OWN
        )
        found: list[_Candidate] = []
        if rules.priority or rules.shorter_milli:
            most = key.priority if rules.shorter_milli else key.priority - 1
            for running in self._sorted(key.institution, site, most, ripe=True):
                self._consider(found, key, own_service, running, ZERO)
        if owner or rules.fair_share:
            for institution, where in self._board.evictable:
                if institution != key.institution and where == site.key:
                    self._of_other(found, key, institution, site, owner=owner)
        return found

    def _of_other(self, found: list[_Candidate], key: GroupKey, institution: str, site: Site, *, owner: bool) -> None:
        """Candidates of another institution: all that it has, as long as it borrows, and those it holds more than fairly.

        Nobody loses what is guaranteed to it to anybody's fairness: it would take it back at once.
        """
        over = self._over(institution, site)
        borrows = _overlap(over, key.shape.total)
        fair = self._rules.fair_share and (borrows or self._guarantees.of(institution, site.key.pool_key) is None)
        if not (owner and borrows) and not fair:
            return
        for running in self._sorted(institution, site, PriorityClass.URGENT, ripe=not (owner and borrows)):
            self._consider(found, key, 0, running, over if owner else ZERO)

    def _together(self, key: GroupKey, site: Site, candidates: Iterable[_Candidate]) -> list[_Candidate]:
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

    def _choose(
        self, key: GroupKey, site: Site, candidates: list[_Candidate]
    ) -> tuple[list[int], list[_Candidate]] | None:
        """The cheapest victims of a site, and the nodes they leave; of an institution no more than it borrows."""
        found = _cheapest(site, key.shape, candidates)
        if found is None:
            return None
        by_size = sorted(found[1], key=lambda each: gpu_equivalents_milli(each.running.group.shape.total))
        if len(self._together(key, site, by_size)) == len(found[1]):
            return found
        return _cheapest(site, key.shape, self._together(key, site, candidates))

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
        self, found: list[_Candidate], key: GroupKey, own_service: int, running: RunningView, over: Resources
    ) -> str | None:
        if running.launch_seq in self._gone:
            return None
        rule = self._rule(key, own_service, running, over)
        if rule is not None:
            found.append(_Candidate(running, rule, self._price(running)))
        return rule

    def _rule(self, key: GroupKey, own_service: int, running: RunningView, over: Resources) -> str | None:
        group, rules = running.group, self._rules
        if _overlap(over, key.shape.total, group.shape.total):
            return RECLAIM
        if self._now_ms - running.start_ms < rules.min_runtime_ms or not self._may_lose(group.institution):
            return None
        if group.institution == key.institution:
            if rules.priority and group.priority < key.priority:
                return PRIORITY
            shorter = rules.shorter_milli and group.priority <= key.priority
            if shorter and self._remaining_service(running) * 1000 >= own_service * rules.shorter_milli:
                return SHORTER
            return None
        fair = rules.fair_share and INSTITUTION in self._policy.order.fair_levels
        return FAIR_SHARE if fair and self._stays_below(key, group.institution, [running]) else None

    def _remaining_service(self, running: RunningView) -> int:
        known = self._remaining.get(running.launch_seq)
        if known is None:
            remaining = self._snapshot.runtimes.remaining_ms(running, self._now_ms)
            known = self._remaining[running.launch_seq] = service_ms(running.group.shape.total, remaining)
        return known

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


# --- the cheapest victims -----------------------------------------------------------------------------------------------


class _Node:
    """A node on which somebody may be stopped: what is free there, and who is there."""

    def __init__(self, site: Site, number: int) -> None:
        self.node_id = site.ids[number]
        kept = site.kept.get(number)
        self.free = [int(each) for each in site.free[number]] if kept is None else [-1, 0, 0]
        self.gpus = [int(each) for each in site.gpus[number]]
        self.number = number
        self.candidates: list[_Candidate] = []

    def room(self, shape: Shape, gone: set[int]) -> int:
        """How many replicas fit once these are gone."""
        if self.free[0] < 0:
            return 0
        free, gpus = list(self.free), list(self.gpus)
        for each in self.candidates:
            if each.running.launch_seq in gone:
                _release(free, gpus, each.running, self.node_id)
        return min(shape.replicas, replicas_on(shape.request, Resources(*free), gpus))


def _release(free: list[int], gpus: list[int], running: RunningView, node_id: str) -> None:
    request = running.group.shape.request
    for replica in running.replicas:
        if replica.node_id == node_id:
            for resource, amount in enumerate(request):
                free[resource] += amount
            for index in replica.gpu_indexes:
                gpus[index] += min(request.gpu_milli, GPU_UNIT)


def _cheapest(site: Site, shape: Shape, candidates: list[_Candidate]) -> tuple[list[int], list[_Candidate]] | None:
    """The nodes for the replicas, and who has to go; None when the job would not fit even without all candidates."""
    nodes: dict[int, _Node] = {}
    selected = site.labelled(shape.node_selector)
    for candidate in candidates:
        for node_id in dict.fromkeys(replica.node_id for replica in candidate.running.replicas):
            number = site.number.get(node_id)
            if number is None or (selected is not None and not selected[number]) or not site.in_service[number]:
                continue
            node = nodes.get(number)
            if node is None:
                node = nodes[number] = _Node(site, number)
            node.candidates.append(candidate)
    rooms = site.rooms(shape)
    rooms[list(site.kept)] = 0
    if shape.pack and shape.pack_required and shape.replicas > 1:
        return _cheapest_domain(site, shape, nodes, rooms)
    return _cheapest_of(shape, nodes, rooms)


def _cheapest_domain(
    site: Site, shape: Shape, nodes: dict[int, _Node], rooms: Ints
) -> tuple[list[int], list[_Candidate]] | None:
    domain_of, count = site.domains(shape.pack)
    best: tuple[int, list[int], list[_Candidate]] | None = None
    for domain in range(count):
        inside = {number: node for number, node in nodes.items() if domain_of[number] == domain}
        found = _cheapest_of(shape, inside, np.where(domain_of == domain, rooms, 0)) if inside else None
        if found is not None:
            price = sum(each.price for each in found[1])
            if best is None or price < best[0]:
                best = (price, *found)
    return None if best is None else best[1:]


def _cheapest_of(shape: Shape, nodes: dict[int, _Node], rooms: Ints) -> tuple[list[int], list[_Candidate]] | None:
    steps = sorted(step for node in nodes.values() for step in _steps(node, shape))
    gone: dict[int, _Candidate] = {}
    room = {int(number): min(shape.replicas, int(rooms[number])) for number in np.nonzero(rooms)[0]}
    for number in nodes:
        room.setdefault(number, 0)
    needed = shape.replicas - sum(room.values())
    for _, number, _, victims in steps:
        if needed <= 0:
            break
        gone.update((each.running.launch_seq, each) for each in victims)
        needed -= _look_again(nodes, room, shape, gone, {number, *_elsewhere(nodes, victims)})
    if needed > 0:
        return None
    for launch_seq, each in sorted(gone.items(), key=lambda item: (-item[1].price, item[0])):
        del gone[launch_seq]
        concerned = {number for number, node in nodes.items() if each in node.candidates}
        before = {number: room[number] for number in concerned}
        _look_again(nodes, room, shape, gone, concerned)
        if sum(room.values()) < shape.replicas:
            gone[launch_seq] = each
            room.update(before)
    freed = {number for each in gone.values() for number in _elsewhere(nodes, [each])}
    order = sorted(room, key=lambda number: (number not in freed, number))
    numbers = [number for number in order for _ in range(room[number])]
    return numbers[: shape.replicas], [gone[launch_seq] for launch_seq in sorted(gone)]


def _elsewhere(nodes: dict[int, _Node], victims: Iterable[_Candidate]) -> set[int]:
    """All candidate nodes on which one of these holds something."""
    ids = {replica.node_id for each in victims for replica in each.running.replicas}
    return {number for number, node in nodes.items() if node.node_id in ids}


def _look_again(
    nodes: dict[int, _Node], room: dict[int, int], shape: Shape, gone: Iterable[int], numbers: Iterable[int]
) -> int:
    """Bring ``room`` up to date for some nodes; returns by how much it grew."""
    grown = 0
    out = set(gone)
    for number in numbers:
        after = nodes[number].room(shape, out)
        grown += after - room[number]
        room[number] = after
    return grown


def _steps(node: _Node, shape: Shape) -> list[tuple[int, int, int, list[_Candidate]]]:
    """What each further replica on the node costs: (price, node, how many before, the victims of this step)."""
    steps: list[tuple[int, int, int, list[_Candidate]]] = []
    gone: set[int] = set()
    had = node.room(shape, gone)
    waiting: list[_Candidate] = []
    for each in sorted(node.candidates, key=lambda each: (each.price, each.running.launch_seq)):
        gone.add(each.running.launch_seq)
        waiting.append(each)
        room = node.room(shape, gone)
        if room > had:
            steps.append((sum(one.price for one in waiting), node.number, had, waiting))
            had, waiting = room, []
    return steps


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
