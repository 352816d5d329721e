"""How attempts and jobs end, and what follows from it: retries, arrays, dependents."""

from __future__ import annotations

from scheduler.domain.agent import Finished
from scheduler.domain.holdings import HoldingKind
from scheduler.domain.spec import DependencyCondition
from scheduler.domain.states import (
    FINAL_STATE,
    PLATFORM_OUTCOMES,
    RETRIABLE_OUTCOMES,
    TERMINAL,
    AttemptOutcome,
    AttemptState,
    JobState,
)
from scheduler.service.budgets import BUDGET
from scheduler.service.job import Job
from scheduler.service.model import Attempt
from scheduler.service.posting import post_release
from scheduler.service.predicting import learn
from scheduler.service.state import State

MAX_BACKOFF_MS = 3_600_000


def end_attempt(state: State, attempt: Attempt, report: Finished, end_ms: int) -> None:
    """End an attempt, release and meter its allocation, and move its job on."""
    job = attempt.job
    attempt.state = AttemptState.ENDED
    attempt.outcome = report.outcome
    attempt.exit_code, attempt.exit_signal, attempt.message = report.exit_code, report.exit_signal, report.message
    # An attempt that was lost has used what was last heard of it.
    attempt.has_used(report)
    attempt.logs = report.logs
    attempt.end_ms = max(attempt.grant_ms, attempt.start_ms, min(end_ms, state.now()))
    state.release(attempt)
    post_release(state, attempt)
    state.metering.budgets.let_go(attempt)
    job.exit_code, job.exit_signal = report.exit_code, report.exit_signal
    job.results = report.results or job.results
    if report.checkpoint and report.checkpoint != job.checkpoint:
        job.checkpoint = report.checkpoint
        attempt.saved_ms = attempt.end_ms
    _hold_outputs(state, attempt)
    _move_on(state, attempt, report)
    if job.state in TERMINAL:
        # When it ended, which may be well before the control plane heard of it.
        job.end_ms = attempt.end_ms
        learn(state.predictor, attempt)


def _hold_outputs(state: State, attempt: Attempt) -> None:
    """Whatever the attempt has left in the artifact store is its project's, from this transaction on."""
    storage, job, now = state.storage, attempt.job, state.now()
    storage.hold_output(job, HoldingKind.RESULT, job.results, now)
    storage.hold_output(job, HoldingKind.CHECKPOINT, job.checkpoint, now)
    storage.hold_output(job, HoldingKind.LOG, attempt.logs, now, attempt.number)


def _move_on(state: State, attempt: Attempt, report: Finished) -> None:
    """Decide what an ended attempt makes of its job."""
    outcome, job = report.outcome, attempt.job
    if outcome is AttemptOutcome.SUCCEEDED:
        job_ended(state, job, JobState.SUCCEEDED, "", report.message)
    elif job.cancel_requested:
        job_ended(state, job, JobState.CANCELLED, "CANCELLED", job.message)
    elif outcome in PLATFORM_OUTCOMES or outcome is AttemptOutcome.CANCELLED:
        # A stop nobody asked for is the platform's doing, as a lost node is. One that was ordered says nothing against the job.
        reason = "NODE_LOST" if outcome is AttemptOutcome.CANCELLED else outcome.name
        if outcome is not attempt.stop_outcome:
            job.losses += 1
        if job.losses > state.settings.max_losses:
            message = f"Lost {job.losses} times; not tried again. The last time: {report.message}"
            job_ended(state, job, JobState.FAILED, "TOO_MANY_LOSSES", message)
        else:
            _carry_over(attempt)
            # Without a word of the agent's, what was said when the stop was ordered is why.
            message = report.message or (job.message if outcome is attempt.stop_outcome else "")
            state.set_state(job, JobState.QUEUED, reason, message, kind=reason)
    elif outcome in RETRIABLE_OUTCOMES and job.failures < job.spec.max_retries:
        _carry_over(attempt)
        _retry(state, job, report)
    else:
        job.failures += 1
        job_ended(state, job, FINAL_STATE[outcome], outcome.name, report.message)


def _carry_over(attempt: Attempt) -> None:
    """Count what the attempt's checkpoint saves of its run time: the next attempt begins from there."""
    if attempt.start_ms:
        attempt.job.done_ms += max(0, min(attempt.saved_ms, attempt.end_ms) - attempt.start_ms)


def _retry(state: State, job: Job, report: Finished) -> None:
    job.failures += 1
    tries = f"Retry {job.failures} of {job.spec.max_retries}"
    wait_ms = min(job.spec.backoff_ms << (job.failures - 1), MAX_BACKOFF_MS) if job.spec.backoff_ms else 0
    if wait_ms:
        job.eligible_ms = state.now() + wait_ms
        message = f"{tries} in {wait_ms / 1000:g} s, after: {report.message}"
        state.set_state(job, JobState.HELD, "BACKOFF", message, kind="RETRY")
        state.add_timer(job)
    else:
        state.set_state(job, JobState.QUEUED, "RETRY", f"{tries}, after: {report.message}", kind="RETRY")


def job_ended(state: State, job: Job, final: JobState, reason: str, message: str) -> None:
    """Put a job in its final state, and then everything that waited for it where it now belongs."""
    worklist = [(job, final, reason, message)]
    while worklist:
        ended, its_state, its_reason, its_message = worklist.pop()
        if ended.state in TERMINAL:
            continue
        drop_unstarted(state, ended)
        state.set_state(ended, its_state, its_reason, its_message)
        _drop_waits(state, ended)
        if ended.array is not None:
            array = ended.array
            _task_ended(array, ended)
            state.touch(array)
            _reopen_array(state, array)
            # An array without tasks left ends like any job, in the next turn of this loop.
            worklist.extend(_array_end(array))
        for dependent in state.dependents.pop(ended.job_id, {}).values():
            if dependent.state is not JobState.HELD or dependent.waits_for is None:
                continue
            dependent.waits_for.discard(ended.job_id)
            if its_state is not JobState.SUCCEEDED and _needs_success(dependent, ended.job_id):
                text = f"Job {ended.job_id} ended {its_state.name}, and this job was to run only after its success."
                worklist.append((dependent, JobState.CANCELLED, "DEPENDENCY_FAILED", text))
            elif not dependent.waits_for:
                dependent.waits_for = None
                state.set_state(dependent, JobState.QUEUED)


def _needs_success(job: Job, other: str) -> bool:
    return any(d.job_id == other and d.condition is DependencyCondition.AFTER_OK for d in job.spec.dependencies)


def _drop_waits(state: State, job: Job) -> None:
    """An ended job waits for nothing."""
    for other in job.waits_for or ():
        waiting = state.dependents.get(other)
        if waiting is not None:
            waiting.pop(job.job_no, None)
            if not waiting:
                del state.dependents[other]
    job.waits_for = None


# --- arrays -------------------------------------------------------------------------------------------------------------


def _task_ended(array: Job, task: Job) -> None:
    if task.state is JobState.SUCCEEDED:
        array.array_succeeded += 1
    elif task.state is JobState.CANCELLED:
        array.array_cancelled += 1
    else:
        array.array_failed += 1
    if array.live_tasks is not None:
        array.live_tasks.pop(task.job_no, None)


def _array_end(array: Job) -> list[tuple[Job, JobState, str, str]]:
    if array.array_ended < array.array_size or array.state in TERMINAL:
        return []
    size = array.array_size
    if array.array_failed:
        return [(array, JobState.FAILED, "TASKS_FAILED", f"{array.array_failed} of {size} tasks failed.")]
    if array.array_cancelled:
        message = (
            array.message if array.cancel_requested else f"{array.array_cancelled} of {size} tasks were cancelled."
        )
        return [(array, JobState.CANCELLED, "CANCELLED", message)]
    return [(array, JobState.SUCCEEDED, "", "")]


def drop_unstarted(state: State, array: Job) -> None:
    """Count the tasks of an array that were never started as cancelled; nothing for any other job."""
    unstarted = array.array_size - array.array_next
    if unstarted:
        array.array_next = array.array_size
        array.array_cancelled += unstarted
        state.count_live(array, -unstarted)
        state.queue.remove(array)
        state.touch(array)


def end_array_if_done(state: State, array: Job) -> None:
    """End an array whose tasks have all ended."""
    for ended in _array_end(array):
        job_ended(state, *ended)


def _reopen_array(state: State, array: Job) -> None:
    """An array that stepped out of the queue at its limit of parallel tasks stands in it again when it has room."""
    if array in state.queue:
        state.queue.changed(array)
    elif array.startable_tasks > 0:
        if array.reason == BUDGET:
            # What the ended task did not use may be enough for the next.
            array.reason = array.message = ""
        state.enqueue(array)
