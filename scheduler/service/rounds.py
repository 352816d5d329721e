"""One planning round: snapshot, plan, apply. The applier trusts nothing: each decision is checked against the newest state."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.agent import Launch
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.metering.prices import Place
from scheduler.planning.types import Eviction, PoolKey, Start
from scheduler.service import funding, governing
from scheduler.service.job import Job
from scheduler.service.model import Attempt
from scheduler.service.state import State
from scheduler.service.submitting import stop_attempt

CLAIM_MS = 60_000
"""How much longer than its victims have to go a job keeps its claim to their places."""
RECLAIM, FAIR_SHARE, PRIORITY, MOVE = "RECLAIM", "FAIR_SHARE", "PRIORITY", "MOVE"


def run_round(state: State) -> int:
    """Plan once, start and evict what the plan says; returns how many attempts were started.

    ``state.round_needed`` is left True when another round would start more at once.
    """
    state.round_needed = False
    if not any(region.online for region in state.regions.values()):
        # Until one is, what changes is not collected: nobody would look at it, and there is no bound to it.
        state.forget_changes()
        return 0
    if not state.queue.size_total:
        return 0
    state.last_round_ms = state.now()
    decided = state.planner.plan(state.snapshot(state.take_changes()), state.policy, state.last_round_ms)
    started = sum(_apply(state, start) for start in decided.starts)
    for eviction in decided.evictions:
        evict(state, eviction)
    # Decisions the applier refused were made on a stale view; when some were taken, the next round may place the rest.
    if started and (decided.truncated or started < len(decided.starts)):
        state.round_needed = True
    return started


def _apply(state: State, start: Start) -> bool:
    """Start one job, or refuse."""
    place = state.jobs_by_no.get(start.job_no)
    if place is None or place not in state.queue or not _still_fits(state, place, start):
        return False
    nodes = [replica.node_id for replica in start.replicas]
    if not _may_start(state, place, PoolKey(start.region, start.pool), nodes, start.accelerator):
        return False
    job = _next_task(state, place) if place.array_size else place
    state.counters.launch_seq += 1
    job.attempt += 1
    job.region, job.pool = start.region, start.pool
    attempt = Attempt(
        job=job,
        number=job.attempt,
        lease_epoch=state.epoch,
        launch_seq=state.counters.launch_seq,
        region=start.region,
        pool=start.pool,
        accelerator=start.accelerator,
        replicas=start.replicas,
        grant_ms=state.now(),
    )
    state.claims.drop(place.job_no)
    state.grant(attempt)
    state.metering.budgets.keep(attempt, state.now())
    state.set_state(job, JobState.STARTING)
    send_launch(state, attempt)
    return True


def _still_fits(state: State, job: Job, start: Start) -> bool:
    """Check a decision against the newest state: the region, every node together with every GPU, and the quotas."""
    shape = job.spec.shape
    region = state.regions.get(start.region)
    if region is None or not region.online or len(start.replicas) != shape.replicas:
        return False
    for tenant in state.tenants_of(job):
        if not tenant.in_use.plus(shape.total).fits(tenant.quota):
            return False
    taken = []
    fits = True
    for replica in start.replicas:
        node = state.nodes.get((start.region, replica.node_id))
        if node is None or not node.view.schedulable or not node.has_room(shape, replica.gpu_indexes):
            fits = False
            break
        node.take(shape, replica.gpu_indexes, 1)
        taken.append((node, replica.gpu_indexes))
    for node, gpu_indexes in taken:
        node.take(shape, gpu_indexes, -1)
    return fits


def _may_start(state: State, job: Job, pool: PoolKey, nodes: Iterable[str], accelerator: str) -> bool:
    """Whether the job may use its data there and its budgets cover it; when not, it may have left the queue."""
    return governing.may_start(state, job, pool, nodes) and _is_covered(state, job, pool, accelerator)


def _is_covered(state: State, job: Job, pool: PoolKey, accelerator: str) -> bool:
    """Whether the job's budgets cover the most that it may cost there; when not, it leaves the queue."""
    budgets, spec = state.metering.budgets, job.spec
    if not budgets:
        return True
    place = Place(pool.region, pool.pool, accelerator, spec.priority, spec.preemptible)
    shortfall = budgets.shortfall(job, place, state.now())
    if shortfall is None:
        return True
    funding.hold(state, job, shortfall, pool)
    return False


def _next_task(state: State, array: Job) -> Job:
    """Make the array's next task a job of its own."""
    index = array.array_next
    task = Job(
        job_no=state.next_job_no(),
        job_id=f"{array.job_id}.{index}",
        spec=array.spec,
        user=array.user,
        state=JobState.QUEUED,
        submit_ms=array.submit_ms,
        array=array,
        array_index=index,
    )
    state.add_job(task)
    assert array.live_tasks is not None
    array.live_tasks[task.job_no] = task
    array.array_next += 1
    if array.state is JobState.QUEUED:
        array.start_ms = state.now()
        state.set_state(array, JobState.RUNNING)
    if array.startable_tasks <= 0:
        state.queue.remove(array)
    else:
        state.queue.changed(array)
    state.touch(array)
    return task


def evict(state: State, eviction: Eviction) -> None:
    """Order one attempt to stop, unless it has ended or is stopping, may not be preempted, or nobody waits for its place any more."""
    attempt = state.attempts.get(eviction.launch_seq)
    wanted_by = state.jobs_by_no.get(eviction.for_job_no)
    if attempt is None or attempt.stop_outcome is not None or wanted_by is None or wanted_by not in state.queue:
        return
    job = attempt.job
    if job.job_no != eviction.job_no or not job.spec.preemptible:
        return
    nodes = [replica.node_id for replica in attempt.replicas]
    if not _may_start(state, wanted_by, PoolKey(attempt.region, attempt.pool), nodes, attempt.accelerator):
        # Nobody is stopped for a job that could not start then.
        return
    institution = job.spec.institution
    job.reason, job.message = "PREEMPTING", _eviction_message(job, wanted_by, eviction.rule)
    state.emit(job, "PREEMPTING")
    stop_attempt(state, job, AttemptOutcome.PREEMPTED, job.message, eviction.grace_ms, eviction.for_job_no)
    state.claims.add(wanted_by, state.now() + eviction.grace_ms + CLAIM_MS)
    if eviction.rule != RECLAIM:
        state.evictions.add(institution, state.now())
    state.observer.evicted(institution, eviction.rule)


def _eviction_message(job: Job, wanted_by: Job, rule: str) -> str:
    """Why the job is stopped, in words its owner may read: another institution's job is not named."""
    owner = wanted_by.spec.institution
    if rule == RECLAIM:
        return f"Capacity reclaimed by its owner {owner}."
    who = f"job {wanted_by.job_id}" if owner == job.spec.institution else f"a job of {owner}"
    if rule == FAIR_SHARE:
        return f"Stopped for {who}, whose owner holds less than its fair share."
    if rule == PRIORITY:
        return f"Stopped for {who} of a higher priority class."
    if rule == MOVE:
        return f"Moved to make room for {who}: there is room for this job elsewhere."
    return f"Stopped for {who}, which is expected to be much shorter."


def send_launch(state: State, attempt: Attempt) -> None:
    """Tell the agent to start the attempt. Repeating it does no harm."""
    job = attempt.job
    attempt.told_ms = state.now()
    state.send(
        state.regions[attempt.region],
        Launch(
            ref=attempt.ref,
            launch_seq=attempt.launch_seq,
            spec=job.spec,
            user=job.user,
            pool=attempt.pool,
            accelerator=attempt.accelerator,
            replicas=attempt.replicas,
            checkpoint=job.checkpoint,
            array_index=job.array_index,
            array_size=job.array.array_size if job.array else 0,
            isolated=governing.needs_isolation(state, job, attempt.grant_ms),
        ),
    )
