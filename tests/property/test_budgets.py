"""Hard budgets are never overrun by jobs that start only when ``shortfall`` says nothing against it, whatever else happens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import AttemptState, JobState
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.money import HOUR_MS, HourlyPrice
from scheduler.metering.prices import Discount, Place, PriceBook, PriceList, Rate
from scheduler.service.budgets import Budgets, latest_end_ms, place_of
from scheduler.service.job import Job
from scheduler.service.model import Attempt
from scheduler.service.posting import open_segments
from scheduler.service.state import State
from tests.unit.service.harness import T0_MS, spec

MINUTE_MS = 60_000
END_MS = T0_MS + 200 * HOUR_MS
ACCELERATORS = ("", "A100")
PRICES = st.builds(HourlyPrice, st.integers(0, 10**8), st.integers(0, 10**6), st.integers(0, 10**9))
RATES = st.lists(
    st.builds(Rate, PRICES, PRICES, accelerators=st.sampled_from([(), ("A100",), ("",)])), min_size=1, max_size=3
)
AMOUNTS = st.integers(1, 40_000)


class Spending(RuleBasedStateMachine):
    """Several budgets over two projects of an institution; attempts of a few minutes to hours, posted at any time."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.seq = T0_MS, 0
        self.budgets = Budgets()
        self.attempts: dict[int, Attempt] = {}
        self.ledger: list[LedgerRecord] = []
        self.told: set[tuple[str, int]] = set()

    @initialize(
        units=st.lists(st.tuples(st.sampled_from(BudgetUnit), AMOUNTS, st.booleans()), min_size=1, max_size=4),
        rates=st.lists(RATES, min_size=1, max_size=3),
        discount_bp=st.integers(0, 10_000),
    )
    def begin(self, units: list[tuple[BudgetUnit, int, bool]], rates: list[list[Rate]], discount_bp: int) -> None:
        """Each list of rates is in force for some hours."""
        lists = [
            PriceList(
                number,
                "p",
                "CNY",
                2,
                T0_MS + (number - 1) * 5 * HOUR_MS,
                rates=tuple(each),
                discounts=(Discount("north", "exams", discount_bp),),
            )
            for number, each in enumerate(rates, 1)
        ]
        self.book = PriceBook(lists)
        self.state = cast(State, SimpleNamespace(metering=SimpleNamespace(prices=self.book)))
        self.budgets.use_prices(self.book)
        for number, (unit, amount, hard) in enumerate(units):
            projects = frozenset({"exams"}) if number % 2 else frozenset[str]()
            self.put(Budget(f"b{number}", "north", projects, unit, amount, T0_MS, END_MS, hard, (10, 50, 80, 100, 150)))

    def put(self, budget: Budget) -> None:
        """As the service puts one."""
        account = self.budgets.put(budget)
        spent = sum(budget.charge_of(r, self.book) for r in self.ledger if budget.is_for(r.institution, r.project))
        # Its amount or thresholds may be others now: what it passes again is told again.
        self.told = {each for each in self.told if each[0] != budget.budget}
        self.budgets.use_spent(account, spent, self.now)
        self.budgets.keep_anew("north", self.attempts.values(), self.now)

    @rule(
        target=running,
        project=st.sampled_from(["default", "exams"]),
        cpu=st.integers(1, 64_000),
        gpu=st.sampled_from([0, 250, 1_000, 8_000]),
        minutes=st.integers(1, 600),
        accelerator=st.sampled_from(ACCELERATORS),
    )
    def start(self, project: str, cpu: int, gpu: int, minutes: int, accelerator: str) -> int:
        """Nothing, when a budget does not cover it."""
        asked: Any = {"max_runtime_ms": minutes * MINUTE_MS, "grace_period_ms": 30_000}
        job_spec = spec(cpu=cpu, gpu=gpu, project=project, **asked)
        self.seq += 1
        job = Job(self.seq, f"j{self.seq}", job_spec, "ada", JobState.RUNNING, self.now)
        place = Place("east", "cpu", accelerator, job_spec.priority, job_spec.preemptible)
        short = self.budgets.shortfall(job, place, self.now)
        if short is not None:
            assert short.outside or short.needed > short.account.available
            return 0
        attempt = Attempt(
            job, 1, 1, self.seq, "east", "cpu", accelerator, (), self.now, AttemptState.RUNNING, start_ms=self.now
        )
        self.attempts[self.seq] = attempt
        self.budgets.keep(attempt, self.now)
        return self.seq

    @rule(minutes=st.integers(0, 400))
    def pass_time(self, minutes: int) -> None:
        """Whoever is at the end of its time ends."""
        self.now = min(self.now + minutes * MINUTE_MS, END_MS)
        for number, attempt in list(self.attempts.items()):
            last_ms = attempt.start_ms + attempt.job.spec.max_runtime_ms + attempt.job.spec.grace_ms
            last_ms = min(last_ms, attempt.stopped_by_ms or last_ms)
            if last_ms <= self.now:
                self._end(number, last_ms)

    @rule(number=running)
    def post(self, number: int) -> None:
        """What it has held so far, as at the end of a day or month."""
        attempt = self.attempts.get(number)
        if attempt is not None:
            self._post(attempt, self.now)
            self.budgets.keep(attempt, self.now)

    @rule(number=running, grace_ms=st.integers(0, 30_000))
    def stop(self, number: int, grace_ms: int) -> None:
        """It is ordered to stop, and has a bounded time for it."""
        attempt = self.attempts.get(number)
        if attempt is not None:
            attempt.stopped_by_ms = self.now + grace_ms
            self.budgets.keep(attempt, self.now)

    @rule(number=consumes(running))
    def end(self, number: int) -> None:
        """Before its time is over."""
        if number in self.attempts:
            self._end(number, self.now)

    @rule(index=st.integers(0, 3), more=st.integers(0, 10_000), closed=st.booleans(), thresholds=st.booleans())
    def change(self, index: int, more: int, closed: bool, thresholds: bool) -> None:
        """New terms: more of it, never less, and closed or open; an opened one may have been overrun meanwhile."""
        account = self.budgets.accounts.get(f"b{index}")
        if account is None or account.budget.closed:
            return
        before = account.budget
        passed = [each for each in (20, 60, 100) if thresholds] or list(before.thresholds)
        changed = {
            name: getattr(before, name) for name in ("institution", "projects", "unit", "from_ms", "to_ms", "hard")
        }
        self.put(Budget(before.budget, amount=before.amount + more, thresholds=tuple(passed), closed=closed, **changed))

    def _post(self, attempt: Attempt, until_ms: int) -> None:
        for record in open_segments(self.state, attempt, until_ms):
            posted = record._replace(posted_ms=self.now)
            self.ledger.append(posted)
            self.budgets.charge(posted)
            attempt.metered_ms, attempt.metered_segments = record.end_ms, attempt.metered_segments + 1

    def _end(self, number: int, end_ms: int) -> None:
        attempt = self.attempts.pop(number)
        self._post(attempt, end_ms)
        self.budgets.let_go(attempt)

    @invariant()
    def hard_ones_are_never_overrun(self) -> None:
        """Not by what is spent, and not by what may yet be."""
        for account in self.budgets.accounts.values():
            budget = account.budget
            if budget.hard and not budget.closed:
                assert account.spent + account.kept_total <= budget.exact_amount
                assert account.available >= 0
        assert list(self.budgets.overdrawn()) == []

    @invariant()
    def what_is_spent_and_kept_is_what_the_ledger_and_the_attempts_say(self) -> None:
        """Told anew, from nothing."""
        for account in self.budgets.accounts.values():
            budget = account.budget
            assert account.kept_total == sum(account.kept.values())
            assert all(account.kept.values())
            if budget.closed:
                assert account.kept == {}
                continue
            assert account.spent == sum(
                budget.charge_of(r, self.book) for r in self.ledger if budget.is_for(r.institution, r.project)
            )
            kept = {
                number: self.budgets.most(
                    budget,
                    each.job.spec,
                    place_of(each),
                    each.metered_ms or each.grant_ms,
                    latest_end_ms(each, self.now),
                )
                for number, each in self.attempts.items()
                if budget.is_for("north", each.job.spec.project)
            }
            assert account.kept == {number: exact for number, exact in kept.items() if exact}

    @invariant()
    def each_threshold_is_told_once(self) -> None:
        """In order, with the rows to store; more of the budget may bring it below a threshold, and then past it again."""
        spending, notices = self.budgets.take_records()
        assert len({row.budget for row in spending}) == len(spending)
        for row in spending:
            account = self.budgets.accounts[row.budget]
            assert (int(row.spent), row.threshold) == (account.spent, account.threshold)
        for notice in notices:
            budget = self.budgets.accounts[notice.budget].budget
            assert notice.threshold in budget.thresholds
            assert notice.amount == budget.amount
            assert (notice.budget, notice.threshold) not in self.told
            self.told.add((notice.budget, notice.threshold))
        numbers = [notice.number for notice in notices]
        assert numbers == list(range(self.budgets.last_notice - len(numbers) + 1, self.budgets.last_notice + 1))
        for account in self.budgets.accounts.values():
            if not account.budget.closed:
                assert account.threshold == account.budget.passed(account.spent)


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
