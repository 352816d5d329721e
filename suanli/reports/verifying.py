"""Checks a statement's JSON by itself: every figure from the exact ones, and the digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from suanli.reports import figures

DIGESTED = ("number", "institution", "month", "currency", "lines", "total_minor", "ledger_sequence", "head_hash")
_HOUR_MS = 3_600_000
_UNITS = {"cpu": 1000, "memory": 1024, "gpu": 1000}
_MICRO, _BASIS_POINTS = 10**6, 10**4


class NotAStatement(ValueError):
    """The text is not what ``suanli statement --format json`` writes; the message says where."""


def digest(statement: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, over the ``DIGESTED`` fields as JSON: keys sorted, no spaces, ASCII."""
    content = {name: statement[name] for name in DIGESTED}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def problems(text: str) -> tuple[Mapping[str, Any], list[str]]:
    """The statement, and what in it does not agree; ``NotAStatement`` for another file."""
    try:
        statement = json.loads(text)
        if not isinstance(statement, dict):
            raise NotAStatement("it is no JSON object")
        return statement, list(_problems(statement))
    except NotAStatement:
        raise
    except KeyError as error:
        raise NotAStatement(f"it has no {error}") from error
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, RecursionError) as error:
        raise NotAStatement(str(error)) from error


def _problems(statement: Mapping[str, Any]) -> Iterator[str]:
    if statement["digest"] != digest(statement):
        yield f"the digest is {digest(statement)}, not {statement['digest']}"
    lines = statement["lines"]
    per_minor = int(statement["cost_units_per_minor"])
    for number, line in enumerate(lines, 1):
        if line["number"] != number:
            yield f"line {number} has the number {line['number']}"
        yield from _line_problems(number, line, per_minor)
    if sum(line["amount_minor"] for line in lines) != statement["total_minor"]:
        yield "the total is not the sum of the lines"
    for project in statement["projects"]:
        parts = sum(line["amount_minor"] for line in lines if line["project"] == project["project"])
        if parts != project["amount_minor"]:
            yield f"the amount of project {project['project']} is not the sum of its lines"


def _line_problems(number: int, line: Mapping[str, Any], per_minor: int) -> Iterator[str]:
    exact, amount = int(line["exact_cost_units"]), int(line["quantity_ms"])
    hours = Fraction(amount, _UNITS[line["resource"]] * _HOUR_MS)
    if round(Fraction(exact, per_minor)) != line["amount_minor"]:
        yield f"the amount of line {number} is not its exact cost, rounded"
    if f"{figures.rounded(hours, 6):f}" != line["quantity"]:
        yield f"the quantity of line {number} is not its exact quantity, rounded"
    off = Fraction(_BASIS_POINTS - line["discount_bp"], _BASIS_POINTS)
    cost = hours * Fraction(line["unit_price_micro"], _MICRO) * off
    if line["charge"] != "free" and cost != Fraction(exact, per_minor):
        yield f"the exact cost of line {number} is not its quantity × its price"
