"""Job states and the one table of legal transitions.

``docs/explanation/lifecycle.md`` is the same table in words. The integer values are those of ``suanli.v1.JobState`` and
``suanli.v1.AttemptOutcome``, and are what the store keeps: never renumber them.
"""

from __future__ import annotations

from enum import IntEnum

from scheduler.domain.errors import Internal


class JobState(IntEnum):
    """Where a job stands."""

    HELD = 1
    QUEUED = 2
    STARTING = 3
    RUNNING = 4
    SUCCEEDED = 5
    FAILED = 6
    CANCELLED = 7
    TIMED_OUT = 8


class AttemptOutcome(IntEnum):
    """How an attempt ended."""

    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    PREEMPTED = 5
    NODE_LOST = 6
    OUT_OF_MEMORY = 7
    SPAWN_FAILED = 8
    ENVIRONMENT_FAILED = 9


class EntryKind(IntEnum):
    """What a ledger record is; the values are those of ``suanli.v1.LedgerKind``."""

    USAGE = 1
    REVERSAL = 2
    CORRECTION = 3
    CREDIT = 4


class AttemptState(IntEnum):
    """Where an attempt stands: granted, with all processes started, or ended (its allocation released)."""

    STARTING = 1
    RUNNING = 2
    ENDED = 3


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})
ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING})
PENDING = frozenset({JobState.HELD, JobState.QUEUED})

# From each state, the states one step may lead to, with what makes the step.
TRANSITIONS: dict[JobState, dict[JobState, str]] = {
    JobState.HELD: {
        JobState.QUEUED: "the last dependency, back-off or approval it waited for is met",
        JobState.CANCELLED: "cancelled, or a dependency ended so that it can never run",
    },
    JobState.QUEUED: {
        JobState.HELD: "something it needs was withdrawn",
        JobState.STARTING: "an allocation was granted",
        # An array is one record: it follows its tasks.
        JobState.RUNNING: "an array's first task started",
        JobState.CANCELLED: "cancelled",
    },
    JobState.STARTING: {
        JobState.RUNNING: "every replica's process has been started",
        JobState.QUEUED: "the attempt was lost, preempted or failed and may be tried again",
        JobState.HELD: "the attempt failed and is tried again after a back-off",
        JobState.SUCCEEDED: "it ended before its start was reported",
        JobState.FAILED: "it could not be started and no retry is left",
        JobState.CANCELLED: "cancelled, and the region confirmed that nothing runs",
        JobState.TIMED_OUT: "its time passed before its start was reported",
    },
    JobState.RUNNING: {
        JobState.QUEUED: "the attempt was lost, preempted or failed and may be tried again",
        JobState.HELD: "the attempt failed and is tried again after a back-off",
        JobState.SUCCEEDED: "every replica exited with code 0",
        JobState.FAILED: "a replica failed and no retry is left",
        JobState.CANCELLED: "cancelled, and the region confirmed the stop",
        JobState.TIMED_OUT: "the maximal runtime passed",
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
    JobState.TIMED_OUT: {},
}

# An ended attempt leads to this state when its job is not tried again.
FINAL_STATE: dict[AttemptOutcome, JobState] = {
    AttemptOutcome.SUCCEEDED: JobState.SUCCEEDED,
    AttemptOutcome.FAILED: JobState.FAILED,
    AttemptOutcome.TIMED_OUT: JobState.TIMED_OUT,
    AttemptOutcome.CANCELLED: JobState.CANCELLED,
    AttemptOutcome.PREEMPTED: JobState.FAILED,
    AttemptOutcome.NODE_LOST: JobState.FAILED,
    AttemptOutcome.OUT_OF_MEMORY: JobState.FAILED,
    AttemptOutcome.SPAWN_FAILED: JobState.FAILED,
    AttemptOutcome.ENVIRONMENT_FAILED: JobState.FAILED,
}

# Outcomes that are the platform's doing: the job is queued again and no retry is used up.
PLATFORM_OUTCOMES = frozenset({AttemptOutcome.PREEMPTED, AttemptOutcome.NODE_LOST})
# Outcomes a retry may mend; running out of time is taken as the user's own limit.
RETRIABLE_OUTCOMES = frozenset(
    {
        AttemptOutcome.FAILED,
        AttemptOutcome.OUT_OF_MEMORY,
        AttemptOutcome.SPAWN_FAILED,
        AttemptOutcome.ENVIRONMENT_FAILED,
    }
)
# Outcomes after which the runtime of a job that ended so says how long such a job takes: by itself, or by its own limit. A job that was
# cancelled, lost or could not be set up was cut short.
RUNTIME_OUTCOMES = frozenset(
    {AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.OUT_OF_MEMORY, AttemptOutcome.TIMED_OUT}
)


def check_transition(before: JobState, after: JobState) -> None:
    """Raise ``Internal`` unless the table allows the step from ``before`` to ``after``."""
    if after not in TRANSITIONS[before]:
        raise Internal(f"illegal job transition {before.name} -> {after.name}", reason="ILLEGAL_TRANSITION")
