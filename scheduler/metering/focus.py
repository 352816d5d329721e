"""The ledger as a "Cost and Usage" dataset of FOCUS 1.4 (FinOps Open Cost and Usage Specification, https://focus.finops.org).

A row for each record and resource of which it holds something. The costs of the rows of a statement's line are rounded to ``PLACES`` digits
so that they add up to the line's exact cost to as many digits: each row is what the rounded running total grows by. One more row for a line
whose amount is another, "Rounding to the minor unit", makes the sum of its BilledCost the amount on the statement. What is free is a
row of its own, a credit.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Protocol

from scheduler.domain.errors import Internal
from scheduler.domain.records import LedgerRecord
from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import EntryKind
from scheduler.metering.lines import CREDIT, FREE, RESOURCES, LineKey, Resource, line_key, price_of, statement_number
from scheduler.metering.money import BASIS_POINTS, COST_UNITS_PER_MINOR, HOUR_MS, Amounts, HourlyPrice, round_half_even
from scheduler.metering.money import FREE as NO_PRICE
from scheduler.metering.prices import NO_RATE, PriceBook
from scheduler.metering.segments import DAY_MS, day_of, month_start_ms, next_month_ms

VERSION: Final = "1.4"
PLACES: Final = 10
"""Digits after the point of costs."""
QUANTITY_PLACES: Final = 18
"""Of quantities: enough that any price times the quantity is the cost to ten digits, as the specification wants."""
NO_CURRENCY: Final = "XXX"
"""ISO 4217: no currency is involved."""
ROUNDING: Final = "Rounding to the minor unit"
_PRICE_DIGITS = 6
_DISCOUNT_DIGITS = 4

COLUMNS: Final = (
    # Mandatory.
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "HostProviderName", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit",
    "ServiceCategory", "ServiceName", "ServiceProviderName",
    # Recommended, and conditional where the condition is met.
    "BillingAccountType", "ChargeFrequency", "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "InvoiceDetailId",
    "InvoiceId", "ListUnitPrice", "PricingCategory", "PricingCurrency", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
    "SubAccountId", "SubAccountName", "SubAccountType", "Tags",
    # Our own.
    "x_JobId", "x_AttemptId", "x_LedgerSeq", "x_LedgerKind", "x_LedgerReference", "x_User", "x_Purpose", "x_Priority",
    "x_Preemptible", "x_Pool", "x_Accelerator", "x_UsageMonth", "x_Reason",
)  # fmt: skip
_METERS: Mapping[str, tuple[str, str, int]] = {
    "cpu": ("CPU time", "Core-Hours", 1000 * HOUR_MS),
    "memory": ("Memory time", "GiB-Hours", 1024 * HOUR_MS),
    "gpu": ("GPU time", "GPU-Hours", 1000 * HOUR_MS),
}
"""SkuMeter, unit, and how many milli (MiB) × ms a unit has."""


class StatementLine(Protocol):
    """What a statement says of one of its lines; see ``scheduler.metering.statement``."""

    @property
    def number(self) -> int:
        """From 1."""
        ...

    @property
    def key(self) -> LineKey:
        """What it is for."""
        ...

    @property
    def cost_units(self) -> int:
        """Its exact cost; of a free line one that is rounded to the same amount."""
        ...

    @property
    def amount_minor(self) -> int:
        """What is charged."""
        ...


@dataclass(frozen=True)
class Account:
    """Whose charges these are, and in what currency; ``digits`` are those of its minor unit. ``project_titles`` by project.

    ``issuer`` provides the service, hosts it and issues the statement.
    """

    institution: str
    currency: str
    digits: int
    title: str = ""
    project_titles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    issuer: str = "Suanli"


@dataclass(slots=True)
class _Running:
    """The exact costs of the rows of a line so far, and what their rounded ones add up to."""

    line: StatementLine | None
    common: dict[str, str]
    price: HourlyPrice
    billed: int = 0
    billed_rounded: int = 0
    listed: int = 0
    listed_rounded: int = 0


class FocusMonth:
    """The rows of an institution's accounting month: those of its records as they come, then those that close its lines."""

    def __init__(self, account: Account, period: str, lines: Iterable[StatementLine], prices: PriceBook) -> None:
        self._account = account
        self._period = period
        self._prices = prices
        self._lines = {line.key: line for line in lines}
        self._number = statement_number(account.institution, period)
        self._per_major = COST_UNITS_PER_MINOR * 10**account.digits
        start_ms = month_start_ms(period)
        self._month = {"ChargePeriodStart": instant(start_ms), "ChargePeriodEnd": instant(next_month_ms(start_ms))}
        self._common = {
            "BillingAccountId": account.institution,
            "BillingAccountName": inert(account.title),
            "BillingAccountType": "Institution",
            "BillingCurrency": account.currency or NO_CURRENCY,
            "PricingCurrency": account.currency or NO_CURRENCY,
            "BillingPeriodStart": self._month["ChargePeriodStart"],
            "BillingPeriodEnd": self._month["ChargePeriodEnd"],
            "HostProviderName": account.issuer,
            "InvoiceIssuerName": account.issuer,
            "ServiceProviderName": account.issuer,
            "ServiceCategory": "Compute",
            "ServiceSubcategory": "Other (Compute)",
            "ServiceName": "Shared compute",
            "InvoiceId": self._number,
        }
        self._running: dict[LineKey, _Running] = {}

    def rows(self, record: LedgerRecord) -> Iterator[dict[str, str]]:
        """A row for each resource of which the record holds something."""
        ms = record.end_ms - record.start_ms
        held = (record.cpu_milli * ms, record.memory_mib * ms, record.gpu_milli * ms)
        own: dict[str, str] | None = None
        for resource, amount in zip(RESOURCES, held, strict=True):
            if not amount:
                continue
            own = own or self._of_record(record)
            key = line_key(record, resource)
            running = self._running.get(key) or self._begin(key)
            yield {**running.common, **own, **self._of_amount(running, key, amount)}

    def closing(self) -> Iterator[dict[str, str]]:
        """What makes the rows of each line add up to its amount. ``Internal`` when the records were not those the lines were made of."""
        for key, running in self._running.items():
            if running.billed != (running.line.cost_units if running.line else 0):
                raise Internal(
                    f"the ledger's records of {self._number} and its sums differ: {key}", reason="LEDGER_SUMS_DIFFER"
                )
        for key, line in sorted(self._lines.items()):
            amount = line.amount_minor * 10 ** (PLACES - self._account.digits)
            if key.charge == FREE:
                yield self._closing_row(key, line, "Credit", f"Free allowance: {key.resource}", amount)
                continue
            if key not in self._running and line.cost_units:
                raise Internal(
                    f"the ledger has no records for a line of {self._number}: {key}", reason="LEDGER_SUMS_DIFFER"
                )
            rest = amount - (self._running[key].billed_rounded if key in self._running else 0)
            if rest:
                yield self._closing_row(key, line, "Adjustment", ROUNDING, rest)

    def _begin(self, key: LineKey) -> _Running:
        price_list = self._prices.get(key.price_list)
        price = price_list.price(key.rate) if price_list is not None else NO_PRICE
        resource: Resource = next(each for each in RESOURCES if each == key.resource)
        micro = price_of(price, resource)
        line = self._lines.get(key)
        meter, unit, _ = _METERS[key.resource]
        details = {
            "x_Priority": _priority(key.priority),
            "x_Preemptible": bool(key.preemptible),
            "x_DiscountBasisPoints": key.discount_bp,
        }
        discounted = micro * (BASIS_POINTS - key.discount_bp)
        digits = self._account.digits + _PRICE_DIGITS
        running = _Running(
            line,
            {
                **self._common,
                **self._place(key),
                "ChargeFrequency": "Usage-Based",
                "ContractedUnitPrice": decimal_text(discounted, digits + _DISCOUNT_DIGITS),
                "InvoiceDetailId": f"{self._number}-{line.number}" if line is not None else "",
                "ListUnitPrice": decimal_text(micro, digits),
                "PricingCategory": "Standard",
                "PricingUnit": unit,
                "SkuId": "/".join(filter(None, (key.resource, key.region, key.pool, key.accelerator))),
                "SkuMeter": meter,
                "SkuPriceDetails": json.dumps(details),
                "SkuPriceId": f"{key.price_list}/{'none' if key.rate == NO_RATE else key.rate}/{key.resource}",
            },
            price,
        )
        self._running[key] = running
        return running

    def _place(self, key: LineKey) -> dict[str, str]:
        """Where it was held and for whom, as far as the line says."""
        tenant = {}
        if key.project:
            tenant = {
                "SubAccountId": f"{self._account.institution}/{key.project}",
                "SubAccountName": inert(self._account.project_titles.get(key.project, "")) or key.project,
                "SubAccountType": "Project",
            }
        return {
            **tenant,
            "ChargeClass": "" if key.month == self._period else "Correction",
            "RegionId": key.region,
            "RegionName": key.region,
            "x_Accelerator": key.accelerator,
            "x_Pool": f"{key.region}/{key.pool}" if key.pool else "",
            "x_Preemptible": str(bool(key.preemptible)).lower() if key.pool else "",
            "x_Priority": _priority(key.priority),
            "x_UsageMonth": key.month,
        }

    def _of_record(self, record: LedgerRecord) -> dict[str, str]:
        tags = {"suanli/user": record.user, "suanli/priority": _priority(record.priority)}
        if record.purpose:
            tags["suanli/purpose"] = record.purpose
        return {
            "ChargePeriodStart": instant(record.start_ms),
            "ChargePeriodEnd": instant(record.end_ms),
            "ResourceId": f"{record.job_id}/{record.attempt}",
            "ResourceName": record.job_id,
            "ResourceType": "Allocation",
            "Tags": json.dumps(tags, ensure_ascii=False),
            "x_JobId": record.job_id,
            "x_AttemptId": str(record.attempt),
            "x_LedgerKind": EntryKind(record.kind).name,
            "x_LedgerReference": str(record.reference or ""),
            "x_LedgerSeq": str(record.sequence),
            "x_Purpose": inert(record.purpose),
            "x_Reason": inert(record.reason),
            "x_User": record.user,
        }

    def _of_amount(self, running: _Running, key: LineKey, amount: int) -> dict[str, str]:
        meter, unit, per_unit = _METERS[key.resource]
        amounts = Amounts(*(amount if each == key.resource else 0 for each in RESOURCES))
        running.listed += running.price.cost_units(amounts)
        running.billed += running.price.cost_units(amounts, key.discount_bp)
        before = running.listed_rounded, running.billed_rounded
        running.listed_rounded = self._rounded(running.listed)
        running.billed_rounded = self._rounded(running.billed)
        billed = decimal_text(running.billed_rounded - before[1], PLACES)
        quantity = decimal_text(round_half_even(amount * 10**QUANTITY_PLACES, per_unit), QUANTITY_PLACES)
        credited = key.charge == CREDIT
        where = f"{key.region}/{key.pool}" + (f" ({key.accelerator})" if key.accelerator else "")
        return {
            "BilledCost": billed,
            "ContractedCost": billed,
            "EffectiveCost": billed,
            "ListCost": decimal_text(running.listed_rounded - before[0], PLACES),
            "PricingQuantity": quantity,
            "ConsumedQuantity": "" if credited else quantity,
            "ConsumedUnit": "" if credited else unit,
            "ChargeCategory": "Credit" if credited else "Usage",
            "ChargeDescription": f"{'Credit for ' if credited else ''}{meter} in {where}",
        }

    def _rounded(self, cost_units: int) -> int:
        return round_half_even(cost_units * 10**PLACES, self._per_major)

    def _closing_row(
        self, key: LineKey, line: StatementLine, category: str, description: str, amount: int
    ) -> dict[str, str]:
        cost = decimal_text(amount, PLACES)
        costs = dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost)
        return {
            **self._common,
            **self._month,
            **self._place(key),
            **costs,
            "ChargeCategory": category,
            "ChargeDescription": description,
            "ChargeFrequency": "One-Time",
            "InvoiceDetailId": f"{self._number}-{line.number}",
        }


def csv_text(rows: Iterable[Mapping[str, str]], header: bool = False) -> str:
    """Lines of CSV (RFC 4180, but with line feeds alone), columns in the order of ``COLUMNS``."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows([row.get(column, "") for column in COLUMNS] for row in rows)
    return into.getvalue()


def decimal_text(scaled: int, places: int) -> str:
    """A number that was multiplied by 10 to the ``places``, exactly; without needless zeros at its end."""
    whole, rest = divmod(abs(scaled), 10**places)
    digits = f"{rest:0{places}d}".rstrip("0") if rest else ""
    return f"{'-' if scaled < 0 else ''}{whole}{'.' if digits else ''}{digits}"


def instant(time_ms: int) -> str:
    """ "2026-10-01T08:30:00Z"; milliseconds only where there are any."""
    day, rest = divmod(time_ms, DAY_MS)
    seconds, ms = divmod(rest, 1000)
    fraction = f".{ms:03d}" if ms else ""
    return f"{_day_text(day)}T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}Z"


def inert(text: str) -> str:
    """Text that people chose, so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and text else text


@lru_cache(maxsize=4096)
def _day_text(day: int) -> str:
    return day_of(day * DAY_MS)


def _priority(value: int) -> str:
    return PriorityClass(value).name.lower() if value else ""
