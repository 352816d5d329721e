"""A statement's digest: SHA-256 over its figures and the ledger's head as canonical JSON.

The JSON is one object with the keys ``currency``, ``head_hash`` (lower-case hexadecimal), ``institution``, ``ledger_sequence``, ``lines``,
``month``, ``number`` and ``total_minor``; ``lines`` is a list of objects with the names and values of ``suanli.v1.StatementLine``. Keys are
sorted, there are no spaces, and everything beyond ASCII is escaped. Titles, issue time, subtotals and days are not in it: they follow from
the lines, or may change without the charge changing. ``suanli statement verify`` reckons the same from a statement's JSON.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from scheduler.domain.spec import PriorityClass
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS, decimal_of
from scheduler.metering.statement import Line, Statement

PLACES = 6
_PER_HOUR = {"cpu": 1000 * HOUR_MS, "memory": 1024 * HOUR_MS, "gpu": 1000 * HOUR_MS}


def line_fields(line: Line) -> dict[str, Any]:
    """The fields of ``suanli.v1.StatementLine``."""
    key = line.key
    return {
        "number": line.number,
        "charge": key.charge,
        "project": key.project,
        "region": key.region,
        "pool": key.pool,
        "accelerator": key.accelerator,
        "priority": PriorityClass(key.priority).name.lower() if key.priority else "",
        "preemptible": bool(key.preemptible),
        "resource": key.resource,
        "month": key.month,
        "price_list": key.price_list,
        "rate": key.rate,
        "discount_bp": key.discount_bp,
        "quantity_ms": str(line.quantity_ms),
        "quantity": f"{decimal_of(line.quantity_ms, _PER_HOUR[key.resource], PLACES):f}",
        "unit_price_micro": line.unit_price_micro,
        "exact_cost_units": str(line.cost_units),
        "amount_minor": line.amount_minor,
        "service_units": f"{decimal_of(line.service_cost_units, COST_UNITS_PER_MINOR, PLACES):f}",
    }


def canonical(statement: Statement) -> bytes:
    """What the digest is over."""
    heading = statement.heading
    content = {
        "number": heading.number,
        "institution": heading.institution,
        "month": heading.month,
        "currency": statement.currency,
        "lines": [line_fields(line) for line in statement.lines],
        "total_minor": statement.total_minor,
        "ledger_sequence": heading.head.sequence,
        "head_hash": heading.head.hash.hex(),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def digest_of(statement: Statement) -> bytes:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(statement)).digest()
