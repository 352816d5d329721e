"""Budgets: what a share of usage counts for in money, service units or hours, exactly.

A budget of money or service units is counted in cost units (``scheduler.metering.money``), one of hours in milli-cores or milli-GPUs × ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from scheduler.domain.records import LedgerRecord
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS, Amounts, round_half_even, round_up
from scheduler.metering.prices import PriceBook, PriceList

DEFAULT_THRESHOLDS = (50, 80, 100)
_PER_CENT = 100


class BudgetUnit(IntEnum):
    """What a budget is counted in; the values are those of ``suanli.v1.BudgetUnit``.

    Amounts are minor units of the currency, thousandths of a service unit, of a core-hour, of a GPU-hour.
    """

    MONEY = 1
    SERVICE_UNITS = 2
    CPU_CORE_HOURS = 3
    GPU_HOURS = 4


EXACT_PER_UNIT = {
    BudgetUnit.MONEY: COST_UNITS_PER_MINOR,
    BudgetUnit.SERVICE_UNITS: COST_UNITS_PER_MINOR // 1000,
    BudgetUnit.CPU_CORE_HOURS: HOUR_MS,
    BudgetUnit.GPU_HOURS: HOUR_MS,
}
"""Exact parts in one of a budget's units: of 1,000 milli × 3,600,000 ms a thousandth is 3,600,000."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what is held in [from_ms, to_ms) by an institution, or (``projects`` not empty) by some of its projects together.

    ``hard``: what it does not cover is not started. ``amount`` is in the unit.
    """

    budget: str
    institution: str
    projects: frozenset[str]
    unit: BudgetUnit
    amount: int
    from_ms: int
    to_ms: int
    hard: bool
    thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS
    title: str = ""
    author: str = ""
    create_ms: int = 0
    closed: bool = False

    @property
    def exact_amount(self) -> int:
        """The amount in exact parts."""
        return self.amount * EXACT_PER_UNIT[self.unit]

    def is_for(self, institution: str, project: str) -> bool:
        """Whether a project's jobs are charged to it."""
        return institution == self.institution and (not self.projects or project in self.projects)

    def charge(self, amounts: Amounts, price_list: PriceList | None, rate: int, discount_bp: int) -> int:
        """What holding this much counts for, in exact parts."""
        if self.unit is BudgetUnit.CPU_CORE_HOURS:
            return amounts.cpu_milli_ms
        if self.unit is BudgetUnit.GPU_HOURS:
            return amounts.gpu_milli_ms
        if price_list is None:
            return 0
        if self.unit is BudgetUnit.MONEY:
            return price_list.price(rate).cost_units(amounts, discount_bp)
        return price_list.service(rate).cost_units(amounts)

    def charge_of(self, record: LedgerRecord, prices: PriceBook) -> int:
        """What a record of its tenants counts for: the part of it within the budget's time."""
        held_ms = min(record.end_ms, self.to_ms) - max(record.start_ms, self.from_ms)
        if held_ms <= 0:
            return 0
        amounts = Amounts(record.cpu_milli * held_ms, record.memory_mib * held_ms, record.gpu_milli * held_ms)
        return self.charge(amounts, prices.get(record.price_list), record.rate, record.discount_bp)

    def up(self, exact: int) -> int:
        """Exact parts in the unit, rounded up."""
        return round_up(exact, EXACT_PER_UNIT[self.unit])

    def down(self, exact: int) -> int:
        """Exact parts in the unit, rounded down; not below 0."""
        return max(0, exact // EXACT_PER_UNIT[self.unit])

    def nearest(self, exact: int) -> int:
        """Exact parts in the unit, half to even."""
        return round_half_even(exact, EXACT_PER_UNIT[self.unit])

    def passed(self, exact_spent: int) -> int:
        """The highest threshold that this much has reached; 0 for none."""
        whole = self.exact_amount
        return max((each for each in self.thresholds if exact_spent * _PER_CENT >= whole * each > 0), default=0)
