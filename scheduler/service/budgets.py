"""Budgets as they stand: what is spent by the ledger, what running attempts may yet cost, and who waits for more.

A job starts only when every hard budget it is charged to covers the most it can cost, and its running attempts' most is kept for them:
so a budget is not overrun, whatever they do. What can still overrun one is a change of prices or of the budget while they run, or a start
that takes long; ``overdrawn`` finds it before it happens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from scheduler.domain.records import BudgetNoticeRecord, BudgetRecord, BudgetSpendingRecord, LedgerRecord
from scheduler.domain.spec import JobSpec
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.money import Amounts
from scheduler.metering.prices import NO_RATE, Place, PriceBook
from scheduler.service.job import Job
from scheduler.service.model import Attempt

BUDGET = "BUDGET"
"""The reason of a job that waits for one."""
OUTSIDE = 1 << 200
"""More than any budget has."""


@dataclass(slots=True, eq=False)
class Account:
    """A budget and how it stands, in exact parts. ``threshold``: the highest of which notice was given."""

    budget: Budget
    spent: int = 0
    threshold: int = 0
    kept: dict[int, int] = field(default_factory=dict)
    """By launch number, the most that a running attempt may yet be charged: beyond what of it is in the ledger."""
    waiting: dict[int, int] = field(default_factory=dict)
    """By number, the jobs that were not started for want of this much; ``OUTSIDE``: of a budget for the time."""
    again: bool = False
    """Its terms or its time have changed: all that wait are looked at again."""
    kept_total: int = 0

    @property
    def available(self) -> int:
        """What is neither spent nor kept; below 0 when it is overrun, or may be."""
        return self.budget.exact_amount - self.spent - self.kept_total

    def keep(self, launch_seq: int, exact: int) -> None:
        """Keep this much, instead of what was kept, for an attempt; 0: nothing."""
        self.kept_total += exact - self.kept.pop(launch_seq, 0)
        if exact:
            self.kept[launch_seq] = exact

    def wait(self, job_no: int, shortfall: Shortfall) -> None:
        """A job waits for more."""
        self.waiting[job_no] = OUTSIDE if shortfall.outside else shortfall.needed

    def take_ready(self) -> list[int]:
        """Those, first come first, for whom there is enough now; they wait no more."""
        room, ready = self.available, []
        for job_no, needed in self.waiting.items():
            if self.again or needed <= room:
                ready.append(job_no)
                room -= needed
        for job_no in ready:
            del self.waiting[job_no]
        self.again = False
        return ready

    def record(self) -> BudgetSpendingRecord:
        """The row to store."""
        return BudgetSpendingRecord(self.budget.budget, str(self.spent), self.threshold)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A budget that does not cover a job: the most it would be charged, and what there is. ``outside``: it would run outside the budgets' time."""

    account: Account
    needed: int
    outside: bool = False


class Budgets:
    """All budgets of the platform."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.last_notice = 0
        self._of: dict[str, list[Account]] = {}
        """By institution, those that are not closed."""
        self._prices = PriceBook()
        self._looked_ms = 0
        self._unsaved: dict[str, Account] = {}
        self._new_notices: list[BudgetNoticeRecord] = []

    def __bool__(self) -> bool:
        return bool(self._of)

    # --- changes ----------------------------------------------------------------------------------------------------

    def load(
        self,
        budgets: Iterable[BudgetRecord],
        spending: Iterable[BudgetSpendingRecord],
        last_notice: int,
        prices: PriceBook,
    ) -> None:
        """Take over from the store; what is kept for running attempts is told anew by ``keep``."""
        self._prices, self.last_notice = prices, last_notice
        for record in budgets:
            self.put(budget_of(record))
        for row in spending:
            account = self.accounts[row.budget]
            account.spent, account.threshold = int(row.spent), row.threshold

    def put(self, budget: Budget) -> Account:
        """A new budget, or new terms of one. What it has spent stays: see ``use_spent``."""
        account = self.accounts.get(budget.budget)
        if account is None:
            account = self.accounts[budget.budget] = Account(budget)
        account.budget = budget
        self._look_again(budget.institution)
        self._of = {}
        for each in self.accounts.values():
            if not each.budget.closed:
                self._of.setdefault(each.budget.institution, []).append(each)
        return account

    def use_spent(self, account: Account, spent: int, now_ms: int) -> None:
        """What the ledger says is spent, found anew; notice is given of what that passes, again of what it no longer did."""
        account.spent = spent
        account.threshold = min(account.threshold, account.budget.passed(spent))
        self._unsaved[account.budget.budget] = account
        self._notify(account, now_ms)

    def use_prices(self, prices: PriceBook) -> None:
        """Charge by these prices from now on; what is kept for running attempts has to be told anew."""
        self._prices = prices
        for account in self.accounts.values():
            account.again = True

    def _look_again(self, institution: str) -> None:
        for account in self.accounts.values():
            if account.budget.institution == institution:
                account.again = True

    def charge(self, record: LedgerRecord) -> None:
        """A record has been posted."""
        for account in self._of.get(record.institution, ()):
            budget = account.budget
            if budget.is_for(record.institution, record.project):
                exact = budget.charge_of(record, self._prices)
                if exact:
                    account.spent += exact
                    self._unsaved[budget.budget] = account
                    self._notify(account, record.posted_ms)

    def keep(self, attempt: Attempt, now_ms: int) -> None:
        """Keep the most that an attempt may yet be charged; call it whenever that may have changed."""
        spec = attempt.job.spec
        for account in self.charged(spec.institution, spec.project):
            account.keep(attempt.launch_seq, self._most(account.budget, attempt, now_ms))

    def keep_anew(self, institution: str, attempts: Iterable[Attempt], now_ms: int) -> None:
        """The terms of its budgets, or (empty: of all) prices, have changed: keep what running attempts may yet be charged."""
        for account in self.accounts.values():
            if institution in ("", account.budget.institution):
                # Also of one that has just been closed: nobody lets its attempts go any more.
                account.kept.clear()
                account.kept_total = 0
        for attempt in attempts:
            if institution in ("", attempt.job.spec.institution):
                self.keep(attempt, now_ms)

    def let_go(self, attempt: Attempt) -> None:
        """The attempt has ended and is in the ledger."""
        for account in self._of.get(attempt.job.spec.institution, ()):
            account.keep(attempt.launch_seq, 0)

    def _most(self, budget: Budget, attempt: Attempt, now_ms: int) -> int:
        begin_ms = attempt.metered_ms or attempt.grant_ms
        return self.most(budget, attempt.job.spec, place_of(attempt), begin_ms, latest_end_ms(attempt, now_ms))

    def _notify(self, account: Account, now_ms: int) -> None:
        budget = account.budget
        passed = budget.passed(account.spent)
        for threshold in budget.thresholds:
            if account.threshold < threshold <= passed:
                self.last_notice += 1
                spent, amount = budget.nearest(account.spent), budget.amount
                self._new_notices.append(
                    BudgetNoticeRecord(
                        self.last_notice,
                        budget.budget,
                        budget.institution,
                        threshold,
                        now_ms,
                        spent,
                        amount,
                        int(budget.unit),
                    )
                )
        account.threshold = max(account.threshold, passed)

    def wait_again(self, job: Job) -> None:
        """A job that waited for a budget before a restart: it is looked at again."""
        for account in self.accounts.values():
            if account.budget.institution == job.spec.institution:
                account.waiting[job.job_no], account.again = OUTSIDE, True
                return

    # --- questions --------------------------------------------------------------------------------------------------

    def charged(self, institution: str, project: str) -> Iterator[Account]:
        """The open budgets that a project's jobs are charged to."""
        for account in self._of.get(institution, ()):
            if account.budget.is_for(institution, project):
                yield account

    def most(self, budget: Budget, spec: JobSpec, place: Place, from_ms: int, to_ms: int) -> int:
        """What holding the job's resources at a place in [from, to) would be charged to a budget, at the prices known now."""
        total, exact = spec.shape.total, 0
        for start_ms, end_ms, prices in self._prices.windows(
            max(from_ms, budget.from_ms), min(to_ms, budget.to_ms)
        ):  # fmt: skip
            rate = prices.rate_of(place) if prices else NO_RATE
            discount_bp = prices.discount_bp(spec.institution, spec.project) if prices else 0
            ms = end_ms - start_ms
            amounts = Amounts(total.cpu_milli * ms, total.memory_mib * ms, total.gpu_milli * ms)
            exact += budget.charge(amounts, prices, rate, discount_bp)
        return exact

    def shortfall(self, job: Job, place: Place, now_ms: int) -> Shortfall | None:
        """The first hard budget that does not cover the most the job may cost if it starts there now."""
        spec = job.spec
        if spec.institution not in self._of:
            return None
        end_ms = now_ms + spec.max_runtime_ms + spec.grace_ms
        hard = [each for each in self.charged(spec.institution, spec.project) if each.budget.hard]
        for account in hard:
            needed = self.most(account.budget, spec, place, now_ms, end_ms)
            if needed > account.available:
                return Shortfall(account, needed)
        gap = _gap(hard, now_ms, end_ms)
        return Shortfall(gap, 0, outside=True) if gap is not None else None

    def ready(self, now_ms: int) -> Iterator[Account]:
        """Those for whom somebody waits who may have enough now."""
        then_ms, self._looked_ms = self._looked_ms, now_ms
        # What a job would cost has changed as well where another price list comes into force.
        repriced = self._prices.at(then_ms) is not self._prices.at(now_ms)
        for account in list(self.accounts.values()):
            if repriced or then_ms < account.budget.from_ms <= now_ms:
                self._look_again(account.budget.institution)
        for account in self.accounts.values():
            if account.waiting and (account.again or min(account.waiting.values()) <= account.available):
                yield account

    def overdrawn(self) -> Iterator[Account]:
        """Hard budgets that may be overrun by what is running."""
        for accounts in self._of.values():
            for account in accounts:
                if account.budget.hard and account.kept and account.available < 0:
                    yield account

    def take_records(self) -> tuple[list[BudgetSpendingRecord], list[BudgetNoticeRecord]]:
        """The rows that have to be written."""
        unsaved, self._unsaved = self._unsaved, {}
        notices, self._new_notices = self._new_notices, []
        return [account.record() for account in unsaved.values()], notices


def _gap(hard: list[Account], from_ms: int, to_ms: int) -> Account | None:
    """The budget whose time should cover what none of its kind (of the same projects) does; None when all is covered."""
    kinds: dict[frozenset[str], list[Account]] = {}
    for account in hard:
        kinds.setdefault(account.budget.projects, []).append(account)
    for accounts in kinds.values():
        at_ms = from_ms
        accounts.sort(key=lambda each: each.budget.from_ms)
        for account in accounts:
            if account.budget.from_ms <= at_ms < account.budget.to_ms:
                at_ms = account.budget.to_ms
        if at_ms < to_ms:
            return max(accounts, key=lambda each: each.budget.to_ms)
    return None


def place_of(attempt: Attempt) -> Place:
    """What decides an attempt's price."""
    spec = attempt.job.spec
    return Place(attempt.region, attempt.pool, attempt.accelerator, spec.priority, spec.preemptible)


def latest_end_ms(attempt: Attempt, now_ms: int) -> int:
    """When an attempt will have ended at the latest, if it starts now where it has not started yet."""
    spec = attempt.job.spec
    begin_ms = attempt.start_ms or max(attempt.grant_ms, now_ms)
    end_ms = begin_ms + spec.max_runtime_ms + spec.grace_ms
    return max(now_ms, min(end_ms, attempt.stopped_by_ms) if attempt.stopped_by_ms else end_ms)


def budget_of(record: BudgetRecord) -> Budget:
    """The budget of a stored row."""
    return Budget(
        budget=record.budget,
        institution=record.institution,
        projects=frozenset(json.loads(record.projects)),
        unit=BudgetUnit(record.unit),
        amount=record.amount,
        from_ms=record.from_ms,
        to_ms=record.to_ms,
        hard=bool(record.hard),
        thresholds=tuple(json.loads(record.thresholds)),
        title=record.title,
        author=record.author,
        create_ms=record.create_ms,
        closed=bool(record.closed),
    )


def record_of(budget: Budget) -> BudgetRecord:
    """The row to store."""
    return BudgetRecord(
        budget.budget,
        budget.institution,
        json.dumps(sorted(budget.projects)),
        int(budget.unit),
        budget.amount,
        budget.from_ms,
        budget.to_ms,
        int(budget.hard),
        json.dumps(budget.thresholds),
        budget.title,
        budget.author,
        budget.create_ms,
        int(budget.closed),
    )
