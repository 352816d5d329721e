"""Money, exactly: the cost of an amount held for a time is an integer, and is rounded once, where a line of a statement is made.

A price is so many millionths of the currency's minor unit (cent, fen) for a core, a GiB or a GPU an hour; a discount is in hundredths of
a per cent. Amounts are milli-cores, MiB and milli-GPUs × ms. Their product, over the least common denominator of all of it, is a whole
number of *cost units*, of which a minor unit has ``COST_UNITS_PER_MINOR``. Service units are reckoned the same way, a millionth of one
an hour being what a millionth of a minor unit is to money.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import NamedTuple

HOUR_MS = 3_600_000
MICRO = 1_000_000
BASIS_POINTS = 10_000
_MIB_PER_GIB = 1024
_MILLI = 1000
# 128,000 is the least common multiple of 1,000 (milli-cores a core) and 1,024 (MiB a GiB).
_COMMON = 128_000
COST_UNITS_PER_MINOR = _COMMON * HOUR_MS * MICRO * BASIS_POINTS
_PER_MILLI, _PER_MIB = _COMMON // _MILLI, _COMMON // _MIB_PER_GIB
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


class Amounts(NamedTuple):
    """Milli-cores × ms, MiB × ms, milli-GPUs × ms."""

    cpu_milli_ms: int = 0
    memory_mib_ms: int = 0
    gpu_milli_ms: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """The sum."""
        return Amounts(*(a + b for a, b in zip(self, other, strict=True)))


class HourlyPrice(NamedTuple):
    """Millionths of a minor unit (or of a service unit) for a core, a GiB and a GPU an hour."""

    cpu_core: int = 0
    memory_gib: int = 0
    gpu: int = 0

    def cost_units(self, amounts: Amounts, discount_bp: int = 0) -> int:
        """The exact cost, after a discount of so many hundredths of a per cent."""
        whole = (
            (amounts.cpu_milli_ms * self.cpu_core + amounts.gpu_milli_ms * self.gpu) * _PER_MILLI
            + amounts.memory_mib_ms * self.memory_gib * _PER_MIB
        )  # fmt: skip
        return whole * (BASIS_POINTS - discount_bp)


FREE = HourlyPrice()


def round_half_even(numerator: int, denominator: int) -> int:
    """The nearest integer; of two equally near, the even one (IEEE 754 roundTiesToEven)."""
    low, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return low + (twice > denominator or (twice == denominator and low % 2 == 1))


def round_up(numerator: int, denominator: int) -> int:
    """The least integer that is not below the quotient."""
    return -(-numerator // denominator)


def minor_of(cost_units: int) -> int:
    """Whole minor units, half to even: the one rounding of a statement's line."""
    return round_half_even(cost_units, COST_UNITS_PER_MINOR)


def decimal_of(numerator: int, denominator: int, places: int) -> Decimal:
    """The quotient with so many digits after the point, half to even."""
    scaled = round_half_even(numerator * 10**places, denominator)
    return Decimal(scaled).scaleb(-places, _EXACT)


def major_of(cost_units: int, digits: int, places: int) -> Decimal:
    """A cost in the currency's major unit, whose minor unit has ``digits`` digits, with so many digits after the point."""
    return decimal_of(cost_units, COST_UNITS_PER_MINOR * 10**digits, places)


def money_text(minor: int, digits: int) -> str:
    """Minor units as people write them: 1234567 with two digits is "12345.67"."""
    return f"{Decimal(minor).scaleb(-digits, _EXACT):f}"
