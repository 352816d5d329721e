"""Where a job stands, as a plain value."""

from __future__ import annotations

import dataclasses

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.errors import JobCancelled, JobError, JobFailed, JobTimedOut

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})
PREFIX = "JOB_STATE_"


def state_name(state: common_pb2.JobState.ValueType | int) -> str:
    """Return "RUNNING" for JOB_STATE_RUNNING; a number that this version does not know as text."""
    try:
        return common_pb2.JobState.Name(state).removeprefix(PREFIX)  # type: ignore[arg-type]
    except ValueError:
        return str(state)


@dataclasses.dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as it stood when asked. Times are in milliseconds since 1970 (UTC); 0: not yet."""

    id: str
    name: str
    state: str
    """"HELD", "QUEUED", "STARTING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED" or "TIMED_OUT"."""
    reason: str
    message: str
    institution: str
    project: str
    user: str
    region: str
    pool: str
    attempt: int
    exit_code: int
    exit_signal: int
    submit_time_ms: int
    start_time_ms: int
    end_time_ms: int
    proto: jobs_pb2.Job = dataclasses.field(repr=False, compare=False)
    """Everything else, as the contract has it."""

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.state == "SUCCEEDED"

    @property
    def sentence(self) -> str:
        """How it stands, for people."""
        text = f"Job {self.id} ({self.name}) {_VERBS.get(self.state, self.state.lower())}"
        if self.state == "FAILED" and not self.message:
            text += f" by signal {self.exit_signal}" if self.exit_signal else f" with exit code {self.exit_code}"
        return f"{text}: {self.message}" if self.message else f"{text}."


_VERBS = {
    "HELD": "is held",
    "QUEUED": "is queued",
    "STARTING": "is starting",
    "RUNNING": "runs",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "was cancelled",
    "TIMED_OUT": "ran out of time",
}


def info_of(job: jobs_pb2.Job) -> JobInfo:
    """Read the contract's message."""
    return JobInfo(
        id=job.id,
        name=job.spec.name,
        state=state_name(job.state),
        reason=job.reason,
        message=job.message,
        institution=job.spec.institution,
        project=job.spec.project,
        user=job.user,
        region=job.region,
        pool=job.pool,
        attempt=job.attempt,
        exit_code=job.exit_code,
        exit_signal=job.exit_signal,
        submit_time_ms=job.submit_time_ms,
        start_time_ms=job.start_time_ms,
        end_time_ms=job.end_time_ms,
        proto=job,
    )


def failure_of(info: JobInfo) -> JobError:
    """The error for a job that ended otherwise than with success; its ``exit_code`` tells the fate as a shell would.

    The program's own code when that is 1 to 125, 128 + the signal's number, 130 when cancelled, 124 when out of time.
    """
    kind, code = {"CANCELLED": (JobCancelled, 130), "TIMED_OUT": (JobTimedOut, 124)}.get(info.state, (JobFailed, 1))
    if kind is JobFailed and 1 <= info.exit_code <= 125:
        code = info.exit_code
    elif kind is JobFailed and 1 <= info.exit_signal <= 64:
        code = 128 + info.exit_signal
    return kind(info.sentence, reason=info.reason, job_id=info.id, exit_code=code)
