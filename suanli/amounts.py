"""Amounts and times as people write them ("2GiB", "1.5", "2h") as the integers that the contract has."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from suanli.errors import InvalidArgument

Amount = int | float | str
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_MEMORY_BYTES = {
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "ki": 1 << 10,
    "kib": 1 << 10,
    "mi": 1 << 20,
    "mib": 1 << 20,
    "gi": 1 << 30,
    "gib": 1 << 30,
    "ti": 1 << 40,
    "tib": 1 << 40,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_MAX = Decimal(1 << 62)


def milli(value: Amount, field: str) -> int:
    """Return thousandths of a number of cores or GPUs: 1.5, "0.25" or "250m"."""
    text = str(value).strip() if not isinstance(value, bool) else ""
    try:
        if re.fullmatch(r"[0-9]+m", text):
            number = Decimal(text[:-1])
        elif re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            number = Decimal(text) * 1000
        else:
            raise InvalidOperation
    except InvalidOperation:
        raise InvalidArgument(
            f"{field}: {_shown(value)} is not a number of units, as in 2, 0.5 or 500m.", field=field
        ) from None
    if number != number.to_integral_value():
        raise InvalidArgument(f"{field}: {_shown(value)} is finer than a thousandth.", field=field)
    return _bounded(number, value, field)


def mebibytes(value: Amount, field: str) -> int:
    """Return MiB, rounded up: "2GiB", "500MB", or a whole number of MiB."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(Decimal(value), value, field)
    match = _MEMORY.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] and match[2].lower() not in _MEMORY_BYTES):
        raise InvalidArgument(
            f"{field}: {_shown(value)} is not an amount of memory; give MiB as a whole number, or 512MiB, 2GiB.",
            field=field,
        )
    bytes_ = Decimal(match[1]) * (_MEMORY_BYTES[match[2].lower()] if match[2] else 1 << 20)
    return _bounded((bytes_ / (1 << 20)).to_integral_value(ROUND_CEILING), value, field)


def milliseconds(value: Amount, field: str) -> int:
    """Return milliseconds: "90s", "1h30m", "2d", or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1e15:
            raise InvalidArgument(f"{field}: {value} is no length of time.", field=field)
        return _bounded((Decimal(str(value)) * 1000).to_integral_value(ROUND_CEILING), value, field)
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
        text += "s"
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise InvalidArgument(
            f"{field}: {_shown(value)} is not a length of time; give seconds, or as in 90s, 1h30m or 2d.", field=field
        )
    total = sum((Decimal(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text)), Decimal(0))
    return _bounded(total.to_integral_value(ROUND_CEILING), value, field)


def _bounded(number: Decimal, value: object, field: str) -> int:
    if not 0 <= number < _MAX:
        raise InvalidArgument(f"{field}: {_shown(value)} is out of range.", field=field)
    return int(number)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
