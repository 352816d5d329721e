"""What is on a statement for people, whatever it is printed on: its parts in order, as text in one language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Final, NamedTuple

from protos.suanli.v1 import statements_pb2
from suanli.cli.human import one_line
from suanli.reports import chart, figures
from suanli.reports.words import Language, Words

CHARGES: Final = ("usage", "correction", "credit", "free")
"""In the order of the lines."""
_RESOURCES: Final = ("cpu", "memory", "gpu")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIB_PER_GIB, _MILLI = 1024, 1000
_DRAWN_PER_HOUR = 3_600_000_000


class Fact(NamedTuple):
    """A name and what it is."""

    name: str
    value: str


class Total(NamedTuple):
    """A row of the totals; ``strong`` for the one that counts."""

    name: str
    amount: str
    strong: bool = False


class ResourceRow(NamedTuple):
    """What was held of a resource, and what it comes to."""

    name: str
    quantity: str
    amount: str


class Use(NamedTuple):
    """Of one resource: hours held, and the part that was used (None: nothing was held)."""

    hours: str
    used: Fraction | None


class ProjectRow(NamedTuple):
    """A project; ``uses`` are of CPU, memory and GPUs."""

    project: str
    title: str
    uses: tuple[Use, Use, Use]
    attempts: str
    amount: str


class LineRow(NamedTuple):
    """A line, cell by cell, in the order of ``Sheet.line_titles``."""

    number: str
    month: str
    pool: str
    accelerator: str
    priority: str
    resource: str
    quantity: str
    rate: str
    price: str
    discount: str
    amount: str


class Group(NamedTuple):
    """Lines that belong together, and their sum."""

    charge: str
    project: str
    lines: list[LineRow]
    subtotal: str


class Panel(NamedTuple):
    """A chart: a figure for each day of the month."""

    title: str
    color: str
    values: tuple[float, ...]


def instant(ms: int) -> str:
    """UTC to the minute: "2026-10-01 08:30"."""
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M")


def period(month: str) -> str:
    """From the first instant of a month to the first one after it."""
    year, number = int(month[:4]), int(month[5:])
    return f"{month}-01 00:00 – {year + number // 12:04d}-{number % 12 + 1:02d}-01 00:00"


def ledger_command(sequence: int, head_hash: bytes) -> str:
    """What shows that the ledger still holds all that the statement was made of."""
    return f"suanli ledger verify --head {sequence}:{head_hash.hex()}"


@dataclass(frozen=True)
class Sheet:
    """The parts of a statement."""

    statement: statements_pb2.GetStatementResponse
    language: Language = "en"

    @cached_property
    def words(self) -> Words:
        """In the sheet's language."""
        return Words(self.language)

    @property
    def status(self) -> str:
        """Final or provisional."""
        return self.words("final" if self.statement.final else "provisional")

    @property
    def institution(self) -> str:
        """Title and id."""
        title = one_line(self.statement.institution_title)
        return f"{title} ({self.statement.institution})" if title else self.statement.institution

    def money(self, minor: int) -> str:
        """In the statement's currency."""
        return figures.money(minor, self.statement.currency_digits)

    @cached_property
    def facts(self) -> list[Fact]:
        """The header."""
        one, words = self.statement, self.words
        versions = sorted({line.price_list for line in one.lines if line.price_list})
        lists = ", ".join(words("version", version) for version in versions) or words("no_prices")
        facts = [
            Fact(words("number"), one.number),
            Fact(words("institution"), self.institution),
            Fact(words("month"), one.month),
            Fact(words("period"), period(one.month)),
            Fact(words("issued"), instant(one.issue_time_ms)),
            Fact(words("status"), self.status),
            Fact(words("currency"), one.currency or figures.NONE),
            Fact(words("price_lists"), lists),
        ]
        if one.energy_wh:
            facts.append(Fact(words("energy"), f"{_thousandths(one.energy_wh)} kWh"))
            facts.append(Fact(words("carbon"), f"{_thousandths(one.carbon_g)} kg CO2e"))
        return facts

    @cached_property
    def totals(self) -> list[Total]:
        """By charge, then what it would be at list price."""
        one, words = self.statement, self.words
        sums = {charge: _sum(line for line in one.lines if line.charge == charge) for charge in CHARGES}
        present = {line.charge for line in one.lines} | {"usage"}
        rows = [Total(words(charge), self.money(sums[charge])) for charge in CHARGES if charge in present]
        rows.append(Total(" ".join(filter(None, (words("total"), one.currency))), self.money(one.total_minor), True))
        discounts = one.total_minor - sums["free"] - one.list_total_minor
        if discounts or sums["free"]:
            rows.append(Total(words("list_total"), self.money(one.list_total_minor)))
        if discounts:
            rows.append(Total(words("discounts"), self.money(discounts)))
        return rows

    @cached_property
    def resources(self) -> list[ResourceRow]:
        """Hours held (credits and allowances do not change them), and all that is charged or taken off for them."""
        rows = []
        for resource in _RESOURCES:
            lines = [line for line in self.statement.lines if line.resource == resource]
            held = sum(int(line.quantity_ms) for line in lines if line.charge in ("usage", "correction"))
            if lines:
                hours = figures.hours(held, _MIB_PER_GIB if resource == "memory" else _MILLI)
                rows.append(ResourceRow(self.words(resource), figures.quantity(hours), self.money(_sum(lines))))
        return rows

    @cached_property
    def projects(self) -> list[ProjectRow]:
        """By id."""
        return [self._project(project) for project in self.statement.projects]

    def _project(self, one: statements_pb2.StatementProject) -> ProjectRow:
        amounts = (
            (one.cpu_milli_ms, one.cpu_used_milli_ms, _MILLI),
            (one.memory_mib_ms, one.memory_peak_mib_ms, _MIB_PER_GIB),
            (one.gpu_milli_ms, one.gpu_used_milli_ms, _MILLI),
        )
        cpu, memory, gpu = (
            Use(
                figures.quantity(figures.hours(int(held), units)) if int(held or 0) else figures.NONE,
                figures.share(used, held),
            )
            for held, used, units in amounts
        )
        title = one_line(one.title)
        return ProjectRow(one.project, title, (cpu, memory, gpu), f"{one.attempts:,}", self.money(one.amount_minor))

    @property
    def line_titles(self) -> LineRow:
        """The heads of the columns."""
        words = self.words
        return LineRow(
            words("line"),
            words("of_month"),
            words("pool"),
            words("accelerator"),
            words("class"),
            words("resource"),
            words("quantity"),
            words("rate"),
            words("unit_price"),
            words("discount"),
            words("amount"),
        )

    @cached_property
    def groups(self) -> list[Group]:
        """The lines by charge and project."""
        titles = {project.project: project.title for project in self.projects}
        groups = []
        for (charge, project), lines in groupby(self.statement.lines, key=lambda line: (line.charge, line.project)):
            found = list(lines)
            title = titles.get(project, "")
            whose = f"{project} ({title})" if title else project
            rows = [self._line(line) for line in found]
            groups.append(Group(self.words(charge), whose, rows, self.money(_sum(found))))
        return groups

    def _line(self, line: statements_pb2.StatementLine) -> LineRow:
        where = f"{line.region}/{line.pool}" if line.pool else self.words("all_projects")
        priority = self.words(line.priority) if line.priority else ""
        return LineRow(
            str(line.number),
            line.month,
            where,
            one_line(line.accelerator),
            f"{priority} *" if line.preemptible else priority,
            self.words(line.resource),
            figures.quantity(Decimal(line.quantity)),
            (f"{line.price_list}/{line.rate}" if line.rate >= 0 else str(line.price_list)) if line.price_list else "",
            figures.unit_price(line.unit_price_micro, self.statement.currency_digits) if line.rate >= 0 else "",
            figures.percent(line.discount_bp) if line.discount_bp else "",
            self.money(line.amount_minor),
        )

    @cached_property
    def panels(self) -> list[Panel]:
        """Core-hours a day and GPU-hours a day, where there were any."""
        cpu, gpu = (
            tuple(max(0, int(each)) / _DRAWN_PER_HOUR for each in values)
            for values in (self.statement.cpu_milli_ms_by_day, self.statement.gpu_milli_ms_by_day)
        )
        panels = [
            Panel(self.words("cpu_by_day"), chart.CPU, cpu),
            Panel(self.words("gpu_by_day"), chart.GPU, gpu),
        ]
        return [panel for panel in panels if any(panel.values)]

    @cached_property
    def evidence(self) -> list[Fact]:
        """With which it can be checked."""
        one, words = self.statement, self.words
        return [
            Fact(words("digest"), one.digest.hex()),
            Fact(words("head_sequence"), str(one.ledger_sequence)),
            Fact(words("head_hash"), one.head_hash.hex() or figures.NONE),
            Fact(words("check_file"), f"suanli statement verify {one.number}.json"),
            Fact(words("check_ledger"), ledger_command(one.ledger_sequence, one.head_hash)),
        ]

    @cached_property
    def notes(self) -> Sequence[str]:
        """How to read it."""
        names = ["note_final" if self.statement.final else "note_provisional", "note_rounding", "note_held"]
        names += ["note_rate", "note_days", *(["note_energy"] if self.statement.energy_wh else [])]
        return [self.words(name) for name in names]


def _sum(lines: Iterable[statements_pb2.StatementLine]) -> int:
    return sum(line.amount_minor for line in lines)


def _thousandths(number: str) -> str:
    return f"{figures.rounded(Fraction(number) / 1000, 3):,f}"
