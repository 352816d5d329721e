"""How long jobs will run: what the predictor is told, and what planning is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scheduler.domain.states import FINAL_STATE, RUNTIME_OUTCOMES
from scheduler.planning.runtimes import Accuracy, JobFeatures
from scheduler.planning.types import RunningView
from scheduler.service.job import Job
from scheduler.service.model import Attempt
from scheduler.service.ports import Prediction, RuntimePredictor


class _Remaining(NamedTuple):
    expected_remaining_ms: int
    p90_ms: int


class LimitPredictor:
    """Expects every job to run to its limit."""

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        """Learn nothing."""

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Prediction:
        """The time until the limit."""
        left_ms = max(1, limit_ms - elapsed_ms)
        return _Remaining(left_ms, left_ms)

    def accuracy(self) -> Accuracy:
        """It claims nothing."""
        return Accuracy(0, 0, 0)


def features_of(job: Job) -> JobFeatures:
    """What a job's runtime is predicted from."""
    spec, shape = job.spec, job.spec.shape
    gpu_milli = shape.request.gpu_milli * shape.replicas
    return JobFeatures(spec.institution, spec.project, job.user, spec.name, gpu_milli)


def expected_ms(predictor: RuntimePredictor, job: Job) -> int:
    """How long a waiting job will probably run from its next start on, given what its checkpoint holds already."""
    limit_ms = job.spec.max_runtime_ms
    done_ms = job.done_ms
    found = predictor.predict(features_of(job), done_ms + limit_ms, done_ms)
    # The very same integer where it can be: a million jobs that are expected to run to their limit then share it.
    return limit_ms if found.expected_remaining_ms >= limit_ms else max(1, found.expected_remaining_ms)


def learn(predictor: RuntimePredictor, attempt: Attempt) -> None:
    """Tell the predictor of a job that has just ended with this attempt, if its end says how long such a job runs."""
    outcome, job = attempt.outcome, attempt.job
    if outcome in RUNTIME_OUTCOMES and job.state is FINAL_STATE[outcome] and attempt.start_ms:
        predictor.observe(features_of(job), job.done_ms + attempt.end_ms - attempt.start_ms)


class RunningRuntimes:
    """Implements ``scheduler.planning.types.Runtimes`` on the live attempts."""

    def __init__(self, predictor: RuntimePredictor, attempts: Mapping[int, Attempt]) -> None:
        self._predictor = predictor
        self._attempts = attempts

    def remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """The expected time until it ends by itself, at least 1 and at most until its limit."""
        return max(1, min(self._ask(running, now_ms).expected_remaining_ms, running.limit_end_ms - now_ms))

    def long_remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """The time within which nine of ten such attempts have ended, at least 1 and at most until the limit."""
        return max(1, min(self._ask(running, now_ms).p90_ms, running.limit_end_ms - now_ms))

    def _ask(self, running: RunningView, now_ms: int) -> Prediction:
        # Asked of an attempt that has ended meanwhile, by whoever plans on an older snapshot: what was saved before it is forgotten.
        attempt = self._attempts.get(running.launch_seq)
        done_ms = attempt.job.done_ms if attempt is not None else 0
        group = running.group
        features = JobFeatures(group.institution, group.project, group.user, running.name, group.shape.total.gpu_milli)
        elapsed_ms = done_ms + max(0, now_ms - running.start_ms)
        return self._predictor.predict(features, done_ms + running.limit_end_ms - running.start_ms, elapsed_ms)
