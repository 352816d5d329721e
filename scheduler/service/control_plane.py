"""The live server's core: the engine behind asyncio, with its store, sessions and watchers. Implements ``contract.Service``."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from scheduler.domain.errors import FailedPrecondition, NotFound, SuanliError, Unavailable
from scheduler.domain.records import (
    AttemptRecord,
    EventRecord,
    JobRecord,
    LedgerRecord,
    RequestRecord,
)
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import TERMINAL, JobState
from scheduler.metering.prices import PriceBook
from scheduler.planning.explanation import Explanation
from scheduler.planning.policy import Policy
from scheduler.planning.runtimes import RuntimeModel
from scheduler.planning.warming import warm_up
from scheduler.service import statements
from scheduler.service.accounting import Accounting, load_totals
from scheduler.service.administration import Administration
from scheduler.service.audit_log import AuditLog
from scheduler.service.auditing import Signer
from scheduler.service.committing import Committer
from scheduler.service.contract import CostEstimates, JobExplanation, Submission, Submitted, Usage
from scheduler.service.data import DataGovernance
from scheduler.service.engine import Engine
from scheduler.service.explaining import with_forecast
from scheduler.service.job import Job
from scheduler.service.observe import Observer
from scheduler.service.ports import (
    Clock,
    EventQuery,
    IdSource,
    JobQuery,
    Leadership,
    LedgerQuery,
    SpecCodec,
    Store,
    UsageQuery,
    UsageSum,
)
from scheduler.service.prices import estimate_job
from scheduler.service.sessions import LiveSession, Sessions
from scheduler.service.state import Settings, Turn
from scheduler.service.statements import StatementFacts
from scheduler.service.storing import ArtifactHoldings
from scheduler.service.submitting import check_same_request
from scheduler.service.using import accrued, without_late
from scheduler.service.watching import EventHub

log = logging.getLogger(__name__)
T = TypeVar("T")
TICK_S = 1.0
LEADER_TTL_MS = 15_000
STOP_S = 10.0
MAX_ATTEMPTS_SHOWN = 100
FORECAST_SECONDS = 1.0
"""A forecast may go on for so long before it extrapolates."""


class ControlPlane(Administration, Accounting, AuditLog, DataGovernance, ArtifactHoldings):
    """One process of the control plane: a standby until ``start`` returns, then the leader until it fails or stops."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdSource,
        codec: SpecCodec,
        policy: Policy,
        settings: Settings,
        observer: Observer | None = None,
        signer: Signer | None = None,
    ) -> None:
        AuditLog.__init__(self, signer)
        ArtifactHoldings.__init__(self)
        self._new_engine: Callable[[], Engine] = lambda: Engine(
            clock, ids, codec, policy, settings, observer, RuntimeModel()
        )
        self.engine = self._new_engine()
        self._store = store
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="suanli-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="suanli-writer")
        self._tasks: list[asyncio.Task[None]] = []
        self._leader = False
        self._leads_until_s = 0.0
        self._forecasting = asyncio.Lock()
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Set when this process can no longer lead; it must end then, and start anew."""

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this process serves."""
        return self._leader

    async def start(self) -> None:
        """Wait for the leadership, rebuild the memory, and begin."""
        await self._read(self._store.migrate)
        # Not while it leads: the first time on a machine, compiling takes longer than a lease.
        await self._read(warm_up)
        # The end of another process cannot be awaited, so it is asked for again and again.
        while (leadership := await self._read(self._acquire)) is None:  # noqa: ASYNC110
            await asyncio.sleep(LEADER_TTL_MS / 3000)
        self._run(self._renew(leadership.epoch))
        stored = await self._read(self._store.load)
        # In a thread, so that the lease is renewed meanwhile: with millions of jobs it takes longer than a lease. And in an
        # engine of its own, because this one may be asked for gauges meanwhile.
        engine = self._new_engine()
        await self._read(lambda: engine.rebuild(stored, leadership.epoch))
        self.totals = await self._read(lambda: load_totals(self._store))
        if self.failure.done():
            raise self.failure.result()
        self.engine = engine
        self._hub = EventHub(self._read_events, stored.last_event_seq)
        self._committer = Committer(
            self.engine, self._store, self._writer, stored.last_commit_no, self._deliver, self._fail, self._surely_leads
        )
        self._sessions = Sessions(self.engine, self._committer.changed)
        self._run(self._committer.run())
        self._run(self._tick())
        if every_ms := self.engine.state.settings.verify_ledger_every_ms:
            self._run(self.keep_verifying(every_ms / 1000))
            self._run(self.keep_verifying_audit(every_ms / 1000))
        self._leader = True
        self._committer.changed()
        jobs = self.engine.state.live_jobs
        log.info("leading with epoch %d: %d unfinished jobs", leadership.epoch, jobs)

    async def stop(self) -> None:
        """Step down: end the streams, write what is journalled, give the leadership back.

        Waits no longer than ``STOP_S`` for a store that is away: what was not written was not acknowledged either.
        """
        was_leader, self._leader = self._leader, False
        try:
            if was_leader:
                self._sessions.end_all()
                self._hub.close()
                self.keep_audit(at_once=True)
                await asyncio.wait_for(self._committer.durable(), STOP_S)
        except (TimeoutError, SuanliError) as error:
            log.warning("stopping without writing what was not acknowledged: %r", error)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if was_leader and not self.failure.done():
            try:
                await self._between_commits(lambda: self._store.release_leadership(self.engine.state.epoch))
            except Unavailable as error:
                log.warning("the leadership was not given back and ends by itself: %s", error)
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)

    def _acquire(self) -> Leadership | None:
        asked_s = time.monotonic()
        leadership = self._store.acquire_leadership(self._holder, LEADER_TTL_MS)
        self._leads_until_s = asked_s + LEADER_TTL_MS / 1000
        return leadership

    def _surely_leads(self) -> bool:
        return time.monotonic() < self._leads_until_s

    def _run(self, work: Coroutine[None, None, None]) -> None:
        """Run one of the loops this process cannot lead without: when it breaks, the process fails."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._loop_ended)
        self._tasks.append(task)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("a loop of the control plane broke", exc_info=error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._leader:
            self._leader = False
            self._sessions.end_all()
            self._hub.close()
        if not self.failure.done():
            self.failure.set_result(error)

    async def _tick(self) -> None:
        while True:
            due_ms = self.engine.next_timer_ms
            wait_s = TICK_S if due_ms is None else min(TICK_S, max(0.01, (due_ms - self.engine.state.now()) / 1000))
            await asyncio.sleep(wait_s)
            self.engine.tick()
            self.keep_audit()
            self._committer.changed()

    async def _renew(self, epoch: int) -> None:
        while True:
            await asyncio.sleep(LEADER_TTL_MS / 3000)
            asked_s = time.monotonic()
            try:
                await self._between_commits(lambda: self._store.renew_leadership(epoch, LEADER_TTL_MS))
                self._leads_until_s = asked_s + LEADER_TTL_MS / 1000
            except Unavailable as error:
                if type(error) is not Unavailable:
                    self._fail(error)
                    return
                # The lease may run out meanwhile; if another process leads by then, the next commit is refused.
                log.warning("the leadership could not be renewed: %s", error)

    def _deliver(self, turn: Turn) -> None:
        self.totals.add(turn.batch.ledger)
        self._sessions.deliver(turn)
        self._hub.publish(turn.batch.events)

    # --- helpers ----------------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _read_events(self, query: EventQuery) -> list[EventRecord]:
        return await self._read(lambda: self._store.events(query))

    def _require_leader(self) -> None:
        if not self._leader:
            raise Unavailable("This process is not the leader; try again in a moment.", reason="NOT_LEADER")

    async def _between_commits(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the writer thread, where no commit runs at the same time."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _settled(self, work: Callable[[], T]) -> T:
        """Read from the store what is there once everything so far is durable."""
        self._require_leader()
        await self._committer.durable()
        return await self._read(work)

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        self._require_leader()
        result = work()
        await self._committer.durable()
        return result

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Submitted:
        """See ``Service.submit``."""
        self._require_leader()
        engine = self.engine
        ended: dict[str, JobRecord] = {}
        earlier = await self._earlier(submission) or await self._ended_dependencies(submission, ended)
        if earlier is not None:
            return Submitted(await self._ids_of(earlier), True)
        job_ids = engine.submit(submission, ended)
        if not submission.validate_only:
            await self._committer.durable()
        return Submitted(job_ids, False)

    async def _earlier(self, submission: Submission) -> RequestRecord | None:
        """The earlier submission with the same request_id; asks the store where memory does not remember them all."""
        earlier = self.engine.find_request(submission)
        if earlier is None and submission.request_id and not self.engine.state.requests_complete:
            user, request_id = submission.user, submission.request_id
            earlier = await self._read(lambda: self._store.find_request(user, request_id))
            if earlier is not None:
                check_same_request(earlier, submission)
        return earlier

    async def _ended_dependencies(self, submission: Submission, ended: dict[str, JobRecord]) -> RequestRecord | None:
        """Read into ``ended`` those dependencies that memory does not hold; returns with every one either there or in memory.

        Others go on meanwhile: a dependency may end, and the same submission may come again. So it looks until nothing was
        missing at the last look, and the result is the submission with the same request_id that came meanwhile, if any.
        """
        known = {d.job_id for spec in submission.specs for d in spec.dependencies if d.batch_index < 0}
        looked_up: set[str] = set()
        while unknown := [job_id for job_id in known - looked_up if job_id not in self.engine.state.jobs]:
            looked_up.update(unknown)
            records = await self._settled(lambda ids=unknown: self._store.get_jobs(ids))  # type: ignore[misc]
            ended.update((record.job_id, record) for record in records)
        return self.engine.find_request(submission)

    async def _ids_of(self, request: RequestRecord) -> list[str]:
        records = await self._settled(lambda: self._store.jobs_by_number(request.first_job_no, request.job_count))
        return [record.job_id for record in records]

    async def cancel(self, job_ids: Sequence[str], user: str, reason: str) -> tuple[list[str], list[str]]:
        """See ``Service.cancel``."""
        records = {record.job_id: record for record in await self.get_jobs(job_ids)}
        live = [job_id for job_id in job_ids if records[job_id].state not in TERMINAL]
        unstarted = [job_id for job_id in live if "." in job_id and job_id not in self.engine.state.jobs]
        for job_id in unstarted:
            array_id = job_id.rpartition(".")[0]
            if array_id in self.engine.state.jobs:
                raise NotFound(
                    f"Task {job_id} has not been started yet and cannot be cancelled alone; cancel the array {array_id}.",
                    reason="TASK_NOT_STARTED",
                    field="job_ids",
                )
        cancelling = self.engine.cancel(live, user, reason)
        await self._committer.durable()
        ended = set(job_ids) - set(cancelling)
        return cancelling, [job_id for job_id in job_ids if job_id in ended]

    async def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """See ``Service.get_jobs``. A task that was not started yet is shown as its array stands."""
        records = {r.job_id: r for r in await self._settled(lambda: self._store.get_jobs(job_ids))}
        missing = [job_id for job_id in job_ids if job_id not in records]
        if missing:
            arrays = {job_id.rpartition(".")[0] for job_id in missing} - {""}
            found = {r.job_id: r for r in await self._read(lambda: self._store.get_jobs(sorted(arrays)))}
            # A task may have been started between the two looks, and would be taken for one that never was.
            records |= {r.job_id: r for r in await self._read(lambda: self._store.get_jobs(missing))}
            for job_id in [job_id for job_id in missing if job_id not in records]:
                records[job_id] = _unstarted_task(job_id, found.get(job_id.rpartition(".")[0]))
        return [records[job_id] for job_id in job_ids]

    async def attempts_of(self, job_id: str) -> list[AttemptRecord]:
        """See ``Service.attempts_of``."""
        return await self._settled(lambda: self._store.attempts_of(job_id, MAX_ATTEMPTS_SHOWN))

    async def list_jobs(self, query: JobQuery) -> list[JobRecord]:
        """See ``Service.list_jobs``."""
        return await self._settled(lambda: self._store.list_jobs(query))

    async def explain(self, job_id: str, what_if: JobSpec | None = None) -> JobExplanation:
        """See ``Service.explain``."""
        self._require_leader()
        engine = self.engine
        job = engine.state.jobs.get(job_id)
        if job is not None:
            if what_if is None:
                explained = engine.explainer.explain(engine.policy, job)
            else:
                explained = engine.explainer.explain_changed(engine.policy, job, what_if)
            return await self._with_forecast(explained, what_if is not None, job)
        record = (await self.get_jobs([job_id]))[0]
        if what_if is not None:
            raise FailedPrecondition(
                f"{job_id} does not wait, or is a task of an array that was not started; ask of the array instead.",
                reason="NOT_WAITING",
                field="what_if",
            )
        if record.array_id and record.state not in TERMINAL:
            of_array = await self.explain(record.array_id)
            return JobExplanation(record, of_array.explanation, of_array.waiting_for)
        text = f"It is not waiting: it ended {JobState(record.state).name}."
        return JobExplanation(record, Explanation("NONE", text), ())

    async def explain_spec(self, spec: JobSpec, user: str) -> JobExplanation:
        """See ``Service.explain_spec``."""
        await self._check_spec(spec, user, "spec")
        engine = self.engine
        return await self._with_forecast(engine.explainer.explain_spec(engine.policy, spec, user), True, None)

    async def estimate(self, spec: JobSpec, user: str) -> CostEstimates:
        """See ``Service.estimate``."""
        not_covered = ""
        try:
            await self._check_spec(spec, user, "job")
        except FailedPrecondition as error:
            if error.reason != "BUDGET_EXCEEDED":
                raise
            not_covered = error.message
        engine = self.engine
        found = await self._change(lambda: estimate_job(engine.state, engine.policy, spec, user))
        return found._replace(not_covered=not_covered)

    async def _check_spec(self, spec: JobSpec, user: str, field: str) -> None:
        try:
            await self.submit(Submission(user, [spec], validate_only=True))
        except SuanliError as error:
            error.field = error.field.replace("jobs[0]", field, 1)
            raise

    async def _with_forecast(self, explained: JobExplanation, what_if: bool, job: Job | None) -> JobExplanation:
        """Replay in another thread, one replay at a time and for no longer than a second."""
        engine = self.engine
        forecast = engine.explainer.forecast(engine.policy, explained, what_if, job if what_if else None)
        await self._committer.durable()
        if forecast is None:
            return explained
        loop = asyncio.get_running_loop()
        async with self._forecasting:
            return await self._read(
                lambda: with_forecast(explained, forecast, _for_seconds(loop.time, FORECAST_SECONDS))
            )

    async def watch(self, query: EventQuery) -> AsyncIterator[tuple[list[EventRecord], int]]:
        """See ``Service.watch``."""
        self._require_leader()
        async for page in self._hub.watch(query):
            yield page

    # --- usage ------------------------------------------------------------------------------------------------------

    async def usage(self, query: UsageQuery, include_running: bool = False, *, sums: bool = True) -> Usage:
        """See ``Service.usage``: closed and running allocations as of one instant."""
        self._require_leader()
        state = self.engine.state
        as_of_ms, sequence = state.now(), state.counters.ledger_seq
        running = accrued(state, query, as_of_ms) if include_running else []
        await self._committer.durable()

        def read() -> list[UsageSum]:
            found = self._store.usage_sums(query)
            late: list[LedgerRecord] = []
            while page := self._store.ledger(
                LedgerQuery(query.institution, query.project, after=late[-1].sequence if late else sequence)
            ):
                late += page
            return without_late(found, late, query)

        found = await self._between_commits(read) if sums else []
        return Usage(found, running, as_of_ms, sequence)

    def price_book(self) -> PriceBook:
        """See ``Service.price_book``."""
        return self.engine.state.metering.prices

    async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """See ``Service.ledger``."""
        return await self._settled(lambda: self._store.ledger(query))

    async def statement(self, institution: str, month: str) -> StatementFacts:
        """See ``Service.statement``."""
        self._require_leader()
        heading = statements.heading_of(self.engine.state, institution, month)
        prices, _ = statements.metered(self.engine.state)
        await self._committer.durable()
        reading = await self._between_commits(lambda: statements.read(self._store, institution, month))
        if not heading.final:
            heading = replace(heading, head=reading.head)
        return StatementFacts(heading, reading.sums, reading.earlier, reading.days, prices)

    # --- agents -----------------------------------------------------------------------------------------------------

    def open_agent_session(self, region: str) -> LiveSession:
        """See ``Service.open_agent_session``."""
        self._require_leader()
        return self._sessions.open(region)


def _for_seconds(clock: Callable[[], float], seconds: float) -> Callable[[], bool]:
    """True for so long since it was first asked."""
    until: list[float] = []

    def go_on() -> bool:
        if not until:
            until.append(clock() + seconds)
        return clock() < until[0]

    return go_on


def _unstarted_task(job_id: str, array: JobRecord | None) -> JobRecord:
    index = job_id.rpartition(".")[2]
    if array is None or not array.array_size or not index.isascii() or not index.isdigit() or str(int(index)) != index:
        raise NotFound(f'There is no job "{job_id}".', reason="JOB_NOT_FOUND", field="job_id")
    if int(index) >= array.array_size:
        raise NotFound(
            f"Array {array.job_id} has tasks 0 to {array.array_size - 1}.", reason="JOB_NOT_FOUND", field="job_id"
        )
    ended = array.state in TERMINAL or int(index) < array.array_next
    state = JobState.CANCELLED if ended else JobState.HELD if array.state == JobState.HELD else JobState.QUEUED
    return array._replace(
        job_id=job_id,
        state=int(state),
        start_ms=0,
        end_ms=array.end_ms if ended else 0,
        array_id=array.job_id,
        array_index=int(index),
        array_size=0,
    )
