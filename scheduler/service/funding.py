"""Keeping jobs to their budgets: who may start, who is held until there is more, and who is stopped before a budget is overrun."""

from __future__ import annotations

from scheduler.domain.states import AttemptOutcome
from scheduler.planning.types import PoolKey
from scheduler.service.budgets import BUDGET, Account, Shortfall, latest_end_ms, place_of
from scheduler.service.covering import cost_text, left_text, name_of, places
from scheduler.service.holding import hold_back, let_go
from scheduler.service.job import Job
from scheduler.service.state import State
from scheduler.service.submitting import stop_attempt

STOP_AHEAD_MS = 3_000
"""A stop is ordered so much before it would be too late: time is looked at every second or so."""


def hold(state: State, waiting: Job, shortfall: Shortfall, pool: PoolKey) -> None:
    """Take a job that its budget does not cover out of the queue, until there is more."""
    account = shortfall.account
    account.wait(waiting.job_no, shortfall)
    message = _message(state, shortfall, pool) + _elsewhere(state, waiting, pool)
    hold_back(state, waiting, BUDGET, message)


def tick(state: State) -> None:
    """Let those go whose budget has room again, and stop what would overrun one."""
    budgets = state.metering.budgets
    if not budgets.accounts:
        return
    now = state.now()
    for account in budgets.ready(now):
        for job_no in account.take_ready():
            job = state.jobs_by_no.get(job_no)
            if job is not None:
                let_go(state, job, BUDGET)
    for account in budgets.overdrawn():
        _stop_in_time(state, account, now)


def _stop_in_time(state: State, account: Account, now: int) -> None:
    """Stop all that is charged to the budget when what it will have cost after its notice reaches the amount."""
    budget, budgets = account.budget, state.metering.budgets
    running = [state.attempts[number] for number in account.kept]
    exact = account.spent
    for attempt in running:
        grace_ms = attempt.job.spec.grace_ms
        end_ms = min(latest_end_ms(attempt, now), now + grace_ms + STOP_AHEAD_MS)
        begin_ms = attempt.metered_ms or attempt.grant_ms
        exact += budgets.most(budget, attempt.job.spec, place_of(attempt), begin_ms, end_ms)
    if exact < budget.exact_amount:
        return
    for attempt in running:
        if attempt.stop_outcome is None:
            job = attempt.job
            job.reason, job.message = "STOPPING", f"Stopped because {name_of(budget)} is used up."
            state.emit(job, "BUDGET_USED_UP")
            stop_attempt(state, job, AttemptOutcome.PREEMPTED, job.message)
            budgets.keep(attempt, now)


def _elsewhere(state: State, job: Job, pool: PoolKey) -> str:
    """Where its budgets would cover it. Planning does not know of budgets, so that it has to be told to go there."""
    now, budgets = state.now(), state.metering.budgets
    found = {
        f"{place.region}/{place.pool}"
        for place in places(state, job.spec)
        if (place.region, place.pool) != pool and budgets.shortfall(job, place, now) is None
    }
    return f" It would be covered in {', '.join(sorted(found))}: ask for a pool by its name." if found else ""


def _message(state: State, shortfall: Shortfall, pool: PoolKey) -> str:
    budget = shortfall.account.budget
    if shortfall.outside:
        return f"It might run outside the time of {name_of(budget)}; ask for less time, or for a budget that covers it."
    available = left_text(state, budget, shortfall.account.available)
    return (
        f"It may cost {cost_text(state, budget, shortfall.needed)} in {pool}, and {name_of(budget)} has {available} that is "
        "neither spent nor kept for running jobs."
    )
