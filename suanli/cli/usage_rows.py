"""What of a sum of usage is shown, and how: as columns of a table, as exact data, as fields of a file, as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from protos.suanli.v1 import usage_pb2
from suanli.cli import human
from suanli.cli.output import Column, short_name
from suanli.cli.reports import Field

Row = usage_pb2.UsageRow
HOUR_MS = 3_600_000
AMOUNTS = ("cpu_milli_ms", "memory_mib_ms", "gpu_milli_ms")
USED = ("cpu_used_milli_ms", "memory_peak_mib_ms", "gpu_used_milli_ms")
COSTS = ("cost_units", "list_cost_units", "service_cost_units")
ESTIMATES = ("energy_wh", "carbon_g")
SORTS: Final[dict[str, str]] = {
    "cost": "cost_units",
    "cpu": "cpu_milli_ms",
    "memory": "memory_mib_ms",
    "gpu": "gpu_milli_ms",
    "attempts": "attempts",
    "energy": "energy_wh",
}
_HOURS = (("cpu_core_hours", 1000), ("memory_gib_hours", 1024), ("gpu_hours", 1000))
_USED_HOURS = (("cpu_used_core_hours", 1000), ("memory_peak_gib_hours", 1024), ("gpu_used_hours", 1000))
_HOUR_PLACES = 6
_COST_PLACES = 10
_BARS = 40
_BAR_WIDTH = 40


def dimension_name(value: int) -> str:
    """ "month"."""
    return (short_name(usage_pb2.UsageDimension.DESCRIPTOR, value) or "").lower()


@dataclass(frozen=True)
class Shown:
    """What of the answer is asked for: by which dimensions, and whether with money, with what was used, with energy."""

    answer: usage_pb2.GetUsageResponse
    dimensions: Sequence[str]
    costs: bool
    used: bool
    energy: bool

    def money(self, cost_units: str, places: int) -> Decimal:
        """Cost units in the currency's major unit."""
        per_minor = int(self.answer.cost_units_per_minor or 1)
        return human.quotient(cost_units, per_minor * 10**self.answer.currency_digits, places)

    def units(self, cost_units: str, places: int) -> Decimal:
        """Cost units in service units."""
        return human.quotient(cost_units, int(self.answer.cost_units_per_minor or 1), places)

    @property
    def has_service_units(self) -> bool:
        """Whether any price is in them."""
        return bool(int(self.answer.total.service_cost_units or 0))

    def cost_text(self, row: Row) -> str:
        """ "1,234.50 CNY"."""
        return f"{self.money(row.cost_units, self.answer.currency_digits):,f} {self.answer.currency}"


def sorted_rows(rows: Sequence[Row], by: str) -> list[Row]:
    """The greatest first; equal ones by key. Without ``by`` as they are, by key."""
    if not by:
        return list(rows)
    field = SORTS[by]
    return sorted(rows, key=lambda row: (-Decimal(getattr(row, field) or 0), list(row.key)))


def total_row(total: Row, width: int) -> Row:
    """The total as the last row of a table."""
    row = Row()
    row.CopyFrom(total)
    row.key[:] = ["TOTAL", *[""] * (width - 1)]
    return row


def columns(shown: Shown) -> list[Column[Row]]:
    """Of the table: hours and money rounded for the eye."""

    def key(index: int) -> Column[Row]:
        return Column(shown.dimensions[index].upper(), lambda row: row.key[index])

    found = [
        *(key(index) for index in range(len(shown.dimensions))),
        Column[Row]("CPU-HOURS", lambda r: human.unit_hours(r.cpu_milli_ms), right=True, whole=True),
        Column[Row]("GIB-HOURS", lambda r: human.unit_hours(r.memory_mib_ms, 1024), right=True, whole=True),
        Column[Row]("GPU-HOURS", lambda r: human.unit_hours(r.gpu_milli_ms), right=True, whole=True),
        Column[Row]("ATTEMPTS", lambda r: f"{r.attempts:,}", right=True),
    ]
    if shown.used:
        found += [
            Column("CPU USED", lambda r: human.per_cent(r.cpu_used_milli_ms, r.cpu_milli_ms), right=True, whole=True),
            Column("MEM PEAK", lambda r: human.per_cent(r.memory_peak_mib_ms, r.memory_mib_ms), right=True, whole=True),
            Column("GPU USED", lambda r: human.per_cent(r.gpu_used_milli_ms, r.gpu_milli_ms), right=True, whole=True),
        ]
    if shown.costs:
        found.append(Column("COST", shown.cost_text, right=True, whole=True))
        if shown.has_service_units:
            found.append(
                Column("UNITS", lambda r: f"{shown.units(r.service_cost_units, 3):,f}", right=True, whole=True)
            )
    if shown.energy:
        found += [
            Column("KWH", lambda r: f"{human.quotient(r.energy_wh, 1000, 3):,f}", right=True, whole=True),
            Column("KG CO2E", lambda r: f"{human.quotient(r.carbon_g, 1000, 3):,f}", right=True, whole=True),
        ]
    return found


def data(shown: Shown, rows: Sequence[Row]) -> dict[str, Any]:
    """Exact, for JSON and YAML: integers, and what has digits after the point as text."""

    def figures(row: Row) -> dict[str, Any]:
        exact: dict[str, Any] = {name: int(getattr(row, name) or 0) for name in (*AMOUNTS, *USED)}
        exact |= {"segments": row.segments, "attempts": row.attempts}
        if shown.costs:
            exact |= {name: int(getattr(row, name) or 0) for name in COSTS}
            exact["cost"] = f"{shown.money(row.cost_units, _COST_PLACES):f}"
        if shown.energy:
            exact |= {name: getattr(row, name) for name in ESTIMATES}
        return exact

    answer = shown.answer
    money = {
        "currency": answer.currency,
        "currency_digits": answer.currency_digits,
        "cost_units_per_minor": int(answer.cost_units_per_minor or 0),
    }
    return {
        "rows": [{**dict(zip(shown.dimensions, row.key, strict=True)), **figures(row)} for row in rows],
        "total": figures(answer.total),
        "ledger_sequence": answer.ledger_sequence,
        "as_of_ms": answer.as_of_ms,
        **(money if shown.costs else {}),
    }


def fields(shown: Shown) -> list[Field[Row]]:
    """Of a file: hours to six digits, money to ten, and the exact integers that they are made from."""

    def key(index: int) -> Field[Row]:
        return Field(shown.dimensions[index], "text", lambda row: row.key[index])

    found = [key(index) for index in range(len(shown.dimensions))]
    found += [_hours(*pair, name) for pair, name in zip(_HOURS, AMOUNTS, strict=True)]
    found += [Field("attempts", "integer", lambda r: r.attempts), Field("segments", "integer", lambda r: r.segments)]
    if shown.used:
        found += [_hours(*pair, name) for pair, name in zip(_USED_HOURS, USED, strict=True)]
        found.append(Field("cpu_efficiency", 4, lambda r: human.ratio(r.cpu_used_milli_ms, r.cpu_milli_ms)))
        found.append(Field("gpu_efficiency", 4, lambda r: human.ratio(r.gpu_used_milli_ms, r.gpu_milli_ms)))
    if shown.costs:
        found += [
            Field("cost", _COST_PLACES, lambda r: shown.money(r.cost_units, _COST_PLACES)),
            Field("list_cost", _COST_PLACES, lambda r: shown.money(r.list_cost_units, _COST_PLACES)),
            Field("currency", "text", lambda r: shown.answer.currency),
            Field("service_units", _COST_PLACES, lambda r: shown.units(r.service_cost_units, _COST_PLACES)),
        ]
    if shown.energy:
        found.append(Field("energy_kwh", _HOUR_PLACES, lambda r: human.quotient(r.energy_wh, 1000, _HOUR_PLACES)))
        found.append(Field("carbon_kg", _HOUR_PLACES, lambda r: human.quotient(r.carbon_g, 1000, _HOUR_PLACES)))
    exact = (*AMOUNTS, *(USED if shown.used else ()), *(COSTS if shown.costs else ()))
    return found + [_exact(name) for name in exact]


def _hours(name: str, units: int, source: str) -> Field[Row]:
    value: Callable[[Row], Decimal] = lambda row: human.quotient(getattr(row, source), units * HOUR_MS, _HOUR_PLACES)  # noqa: E731
    return Field(name, _HOUR_PLACES, value)


def _exact(name: str) -> Field[Row]:
    return Field(name, "big", lambda row: int(getattr(row, name) or 0))


def chart(shown: Shown, rows: Sequence[Row], by: str) -> tuple[str, Table]:
    """A heading and bars of the greatest rows: of what they are sorted by, else of money, else of CPU time."""
    by = by or ("cost" if shown.costs else "cpu")
    found = sorted_rows(rows, by)[:_BARS]
    values = [Decimal(getattr(row, SORTS[by]) or 0) for row in found]
    most = max(values, default=Decimal())
    grid = Table.grid(padding=(0, 1))
    for row, value in zip(found, values, strict=True):
        part = float(value / most) if most > 0 else 0.0
        label = " ".join(human.one_line(each) or "-" for each in row.key)
        grid.add_row(
            Text(label), Bar(1.0, 0.0, max(part, 0.0), width=_BAR_WIDTH, color="cyan"), Text(_bar_text(shown, row, by))
        )
    return by.upper(), grid


def _bar_text(shown: Shown, row: Row, by: str) -> str:
    texts: dict[str, Callable[[], str]] = {
        "cost": lambda: shown.cost_text(row),
        "cpu": lambda: f"{human.unit_hours(row.cpu_milli_ms)} h",
        "memory": lambda: f"{human.unit_hours(row.memory_mib_ms, 1024)} GiB h",
        "gpu": lambda: f"{human.unit_hours(row.gpu_milli_ms)} h",
        "attempts": lambda: f"{row.attempts:,}",
        "energy": lambda: f"{human.quotient(row.energy_wh, 1000, 3):,f} kWh",
    }
    return texts[by]()
