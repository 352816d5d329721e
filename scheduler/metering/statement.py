"""A statement: what an institution is charged for an accounting month, from the sums of the ledger.

Every line is the exact cost of one ``LineKey``, rounded once, half to even, to the currency's minor unit; the total is the sum of the
rounded lines. Nothing here depends on the order of the sums, nor on how finely they are split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, Protocol

from scheduler.domain.errors import FailedPrecondition, Internal
from scheduler.domain.states import EntryKind
from scheduler.metering.allowances import FreeKey, MonthlyUse, closing_list, free_of_period, rounded_to_odd
from scheduler.metering.lines import (
    CHARGES,
    CREDIT,
    FREE,
    RESOURCES,
    LineKey,
    Resource,
    charge_of,
    only,
    statement_number,
)
from scheduler.metering.money import Amounts, minor_of
from scheduler.metering.prices import NO_RATE, PriceBook, PriceList
from scheduler.metering.segments import month_start_ms, next_month

NONE = Amounts()
_DAY_MS = 86_400_000


class SumKey(Protocol):
    """What a sum is of; fields of ``scheduler.service.ports.UsageKey``. Users and purposes are of no account here."""

    @property
    def institution(self) -> str: ...  # noqa: D102
    @property
    def project(self) -> str: ...  # noqa: D102
    @property
    def region(self) -> str: ...  # noqa: D102
    @property
    def pool(self) -> str: ...  # noqa: D102
    @property
    def accelerator(self) -> str: ...  # noqa: D102
    @property
    def month(self) -> str: ...  # noqa: D102
    @property
    def period(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> int: ...  # noqa: D102
    @property
    def priority(self) -> int: ...  # noqa: D102
    @property
    def preemptible(self) -> int: ...  # noqa: D102
    @property
    def price_list(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> int: ...  # noqa: D102
    @property
    def discount_bp(self) -> int: ...  # noqa: D102


class Sum(Protocol):
    """Exact sums of amount × ms; ``scheduler.service.ports.UsageSum``."""

    @property
    def key(self) -> SumKey: ...  # noqa: D102
    @property
    def cpu_milli_ms(self) -> int: ...  # noqa: D102
    @property
    def memory_mib_ms(self) -> int: ...  # noqa: D102
    @property
    def gpu_milli_ms(self) -> int: ...  # noqa: D102
    @property
    def cpu_used_milli_ms(self) -> int: ...  # noqa: D102
    @property
    def memory_peak_mib_ms(self) -> int: ...  # noqa: D102
    @property
    def gpu_used_milli_ms(self) -> int: ...  # noqa: D102
    @property
    def attempts(self) -> int: ...  # noqa: D102


class Day(Protocol):
    """What was held in a UTC day; ``scheduler.service.ports.DaySum``."""

    @property
    def day(self) -> str: ...  # noqa: D102
    @property
    def cpu_milli_ms(self) -> int: ...  # noqa: D102
    @property
    def gpu_milli_ms(self) -> int: ...  # noqa: D102


class Head(NamedTuple):
    """The newest ledger record of which the statement knows, and its hash."""

    sequence: int
    hash: bytes


NO_HEAD = Head(0, b"")
"""Of an empty ledger."""


@dataclass(frozen=True)
class Heading:
    """Whose statement it is, of which month, and when it was made. ``final``: the month is closed. ``project_titles`` by project."""

    institution: str
    month: str
    title: str = ""
    project_titles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    final: bool = False
    head: Head = NO_HEAD
    issue_ms: int = 0

    @property
    def number(self) -> str:
        """Of the statement."""
        return statement_number(self.institution, self.month)


class Line(NamedTuple):
    """A quantity (milli or MiB × ms) of one thing at one price. ``unit_price_micro``: millionths of the minor unit an hour, before discount.

    ``cost_units`` is exact, except on a "free" line: there it is rounded so that the amount is still that of the exact cost.
    """

    number: int
    key: LineKey
    quantity_ms: int
    unit_price_micro: int
    cost_units: int
    list_cost_units: int
    service_cost_units: int

    @property
    def amount_minor(self) -> int:
        """In minor units: the one rounding."""
        return minor_of(self.cost_units)


@dataclass
class ProjectUse:
    """A project's part: its lines' amounts, what it held (corrected) and what of that was used."""

    project: str
    title: str = ""
    amount_minor: int = 0
    held: Amounts = NONE
    used: Amounts = NONE
    attempts: int = 0


class Estimate(NamedTuple):
    """Energy in microjoules, and carbon in micrograms of CO2e."""

    energy_uj: int
    carbon_ug: int


@dataclass(frozen=True)
class Statement:
    """See the module. Days are of the month itself, index 0 being the first, in milli × ms."""

    heading: Heading
    currency: str
    digits: int
    lines: tuple[Line, ...]
    projects: tuple[ProjectUse, ...]
    cpu_by_day: tuple[int, ...]
    gpu_by_day: tuple[int, ...]
    energy: Estimate | None = None

    @cached_property
    def total_minor(self) -> int:
        """The sum of the lines as they are rounded."""
        return sum(line.amount_minor for line in self.lines)

    @cached_property
    def list_total_minor(self) -> int:
        """What it would be without discounts and free allowances; rounded line by line, too."""
        return sum(minor_of(line.list_cost_units) for line in self.lines)


@dataclass(slots=True)
class _Cost:
    quantity_ms: int = 0
    money: int = 0
    listed: int = 0
    service: int = 0


@dataclass
class _Ledger:
    """The sums by line and by project, and as allowances see them."""

    book: PriceBook
    costs: dict[LineKey, _Cost] = field(default_factory=dict)
    projects: dict[str, ProjectUse] = field(default_factory=dict)
    use: MonthlyUse = field(default_factory=MonthlyUse)

    def add(self, one: Sum) -> None:
        key, held = one.key, amounts_of_sum(one)
        price_list = list_of(self.book, key.price_list)
        for index, resource in enumerate(RESOURCES):
            if held[index]:
                self._add_resource(key, index, only(held, resource), price_list)
        project = self.projects.setdefault(key.project, ProjectUse(key.project))
        if key.kind != EntryKind.CREDIT:
            project.held = project.held.plus(held)
            used = Amounts(one.cpu_used_milli_ms, one.memory_peak_mib_ms, one.gpu_used_milli_ms)
            project.used = project.used.plus(used)
        project.attempts += one.attempts

    def _add_resource(self, key: SumKey, index: int, amounts: Amounts, price_list: PriceList | None) -> None:
        charge = charge_of(key.kind, key.month, key.period)
        line = line_key_of(key, charge, RESOURCES[index])
        money = listed = service = 0
        if price_list is not None:
            money = price_list.price(key.rate).cost_units(amounts, key.discount_bp)
            listed = price_list.price(key.rate).cost_units(amounts)
            service = price_list.service(key.rate).cost_units(amounts)
        cost = self.costs.setdefault(line, _Cost())
        cost.quantity_ms += amounts[index]
        cost.money += money
        cost.listed += listed
        cost.service += service
        hours = 0 if charge == CREDIT else amounts[index]
        self.use.add(FreeKey(key.month, index, key.price_list), hours, money, service)


def build_statement(
    heading: Heading,
    sums: Iterable[Sum],
    days: Iterable[Day],
    book: PriceBook,
    *,
    earlier: Iterable[Sum] = (),
    with_energy: bool = False,
) -> Statement:
    """Make a statement from the institution's sums of the accounting month, and its days.

    ``earlier``: its sums of the same months of use in accounting months before, without which a late fact would have its allowance
    twice. Raises ``FailedPrecondition`` (CURRENCIES_DIFFER) when the month was priced in two currencies, ``Internal`` for sums of another
    statement and for a price list that is not in the book.
    """
    sums = list(sums)
    ledger, before = _Ledger(book), _Ledger(book)
    for one in sums:
        if (one.key.institution, one.key.period) != (heading.institution, heading.month):
            raise Internal(f"a sum of {one.key.institution} {one.key.period} is not of {heading.number}")
        ledger.add(one)
    for one in earlier:
        if one.key.institution != heading.institution or one.key.period >= heading.month:
            raise Internal(f"a sum of {one.key.institution} {one.key.period} is not from before {heading.number}")
        before.add(one)
    lines = [_line(key, cost, book) for key, cost in ledger.costs.items() if cost.quantity_ms]
    lines += _free_lines(heading.institution, ledger, before)
    lines.sort(key=lambda line: (CHARGES.index(line.key.charge), line.key))
    numbered = tuple(line._replace(number=number) for number, line in enumerate(lines, 1))
    for line in numbered:
        if line.key.charge != FREE:
            ledger.projects[line.key.project].amount_minor += line.amount_minor
    for project in ledger.projects.values():
        project.title = heading.project_titles.get(project.project, "")
    currency, digits = _currency(book, heading.month, {one.key.price_list for one in sums})
    cpu, gpu = _by_day(heading.month, days)
    return Statement(
        heading,
        currency,
        digits,
        numbered,
        tuple(each for _, each in sorted(ledger.projects.items()) if each != ProjectUse(each.project, each.title)),
        cpu,
        gpu,
        _estimate(sums, closing_list(book, heading.month)) if with_energy else None,
    )


def amounts_of_sum(one: Sum) -> Amounts:
    """What was held."""
    return Amounts(one.cpu_milli_ms, one.memory_mib_ms, one.gpu_milli_ms)


def list_of(book: PriceBook, version: int) -> PriceList | None:
    """The list of a record; None for 0."""
    found = book.get(version)
    if found is None and version:
        raise Internal(f"the ledger names price list {version}, which is not there", reason="PRICE_LIST_MISSING")
    return found


def line_key_of(key: SumKey, charge: str, resource: Resource) -> LineKey:
    """The line on which a resource of a sum is."""
    return LineKey(
        charge,
        key.project,
        key.region,
        key.pool,
        key.accelerator,
        key.priority,
        key.preemptible,
        resource,
        key.month,
        key.price_list,
        key.rate,
        key.discount_bp,
    )


def _line(key: LineKey, cost: _Cost, book: PriceBook) -> Line:
    price_list = list_of(book, key.price_list)
    unit_price = price_list.price(key.rate)[RESOURCES.index(key.resource)] if price_list else 0
    return Line(0, key, cost.quantity_ms, unit_price, cost.money, cost.listed, cost.service)


def _free_lines(institution: str, ledger: _Ledger, before: _Ledger) -> list[Line]:
    lines = []
    for key, taken in free_of_period(institution, ledger.book, ledger.use, before.use).items():
        resource = RESOURCES[key.resource]
        line = LineKey(FREE, "", "", "", "", 0, 0, resource, key.month, key.price_list, NO_RATE, 0)
        money, service = rounded_to_odd(-taken.cost), rounded_to_odd(-taken.service)
        lines.append(Line(0, line, -taken.amount, 0, money, 0, service))
    return lines


def _currency(book: PriceBook, month: str, versions: Iterable[int]) -> tuple[str, int]:
    """That of the lists by which the sums are priced; without any, that of the month's closing list or, else, the newest."""
    used = {(found.currency, found.digits) for version in versions if (found := list_of(book, version))}
    if len(used) > 1:
        names = " and ".join(sorted(currency for currency, _ in used))
        raise FailedPrecondition(
            f"{month} was priced in {names}; a statement is in one currency.", reason="CURRENCIES_DIFFER", field="month"
        )
    if used:
        return used.pop()
    default = closing_list(book, month) or book.newest
    return (default.currency, default.digits) if default else ("", 0)


def _by_day(month: str, days: Iterable[Day]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    count = (month_start_ms(next_month(month)) - month_start_ms(month)) // _DAY_MS
    cpu, gpu = [0] * count, [0] * count
    for one in days:
        if one.day[:7] == month:
            cpu[int(one.day[8:]) - 1] += one.cpu_milli_ms
            gpu[int(one.day[8:]) - 1] += one.gpu_milli_ms
    return tuple(cpu), tuple(gpu)


def _estimate(sums: Iterable[Sum], price_list: PriceList | None) -> Estimate:
    """By the factors of one list, of what was held in each region with each accelerator."""
    held: dict[tuple[str, str], Amounts] = {}
    for one in sums:
        if one.key.kind != EntryKind.CREDIT:
            where = one.key.region, one.key.accelerator
            held[where] = held.get(where, Amounts()).plus(amounts_of_sum(one))
    energy_uj = carbon_ug = 0
    if price_list is not None:
        for (region, accelerator), amounts in held.items():
            uj = price_list.energy.energy_uj(amounts, accelerator)
            energy_uj += uj
            carbon_ug += price_list.energy.carbon_ug(uj, region)
    return Estimate(energy_uj, carbon_ug)
