"""DESIGN's invariants, as checks that fail with the facts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from scheduler.domain.resources import GPU_UNIT, ZERO, Resources
from scheduler.domain.states import TERMINAL, TRANSITIONS, AttemptOutcome, AttemptState, JobState
from scheduler.metering.segments import month_of
from scheduler.planning.types import PoolKey, PoolUse, TenantView
from scheduler.service.engine import Engine
from scheduler.service.ports import EventQuery, LedgerQuery, UsageQuery
from scheduler.store.memory import MemoryStore
from tests.simulation.region import stored_log

if TYPE_CHECKING:
    from tests.simulation.region import Region
    from tests.simulation.world import World


def allocations_fit(engine: Engine) -> None:
    """No node, GPU, quota or gang is overstepped by the allocations in memory (invariants 3, 4 and 6)."""
    state = engine.state
    cpu: dict[tuple[str, str], int] = {}
    gpu: dict[tuple[str, str, int], int] = {}
    held: dict[tuple[str, str], object] = {}
    for attempt in state.attempts.values():
        shape = attempt.job.spec.shape
        assert len(attempt.replicas) == shape.replicas, "a gang was granted in part"
        assert attempt.job.live is attempt
        for replica in attempt.replicas:
            node = (attempt.region, replica.node_id)
            cpu[node] = cpu.get(node, 0) + shape.request.cpu_milli
            for index in replica.gpu_indexes:
                key = (*node, index)
                gpu[key] = gpu.get(key, 0) + min(shape.request.gpu_milli, GPU_UNIT)
                assert gpu[key] <= GPU_UNIT, f"GPU {key} is granted {gpu[key]} milli"
        for project in ("", attempt.job.spec.project):
            tenant = (attempt.job.spec.institution, project)
            held[tenant] = held.get(tenant, ZERO).plus(shape.total)  # type: ignore[attr-defined]
    for key, node in state.nodes.items():
        assert cpu.get(key, 0) <= node.view.capacity.cpu_milli, f"node {key} is overcommitted"
        assert node.view.free.cpu_milli == node.view.capacity.cpu_milli - cpu.get(key, 0)
        assert min(node.view.free) >= 0
    for key, tenant in state.tenants.items():
        assert tenant.in_use == held.get(key, ZERO), f"{key} is booked with {tenant.in_use}, holds {held.get(key)}"
        assert tenant.in_use.fits(tenant.quota), f"{key} is over its quota"


def planning_sees_what_is(engine: Engine) -> None:
    """What is shown to planning, kept step by step, is what counting everything gives."""
    state = engine.state
    snapshot = state.snapshot()
    held: dict[tuple[str, ...], Resources] = {}
    pools: dict[tuple[str, PoolKey], PoolUse] = {}
    for attempt in state.attempts.values():
        job = attempt.job
        spec, total = job.spec, job.spec.shape.total
        names = (spec.institution, spec.project, job.user)
        for level in (1, 2, 3):
            held[names[:level]] = held.get(names[:level], ZERO).plus(total)
        pool = (spec.institution, PoolKey(attempt.region, attempt.pool))
        before = pools.get(pool, PoolUse(ZERO, ZERO))
        pools[pool] = PoolUse(before.held.plus(total), before.firm.plus(ZERO if spec.preemptible else total))
    seen: dict[tuple[str, ...], TenantView] = {(name,): view for name, view in snapshot.institutions.items()}
    seen |= {**snapshot.projects, **snapshot.users}
    assert {key: view.in_use for key, view in seen.items() if view.in_use != ZERO} == held
    assert snapshot.pool_use == pools
    assert snapshot.running == {launch_seq: attempt.view for launch_seq, attempt in state.attempts.items()}
    assert all(view.in_use != ZERO or view.past != ZERO for view in snapshot.users.values())
    for key in snapshot.queue.groups():
        ranks = [place.rank for place in snapshot.queue.jobs(key)]
        assert ranks == sorted(ranks)


def one_live_attempt(regions: Iterable[Region]) -> None:
    """At most one attempt of a job has processes, over all regions (invariant 2)."""
    live: dict[str, set[tuple[str, int]]] = {}
    for region in regions:
        for node in region.nodes.values():
            for key, process in node.processes.items():
                if process.alive:
                    live.setdefault(key.job_id, set()).add((region.name, key.attempt))
    for job_id, attempts in live.items():
        assert len(attempts) == 1, f"{job_id} runs as {sorted(attempts)} at once"


def processes_fit(regions: Iterable[Region]) -> None:
    """What really runs on a node fits it, per GPU too (invariant 3, seen from below)."""
    for region in regions:
        for node in region.nodes.values():
            alive = [process.launch for process in node.processes.values() if process.alive]
            assert sum(launch.cpu_milli for launch in alive) <= node.cpu_milli, f"{node.node_id} runs too much"
            for index in range(node.gpus):
                milli = sum(min(launch.gpu_milli, GPU_UNIT) for launch in alive if index in launch.gpu_indices)
                assert milli <= GPU_UNIT, f"GPU {index} of {node.node_id} is shared beyond itself"


class EventCheck:
    """Every job's committed events step along the table, and its attempts count up (invariant 2: one accepted end)."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._after = 0
        self._states: dict[str, JobState] = {}
        self._attempts: dict[str, int] = {}

    def step(self) -> None:
        """Check the events since the last time."""
        for event in self._store.events(EventQuery(self._after, 100_000)):
            assert event.sequence > self._after
            self._after = event.sequence
            state = JobState(event.state)
            before = self._states.get(event.job_id)
            if before is None:
                first = event.kind == "SUBMITTED" or event.array_id
                assert first, f"the first event of {event.job_id} is {event.kind}"
            elif state is not before:
                assert state in TRANSITIONS[before], f"{event.job_id} went from {before.name} to {state.name}"
            elif before in TERMINAL:
                raise AssertionError(f"{event.job_id} had ended and something happened to it: {event}")
            self._states[event.job_id] = state
            assert event.attempt >= self._attempts.get(event.job_id, 0)
            self._attempts[event.job_id] = event.attempt


class LedgerCheck:
    """The ledger is the sum of the allocations, exactly (invariant 5)."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._after = 0
        self._by_attempt: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def step(self) -> None:
        """Check the ledger records since the last time against their attempts."""
        touched = set()
        for record in self._store.ledger(LedgerQuery(after=self._after, limit=100_000)):
            self._after = record.sequence
            assert month_of(record.start_ms) == month_of(record.end_ms - 1)
            key = (record.job_id, record.attempt)
            pieces = self._by_attempt.setdefault(key, [])
            assert record.segment == len(pieces)
            pieces.append((record.start_ms, record.end_ms))
            touched.add(key)
        for job_id, number in touched:
            self._tiles(job_id, number)

    def _tiles(self, job_id: str, number: int) -> None:
        attempt = next(a for a in self._store.attempts_of(job_id, 1_000) if a.attempt == number)
        pieces = self._by_attempt[job_id, number]
        assert attempt.state == AttemptState.ENDED
        assert pieces[0][0] == attempt.grant_ms
        assert pieces[-1][1] == attempt.end_ms
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))


def at_rest(world: World) -> None:
    """When all is quiet: nothing lost, nothing left over, nothing counted twice, and the store alone can rebuild it."""
    engine = world.control.engine
    assert engine is not None
    state = engine.state
    world.check_store()
    assert not state.attempts
    assert not state.queue.size_total
    assert state.live_jobs == 0
    assert not state.dependents
    for tenant in state.tenants.values():
        assert tenant.in_use == ZERO
        assert tenant.live_jobs == 0
    acknowledged = [job_id for ids in world.clients.acknowledged.values() for job_id in ids]
    assert len(set(acknowledged)) == len(acknowledged), "two submissions were given the same job"
    records = {record.job_id: record for record in world.store.get_jobs(acknowledged)}
    for job_id in acknowledged:
        assert job_id in records, f"acknowledged job {job_id} is lost"
        assert records[job_id].state in TERMINAL, f"{job_id} never ended"
        record = records[job_id]
        if record.array_size:
            assert record.array_succeeded + record.array_failed + record.array_cancelled == record.array_size
    stored = world.store.load()
    assert not stored.jobs
    assert not stored.attempts
    _ledger_equals_attempts(world)
    for region in world.regions.values():
        if not region.spool_lost:
            again = {key: count for key, count in region.starts.items() if count > 1}
            assert not again, f"attempts were started more than once: {again}"
        assert not any(p.alive for node in region.nodes.values() for p in node.processes.values()), "a process is left"


def _ledger_equals_attempts(world: World) -> None:
    attempts: dict[tuple[str, int], int] = {}
    total = 0
    for job_no in range(1, world.store.load().last_job_no + 1):
        for record in world.store.jobs_by_number(job_no, 1):
            for attempt in world.store.attempts_of(record.job_id, 1_000):
                assert attempt.state == AttemptState.ENDED
                if attempt.outcome == AttemptOutcome.SUCCEEDED:
                    # A gang's logs are merged into those of its first rank here.
                    assert attempt.logs == stored_log(attempt.job_id, attempt.attempt, 0), "its log is lost"
                total += attempt.cpu_milli * (attempt.end_ms - attempt.grant_ms)
                attempts[record.job_id, attempt.attempt] = attempt.end_ms - attempt.grant_ms
    ledger = world.store.ledger(LedgerQuery(limit=10_000_000))
    assert sum(record.cpu_milli * (record.end_ms - record.start_ms) for record in ledger) == total
    assert sum(row.cpu_milli_ms for row in world.store.usage_sums(UsageQuery())) == total
