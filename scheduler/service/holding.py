"""Taking a job that may not start now out of the queue, and letting it back in."""

from __future__ import annotations

from scheduler.domain.states import JobState
from scheduler.service.job import Job
from scheduler.service.state import State


def hold_back(state: State, job: Job, reason: str, message: str) -> None:
    """Take a queued job out of the queue, for a reason."""
    if job.array_size and job.state is JobState.RUNNING:
        # An array is where its tasks are; those that have not begun wait.
        state.queue.remove(job)
        state.claims.drop(job.job_no)
        job.reason, job.message = reason, message
        state.emit(job, reason)
    else:
        state.set_state(job, JobState.HELD, reason, message, kind=reason)


def let_go(state: State, job: Job, reason: str) -> None:
    """Queue a job again that was held for this reason; others are left alone."""
    if job.reason != reason:
        return
    if job.state is JobState.HELD:
        state.set_state(job, JobState.QUEUED)
    elif job not in state.queue and job.startable_tasks > 0:
        job.reason = job.message = ""
        state.enqueue(job)
