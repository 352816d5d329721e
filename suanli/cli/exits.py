"""Exit codes. ``submit --wait``, ``wait`` and ``logs --follow`` end with the job's own fate instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protos.suanli.v1 import common_pb2, jobs_pb2

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
DENIED: Final = 4
UNAVAILABLE: Final = 5
REFUSED: Final = 6
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "done; with --wait: the job succeeded",
    FAILED: "something else went wrong; with --wait: the job failed without an exit code of its own",
    USAGE: "the command line, the file or a value in it is wrong",
    NOT_FOUND: "there is no such thing, or none you may see",
    DENIED: "no key, a wrong key, or the key's role does not allow it",
    UNAVAILABLE: "the control plane cannot be reached, or does not answer in time",
    REFUSED: "right in itself, but not now: the name is taken, a quota is reached, the state does not allow it",
    TIMED_OUT: "with --wait: the job's max runtime, or the time given by --timeout, has passed",
    INTERRUPTED: "interrupted by Ctrl-C; with --wait also: the job was cancelled",
}
"""What each code means, as the reference prints it."""

ENDED: Final = frozenset(
    {
        common_pb2.JOB_STATE_SUCCEEDED,
        common_pb2.JOB_STATE_FAILED,
        common_pb2.JOB_STATE_CANCELLED,
        common_pb2.JOB_STATE_TIMED_OUT,
    }
)
"""The states a job does not leave."""


def has_ended(job: jobs_pb2.Job) -> bool:
    """Whether the job is in a state it will not leave."""
    return job.state in ENDED


def of_job(job: jobs_pb2.Job) -> int:
    """The exit code that tells the fate of a job that has ended.

    The program's own code when it failed with 1 to 125, and, as in a shell, 128 + the number of a signal that ended it.
    """
    if job.state == common_pb2.JOB_STATE_SUCCEEDED:
        return OK
    if job.state == common_pb2.JOB_STATE_TIMED_OUT:
        return TIMED_OUT
    if job.state == common_pb2.JOB_STATE_CANCELLED:
        return INTERRUPTED
    if 1 <= job.exit_code <= 125:
        return job.exit_code
    if 1 <= job.exit_signal <= 64:
        return 128 + job.exit_signal
    return FAILED


def of_jobs(jobs: Iterable[jobs_pb2.Job]) -> int:
    """The exit code for several jobs: that of the first one that did not succeed."""
    return next((code for code in map(of_job, jobs) if code != OK), OK)
