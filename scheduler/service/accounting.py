"""The use cases of finance on the live server; ``ControlPlane`` inherits them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from scheduler.domain.records import BudgetNoticeRecord, LedgerRecord, MonthRecord
from scheduler.domain.states import JobState
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.chain import digest_of
from scheduler.metering.money import Amounts
from scheduler.metering.segments import month_of
from scheduler.metering.totals import GROUP_BY, Total, TotalKey, Totals
from scheduler.service import corrections, months
from scheduler.service.auditing import tell
from scheduler.service.budgets import BUDGET, Account, place_of, record_of
from scheduler.service.contract import BudgetStatus, Correction, Metered, VerifyProgress
from scheduler.service.engine import Engine
from scheduler.service.ports import LedgerQuery, Store, UsageQuery
from scheduler.service.posting import open_segments
from scheduler.service.state import State
from scheduler.service.verification import Verification

T = TypeVar("T")
log = logging.getLogger(__name__)
VERIFY_FIRST_S = 3_600
VERIFY_PAUSE_S = 0.25
"""After each page of a verification that nobody waits for: it then takes a fifth of one core or less."""
MAX_BUDGETS = 10_000
_PAGE = 10_000
_TRIES = 20
_FIXED = {"institution": "institution", "unit": "unit", "from_ms": "beginning"}


class Accounting:
    """Corrections, months and budgets."""

    engine: Engine
    _store: Store

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        raise NotImplementedError

    async def _settled(self, work: Callable[[], T]) -> T:
        """Read from the store what is there once everything so far is durable."""
        raise NotImplementedError

    totals: Totals
    """Of what is durable."""

    async def metered(self) -> Metered:
        """See ``Service``."""
        state, now = self.engine.state, self.engine.state.now()
        running = [each for attempt in state.attempts.values() for each in open_segments(state, attempt, now)]
        metering = state.metering
        return Metered(self.totals.rows(), self.totals.sequence, running, metering.prices, metering.verified)

    async def _between_commits(self, work: Callable[[], T]) -> T:
        """Run in the writer's thread, where no commit runs at the same time."""
        raise NotImplementedError

    # --- corrections --------------------------------------------------------------------------------------------------

    async def correct_ledger(self, asked: Correction, institution: str, author: str) -> list[LedgerRecord]:
        """See ``Service``."""

        def read() -> tuple[LedgerRecord | None, list[LedgerRecord]]:
            found = self._store.ledger_after(asked.sequence - 1, 1)
            if not found or found[0].sequence != asked.sequence:
                return None, []
            return found[0], self._store.ledger_of([found[0].job_id])

        record, known = await self._settled(read)
        if record is None or (institution and record.institution != institution):
            raise NotFound(f"There is no ledger record {asked.sequence}.", reason="RECORD_NOT_FOUND", field="sequence")
        return await self._change(lambda: corrections.correct(self.engine.state, asked, record, known, author))

    async def verify_ledger(
        self, from_sequence: int, expected: tuple[int, bytes] | None
    ) -> AsyncIterator[VerifyProgress]:
        """See ``Service``."""
        state = self.engine.state
        upto = await self._settled(lambda: self._store.last_sequences()[1])
        run = await self._settled(lambda: Verification(self._store, state, from_sequence, expected, upto))
        while await self._settled(run.step):
            yield run.progress()
        await self._between_commits(run.finish)
        if run.whole:
            state.metering.verified = run.result(state.now())
        yield run.progress()

    async def keep_verifying(self, every_s: float, pause_s: float = VERIFY_PAUSE_S) -> None:
        """Verify the whole ledger again and again, so slowly that nobody is kept waiting, until cancelled."""
        await asyncio.sleep(min(VERIFY_FIRST_S, every_s))
        while True:
            try:
                async for progress in self.verify_ledger(0, None):
                    await asyncio.sleep(pause_s)
                    for fault in progress.faults:
                        log.critical("the ledger is not what it must be: %s: %s", fault.code, fault.message)
            except Unavailable as error:
                log.warning("the ledger could not be verified: %s", error)
            await asyncio.sleep(every_s)

    # --- months -------------------------------------------------------------------------------------------------------

    async def close_month(self, month: str, author: str) -> MonthRecord:
        """See ``Service``."""
        state = self.engine.state
        for _ in range(_TRIES):
            await self._change(lambda: months.post_month(state, month) if month < month_of(state.now()) else None)
            last = state.metering.last_posted.get(month, 0)
            periods = await self._settled(lambda: self._store.usage_sums(UsageQuery(group_by=("period",))))
            closed = months.check_closable(state, month, [each.key.period for each in periods])
            if closed is not None:
                return closed
            sums = await self._settled(lambda: self._store.usage_sums(UsageQuery(period=month)))
            records = await self._settled(lambda: self._store.count_posted(month))
            if state.metering.last_posted.get(month, 0) == last:
                return await self._change(partial(months.close, state, month, digest_of(sums), records, author))
        raise Unavailable(f"{month} is still being posted to; try again in a moment.", reason="MONTH_BUSY")

    async def list_months(self) -> list[MonthRecord]:
        """See ``Service``."""
        found = self.engine.state.metering.months
        return await self._change(lambda: [found[month] for month in sorted(found, reverse=True)])

    # --- budgets ------------------------------------------------------------------------------------------------------

    async def put_budget(self, budget: Budget, author: str, validate_only: bool) -> BudgetStatus:
        """See ``Service``."""
        state = self.engine.state
        budget = _checked(state, budget)
        if validate_only:
            return BudgetStatus(budget, 0, 0, 0, budget.amount, 0, 0, 0, *_currency(state, budget))
        spent, upto = 0, 0
        for _ in range(_TRIES):
            spent, upto = await self._settled(partial(_spent, self._store, state, budget, upto, spent))
            done = await self._change(partial(apply_budget, state, budget, author, spent, upto))
            if done is not None:
                return done
        raise Unavailable("The ledger is being posted to faster than it can be read; try again.", reason="LEDGER_BUSY")

    async def list_budgets(self, institution: str, include_past: bool) -> list[BudgetStatus]:
        """See ``Service``."""
        state = self.engine.state

        def read() -> list[BudgetStatus]:
            accounts = state.metering.budgets.accounts
            now = state.now()
            return [
                status_of(state, accounts[name])
                for name in sorted(accounts)
                if institution in ("", accounts[name].budget.institution)
                and (include_past or not (accounts[name].budget.closed or accounts[name].budget.to_ms <= now))
            ]

        return await self._change(read)

    async def budget_terms(self, institution: str) -> list[Budget]:
        """See ``Service``."""
        accounts = self.engine.state.metering.budgets.accounts

        def read() -> list[Budget]:
            found = [accounts[name].budget for name in sorted(accounts)]
            return [budget for budget in found if institution in ("", budget.institution)]

        return await self._change(read)

    async def list_budget_notices(
        self, institution: str, budget: str, before_number: int, limit: int
    ) -> list[BudgetNoticeRecord]:
        """See ``Service``."""
        return await self._settled(lambda: self._store.list_budget_notices(institution, budget, before_number, limit))


def load_totals(store: Store) -> Totals:
    """What is in the ledger, before anything more is posted."""
    rows = [
        Total(
            TotalKey._make(getattr(each.key, name) for name in GROUP_BY),
            Amounts(each.cpu_milli_ms, each.memory_mib_ms, each.gpu_milli_ms),
            each.cpu_used_milli_ms,
            each.gpu_used_milli_ms,
        )
        for each in store.usage_sums(UsageQuery(group_by=GROUP_BY))
    ]
    return Totals(rows, store.last_sequences()[1])


def _checked(state: State, budget: Budget) -> Budget:
    """The budget with its beginning: that of an existing one, or now, when it names none.

    ``NotFound`` for unknown tenants; ``FailedPrecondition`` for what cannot be changed, and money without a price list.
    """
    before = state.metering.budgets.accounts.get(budget.budget)
    if not budget.from_ms:
        budget = replace(budget, from_ms=before.budget.from_ms if before else state.now())
    _check_tenants(state, budget)
    if budget.to_ms <= budget.from_ms:
        raise InvalidArgument(
            "budget.to_ms: the budget ends before it begins; give a later instant.", field="budget.to_ms"
        )
    if before is None:
        if len(state.metering.budgets.accounts) >= MAX_BUDGETS:
            raise ResourceExhausted(
                f"There are {MAX_BUDGETS:,} budgets already.", reason="TOO_MANY_BUDGETS", field="budget"
            )
        return budget
    for name in ("institution", "unit", "from_ms"):
        if getattr(before.budget, name) != getattr(budget, name):
            raise FailedPrecondition(
                f'The {_FIXED[name]} of budget "{budget.budget}" cannot be changed; close it and make another.',
                reason="BUDGET_FIXED",
                field=f"budget.{name}",
            )
    return budget


def _check_tenants(state: State, budget: Budget) -> None:
    if budget.institution not in state.institutions:
        raise NotFound(
            f'There is no institution "{budget.institution}".',
            reason="INSTITUTION_NOT_FOUND",
            field="budget.institution",
        )
    for number, project in enumerate(sorted(budget.projects)):
        if (budget.institution, project) not in state.projects:
            raise NotFound(
                f'Institution "{budget.institution}" has no project "{project}".',
                reason="PROJECT_NOT_FOUND",
                field=f"budget.projects[{number}]",
            )
    if budget.unit is BudgetUnit.MONEY and not state.metering.prices:
        raise FailedPrecondition(
            "A budget of money needs a price list, which says the currency; put one first (`suanli price put`).",
            reason="NO_PRICE_LIST",
            field="budget.unit",
        )


def _spent(store: Store, state: State, budget: Budget, after: int, spent: int) -> tuple[int, int]:
    """What records after a number count for beside ``spent``, and the newest one read."""
    query = LedgerQuery(budget.institution, from_ms=budget.from_ms, to_ms=budget.to_ms, limit=_PAGE)
    last = store.last_sequences()[1]
    while page := store.ledger(replace(query, after=after)):
        after = page[-1].sequence
        spent += sum(
            budget.charge_of(each, state.metering.prices)
            for each in page
            if budget.is_for(each.institution, each.project)
        )
    return spent, max(last, after)


def apply_budget(state: State, budget: Budget, author: str, spent: int, upto: int) -> BudgetStatus | None:
    """Put the budget with what is spent by the ledger up to a record; None when memory does not reach back to it any more."""
    metering = state.metering
    missed = [each for each in metering.recent if each.sequence > upto]
    if len(missed) < state.counters.ledger_seq - upto:
        return None
    known = metering.budgets.accounts.get(budget.budget)
    before = record_of(known.budget) if known else None
    create_ms = before.create_ms if before else state.now()
    budget = replace(budget, author=author, create_ms=create_ms)
    account = metering.budgets.put(budget)
    spent += sum(
        budget.charge_of(each, metering.prices) for each in missed if budget.is_for(each.institution, each.project)
    )
    metering.budgets.use_spent(account, spent, state.now())
    metering.budgets.keep_anew(budget.institution, state.attempts.values(), state.now())
    record = record_of(budget)
    state.record.budgets.append(record)
    tell(state, "PutBudget", budget.budget, budget.institution, before, record)
    return status_of(state, account)


def status_of(state: State, account: Account) -> BudgetStatus:
    """How a budget stands now."""
    budget, budgets, now = account.budget, state.metering.budgets, state.now()
    running = committed = 0
    for number, kept in account.kept.items():
        attempt = state.attempts[number]
        begin_ms = attempt.metered_ms or attempt.grant_ms
        so_far = budgets.most(budget, attempt.job.spec, place_of(attempt), begin_ms, now)
        running += so_far
        # One whose region cannot be heard may have run longer than it should.
        committed += max(0, kept - so_far)
    used = account.spent + running
    elapsed_ms = min(now, budget.to_ms) - budget.from_ms
    left = budget.exact_amount - used
    # At its average speed so far.
    exhausted_ms = now + left * elapsed_ms // used if used > 0 and left > 0 and elapsed_ms > 0 else 0
    waiting = (state.jobs_by_no.get(number) for number in account.waiting)
    held = sum(
        job is not None and job.reason == BUDGET and job.state in (JobState.HELD, JobState.RUNNING) for job in waiting
    )
    return BudgetStatus(
        budget,
        spent=budget.up(account.spent),
        running=budget.up(running),
        committed=budget.up(committed),
        available=budget.down(budget.exact_amount - used - committed),
        threshold=account.threshold,
        held_jobs=held,
        exhausted_ms=exhausted_ms if now < exhausted_ms < budget.to_ms else 0,
        currency=_currency(state, budget)[0],
        digits=_currency(state, budget)[1],
    )


def _currency(state: State, budget: Budget) -> tuple[str, int]:
    newest = state.metering.prices.newest
    return (newest.currency, newest.digits) if newest and budget.unit is BudgetUnit.MONEY else ("", 3)
