"""Is a FOCUS export what it says? Its form by focus-data-toolkit's lint of 1.4, its figures by plain reckoning."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal

from focus_data_toolkit.model.validator import COND_UNIT_PRICING, lint_focus_1_4_structure

Row = Mapping[str, str]


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(text)))


def lint(rows: Iterable[Row]) -> list[str]:
    """What is against the specification."""
    report = lint_focus_1_4_structure("cost and usage", [*map(dict, rows)], supported_conditions=[COND_UNIT_PRICING])
    return report.messages()


def amounts(rows: Iterable[Row], column: str = "BilledCost") -> dict[str, Decimal]:
    """The sum of a column for each line of a statement."""
    found: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        if row["InvoiceDetailId"] or Decimal(row[column]):
            found[row["InvoiceDetailId"]] += Decimal(row[column])
    return dict(found)
