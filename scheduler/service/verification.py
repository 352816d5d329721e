"""Verifying the ledger while the platform runs: page by page, and the end of it between two commits, where nothing moves."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.domain.records import AttemptRecord, LedgerRecord
from scheduler.metering.budgets import Budget
from scheduler.metering.verifying import Fault, LedgerCheck, Totals, check_attempt
from scheduler.service.contract import Verified, VerifyProgress
from scheduler.service.ports import Store, UsageQuery
from scheduler.service.state import State

PAGE = 5_000
_JOBS_AT_ONCE = 500
CHAIN_CODES = frozenset({"CHAIN_BROKEN", "RECORD_MISSING", "OUT_OF_ORDER", "BAD_RECORD", "HEAD_DIFFERS"})


class Verification:
    """One run. ``step`` until it says False, then ``finish`` between commits; each blocks."""

    def __init__(
        self, store: Store, state: State, from_sequence: int, expected: tuple[int, bytes] | None, upto_sequence: int
    ) -> None:
        self._store, self._state = store, state
        self._upto = upto_sequence
        self._whole = from_sequence <= 1
        self._budgets: dict[str, Budget] = {
            # A closed one counts no more.
            name: account.budget
            for name, account in state.metering.budgets.accounts.items()
            if not account.budget.closed
        }
        before = (0, b"")
        if not self._whole:
            found = store.ledger_after(from_sequence - 2, 1)
            before = (from_sequence - 1, found[0].hash if found else b"")
        metering = state.metering
        self.check = LedgerCheck(metering.prices, self._budgets.values(), metering.months.values(), before, expected)
        self._after = (0, 0)
        self._attempts_done = not self._whole
        self._suspicious: list[AttemptRecord] = []
        self._faults: list[Fault] = []
        self._attempts = 0
        self._sums = 0
        self._done = False

    def step(self) -> bool:
        """Check some more; False when only the end is left."""
        if self.check.sequence < self._upto:
            page = self._store.ledger_after(self.check.sequence, PAGE)
            self._add(page)
            if page:
                return True
            self._upto = self.check.sequence
        if self._attempts_done:
            return False
        attempts = self._store.attempts_after(*self._after, _JOBS_AT_ONCE)
        if not attempts:
            self._attempts_done = True
            return False
        self._after = (attempts[-1].job_no, attempts[-1].attempt)
        self._attempts += len(attempts)
        records = self._of_attempts(attempts)
        for attempt in attempts:
            if check_attempt(attempt, records.get((attempt.job_id, attempt.attempt), ())) is not None:
                # What runs may have been posted to between the two reads.
                self._suspicious.append(attempt)
        return True

    def finish(self) -> None:
        """The records that came meanwhile, and the totals."""
        while page := self._store.ledger_after(self.check.sequence, PAGE):
            self._add(page)
        for before in self._suspicious:
            for attempt in self._store.attempts_after(before.job_no, before.attempt - 1, 1):
                records = self._of_attempts([attempt])
                fault = check_attempt(attempt, records.get((attempt.job_id, attempt.attempt), ()))
                if fault is not None:
                    self._faults.append(fault)
        accounts = self._state.metering.budgets.accounts
        # A budget whose terms were changed meanwhile has been reckoned anew anyway.
        unchanged = {name for name, budget in self._budgets.items() if accounts[name].budget is budget}
        sums = self._store.usage_sums(UsageQuery()) if self._whole else []
        days = self._store.usage_days("", "", "9999-12-31") if self._whole else []
        self._sums = len(sums)
        self.check.finish(
            self._store.last_sequences()[1],
            Totals(
                sums={tuple(each.key): each[1:] for each in sums},
                days={tuple(each[:4]): each[4:] for each in days},
                spent={
                    each.budget: int(each.spent) for each in self._store.budget_spending() if each.budget in unchanged
                },
            ),
        )
        self._done = True

    def progress(self) -> VerifyProgress:
        """Where it stands."""
        faults = [*self.check.faults, *self._faults] if self._done else []
        return VerifyProgress(
            self.check.records,
            max(self._upto, self.check.sequence),
            self._done,
            # What breaks the chain says where it begins; what else is wrong may only follow from that.
            sorted(faults, key=lambda each: (each.code not in CHAIN_CODES, each.sequence == 0, each.sequence)),
            self.check.sequence,
            self.check.head,
            self._attempts,
            self._sums,
        )

    def result(self, now_ms: int) -> Verified:
        """For the metrics."""
        faults = [*self.check.faults, *self._faults]
        chain = sum(each.code in CHAIN_CODES for each in faults)
        return Verified(now_ms, chain, len(faults) - chain)

    @property
    def whole(self) -> bool:
        """Whether everything is checked."""
        return self._whole

    def _add(self, page: Sequence[LedgerRecord]) -> None:
        for record in page:
            self.check.add(record)

    def _of_attempts(self, attempts: Sequence[AttemptRecord]) -> dict[tuple[str, int], list[LedgerRecord]]:
        found: dict[tuple[str, int], list[LedgerRecord]] = {}
        for record in self._store.ledger_of(list(dict.fromkeys(each.job_id for each in attempts))):
            found.setdefault((record.job_id, record.attempt), []).append(record)
        return found
