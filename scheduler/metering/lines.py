"""What a statement has a line for: one resource at one price, charged for one reason. Statements and exports share this key."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.money import Amounts, HourlyPrice
from scheduler.metering.prices import PriceBook
from scheduler.metering.segments import month_of

Resource = Literal["cpu", "memory", "gpu"]
RESOURCES: Final[tuple[Resource, ...]] = ("cpu", "memory", "gpu")
"""In the order of ``Amounts`` and ``HourlyPrice``."""
USAGE: Final = "usage"
CREDIT: Final = "credit"
CORRECTION: Final = "correction"
"""Charged for a month that was closed already, in a later one."""
FREE: Final = "free"
"""An allowance. No record is one: it follows from all of a month's."""


CHARGES: Final = (USAGE, CORRECTION, CREDIT, FREE)
"""In the order of a statement's lines, which are numbered by this and then by their keys, from 1."""


class LineKey(NamedTuple):
    """Which line of the accounting month's statement of its institution something is on."""

    charge: str
    project: str
    region: str
    pool: str
    accelerator: str
    priority: int
    preemptible: int
    resource: str
    month: str
    price_list: int
    rate: int
    discount_bp: int


def charge_of(kind: int, month: str, period: str) -> str:
    """Why it is charged: ``credit``, ``correction`` (of another month than the one it was posted to) or ``usage``."""
    if kind == EntryKind.CREDIT:
        return CREDIT
    return USAGE if month == period else CORRECTION


def line_key(record: LedgerRecord, resource: Resource) -> LineKey:
    """The line on which the resource of the record is."""
    month = month_of(record.start_ms)
    return LineKey(
        charge_of(record.kind, month, record.period),
        record.project,
        record.region,
        record.pool,
        record.accelerator,
        record.priority,
        record.preemptible,
        resource,
        month,
        record.price_list,
        record.rate,
        record.discount_bp,
    )


def cost_of(record: LedgerRecord, prices: PriceBook) -> int:
    """What the record costs after its discount, in cost units; 0 without a price list."""
    price_list = prices.get(record.price_list)
    if price_list is None:
        return 0
    return price_list.price(record.rate).cost_units(amounts_of(record), record.discount_bp)


def amounts_of(record: LedgerRecord) -> Amounts:
    """What the record says was held, × its time."""
    ms = record.end_ms - record.start_ms
    return Amounts(record.cpu_milli * ms, record.memory_mib * ms, record.gpu_milli * ms)


def only(amounts: Amounts, resource: Resource) -> Amounts:
    """One resource's part of the amounts."""
    at = RESOURCES.index(resource)
    return Amounts(*(value if index == at else 0 for index, value in enumerate(amounts)))


def amount_of(amounts: Amounts, resource: Resource) -> int:
    """Milli × ms of one resource (memory: MiB × ms)."""
    return amounts[RESOURCES.index(resource)]


def price_of(price: HourlyPrice, resource: Resource) -> int:
    """Of one resource, in millionths of the minor unit an hour."""
    return price[RESOURCES.index(resource)]


def statement_number(institution: str, period: str) -> str:
    """ "hua-uni-2026-10"."""
    return f"{institution}-{period}"
