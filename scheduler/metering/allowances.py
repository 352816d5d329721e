"""Free allowances: what of a month's use an institution need not pay.

Of a resource of which ``used`` was held in a month, ``min(free, used) / used`` of its net cost is taken off, the same part everywhere. It is
reckoned over all that is known of the month of use, so it does not depend on the order of records: what a closed statement has taken off
already is subtracted, and a late fact changes the allowance by the difference (a reversal may take some of it back).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from scheduler.metering.money import Amounts
from scheduler.metering.prices import PriceBook, PriceList
from scheduler.metering.segments import month_start_ms, next_month


class FreeKey(NamedTuple):
    """A month of use, a resource (its place in ``Amounts``) and the version of the price list by which it costs."""

    month: str
    resource: int
    price_list: int


@dataclass(slots=True)
class Held:
    """What was held (milli or MiB × ms), and its net cost in cost units: money, and service units."""

    amount: int = 0
    cost: int = 0
    service: int = 0


class Taken(NamedTuple):
    """What an allowance takes off: of the amount, of the cost in money and in service units."""

    amount: int = 0
    cost: Fraction = Fraction()
    service: Fraction = Fraction()

    def less(self, other: Taken) -> Taken:
        """The difference."""
        return Taken(self.amount - other.amount, self.cost - other.cost, self.service - other.service)


NOTHING = Taken()


@dataclass
class MonthlyUse:
    """What an institution held, added up in any order."""

    by_key: dict[FreeKey, Held] = field(default_factory=dict)

    def add(self, key: FreeKey, amount: int, cost: int, service: int) -> None:
        """Count some use (amount 0: a credit, which is money alone)."""
        held = self.by_key.setdefault(key, Held())
        held.amount += amount
        held.cost += cost
        held.service += service

    def taken(self, institution: str, book: PriceBook) -> dict[FreeKey, Taken]:
        """What the institution's allowances take off all of this; keys of which nothing is taken are left out."""
        by_resource: dict[tuple[str, int], dict[int, Held]] = {}
        for key, held in self.by_key.items():
            by_resource.setdefault((key.month, key.resource), {})[key.price_list] = held
        found = {}
        for (month, resource), by_list in by_resource.items():
            free = monthly_allowance(book, institution, month)[resource]
            for price_list, taken in _shared(free, by_list).items():
                found[FreeKey(month, resource, price_list)] = taken
        return found


def closing_list(book: PriceBook, month: str) -> PriceList | None:
    """The price list in force at the end of the month; where none is, the last one that was in force in it."""
    last: PriceList | None = None
    for _, _, one in book.windows(month_start_ms(month), month_start_ms(next_month(month))):
        last = one or last
    return last


def monthly_allowance(book: PriceBook, institution: str, month: str) -> Amounts:
    """What is free, by the month's ``closing_list``."""
    last = closing_list(book, month)
    return last.allowance(institution) if last else Amounts()


def free_of_period(
    institution: str, book: PriceBook, period: MonthlyUse, earlier: MonthlyUse
) -> Mapping[FreeKey, Taken]:
    """What a period's statement takes off: what all use up to it has free, less what statements before it took off.

    ``earlier``: what was posted to periods before, of the months of which the period has records.
    """
    both = MonthlyUse()
    for use in (earlier, period):
        for key, held in use.by_key.items():
            both.add(key, held.amount, held.cost, held.service)
    whole, before = both.taken(institution, book), earlier.taken(institution, book)
    months = {key.month for key in period.by_key}
    changes = {key: whole.get(key, NOTHING).less(before.get(key, NOTHING)) for key in {*whole, *before}}
    return {key: taken for key, taken in changes.items() if taken.cost or taken.service if key.month in months}


def rounded_to_odd(value: Fraction) -> int:
    """A whole number from which a second rounding gives what it would give from the value itself.

    The value where it is whole, else the odd one of its two neighbours, so that it never falls on a tie by rounding (Boldo and
    Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Transactions on Computers 57, 2008).
    """
    low = value.numerator // value.denominator
    return low if value.denominator == 1 or low % 2 else low + 1


def parts_of(whole: int, weights: Mapping[int, int]) -> dict[int, int]:
    """``whole`` shared in proportion to the weights by largest remainder, so that the parts add up to it. Their sum is above 0."""
    total = sum(weights.values())
    parts = {key: whole * weight // total for key, weight in weights.items()}
    left = whole - sum(parts.values())
    for key in sorted(weights, key=lambda key: (-(whole * weights[key] % total), key))[:left]:
        parts[key] += 1
    return parts


def _shared(free: int, by_list: Mapping[int, Held]) -> dict[int, Taken]:
    """What of a resource's use in a month is free, by price list. Never more than its cost, and nothing where that is not above 0."""
    used = sum(held.amount for held in by_list.values())
    if free <= 0 or used <= 0:
        return {}
    taken = min(free, used)
    money = taken if sum(held.cost for held in by_list.values()) > 0 else 0
    service = taken if sum(held.service for held in by_list.values()) > 0 else 0
    amounts = parts_of(taken, {price_list: held.amount for price_list, held in by_list.items()})
    return {
        price_list: Taken(
            amounts[price_list], Fraction(held.cost * money, used), Fraction(held.service * service, used)
        )
        for price_list, held in by_list.items()
    }
