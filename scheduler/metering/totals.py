"""Running totals of the ledger, for counters that are looked at every few seconds: as exact as its sums, and as durable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scheduler.domain.records import LedgerRecord
from scheduler.metering.money import Amounts
from scheduler.metering.prices import NO_RATE, PriceBook

GROUP_BY = ("institution", "project", "region", "pool", "accelerator", "kind", "price_list", "rate", "discount_bp")
"""The fields of a ledger record that are told apart; none of them grows with jobs or people."""
_AMOUNTS = 5


class TotalKey(NamedTuple):
    """What is told apart, in the order of ``GROUP_BY``."""

    institution: str
    project: str
    region: str
    pool: str
    accelerator: str
    kind: int
    price_list: int
    rate: int
    discount_bp: int


class Total(NamedTuple):
    """A key's figures: what was held, and what of it was used."""

    key: TotalKey
    held: Amounts
    cpu_used_milli_ms: int
    gpu_used_milli_ms: int

    def cost_units(self, prices: PriceBook) -> int:
        """What it costs after discount."""
        one = prices.get(self.key.price_list)
        return one.price(self.key.rate).cost_units(self.held, self.key.discount_bp) if one else 0

    def service_units(self, prices: PriceBook) -> int:
        """The same in service units."""
        one = prices.get(self.key.price_list)
        return one.service(self.key.rate).cost_units(self.held) if one and self.key.rate != NO_RATE else 0


class Totals:
    """The sums of all durable records, up to ``sequence``."""

    def __init__(self, totals: Iterable[Total] = (), sequence: int = 0) -> None:
        self.sequence = sequence
        self._figures: dict[TotalKey, list[int]] = {
            each.key: [*each.held, each.cpu_used_milli_ms, each.gpu_used_milli_ms] for each in totals
        }

    def add(self, records: Sequence[LedgerRecord]) -> None:
        """Records have become durable; those that are counted already are passed over."""
        for each in records:
            if each.sequence <= self.sequence:
                continue
            self.sequence = each.sequence
            key = TotalKey._make(getattr(each, name) for name in GROUP_BY)
            figures = self._figures.setdefault(key, [0] * _AMOUNTS)
            ms = each.end_ms - each.start_ms
            added = (
                each.cpu_milli * ms,
                each.memory_mib * ms,
                each.gpu_milli * ms,
                each.cpu_used_ms * 1000,
                each.gpu_used_milli_ms,
            )
            for index, figure in enumerate(added):
                figures[index] += figure

    def rows(self) -> list[Total]:
        """In no order."""
        return [Total(key, Amounts(*figures[:3]), figures[3], figures[4]) for key, figures in self._figures.items()]
