"""What would let a waiting job start: smaller, elsewhere, shorter, stoppable, or when something else has happened.

A change is proposed only when it suffices by itself: with it the job fits on what a round of planning leaves over, so that the next
round would start it wherever it stands in line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning import wording
from scheduler.planning.explanation import Remedy
from scheduler.planning.fit import replicas_on, site_allowed
from scheduler.planning.kernels import Ints
from scheduler.planning.places import gang_nodes
from scheduler.planning.shares import allowed
from scheduler.planning.sites import Site
from scheduler.planning.types import GroupKey, PendingJob, Plan
from scheduler.planning.what_if import Change, changed

if TYPE_CHECKING:
    from scheduler.planning.plan import Round

LEAST_PART = 4
"""No less than one part in so many of an amount is proposed instead of it."""
GIB = 1024
CORE = 1000
MINUTE_MS = 60_000


class Remedies:
    """Looks for remedies after a round was run dry. ``held``: sites where room is kept for others, and until when."""

    def __init__(
        self, ran: Round, key: GroupKey, job: PendingJob, plan: Plan, held: Sequence[tuple[Site, int]]
    ) -> None:
        self._round, self._key, self._job, self._held = ran, key, job, held
        self._sites = ran.planner.board.sites
        self._whole = not plan.truncated and len(plan.starts) < ran.policy.max_starts_per_round
        self._stops_others = any(each.for_job_no == job.job_no for each in plan.evictions)
        self._own = next((each for each in plan.reservations if each.job_no == job.job_no), None)
        """Whether all others had their turn in the round: only then is what is left over there for the taking."""

    def find(self) -> tuple[Remedy, ...]:
        """All that are known, those within the job's own power first."""
        changes = self._changes() if self._whole and not self._stops_others else ()
        return (*changes, *self._releases())

    def _room_for(self, change: Change) -> tuple[Site, int] | None:
        """Where the changed job would start now, and on how many nodes a replica would fit; None: nowhere."""
        ran = self._round
        key, _ = changed(self._key, self._job, change, ran.policy)
        shape = key.shape
        if not allowed(ran.accounts.of(key), shape.total):
            return None
        best: tuple[int, Site] | None = None
        for site in self._sites:
            if not site.online or not site_allowed(site.key, shape, ran.policy, key.preemptible):
                continue
            rooms = self._rooms(site, shape)
            if gang_nodes(site, shape, rooms) is None:
                continue
            standing = ran.guarantees.standing(key.institution, site.key.pool_key, shape.total, key.preemptible)
            if standing.allowed:
                nodes = int((rooms > 0).sum())
                if best is None or nodes > best[0]:
                    best = (nodes, site)
        return None if best is None else (best[1], best[0])

    def _rooms(self, site: Site, shape: Shape) -> Ints:
        """How many replicas each node has room for, with what is kept for the job itself: it would not be if the job started."""
        rooms = site.rooms(shape)
        if self._own is None or self._own[1:4] != (site.key.region, site.key.pool, site.key.accelerator):
            return rooms
        selected = site.labelled(shape.node_selector)
        for node_id in self._own.nodes:
            number = site.number[node_id]
            kept = site.kept.get(number)
            if kept is not None and (selected is None or selected[number]):
                rooms[number] = replicas_on(shape.request, Resources(*kept.free), kept.gpus)
        return rooms

    # --- changes of the job -------------------------------------------------------------------------------------------

    def _changes(self) -> Iterator[Remedy]:
        shape, request = self._key.shape, self._key.shape.request
        unit = GIB if request.memory_mib > GIB else 64
        yield from self._less("LESS_MEMORY", "memory", request.memory_mib, unit, lambda n: Change(memory_mib=n))
        yield from self._less("LESS_CPU", "cpu", request.cpu_milli, CORE, lambda n: Change(cpu_milli=n))
        if request.gpu_milli > GPU_UNIT:
            yield from self._less("LESS_GPU", "gpu", request.gpu_milli, GPU_UNIT, lambda n: Change(gpu_milli=n))
        yield from self._fewer_replicas()
        yield from self._if("PREEMPTIBLE", "make it preemptible", Change(preemptible=True), not self._key.preemptible)
        yield from self._if(
            "ANY_REGION", "drop the required region", Change(required_regions=()), bool(shape.required_regions)
        )
        yield from self._if("ANY_POOL", "drop the list of pools", Change(pools=()), bool(shape.pools))
        yield from self._if(
            "ANY_ACCELERATOR", "accept any accelerator type", Change(accelerators=()), bool(shape.accelerators)
        )
        yield from self._if(
            "SPREAD",
            f"let the replicas be spread over more than one {shape.pack}",
            Change(pack=shape.pack, pack_required=False),
            shape.pack_required and bool(shape.pack),
        )
        yield from self._shorter()

    def _if(self, code: str, words: str, change: Change, sensible: bool) -> Iterator[Remedy]:
        found = self._room_for(change) if sensible else None
        if found is not None:
            pool = found[0].key.pool_key
            yield Remedy(code, f"{words}: {pool} would take it now", change, pool, now=True)

    def _less(self, code: str, name: str, asked: int, unit: int, change: Callable[[int], Change]) -> Iterator[Remedy]:
        """The largest smaller amount, in whole units, with which the job would start."""
        most = self._most(-(-asked // unit) - 1, max(1, -(-asked // LEAST_PART // unit)), lambda n: change(n * unit))
        if most:
            found = self._room_for(change(most * unit))
            assert found is not None
            site, nodes = found
            less, more = wording.amount(name, most * unit), wording.amount(name, asked)
            pool = site.key.pool_key
            take = f"{wording.count(nodes, 'node')} in {pool} would take it now"
            yield Remedy(code, f"ask for {less} instead of {more}: {take}", change(most * unit), pool, now=True)

    def _fewer_replicas(self) -> Iterator[Remedy]:
        shape = self._key.shape
        most = self._most(shape.replicas - 1, 1, lambda n: Change(replicas=n))
        if most:
            found = self._room_for(Change(replicas=most))
            assert found is not None
            pool = found[0].key.pool_key
            fits = "fits" if most == 1 else "fit"
            words = f"ask for fewer replicas: {wording.replicas(most, shape.request)} {fits} in {pool} now"
            yield Remedy("FEWER_REPLICAS", words, Change(replicas=most), pool, now=True)

    def _most(self, high: int, low: int, change: Callable[[int], Change]) -> int:
        """The largest number within [low, high] with which the job would start; 0: none. Fewer always fit where more do."""
        if high < low or self._room_for(change(low)) is None:
            return 0
        while low < high:
            middle = (low + high + 1) // 2
            if self._room_for(change(middle)) is None:
                high = middle - 1
            else:
                low = middle
        return low

    def _shorter(self) -> Iterator[Remedy]:
        """End before a reservation begins."""
        if not self._held or (self._key.shape.pack and self._key.shape.replicas > 1):
            return
        site, until_ms = max(self._held, key=lambda each: (each[1], each[0].key))
        left_ms = (until_ms - self._round.now_ms - self._job.grace_ms) // MINUTE_MS * MINUTE_MS
        if MINUTE_MS <= left_ms < self._job.limit_ms:
            pool = site.key.pool_key
            words = f"lower its longest runtime to {wording.duration(left_ms)}"
            message = f"{words}: it could start in {pool} before the job for which room is kept there"
            yield Remedy("SHORTER", message, Change(max_runtime_ms=left_ms), pool)

    # --- what others can do -------------------------------------------------------------------------------------------

    def _releases(self) -> Iterator[Remedy]:
        """What has to be given back for the quotas to allow the start."""
        key, total = self._key, self._key.shape.total
        institution, project, _ = self._round.accounts.of(key)
        named = ((institution, f"institution {key.institution}"), (project, f"project {key.institution}/{key.project}"))
        for account, name in named:
            over = [
                (resource, used + more - quota, more > quota)
                for resource, used, more, quota in zip(
                    wording.RESOURCE_NAMES, account.in_use, total, account.quota, strict=True
                )
                if more and used + more > quota
            ]
            if not over:
                continue
            if any(never for _, _, never in over):
                yield Remedy("RAISE_QUOTA", f"ask an operator to raise the quota of {name}: the job alone is larger")
            else:
                words = [wording.amount(resource, amount) for resource, amount, _ in over]
                yield Remedy("RELEASE", f"wait until {wording.listing(words)} of {name} {wording.are(words)} released")
