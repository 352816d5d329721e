"""Why a job waits and when it will probably start, in words and in data."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import ACTIVE, PENDING, JobState
from scheduler.planning.explain import explain, explain_instead
from scheduler.planning.explanation import Blocker, ExpectedStart, Explanation, Remedy
from scheduler.planning.forecast import Forecast
from scheduler.planning.frozen import freeze
from scheduler.planning.plan import Planner
from scheduler.planning.policy import Policy
from scheduler.planning.rank import rank_of
from scheduler.planning.types import GroupKey, PendingJob, Snapshot
from scheduler.planning.what_if import ChangedQueue
from scheduler.service.contract import JobExplanation
from scheduler.service.job import Job
from scheduler.service.predicting import expected_ms
from scheduler.service.queue import pending
from scheduler.service.state import State
from scheduler.service.submitting import sentence

FORECAST_KEPT_MS = 5_000
"""For so long one forecast answers for all jobs, whatever happens: what it says moves no faster."""


class Explainer:
    """Explains the jobs of a state with its planner, which it leaves as it was."""

    def __init__(self, state: State, planner: Planner) -> None:
        self._state, self._planner = state, planner
        self._forecast: tuple[Forecast, Policy] | None = None

    def explain(self, policy: Policy, job: Job) -> JobExplanation:
        """Explain a job that has not ended."""
        record = job.record()
        if job.state is JobState.HELD:
            waiting = tuple(sorted(job.waits_for or ()))
            return JobExplanation(record, _held(job, waiting), waiting)
        if job not in self._state.queue:
            return JobExplanation(record, _active(job) if job.state in ACTIVE and not job.array_size else _array(job))
        asked = (job.group, pending(job))
        told = explain(self._planner, self._seen(), policy, self._state.now(), asked)
        return JobExplanation(record, _in_sentences(told), job_ids=self._names(told, job.spec.institution), asked=asked)

    def explain_changed(self, policy: Policy, job: Job, spec: JobSpec) -> JobExplanation:
        """Explain a job that waits as it would be with another specification, as if nothing held it back from the queue."""
        if job.state not in PENDING and job not in self._state.queue:
            raise FailedPrecondition(
                f"{job.job_id} does not wait any more, so nothing can be asked for instead.",
                reason="NOT_WAITING",
                field="what_if",
            )
        gone = (job.group, job.job_no) if job in self._state.queue else None
        changed = copy(job)
        changed.spec, changed.line = spec, None
        return self._supposed(policy, changed, gone)._replace(job=job.record())

    def explain_spec(self, policy: Policy, spec: JobSpec, user: str) -> JobExplanation:
        """Explain a job that was not submitted; its tenants must be known."""
        state = self._state
        job = Job(state.counters.job_no + 1, "", spec, user, JobState.QUEUED, state.now())
        return self._supposed(policy, job, None)

    def _supposed(self, policy: Policy, job: Job, gone: tuple[GroupKey, int] | None) -> JobExplanation:
        asked = (job.group, self._place(policy, job))
        told = explain_instead(self._planner, self._seen(), policy, self._state.now(), asked, gone)
        return JobExplanation(None, _in_sentences(told), job_ids=self._names(told, job.spec.institution), asked=asked)

    def _seen(self) -> Snapshot:
        """The state, with what has changed since the planner was last given it: a round that comes later starts from here."""
        return self._state.snapshot(self._state.take_changes())

    def _place(self, policy: Policy, job: Job) -> PendingJob:
        """The place in the queue of a job that does not stand there as it is; its rank by the formula."""
        spec = job.spec
        expected = expected_ms(self._state.predictor, job)
        rank = rank_of(policy.order, job.submit_ms, spec.priority, spec.shape.total, expected)
        return pending(job)._replace(rank=rank, expected_ms=expected)

    def _names(self, told: Explanation, institution: str) -> dict[int, str]:
        """The ids of the jobs that are named, as far as the job's institution may know of them."""
        numbers = [blocker.numbers["for_job_no"] for blocker in told.blockers if "for_job_no" in blocker.numbers]
        jobs = (self._state.jobs_by_no.get(number) for number in numbers)
        return {job.job_no: job.job_id for job in jobs if job is not None and job.spec.institution == institution}

    # --- when ---------------------------------------------------------------------------------------------------------

    def forecast(self, policy: Policy, explained: JobExplanation, what_if: bool, gone: Job | None) -> Forecast | None:
        """What can say when a job that was explained will start, from a copy of the state; None when no replay is needed.

        ``gone``: the queued job in whose place it was explained. Its work may be done in another thread, for one job at a time.
        """
        asked = explained.asked
        if asked is None or explained.explanation.expected.basis in ("PLAN", "PREEMPTION"):
            return None
        state = self._state
        now_ms = state.now()
        if what_if:
            away = (gone.group, gone.job_no) if gone is not None and gone in state.queue else None
            snapshot = state.snapshot()
            snapshot = replace(snapshot, queue=ChangedQueue(snapshot.queue, away, asked))
            return Forecast(freeze(snapshot, asked), policy, now_ms)
        if self._forecast is not None:
            kept, under = self._forecast
            fresh = now_ms - kept.now_ms <= FORECAST_KEPT_MS and under is policy
            if fresh and kept.knows(*asked):
                return kept
        made = Forecast(freeze(state.snapshot(), asked), policy, now_ms)
        self._forecast = (made, policy)
        return made


def with_forecast(explained: JobExplanation, forecast: Forecast, go_on: Callable[[], bool]) -> JobExplanation:
    """The explanation with the start that the forecast expects."""
    assert explained.asked is not None
    told = explained.explanation
    expected = forecast.expected_start(*explained.asked, told, go_on)
    return explained._replace(explanation=replace(told, expected=expected))


def _in_sentences(told: Explanation) -> Explanation:
    """The planner's words as sentences."""
    return replace(
        told,
        message=sentence(told.message),
        blockers=tuple(replace(each, message=sentence(each.message)) for each in told.blockers),
        remedies=tuple(_remedy(each) for each in told.remedies),
    )


def _remedy(remedy: Remedy) -> Remedy:
    return replace(remedy, message=sentence(remedy.message))


def blocked(code: str, message: str, **numbers: int) -> Explanation:
    """What keeps a job from the queue, which is not planning's business."""
    expected = ExpectedStart(message="no estimate before it stands in the queue")
    return Explanation(code, message, blockers=(Blocker(code, message, numbers),), expected=expected)


def _held(job: Job, waiting: tuple[str, ...]) -> Explanation:
    if job.reason == "BACKOFF":
        return blocked("BACKOFF", job.message, eligible_ms=job.eligible_ms)
    if job.reason in ("BUDGET", "GRANT"):
        return blocked(job.reason, job.message)
    message = f"Waits for {len(waiting)} other job{'s' if len(waiting) != 1 else ''}: {', '.join(waiting[:5])}"
    return blocked("DEPENDENCY", message + (", …" if len(waiting) > 5 else "."), jobs=len(waiting))


def _active(job: Job) -> Explanation:
    where = f"{job.region}/{job.pool}"
    verb = "is starting" if job.state is JobState.STARTING else "runs"
    text = f"It is not waiting: attempt {job.attempt} {verb} in {where}."
    if job.cancel_requested:
        text = f"It is being stopped: attempt {job.attempt} in {where} has been told to end."
    elif job.live is not None and job.live.stop_outcome is not None:
        text = f"Attempt {job.attempt} in {where} has been told to end, and the job is queued again then. {job.message}"
    return Explanation("NONE", text)


def _array(job: Job) -> Explanation:
    live = len(job.live_tasks or ())
    if job.reason in ("BUDGET", "GRANT"):
        return blocked(job.reason, job.message, live_tasks=live)
    if job.array_next < job.array_size:
        limit = job.spec.array_max_parallel
        text = f"{live} tasks hold places, the array's own limit of {limit}; the next starts when one of them ends."
        return blocked("ARRAY_LIMIT", text, live_tasks=live, limit=limit)
    return Explanation("NONE", f"All tasks have been started; {live} have not ended.")
