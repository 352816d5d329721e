"""The planner: who starts where, now, who is stopped for it, and what is kept free for whom.

``docs/explanation/fairness.md`` and ``docs/explanation/placement.md`` say the same in words and formulas.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.agent import ReplicaPlacement
from scheduler.planning.board import Board
from scheduler.planning.evicting import Evictor
from scheduler.planning.guarantees import Guarantees, Standing
from scheduler.planning.order import FairOrder, Forest, Line
from scheduler.planning.overdue import overdue_line
from scheduler.planning.places import Places, PlacesKey
from scheduler.planning.policy import Policy
from scheduler.planning.reserving import Opening, earliest, keep, squeeze
from scheduler.planning.scoring import Scorer
from scheduler.planning.shares import Accounts, FairParts, allowed
from scheduler.planning.sites import Site
from scheduler.planning.types import Eviction, GroupKey, PendingJob, Plan, Reservation, Snapshot, Start

MAX_LOOKS = 300
"""For so many blocked lines in a round, and jobs behind their first, it is seen whether anything can be done while they wait."""
FEW_LINES = 2_000
"""So many lines for whose jobs there may be room are put in order by themselves, rather than found among all others."""
_MAX_PLACES = 1_000_000

_CLAIM_LOOK = 1_000
"""So far into its line a job with a claim is looked for: those that were stopped for it may stand before it again."""


def plan(snapshot: Snapshot, policy: Policy, now_ms: int) -> Plan:
    """Decide which pending jobs start now, on which nodes and GPUs, and which running ones are stopped for others.

    A pure function of its arguments: the same snapshot, policy and time give the same plan. The starts stand in the order of
    planning; each is whole (all replicas placed), within quotas and capacity when applied after those before it. An array
    appears once for each task to start.
    """
    return Planner().plan(snapshot, policy, now_ms)


class Planner:
    """Plans round after round, and carries over what it derived from what has not changed.

    What it answers is what ``plan`` answers. ``Snapshot.changes`` must then name all that has changed since the last call.
    """

    def __init__(self) -> None:
        self.board = Board(Scorer())
        self.accounts = Accounts()
        self.guarantees = Guarantees(Policy())
        self.forest = Forest(0)
        self._policy: Policy | None = None
        self._places: dict[PlacesKey, Places] = {}
        self._places_of: dict[GroupKey, Places] = {}
        self._waiting: dict[PlacesKey, dict[GroupKey, None]] = {}
        self._homes: dict[str, str] = {}
        self._structure = -1

    def plan(self, snapshot: Snapshot, policy: Policy, now_ms: int) -> Plan:
        """One round."""
        return self.begin(snapshot, policy, now_ms).run()

    def begin(self, snapshot: Snapshot, policy: Policy, now_ms: int) -> Round:
        """Become what the snapshot says, and be ready to plan."""
        changes = snapshot.changes
        groups: Iterable[GroupKey] | None = changes.groups if changes is not None else None
        homes = {name: view.home_region for name, view in snapshot.institutions.items()}
        if policy is not self._policy or any(homes.get(name) != home for name, home in self._homes.items()):
            self._use(policy)
            groups = None
        self._homes = homes
        self.board.scorer.use(policy.score, snapshot.mix)
        self.board.begin(snapshot)
        if self.board.structure != self._structure:
            self._structure = self.board.structure
            self._forget_places()
        for key, came in self.forest.see(snapshot.queue, groups):
            self._wait(self.places_key(key), key, came=came)
        self.accounts.begin(snapshot, self.board.capacity, policy.order)
        self.guarantees.begin(snapshot, self.board.pool_capacity, self.board.capacity)
        return Round(self, snapshot, policy, now_ms)

    def _use(self, policy: Policy) -> None:
        self._policy = policy
        self.guarantees = Guarantees(policy)
        self.forest = Forest(len(policy.order.fair_levels))
        self._forget_places()
        self._waiting.clear()

    def _forget_places(self) -> None:
        self._places.clear()
        self._places_of.clear()

    def _wait(self, places: PlacesKey, key: GroupKey, *, came: bool) -> None:
        lines = self._waiting.setdefault(places, {})
        if came:
            lines[key] = None
        else:
            lines.pop(key, None)
            if not lines:
                del self._waiting[places]

    def places_key(self, key: GroupKey) -> PlacesKey:
        """What decides where a line's jobs may go."""
        return PlacesKey(key.shape, self._homes[key.institution], key.preemptible)

    def places_of(self, key: GroupKey) -> Places:
        """Where a line's jobs may go; the same for all lines of one shape and home region."""
        places = self._places_of.get(key)
        if places is None or places.key.home_region != self._homes[key.institution]:
            if len(self._places_of) >= _MAX_PLACES:
                self._places_of.clear()
            places = self._places_of[key] = self._places_at(self.places_key(key))
        return places

    def _places_at(self, key: PlacesKey) -> Places:
        places = self._places.get(key)
        if places is None:
            assert self._policy is not None
            places = self._places[key] = Places(self.board, self._policy, key)
        return places

    def open_places(self) -> int:
        """For how many of the kinds of jobs that wait something is free."""
        return sum(self._places_at(key).fits_somewhere() for key in self._waiting)

    def open_lines_count(self) -> int:
        """How many lines ``open_lines`` has."""
        return sum(len(lines) for key, lines in self._waiting.items() if not self._places_at(key).full)

    def open_lines(self) -> Forest:
        """The lines for whose jobs something may still be free in this round."""
        some = Forest(self.forest.depth)
        for key, lines in self._waiting.items():
            if not self._places_at(key).full:
                for line in lines:
                    some.add(line, self.forest.head_of(line))
        return some


class Round:
    """One round of planning: what has been handed out and kept free so far."""

    def __init__(self, planner: Planner, snapshot: Snapshot, policy: Policy, now_ms: int) -> None:
        self.planner, self.snapshot, self.policy, self.now_ms = planner, snapshot, policy, now_ms
        self.accounts, self.guarantees = planner.accounts, planner.guarantees
        self.evictor = Evictor(planner.board, snapshot, policy, self.accounts, self.guarantees, now_ms)
        self.starts: list[Start] = []
        self.evictions: list[Eviction] = []
        self.reservations: list[Reservation] = []
        self._guarded = bool(self.guarantees)
        self._lines: dict[GroupKey, Line] = {}
        self._served: set[int] = set()
        """Jobs dealt with before the others: nothing more is done for them in this round."""
        self._kept_until = 0
        """The latest begin of any reservation: what ends later need not look for room before one."""
        self._open_places = 0
        self._looks = MAX_LOOKS
        self._reserve_tries = 0
        self._more = False

    def run(self) -> Plan:
        """Make the plan. A round is run once."""
        if not self.planner.board.sites or self.policy.max_starts_per_round < 1 or not len(self.planner.forest):
            return Plan()
        self._first_those_with_claims()
        self._then_the_overdue()
        self._then_all_others()
        return Plan(tuple(self.starts), self._more, tuple(self.evictions), tuple(self.reservations))

    def line_of(self, key: GroupKey) -> Line:
        """The line in the course of this round."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(
                key, self.snapshot.queue.jobs(key), self.accounts.of(key), self.planner.places_of(key)
            )
        return line

    # --- the parts of a round -----------------------------------------------------------------------------------------

    def _first_those_with_claims(self) -> None:
        """Jobs for which others have been stopped: they start, or what was freed for them is kept."""
        for job_no, key in sorted(self.snapshot.claims.items()):
            job = self._find(key, job_no)
            if job is not None and allowed(self.accounts.of(key), key.shape.total):
                self._serve(key, job, claims=True)

    def _find(self, key: GroupKey, job_no: int) -> PendingJob | None:
        if not self.snapshot.queue.size(key):
            return None
        for looked, job in enumerate(self.snapshot.queue.jobs(key)):
            if job.job_no == job_no:
                return job
            if looked >= _CLAIM_LOOK:
                break
        return None

    def _then_the_overdue(self) -> None:
        """The job that has waited too long starts, or has the next reservation."""
        until = self.now_ms - self.policy.max_passed_over_ms
        key = overdue_line(self.planner.forest, until, self._parts, self._could_run)
        if key is not None:
            job = self.snapshot.queue.head(key)
            if job.job_no not in self._served and all(start.job_no != job.job_no for start in self.starts):
                self._serve(key, job, claims=False)

    def _serve(self, key: GroupKey, job: PendingJob, *, claims: bool) -> None:
        """Deal with a job before the others: once, and in whatever way is possible."""
        bounded = len(self.starts) >= self.policy.max_starts_per_round
        if not bounded and self._start(key, job):
            line = self.line_of(key)
            if line.job is not None and line.job.job_no == job.job_no:
                line.started()
                return
            # Its place in line comes later: the other tasks, if it is an array, have their turn in the next round.
            self._more = self._more or job.tasks > 1
        else:
            # Beyond the bound of a round, what it needs is kept for the next one.
            self._more = self._more or bounded
            if claims:
                opening = self._reserve(key, job, self._sites_claimed(key, job))
                if opening is not None:
                    self._charge(key, opening.site)
            elif bounded or not self._evict(key, job):
                self._reserve(key, job, self._sites_for(key))
        self._served.add(job.job_no)

    def _sites_claimed(self, key: GroupKey, job: PendingJob) -> list[Site]:
        """Where a job may stand when those that are being stopped for it have gone."""
        going = [
            each for of in self.planner.board.leaving.values() for each in of.values() if each.for_job_no == job.job_no
        ]
        found = []
        for _, site in self.planner.places_of(key).usable_when_empty():
            here = [each for each in going if (each.region, each.pool) == site.key.pool_key]
            if self.evictor.standing_without(key, site, here).allowed:
                found.append(site)
        return found

    def _charge(self, key: GroupKey, site: Site) -> None:
        """Count what a job will have for which others are stopped as held: it is nobody else's, and no reason to stop more."""
        self.accounts.add(key, key.shape.total)
        self.guarantees.add(key.institution, site.key.pool_key, key.shape.total, key.preemptible)

    def _parts(self) -> FairParts:
        return FairParts(self.accounts, self.snapshot, self.planner.forest.depth)

    def _could_run(self, key: GroupKey) -> bool:
        return allowed(self.accounts.of(key), key.shape.total) and bool(self._sites_for(key))

    def _then_all_others(self) -> None:
        """All others, in order, as long as something may be done for any of them."""
        self._open_places = self.planner.open_places()
        if self._looks and self._look_through(self.planner.forest) and self._open_places:
            self._look_through(self.planner.open_lines())

    def _look_through(self, forest: Forest) -> bool:
        """Go through lines in order, as long as there is a look left or room; True: the rest are few and better gone through alone."""
        looking = bool(self._looks)
        order = FairOrder(forest, self.accounts, self.guarantees, self._lines, self.line_of, self._worth)
        while (line := order.next()) is not None:
            if looking and not self._looks:
                looking = False
                if self.planner.open_lines_count() <= FEW_LINES:
                    return True
            if not looking and not self._open_places:
                return False
            job = line.job
            assert job is not None
            if self._served and job.job_no in self._served:
                line.skip()
                order.started()
            elif not line.allowed:
                order.drop()
            elif len(self.starts) < self.policy.max_starts_per_round:
                self._try(line, job, order)
            elif line.places.full or not line.places.fits_somewhere():
                order.drop()
            else:
                self._more = True
                return False
        return False

    def _try(self, line: Line, job: PendingJob, order: FairOrder) -> None:
        """The next line in order: start its first job, or do what can be done for it while it waits."""
        places = line.places
        was_full = places.full
        if not was_full and self._start_in(line, job):
            line.started()
            order.started()
            return
        if places.full and not was_full:
            self._open_places -= 1
        if self._looks:
            self._looks -= 1
            self._blocked(line)
        order.drop()

    def _worth(self, key: GroupKey) -> bool:
        """Whether a line is worth a look: something may fit, or something may be done for it while it waits."""
        return bool(self._looks) or not self.planner.places_of(key).full

    def _blocked(self, line: Line) -> None:
        """The line's first job does not fit now: see whether it can run before a reservation begins; if not, stop others for it, or
        reserve. Then see whether those behind it can."""
        sites: list[Site] = []
        if self._kept_until > self.now_ms:
            sites = self._sites_for(line.key)
            while self._squeezed(line, sites):
                pass
        job = line.job
        if job is None or not line.allowed:
            return
        if not self._evict(line.key, job) and self._reserve_tries < self.policy.backfill.reservations:
            self._reserve_tries += 1
            by_ms = self.now_ms + self.policy.backfill.horizon_ms
            self._reserve(line.key, job, sites or self._sites_for(line.key), by_ms)
        if self._kept_until > self.now_ms:
            line.skip()
            self._squeeze(line, sites or self._sites_for(line.key))

    # --- what can be done for a job -----------------------------------------------------------------------------------

    def _standing_in(self, key: GroupKey, site: Site) -> Standing:
        return self.guarantees.standing(key.institution, site.key.pool_key, key.shape.total, key.preemptible)

    def _start(self, key: GroupKey, job: PendingJob) -> bool:
        """Place a job where it stands best."""
        return self._start_in(self.line_of(key), job)

    def _start_in(self, line: Line, job: PendingJob) -> bool:
        standing_in = (lambda site: self._standing_in(line.key, site)) if self._guarded else None
        found = line.places.place(standing_in)
        if found is None:
            return False
        self._started(line, job, *found)
        return True

    def _started(self, line: Line, job: PendingJob, site: Site, replicas: tuple[ReplicaPlacement, ...]) -> None:
        where = site.key
        self.starts.append(Start(job.job_no, where.region, where.pool, where.accelerator, replicas))
        # A reservation made later in the round may be for what this gives back.
        site.expect_started(replicas, line.key.shape.request, self.now_ms + job.limit_ms + job.grace_ms)
        for account in line.accounts:
            account.add(line.total)
        if self._guarded:
            self.guarantees.add(line.key.institution, where.pool_key, line.total, line.key.preemptible)

    def _sites_for(self, key: GroupKey) -> list[Site]:
        """Where the job may stand and could if it were empty, best first."""
        sites = [site for _, site in self.planner.places_of(key).usable_when_empty()]
        return [site for site in sites if self._standing_in(key, site).allowed] if self.guarantees else sites

    def _reserve(self, key: GroupKey, job: PendingJob, sites: list[Site], by_ms: int | None = None) -> Opening | None:
        """Keep the place free, on one of these sites, at which the job can start first, if that is by ``by_ms`` (None: whenever)."""
        opening = earliest(sites, key.shape, self.now_ms)
        if opening is None or (by_ms is not None and opening.start_ms > by_ms):
            return None
        keep(opening, key.shape)
        self._note(key, job, opening)
        return opening

    def _note(self, key: GroupKey, job: PendingJob, opening: Opening) -> None:
        self._kept_until = max(self._kept_until, opening.start_ms)
        site = opening.site
        nodes = tuple(site.ids[number] for number in opening.numbers)
        where = site.key
        self.reservations.append(
            Reservation(job.job_no, where.region, where.pool, where.accelerator, nodes, opening.start_ms)
        )

    def _evict(self, key: GroupKey, job: PendingJob) -> bool:
        """Stop others for the job, if the policy says so and it helps."""
        if not self.evictor.possible:
            return False
        victims = self.evictor.find(key, job, self.planner.places_of(key))
        if victims is None:
            return False
        self.evictions += victims.evictions
        keep(victims.opening, key.shape, victims.freed)
        self._note(key, job, victims.opening)
        self._charge(key, victims.opening.site)
        return True

    def _squeeze(self, line: Line, sites: list[Site]) -> None:
        """Start jobs of a blocked line that are gone before the reservations in whose place they stand."""
        for _ in range(self.policy.backfill.look):
            if line.job is None or not self._looks:
                return
            if not self._squeezed(line, sites):
                line.skip()

    def _squeezed(self, line: Line, sites: list[Site]) -> bool:
        """Start the line's first job where something is kept for later, if it is gone by then."""
        job = line.job
        if (
            job is None
            or job.job_no in self._served
            or not self._looks
            or len(self.starts) >= self.policy.max_starts_per_round
            or not line.allowed
        ):
            return False
        self._looks -= 1
        end_ms = self.now_ms + job.limit_ms + job.grace_ms
        if end_ms >= self._kept_until:
            return False
        for site in sites:
            placed = squeeze(site, line.key.shape, end_ms) if self._standing_in(line.key, site).allowed else None
            if placed is not None:
                self._started(line, job, site, placed)
                line.started()
                return True
        return False
