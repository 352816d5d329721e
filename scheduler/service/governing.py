"""Keeping jobs to the data they may use: who may start, who is held, and who is stopped when a grant goes."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.governance.data import OnRevoke
from scheduler.governance.decision import PLACE_CODES, Code, Reason
from scheduler.planning.types import PoolKey
from scheduler.service.granting import highest, inputs_of, place_of, use_of
from scheduler.service.holding import hold_back, let_go
from scheduler.service.job import Job
from scheduler.service.state import State
from scheduler.service.submitting import stop_attempt

GRANT = "GRANT"
"""The reason of a job that waits for one."""
MAX_MESSAGE = 1_000


def may_start(state: State, job: Job, pool: PoolKey, nodes: Iterable[str]) -> bool:
    """Whether a queued job may use its data on some nodes of a pool, to its end; when it may nowhere, it leaves the queue."""
    spec = job.spec
    if not spec.data_sets:
        return True
    now = state.now()
    decision = state.governance.register.decide(
        use_of(state, spec, now, now + spec.max_runtime_ms), place_of(state, pool, nodes)
    )
    if decision.allowed:
        return True
    if not all(each.code in PLACE_CODES for each in decision.reasons):
        hold_back(state, job, GRANT, _message(decision.reasons))
    return False


def needs_isolation(state: State, job: Job, grant_ms: int) -> bool:
    """Whether what was granted to an attempt then goes only where jobs are kept apart, be it withdrawn by now."""
    level = highest(inputs_of(state, job.spec, grant_ms, state.now()))
    return level is not None and level.needs_isolation


def tick(state: State) -> None:
    """Look at all jobs that use data when something has changed that they depend on, be it the time."""
    governance = state.governance
    if governance.again or state.now() >= governance.look_ms:
        look_again(state)


def look_again(state: State) -> None:
    """Hold those queued that may not use their data any more, let go those that may again, and stop what must be stopped."""
    governance, now = state.governance, state.now()
    governance.again = False
    governance.look_ms = governance.register.next_change_ms(now)
    for job in list(governance.jobs.values()):
        if job.live is not None:
            _look_at_running(state, job, now)
        elif job in state.queue or (job.reason == GRANT and job.state in (JobState.HELD, JobState.RUNNING)):
            _look_at_waiting(state, job, now)


def _look_at_waiting(state: State, job: Job, now: int) -> None:
    spec = job.spec
    decision = state.governance.register.decide(use_of(state, spec, now, now + spec.max_runtime_ms))
    if decision.allowed:
        let_go(state, job, GRANT)
    elif job in state.queue:
        hold_back(state, job, GRANT, _message(decision.reasons))


def _look_at_running(state: State, job: Job, now: int) -> None:
    attempt = job.live
    if attempt is None or attempt.stop_outcome is not None:
        return
    # Of a node that has begun to let jobs reach each other, those that came later may read what this one has.
    nodes = [replica.node_id for replica in attempt.replicas if (attempt.region, replica.node_id) in state.nodes]
    place = place_of(state, PoolKey(attempt.region, attempt.pool), nodes)
    use, register = use_of(state, job.spec, now, now), state.governance.register
    # It goes on with the versions it was given, whatever their names stand for by now; what was registered later was not given.
    given = (register.resolve(name, attempt.grant_ms) for name in use.data_sets)
    pinned = tuple(each.reference for each in given if each is not None)
    decision = register.decide(use._replace(data_sets=pinned), place)
    if not any(_stops(state, reason) for reason in decision.reasons):
        return
    job.reason, job.message = "STOPPING", _message(decision.reasons)
    state.emit(job, "GRANT_ENDED")
    stop_attempt(state, job, AttemptOutcome.PREEMPTED, job.message)


def _stops(state: State, reason: Reason) -> bool:
    """Whether a running job is stopped for it: for residency and missing walls always, else as the data set says."""
    data_set = state.governance.register.resolve(reason.data_set)
    return reason.code in (Code.REGION, Code.ISOLATION) or data_set is None or data_set.on_revoke is OnRevoke.STOP


def _message(reasons: Iterable[Reason]) -> str:
    text = " ".join(each.sentence for each in reasons)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
