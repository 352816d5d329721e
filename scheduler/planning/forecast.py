"""When a waiting job will probably start: the rounds to come, replayed in virtual time by the very planner.

A replay takes a frozen snapshot and lets running jobs end after the time they are expected to run on, and started ones after the time
they are expected to take; whenever something ends, the planner plans a round and what it decides is made true. Nothing new is submitted
in a replay, no node comes or goes, and what is known of the runtimes is all it knows: so every estimate comes with a range, from three
replays that differ in the runtimes only, and with a word on how sure it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from itertools import islice
from typing import Protocol, runtime_checkable

from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.planning.explanation import ExpectedStart, Explanation
from scheduler.planning.frozen import FrozenQueue, ReplayQueue
from scheduler.planning.plan import Planner
from scheduler.planning.policy import DAY_MS, Policy
from scheduler.planning.position import places_before
from scheduler.planning.rank import rank_of
from scheduler.planning.types import (
    Changes,
    Eviction,
    GroupKey,
    PendingJob,
    Plan,
    PoolKey,
    PoolUse,
    RunningView,
    Snapshot,
    Start,
    TenantView,
)

MAX_ROUNDS = 2_000
MAX_STARTS = 10_000
"""A replay ends after so many rounds or starts; what starts later is extrapolated from the rate so far."""
MAX_ENDS = 2_000
"""So many ends are taken at most before a round."""
TURNOVER_PARTS = 200
"""Before a round at least one part in so many of what runs ends, so that a replay of a big cluster has few rounds. Where less runs,
every end has a round."""


def always() -> bool:
    """No bound but the replay's own."""
    return True


class Scenario(Enum):
    """How long things run in a replay.

    EXPECTED: as predicted. SHORT: half as long. LONG: nine of ten run no longer, where the history says; else up to their limits.
    """

    SHORT = 0
    EXPECTED = 1
    LONG = 2


@runtime_checkable
class SpreadRuntimes(Protocol):
    """A predictor that knows its own spread."""

    def long_remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """The time within which nine of ten such attempts have ended, at least 1 and at most until the limit."""
        ...


class Replay:
    """One replay, which goes on as far as it is asked to. ``started`` has the jobs it has started, with when."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now_ms: int, scenario: Scenario) -> None:
        self.policy, self.begin_ms, self.now_ms, self.scenario = policy, now_ms, now_ms, scenario
        self.started: dict[int, int] = {}
        self.rounds = 0
        self.ended = False
        """Nothing is left that could still happen."""
        self.planner = Planner()
        self.queue = ReplayQueue(snapshot.queue)
        self._base = snapshot
        self._pools = {pool: dict(views) for pool, views in snapshot.pools.items()}
        self._pool_of = {(pool.region, node_id): pool for pool, views in self._pools.items() for node_id in views}
        self._institutions = dict(snapshot.institutions)
        self._projects = dict(snapshot.projects)
        self._users = dict(snapshot.users)
        self._running = dict(snapshot.running)
        self._pool_use = dict(snapshot.pool_use)
        self._claims = dict(snapshot.claims)
        self._evictions = dict(snapshot.evictions)
        self._jobs: dict[int, PendingJob] = {}
        """What stood in the queue of the attempts that were started in the replay, by launch number."""
        self._next_launch = max(self._running, default=0) + 1
        self._changes: Changes | None = None
        self._ends: list[tuple[int, int]] = []
        self._end_of: dict[int, int] = {}
        for running in self._running.values():
            self._ends_at(running.launch_seq, running.stopped_by_ms or now_ms + self._remaining_ms(running))
        self._unfinished = False
        """Whether another round would start more at once."""

    # --- going on -----------------------------------------------------------------------------------------------------

    def until(self, job_no: int, go_on: Callable[[], bool] = always) -> int | None:
        """When the job starts; None: the replay ended before, or came to its bound, or ``go_on`` said no more."""
        while job_no not in self.started and not self.ended and not self.at_bound and go_on():
            if self.rounds and not self._unfinished:
                self._to_the_next_end()
            if not self.ended:
                self._round()
        return self.started.get(job_no)

    @property
    def at_bound(self) -> bool:
        """Whether it has become too long."""
        return self.rounds >= MAX_ROUNDS or len(self.started) >= MAX_STARTS

    def _to_the_next_end(self) -> None:
        ends = self._ends
        while ends and self._end_of.get(ends[0][1]) != ends[0][0]:
            heapq.heappop(ends)
        if not ends:
            self.ended = True
            return
        self.now_ms = max(self.now_ms, ends[0][0])
        least, most = len(self._running) // TURNOVER_PARTS, MAX_ENDS
        while ends and most and (ends[0][0] <= self.now_ms or least > 0):
            end_ms, launch_seq = heapq.heappop(ends)
            if self._end_of.get(launch_seq) == end_ms:
                self.now_ms = max(self.now_ms, end_ms)
                self._end(launch_seq)
                least, most = least - 1, most - 1

    def _round(self) -> None:
        self.rounds += 1
        made = self.planner.plan(self.snapshot(), self.policy, self.now_ms)
        self._changes = Changes()
        self._apply(made)
        self._unfinished = made.truncated and bool(made.starts)

    def snapshot(self) -> Snapshot:
        """The state at the present instant of the replay; valid until it goes on."""
        return Snapshot(
            self._pools,
            self.queue,
            self._institutions,
            self._projects,
            self._base.online_regions,
            self._users,
            self._running,
            self._pool_use,
            self._evictions,
            self._claims,
            self._base.runtimes,
            self._base.mix,
            self._changes,
        )

    # --- making decisions true ----------------------------------------------------------------------------------------

    def _apply(self, made: Plan) -> None:
        for start in made.starts:
            self._start(start, self.queue.line_of(start.job_no))
        for eviction in made.evictions:
            self._stop(eviction, self.queue.line_of(eviction.for_job_no))

    def _start(self, start: Start, key: GroupKey) -> None:
        job = self.queue.take(key, start.job_no)
        self.started.setdefault(start.job_no, self.now_ms)
        self._claims.pop(start.job_no, None)
        seq = self._next_launch
        self._next_launch += 1
        limit_ms = self.now_ms + job.limit_ms
        running = RunningView(
            seq,
            start.job_no,
            key,
            "",
            *start[1:4],
            start.replicas,
            self.now_ms,
            limit_ms,
            self.now_ms,
            job.grace_ms,
            submit_ms=job.submit_ms,
        )
        self._running[seq] = running
        self._jobs[seq] = job
        self._hold(running, 1)
        self._touched(key, running)
        self._ends_at(seq, self.now_ms + self._runtime_ms(job))

    def _stop(self, eviction: Eviction, for_line: GroupKey) -> None:
        running = self._running[eviction.launch_seq]
        stopped_ms = self.now_ms + eviction.grace_ms
        self._running[running.launch_seq] = replace(running, stopped_by_ms=stopped_ms, for_job_no=eviction.for_job_no)
        self._claims[eviction.for_job_no] = for_line
        name = running.group.institution
        self._evictions[name] = self._evictions.get(name, 0) + 1
        assert self._changes is not None
        self._changes.running.add(running.launch_seq)
        self._ends_at(running.launch_seq, stopped_ms)

    def _end(self, launch_seq: int) -> None:
        running = self._running.pop(launch_seq)
        del self._end_of[launch_seq]
        job = self._jobs.pop(launch_seq, None)
        self._hold(running, -1)
        if running.stopped_by_ms:
            self._requeue(running, job)
        self._touched(running.group, running)

    def _requeue(self, running: RunningView, job: PendingJob | None) -> None:
        """A stopped job waits again; of one that ran before the replay began, its place in line is estimated."""
        if job is None:
            key = running.group
            limit_ms = running.limit_end_ms - running.start_ms
            rank = rank_of(self.policy.order, running.start_ms, key.priority, key.shape.total, limit_ms)
            job = PendingJob(rank, running.job_no, 1, running.start_ms, limit_ms, limit_ms, running.grace_ms)
        self.queue.put(running.group, job._replace(tasks=1))

    def _touched(self, key: GroupKey, running: RunningView) -> None:
        if self._changes is not None:
            self._changes.groups.add(key)
            self._changes.running.add(running.launch_seq)
            self._changes.nodes.update((running.region, replica.node_id) for replica in running.replicas)

    def _hold(self, running: RunningView, sign: int) -> None:
        key = running.group
        request = key.shape.request.times(sign)
        each = min(key.shape.request.gpu_milli, GPU_UNIT) * sign
        for replica in running.replicas:
            pool = self._pool_of.get((running.region, replica.node_id))
            if pool is None:
                continue
            views = self._pools[pool]
            view = views[replica.node_id]
            gpus = list(view.gpu_free)
            for index in replica.gpu_indexes:
                gpus[index] -= each
            views[replica.node_id] = replace(view, free=view.free.minus(request), gpu_free=tuple(gpus))
        total = key.shape.total.times(sign)
        self._institutions[key.institution] = _plus(self._institutions[key.institution], total)
        self._projects[key[:2]] = _plus(self._projects[key[:2]], total)
        user = key[:3]
        self._users[user] = _plus(self._users.get(user, TenantView(1000)), total)
        where = (key.institution, PoolKey(running.region, running.pool))
        use = self._pool_use.get(where, PoolUse(ZERO, ZERO))
        self._pool_use[where] = PoolUse(use.held.plus(total), use.firm if key.preemptible else use.firm.plus(total))

    # --- how long things run ------------------------------------------------------------------------------------------

    def _ends_at(self, launch_seq: int, end_ms: int) -> None:
        self._end_of[launch_seq] = end_ms
        heapq.heappush(self._ends, (end_ms, launch_seq))

    def _remaining_ms(self, running: RunningView) -> int:
        runtimes = self._base.runtimes
        if self.scenario is Scenario.LONG:
            if isinstance(runtimes, SpreadRuntimes):
                return runtimes.long_remaining_ms(running, self.begin_ms)
            return max(1, running.limit_end_ms - self.begin_ms)
        expected_ms = runtimes.remaining_ms(running, self.begin_ms)
        return max(1, expected_ms // 2) if self.scenario is Scenario.SHORT else expected_ms

    def _runtime_ms(self, job: PendingJob) -> int:
        if self.scenario is Scenario.LONG:
            return max(1, job.limit_ms)
        expected_ms = min(job.expected_ms, job.limit_ms)
        return max(1, expected_ms // 2 if self.scenario is Scenario.SHORT else expected_ms)

    # --- beyond its bound ---------------------------------------------------------------------------------------------

    def extrapolated(self, key: GroupKey, job: PendingJob) -> int | None:
        """When the job starts if the queue goes on moving as it did in the replay, or as what runs now makes one expect; None: it does not."""
        elapsed_ms, starts = self.now_ms - self.begin_ms, len(self.started)
        if elapsed_ms <= 0 or not starts:
            elapsed_ms, starts = self._turnover()
        if self.ended or not starts:
            return None
        planner = self.planner
        planner.begin(self.snapshot(), self.policy, self.now_ms)
        self._changes = Changes()
        if not self.queue.size(key):
            return None
        left = places_before(self.queue, planner.forest, planner.accounts, self.policy.order, key, job).total
        return self.now_ms + (left + self.queue.cut + 1) * elapsed_ms // starts

    def _turnover(self) -> tuple[int, int]:
        """Before a replay has got anywhere: a span of time and how many of those that run end in it, if each is followed by its like."""
        sample = list(islice(self._running.values(), MAX_ENDS))
        per_day = sum(DAY_MS // (self.begin_ms - each.start_ms + self._remaining_ms(each)) for each in sample)
        return DAY_MS, per_day * len(self._running) // max(1, len(sample))


def _plus(view: TenantView, more: Resources) -> TenantView:
    return replace(view, in_use=view.in_use.plus(more))


class Forecast:
    """Three replays of one snapshot, made as they are needed, that answer for any of its jobs."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now_ms: int) -> None:
        self.now_ms = now_ms
        self._snapshot, self._policy = snapshot, policy
        self._replays: dict[Scenario, Replay] = {}

    def replay(self, scenario: Scenario) -> Replay:
        """The replay of a scenario."""
        found = self._replays.get(scenario)
        if found is None:
            found = self._replays[scenario] = Replay(self._snapshot, self._policy, self.now_ms, scenario)
        return found

    def knows(self, key: GroupKey, job: PendingJob) -> bool:
        """Whether the job stood in the queue of the snapshot, and was not cut off."""
        queue = self._snapshot.queue
        return isinstance(queue, FrozenQueue) and queue.holds(key, job)

    def expected_start(
        self, key: GroupKey, job: PendingJob, told: Explanation, go_on: Callable[[], bool] = always
    ) -> ExpectedStart:
        """When the job will probably start, beside what its explanation already knows. ``go_on`` is asked before every round."""
        if told.expected.basis in ("PLAN", "PREEMPTION"):
            return told.expected
        expected = self.replay(Scenario.EXPECTED)
        at_ms = expected.until(job.job_no, go_on)
        if at_ms is None:
            return self._beyond(expected, key, job, told)
        early_ms = self._bound(Scenario.SHORT, job, go_on) or self.now_ms
        late_ms = self._bound(Scenario.LONG, job, go_on)
        if told.reservation is not None:
            bound_ms = told.reservation.start_ms
            at_ms, late_ms = min(at_ms, bound_ms), min(late_ms, bound_ms) if late_ms else bound_ms
        early_ms, late_ms = min(early_ms, at_ms), max(late_ms, at_ms) if late_ms else 0
        wait_ms = at_ms - self.now_ms
        close = late_ms and late_ms - early_ms <= max(300_000, wait_ms // 2)
        confidence = "HIGH" if close else "MEDIUM" if late_ms else "LOW"
        basis = "RESERVATION" if told.reservation is not None else "FORECAST"
        return ExpectedStart(at_ms, early_ms, late_ms, confidence, basis)

    def _bound(self, scenario: Scenario, job: PendingJob, go_on: Callable[[], bool]) -> int:
        """The start in another scenario; 0: not known, or there is no time left to find out."""
        return (self.replay(scenario).until(job.job_no, go_on) or 0) if go_on() else 0

    def _beyond(self, replay: Replay, key: GroupKey, job: PendingJob, told: Explanation) -> ExpectedStart:
        """The replay did not come to the start."""
        if told.reservation is not None:
            return told.expected
        if replay.ended:
            message = "no estimate: it would not start even when all that runs now had ended"
            if told.code == "QUOTA":
                message = "no estimate: its quota does not allow it even when all that runs now has ended"
            return ExpectedStart(message=message)
        at_ms = replay.extrapolated(key, job)
        if at_ms is None:
            return ExpectedStart(message="no estimate: too little is known yet of how fast the queue moves")
        return ExpectedStart(at_ms, replay.now_ms, 0, "LOW", "RATE")
