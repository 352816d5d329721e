"""Sums of usage and its cost, grouped: exact integers.

What is summed comes as the store's sums or as single records, of which only a part may count. Both ways give the same figures, because
every one of them is linear in time, or (what was used) is shared out so that the parts of a record add up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from scheduler.domain.records import LedgerRecord
from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import EntryKind
from scheduler.metering.money import Amounts
from scheduler.metering.prices import EnergyFactors, PriceBook
from scheduler.metering.segments import month_of


class Dimension(IntEnum):
    """What usage can be grouped by; the values are those of ``suanli.v1.UsageDimension``, the names in lower case fields of a sum's key."""

    INSTITUTION = 1
    PROJECT = 2
    USER = 3
    REGION = 4
    POOL = 5
    ACCELERATOR = 6
    MONTH = 7
    PRIORITY = 8
    PURPOSE = 9
    PERIOD = 10

    @property
    def field(self) -> str:
        """ "month"."""
        return self.name.lower()


PRICED = ("kind", "price_list", "rate", "discount_bp")
"""The fields of a sum's key without which hours, money and credits cannot be told apart."""
POWERED = ("region", "accelerator")
"""Those that energy depends on."""


def grouping(dimensions: Sequence[Dimension], energy: bool = False) -> tuple[str, ...]:
    """The fields by which sums must be grouped for an ``Aggregation`` by these dimensions."""
    fields = (*(dimension.field for dimension in dimensions), *(POWERED if energy else ()), *PRICED)
    return tuple(dict.fromkeys(fields))


class UsageRow(NamedTuple):
    """Sums for one value of each dimension asked for, in the order asked.

    Amounts are without credits, costs with them, in cost units: after discounts, before them, and in service units. An attempt is counted
    where its first segment is; neither corrections nor credits count as segments. Energy and carbon are estimates of what was held.
    """

    key: tuple[str, ...]
    cpu_milli_ms: int
    memory_mib_ms: int
    gpu_milli_ms: int
    segments: int
    attempts: int
    cpu_used_milli_ms: int = 0
    memory_peak_mib_ms: int = 0
    gpu_used_milli_ms: int = 0
    cost_units: int = 0
    list_cost_units: int = 0
    service_cost_units: int = 0
    energy_uj: int = 0
    carbon_ug: int = 0


class SumKey(Protocol):
    """What of a sum's key decides on what it counts for; the dimensions that are grouped by are read from it by their names."""

    @property
    def kind(self) -> int:
        """An ``EntryKind``."""
        ...

    @property
    def region(self) -> str:
        """Where it was held."""
        ...

    @property
    def accelerator(self) -> str:
        """Empty without one."""
        ...

    @property
    def price_list(self) -> int:
        """Its version."""
        ...

    @property
    def rate(self) -> int:
        """Its number in the list."""
        ...

    @property
    def discount_bp(self) -> int:
        """Hundredths of a per cent."""
        ...


class _Row:
    """The sums of one key. ``held`` and ``used`` are three amounts each, ``powered`` what was held by (region, accelerator)."""

    __slots__ = ("attempts", "costs", "held", "powered", "segments", "used")

    def __init__(self) -> None:
        self.held = [0, 0, 0]
        self.used = [0, 0, 0]
        self.segments = 0
        self.attempts = 0
        self.costs = [0, 0, 0]
        self.powered: dict[tuple[str, str], Amounts] = {}

    def as_usage(self, key: tuple[str, ...], energy: EnergyFactors | None) -> UsageRow:
        energy_uj = carbon_ug = 0
        if energy is not None:
            for (region, accelerator), amounts in self.powered.items():
                uj = energy.energy_uj(amounts, accelerator)
                energy_uj += uj
                carbon_ug += energy.carbon_ug(uj, region)
        return UsageRow(
            key,
            *_three(self.held),
            self.segments,
            self.attempts,
            *_three(self.used),
            *_three(self.costs),
            energy_uj,
            carbon_ug,
        )


def _three(values: list[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third


class Aggregation:
    """Takes the store's sums and single records, in any order; gives rows by key and their total.

    Without prices everything costs nothing; without factors no energy is estimated.
    """

    def __init__(
        self, group_by: Sequence[Dimension], prices: PriceBook | None = None, energy: EnergyFactors | None = None
    ) -> None:
        self._fields = tuple(dimension.field for dimension in group_by)
        self._prices = prices or PriceBook()
        self._energy = energy
        self._rows: dict[tuple[str | int, ...], _Row] = {}
        self._total = _Row()

    def add_sum(
        self,
        key: SumKey,
        cpu_milli_ms: int,
        memory_mib_ms: int,
        gpu_milli_ms: int,
        cpu_used_milli_ms: int = 0,
        memory_peak_mib_ms: int = 0,
        gpu_used_milli_ms: int = 0,
        segments: int = 0,
        attempts: int = 0,
    ) -> None:
        """Count what was summed already: the fields of a sum of the store, in their order. Its key has at least the fields of ``grouping``."""
        values = tuple(getattr(key, field) for field in self._fields)
        held = Amounts(cpu_milli_ms, memory_mib_ms, gpu_milli_ms)
        used = (cpu_used_milli_ms, memory_peak_mib_ms, gpu_used_milli_ms)
        self._add(values, key, held, used, segments, attempts)

    def add_segment(self, record: LedgerRecord, from_ms: int = 0, to_ms: int = 0) -> None:
        """Count the part of a record that lies in [from_ms, to_ms), 0 being open; nothing when no part does.

        A record lies within one month, as all of the ledger do.
        """
        start = max(record.start_ms, from_ms)
        end = min(record.end_ms, to_ms) if to_ms else record.end_ms
        if start >= end:
            return
        values = tuple(
            month_of(record.start_ms) if field == "month" else getattr(record, field) for field in self._fields
        )
        ms = end - start
        held = Amounts(record.cpu_milli * ms, record.memory_mib * ms, record.gpu_milli * ms)
        used = (
            _part(record.cpu_used_ms * 1000, record, start, end),
            record.peak_memory_mib * ms,
            _part(record.gpu_used_milli_ms, record, start, end),
        )
        metered = record.kind == EntryKind.USAGE
        self._add(values, record, held, used, int(metered), int(metered and record.segment == 0))

    def _add(
        self,
        values: tuple[str | int, ...],
        key: SumKey,
        held: Amounts,
        used: tuple[int, int, int],
        segments: int,
        attempts: int,
    ) -> None:
        costs = self._costs(key, held)
        for row in (self._rows.setdefault(values, _Row()), self._total):
            for at in range(3):
                row.costs[at] += costs[at]
            if key.kind == EntryKind.CREDIT:
                continue
            for at in range(3):
                row.held[at] += held[at]
                row.used[at] += used[at]
            row.segments += segments
            row.attempts += attempts
            if self._energy is not None:
                place = (key.region, key.accelerator)
                row.powered[place] = row.powered.get(place, Amounts()).plus(held)

    def _costs(self, key: SumKey, amounts: Amounts) -> tuple[int, int, int]:
        price_list = self._prices.get(key.price_list)
        if price_list is None:
            return 0, 0, 0
        price = price_list.price(key.rate)
        return (
            price.cost_units(amounts, key.discount_bp),
            price.cost_units(amounts),
            price_list.service(key.rate).cost_units(amounts),
        )

    def rows(self) -> list[UsageRow]:
        """By key; those of which nothing is left after corrections are left out."""
        return [
            row.as_usage(
                tuple(_text(field, value) for field, value in zip(self._fields, key, strict=True)), self._energy
            )
            for key, row in sorted(self._rows.items())
            if row.segments or any(row.held) or any(row.costs)
        ]

    def total(self) -> UsageRow:
        """Over all rows; its key is empty."""
        return self._total.as_usage((), self._energy)


def _part(amount: int, record: LedgerRecord, start: int, end: int) -> int:
    """What of an amount of the whole record falls to [start, end): parts that tile the record add up to it, and to nothing with its reversal's."""
    whole, size = record.end_ms - record.start_ms, abs(amount)
    part = size * (end - record.start_ms) // whole - size * (start - record.start_ms) // whole
    return part if amount >= 0 else -part


def _text(field: str, value: str | int) -> str:
    known = PriorityClass._value2member_map_.get(value) if field == "priority" else None
    return known.name.lower() if known is not None else str(value)
