"""How far a simulated job has come: what an attempt adds to it, and what is lost when the attempt is stopped or its node is gone.

Work is counted in milliseconds at reference speed (``Policy.speed_milli``: 1000).
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.states import AttemptOutcome
from scheduler.simulation.workload import SimJob

REFERENCE_SPEED = 1000


@dataclass(slots=True)
class Progress:
    """The work a job has left, and its attempt if ``attempt`` is not 0.

    ``speed_milli`` is how fast the attempt works; ``stop_ms`` when it was told to stop (-1: it was not), after which it saves
    its work and does no more; ``end_ms`` when it ends by itself.
    """

    job: SimJob
    left_ms: int
    attempt: int = 0
    start_ms: int = 0
    speed_milli: int = REFERENCE_SPEED
    stop_ms: int = -1
    end_ms: int = 0

    @staticmethod
    def of(job: SimJob) -> Progress:
        """Of a job that has not begun."""
        return Progress(job, max(1, job.runtime_ms))

    def begin(self, attempt: int, now_ms: int, speed_milli: int) -> AttemptOutcome:
        """An attempt starts; answers how it will end at ``end_ms``, if nobody stops it."""
        self.attempt, self.start_ms, self.speed_milli, self.stop_ms = attempt, now_ms, speed_milli, -1
        needed_ms = max(1, -(-self.left_ms * REFERENCE_SPEED // speed_milli))
        self.end_ms = now_ms + min(needed_ms, self.job.limit_ms)
        if needed_ms > self.job.limit_ms:
            return AttemptOutcome.TIMED_OUT
        return AttemptOutcome.SUCCEEDED if self.job.succeeds else AttemptOutcome.FAILED

    def interrupted(self, now_ms: int, noticed: bool) -> int:
        """The attempt is over before its end; answers up to which instant its work is saved (``start_ms``: nothing is).

        With notice (an eviction) a job that saves no more often does so then; a lost node takes what was not saved with it.
        """
        stop_ms = self.stop_ms if self.stop_ms >= 0 else now_ms
        saved_ms = stop_ms if noticed else self.start_ms
        if self.job.checkpoint_ms:
            saved_ms = stop_ms - (stop_ms - self.start_ms) % self.job.checkpoint_ms
        done_ms = (saved_ms - self.start_ms) * self.speed_milli // REFERENCE_SPEED
        before_ms, whole_ms = self.left_ms, max(1, self.job.runtime_ms)
        self.left_ms = min(whole_ms, max(1, before_ms - done_ms) + self.job.restart_cost_ms)
        self.attempt = 0
        # What has to be done again was not saved, as far as the scheduler can tell.
        kept_ms = max(0, before_ms - self.left_ms) * REFERENCE_SPEED // self.speed_milli
        return min(saved_ms, self.start_ms + kept_ms)

    def remaining_ms(self, now_ms: int) -> int:
        """How long it would run from now on, if nobody stopped it: the truth, which only an oracle may tell."""
        return max(1, self.end_ms - now_ms if self.attempt else min(self.left_ms, self.job.limit_ms))
