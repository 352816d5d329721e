"""The use cases of finance on a ``Site``: as ``ControlPlane`` has them, without its loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from scheduler.domain.records import LedgerRecord, MonthRecord
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.money import HOUR_MS
from scheduler.metering.price_text import read_prices
from scheduler.service import prices
from scheduler.service.accounting import Accounting
from scheduler.service.contract import BudgetStatus, Correction, PriceListDraft
from scheduler.service.engine import Engine
from tests.unit.service.harness import T0_MS, Site

T = TypeVar("T")
MINUTE_MS = 60_000
ONE_HOUR = {"max_runtime_ms": HOUR_MS - 30_000, "grace_period_ms": 30_000}
"""Of a job that holds its resources for an hour at most, its grace period included."""


class _Live(Accounting):
    def __init__(self, site: Site) -> None:
        self._site = site
        self._store = site.store

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        return self._site.engine

    async def _change(self, work: Callable[[], T]) -> T:
        done = work()
        self._site.turn()
        return done

    async def _settled(self, work: Callable[[], T]) -> T:
        self._site.turn()
        return work()


class Books:
    """What a finance officer does, one call after another."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.live = _Live(site)

    def budget(self, amount: int, name: str = "term", **values: Any) -> BudgetStatus:
        """Put a budget, of core-hours (in thousandths), hard, and for 90 days if nothing else is said."""
        terms: dict[str, Any] = {
            "institution": "north",
            "projects": frozenset[str](),
            "unit": BudgetUnit.CPU_CORE_HOURS,
            "from_ms": T0_MS,
            "to_ms": T0_MS + 90 * 24 * HOUR_MS,
            "hard": True,
        } | values
        return run(self.live.put_budget(Budget(name, amount=amount, **terms), "fin", False))

    def status(self, name: str = "term") -> BudgetStatus:
        """How a budget stands."""
        return next(each for each in run(self.live.list_budgets("", True)) if each.budget.budget == name)

    def notices(self, name: str = "term") -> list[tuple[int, int]]:
        """(threshold, spent) of its notices, oldest first."""
        found = run(self.live.list_budget_notices("", name, 0, 100))
        return [(each.threshold, each.spent) for each in reversed(found)]

    def prices(self, document: str) -> None:
        """Put a price list."""
        state = self._site.engine.state
        prices.put_price_list(state, PriceListDraft(document, read_prices(document)), "fin")
        self._site.turn()

    def close(self, month: str) -> MonthRecord:
        """Close a month."""
        return run(self.live.close_month(month, "fin"))

    def correct(self, sequence: int, reason: str = "a mistake", **values: Any) -> list[LedgerRecord]:
        """Correct a record."""
        return run(self.live.correct_ledger(Correction(sequence, reason, **values), "", "fin"))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Nothing in it waits for anything."""
    return asyncio.run(work)
