"""Why a job waits, in words and in data."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.states import ACTIVE, PENDING, JobState
from scheduler.planning.explain import explain as explain_place
from scheduler.planning.policy import Policy
from scheduler.planning.types import Explanation
from scheduler.service.contract import JobExplanation
from scheduler.service.job import Job
from scheduler.service.queue import pending
from scheduler.service.state import State
from scheduler.service.submitting import sentence


def explain(state: State, policy: Policy, job: Job) -> JobExplanation:
    """Explain a job that has not ended."""
    record = job.record()
    if job.state is JobState.HELD:
        waiting = tuple(sorted(job.waits_for or ()))
        code = "BACKOFF" if job.reason == "BACKOFF" else "DEPENDENCY"
        message = job.message
        if code == "DEPENDENCY":
            message = f"Waits for {len(waiting)} other job{'s' if len(waiting) != 1 else ''}: {', '.join(waiting[:5])}"
            message += ", …" if len(waiting) > 5 else "."
        return JobExplanation(record, Explanation(code, message), waiting)
    if job.array_size and job.state not in PENDING and job not in state.queue:
        return JobExplanation(record, _array(job), ())
    if job.state in ACTIVE and not job.array_size:
        where = f"{job.region}/{job.pool}"
        verb = "is starting" if job.state is JobState.STARTING else "runs"
        text = f"It is not waiting: attempt {job.attempt} {verb} in {where}."
        if job.cancel_requested:
            text = f"It is being stopped: attempt {job.attempt} in {where} has been told to end."
        elif job.live is not None and job.live.stop_outcome is not None:
            text = f"Attempt {job.attempt} in {where} has been told to end, and the job is queued again then. {job.message}"
        return JobExplanation(record, Explanation("NONE", text), ())
    if job not in state.queue:
        return JobExplanation(record, _array(job), ())
    place = pending(job)
    explained = explain_place(state.snapshot(), policy, state.now(), (job.group, place))
    return JobExplanation(record, replace(explained, message=sentence(explained.message)), ())


def _array(job: Job) -> Explanation:
    live = len(job.live_tasks or ())
    if job.array_next < job.array_size:
        limit = job.spec.array_max_parallel
        text = f"{live} tasks hold places, the array's own limit of {limit}; the next starts when one of them ends."
        return Explanation("ARRAY_LIMIT", text)
    return Explanation("NONE", f"All tasks have been started; {live} have not ended.")
