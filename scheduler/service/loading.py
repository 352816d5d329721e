"""Rebuilding the memory from the store, when a process becomes the leader."""

from __future__ import annotations

from scheduler.domain.records import JobRecord
from scheduler.domain.states import JobState
from scheduler.service import policies, prices
from scheduler.service.budgets import BUDGET
from scheduler.service.governance import data_set_of, grant_of
from scheduler.service.governing import GRANT
from scheduler.service.job import Job
from scheduler.service.model import Attempt, Node, Region
from scheduler.service.ports import StoredState
from scheduler.service.state import Counters, State
from scheduler.service.tenants import add_institution, add_project, add_quota


def rebuild(state: State, stored: StoredState, epoch: int) -> None:
    """Fill an empty ``state`` with what the store holds. Journals nothing."""
    state.epoch = epoch
    state.start_time_at(stored.last_time_ms)
    state.counters = Counters(stored.last_job_no, stored.last_event_seq, stored.last_ledger_seq, stored.last_launch_seq)
    _governance(state, stored)
    if stored.policy is not None:
        # Before the jobs: where they stand in the queue is the policy's to say.
        policies.use_stored(state, stored.policy)
    _metering(state, stored)
    state.audit.load(stored.audit_newest, stored.audit_head_newest)
    state.storage.load(stored.holdings, stored.stored, stored.storage_marks)
    _tenants(state, stored)
    for region in stored.regions:
        state.regions[region.region] = Region(
            region=region.region,
            create_ms=region.create_ms,
            spool_id=region.spool_id,
            event_seq=region.acked_event_seq,
            agent_version=region.agent_version,
            last_seen_ms=region.last_seen_ms,
        )
    for node in stored.nodes:
        state.show_node(Node.from_record(node))
    state.holdings.load(stored.fair_usage)
    for sample in stored.runtimes:
        state.predictor.observe(sample.features, sample.runtime_ms)
    _jobs(state, stored.jobs)
    by_no = state.jobs_by_no
    for attempt in sorted(stored.attempts, key=lambda record: record.launch_seq):
        _attempt(state, Attempt.from_record(attempt, by_no[attempt.job_no]))
    state.holdings.show_all(state.now())
    for request in sorted(stored.requests, key=lambda record: record.time_ms):
        state.requests[request.user, request.request_id] = request
    state.requests_complete = stored.requests_complete
    state.round_needed = True


def _governance(state: State, stored: StoredState) -> None:
    governance = state.governance
    for data_set in stored.data_sets:
        governance.register.put(data_set_of(data_set))
    for grant in stored.grants:
        governance.register.put_grant(grant_of(grant))
    if governance.register:
        state.use_policy(state.base_policy)


def _metering(state: State, stored: StoredState) -> None:
    metering = state.metering
    metering.load(stored.ledger_hash, stored.months)
    prices.use_stored(state, stored.price_lists)
    metering.budgets.load(stored.budgets, stored.budget_spending, stored.last_budget_notice, metering.prices)


def _tenants(state: State, stored: StoredState) -> None:
    for institution in stored.institutions:
        add_institution(state, institution)
    for project in stored.projects:
        add_project(state, project)
    for quota in stored.quotas:
        add_quota(state, quota)
    state.users = {record.user: record for record in stored.users}
    state.api_keys = {record.prefix: record for record in stored.api_keys}
    state.enrolments = {record.token_hash: record for record in stored.enrolments}


def _jobs(state: State, records: list[JobRecord]) -> None:
    # An array's number is lower than its tasks', so in this order it is there before them.
    for record in sorted(records, key=lambda r: r.job_no):
        array = state.jobs[record.array_id] if record.array_id else None
        job = Job.from_record(record, array.spec if array else state.codec.decode(record.spec), array)
        if array is not None and array.live_tasks is not None:
            array.live_tasks[job.job_no] = job
        state.index_job(job)
        if not job.array_id:
            state.count_live(job, job.array_size - job.array_ended if job.array_size else 1)
        _wait(state, job)
    _forget_ended_dependencies(state)
    for job in state.jobs_by_no.values():
        waiting = job.state is JobState.QUEUED or (job.state is JobState.RUNNING and job.array_size)
        if waiting and job.startable_tasks > 0:
            state.enqueue(job)


def _attempt(state: State, attempt: Attempt) -> None:
    if attempt.stop_outcome is not None:
        attempt.stopped_by_ms = state.now() + attempt.stop_grace_ms
    state.index_attempt(attempt)
    state.metering.budgets.keep(attempt, state.now())


def _wait(state: State, job: Job) -> None:
    """Let a held job wait for what it waited for: its live dependencies, or the end of its back-off.

    A dependency that is not live has been reckoned with already: its end and what followed were one transaction.
    """
    if job.state is not JobState.HELD:
        return
    if job.reason == "BACKOFF":
        state.add_timer(job)
        return
    if job.reason == GRANT:
        # The first look at the time lets it go, if it may.
        return
    if job.reason == BUDGET:
        state.metering.budgets.wait_again(job)
        return
    job.waits_for = set()
    for dependency in job.spec.dependencies:
        job.waits_for.add(dependency.job_id)
        state.dependents.setdefault(dependency.job_id, {})[job.job_no] = job


def _forget_ended_dependencies(state: State) -> None:
    """Once all jobs are indexed: drop waits for jobs that are not live."""
    for other in [job_id for job_id in state.dependents if job_id not in state.jobs]:
        for job in state.dependents.pop(other).values():
            if job.waits_for is not None:
                job.waits_for.discard(other)
