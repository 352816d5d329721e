"""Statements for programs: lines as CSV, and the whole as JSON, exactly."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from protos.suanli.v1 import statements_pb2
from suanli.reports import figures

COLUMNS = (
    "statement",
    "status",
    "institution",
    "number",
    "charge",
    "project",
    "project_title",
    "region",
    "pool",
    "accelerator",
    "priority",
    "preemptible",
    "resource",
    "unit",
    "month",
    "quantity",
    "quantity_ms",
    "price_list",
    "rate",
    "unit_price",
    "discount_percent",
    "currency",
    "amount",
    "amount_minor",
    "exact_cost_units",
    "service_units",
)
UNITS = {"cpu": "core-hour", "memory": "GiB-hour", "gpu": "GPU-hour"}
_FORMULA = tuple("=+-@\t\r")


def csv_text(statement: statements_pb2.GetStatementResponse) -> str:
    """A row for each line below one of names (RFC 4180). Free text that a spreadsheet would take for a formula gets an apostrophe before it."""
    titles = {project.project: project.title for project in statement.projects}
    digits = statement.currency_digits
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for line in statement.lines:
        writer.writerow(
            (
                guarded(statement.number),
                "final" if statement.final else "provisional",
                guarded(statement.institution),
                line.number,
                line.charge,
                guarded(line.project),
                guarded(titles.get(line.project, "")),
                guarded(line.region),
                guarded(line.pool),
                guarded(line.accelerator),
                line.priority,
                "true" if line.preemptible else "false",
                line.resource,
                UNITS[line.resource],
                line.month,
                line.quantity,
                line.quantity_ms,
                line.price_list or "",
                line.rate if line.rate >= 0 else "",
                figures.unit_price(line.unit_price_micro, digits).replace(",", "") if line.rate >= 0 else "",
                figures.plain_money(line.discount_bp, 2),
                statement.currency,
                figures.plain_money(line.amount_minor, digits),
                line.amount_minor,
                line.exact_cost_units,
                line.service_units,
            )
        )
    return stream.getvalue()


def guarded(text: str) -> str:
    """Free text for a cell of a spreadsheet (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def data(statement: statements_pb2.GetStatementResponse) -> dict[str, Any]:
    """By the names of the fields; hashes as lower-case hexadecimal, whole numbers beyond 64 bits as decimal strings."""
    return _data(statement)


def json_text(statement: statements_pb2.GetStatementResponse) -> str:
    """``data`` as JSON, as ``suanli statement verify`` reads it."""
    return json.dumps(data(statement), indent=1, ensure_ascii=False) + "\n"


def _data(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            found[field.name] = [_data(one) for one in value] if field.message_type else list(value)
        else:
            found[field.name] = value.hex() if isinstance(value, bytes) else value
    return found
