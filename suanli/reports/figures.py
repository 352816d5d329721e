"""How figures are written on statements."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_HOUR_MS = 3_600_000
_MICRO_DIGITS = 6
NONE = "–"


def plain_money(minor: int, digits: int) -> str:
    """Minor units in the major one: "-1234.50"."""
    return f"{Decimal(minor).scaleb(-digits, _EXACT):f}"


def money(minor: int, digits: int) -> str:
    """The same for people: "-1,234.50"."""
    return f"{Decimal(minor).scaleb(-digits, _EXACT):,f}"


def unit_price(micro: int, digits: int) -> str:
    """Millionths of the minor unit in the major one, with as many digits as it needs, and at least the currency's."""
    text = f"{Decimal(micro).scaleb(-digits - _MICRO_DIGITS, _EXACT):f}"
    whole, _, part = text.partition(".")
    part = part.rstrip("0").ljust(digits, "0")
    return f"{int(whole):,}.{part}" if part else f"{int(whole):,}"


def percent(basis_points: int) -> str:
    """Hundredths of a per cent: "12.5 %"."""
    return f"{Decimal(basis_points).scaleb(-2).normalize():f} %"


def share(used: str, held: str) -> Fraction | None:
    """What part of what was held was used; None when nothing was."""
    return Fraction(int(used or 0), int(held)) if int(held or 0) > 0 else None


def share_text(part: Fraction | None) -> str:
    """Whole per cent, "–" for none."""
    return NONE if part is None else f"{round(part * 100)} %"


def hours(unit_ms: int, units: int = 1000) -> Decimal:
    """Milli-units × ms in unit-hours, to six places."""
    return rounded(Fraction(unit_ms, units * _HOUR_MS), 6)


def rounded(value: Fraction, places: int) -> Decimal:
    """Half to even."""
    return Decimal(round(value * 10**places)).scaleb(-places, _EXACT)


def quantity(value: Decimal) -> str:
    """For the eye: to three places, and to six where less than a hundredth would show."""
    places = "0.000001" if 0 < abs(value) < Decimal("0.01") else "0.001"
    return f"{value.quantize(Decimal(places), context=_EXACT):,f}"
