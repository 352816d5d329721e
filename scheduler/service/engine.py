"""The control plane's decisions: events in, a turn (rows to write, then commands to send) out.

Synchronous and deterministic given its clock and ids. The live server (``control_plane``) and the simulator drive this very
class; they differ only in what carries the events in and the turns out.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from scheduler.domain.agent import AgentMessage
from scheduler.domain.records import JobRecord, RequestRecord
from scheduler.domain.states import JobState
from scheduler.planning.policy import Policy
from scheduler.service import agents, explaining, funding, governing, loading, posting, rounds, submitting
from scheduler.service.contract import JobExplanation, Submission
from scheduler.service.observe import Observer
from scheduler.service.ports import Clock, IdSource, RuntimePredictor, SpecCodec, StoredState
from scheduler.service.state import Settings, State, Turn


class Engine:
    """One leader's memory and its use cases. ``policy`` is in force until one is put (``policies.put_policy``)."""

    def __init__(
        self,
        clock: Clock,
        ids: IdSource,
        codec: SpecCodec,
        policy: Policy,
        settings: Settings,
        observer: Observer | None = None,
        predictor: RuntimePredictor | None = None,
    ) -> None:
        self.state = State(clock, ids, codec, policy, settings, observer, predictor)
        self.explainer = explaining.Explainer(self.state, self.state.planner)
        self._last_session = 0

    @property
    def policy(self) -> Policy:
        """The policy in force: the newest one stored, else the one this engine was made with."""
        return self.state.policy

    def rebuild(self, stored: StoredState, epoch: int) -> None:
        """Take over what the store holds, as the leader of ``epoch``."""
        loading.rebuild(self.state, stored, epoch)

    # --- use cases --------------------------------------------------------------------------------------------------

    def find_request(self, submission: Submission) -> RequestRecord | None:
        """The earlier submission with the same request_id, if memory knows it."""
        return submitting.find_request(self.state, submission)

    def submit(self, submission: Submission, ended: Mapping[str, JobRecord]) -> list[str]:
        """Accept all jobs or none."""
        return submitting.submit(self.state, self.policy, submission, ended)

    def cancel(self, job_ids: Sequence[str], user: str, reason: str) -> list[str]:
        """Ask for cancellation; returns those that had not ended."""
        return submitting.cancel(self.state, job_ids, user, reason)

    def explain(self, job_id: str) -> JobExplanation | None:
        """Why a job waits; None when memory does not know it (it has ended, or never was)."""
        job = self.state.jobs.get(job_id)
        return self.explainer.explain(self.policy, job) if job else None

    # --- agents -----------------------------------------------------------------------------------------------------

    def open_session(self) -> int:
        """A number for a new agent session; it counts once its Hello is received."""
        self._last_session += 1
        return self._last_session

    def receive(self, region: str, session: int, message: AgentMessage) -> None:
        """One message of an agent."""
        agents.receive(self.state, region, session, message)

    def is_listened_to(self, region: str, session: int) -> bool:
        """Whether what this session says counts."""
        return agents.is_listened_to(self.state, region, session)

    def close_session(self, region: str, session: int) -> None:
        """An agent's stream has ended."""
        agents.close_session(self.state, region, session)

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let time do its work: back-offs end, silent regions are noticed. Call it every second or so, and when due."""
        state = self.state
        now = state.now()
        while state.timers and state.timers[0][0] <= now:
            _, job_no, failures = heapq.heappop(state.timers)
            job = state.jobs_by_no.get(job_no)
            if job is not None and job.state is JobState.HELD and job.failures == failures:
                state.set_state(job, JobState.QUEUED)
        agents.check_silence(state)
        state.holdings.refresh(now)
        state.claims.drop_old(state.now())
        posting.post_days(state)
        funding.tick(state)
        governing.tick(state)
        if state.queue.size_total and now - state.last_round_ms >= state.settings.max_round_gap_ms:
            state.round_needed = True

    @property
    def next_timer_ms(self) -> int | None:
        """When the next back-off ends."""
        return self.state.timers[0][0] if self.state.timers else None

    def round(self) -> int:
        """Plan and apply once, if anything has happened that may let a job start; returns how many were started."""
        return rounds.run_round(self.state) if self.state.round_needed else 0

    def take_turn(self) -> Turn:
        """What has to be made durable, and what to say then."""
        return self.state.take_turn()
