"""The decayed average of what somebody has held, in exact integer steps.

With the half-life h, after a time t in which the amount a was held, the average m becomes

    m' = b m + (1 - b) a        with  b = 0.5^(t / h)

This is the "real user priority" of HTCondor (Manual, "User Priorities and Negotiation": pi' = beta pi + (1 - beta) rho), an
exponentially weighted moving average in continuous time. The formula is exact for any amount that is constant over t, so splitting
t at an instant at which nothing changes gives the same up to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import NamedTuple

from scheduler.domain.resources import Resources

SCALE = 10**8
"""An average is kept in units of 1/SCALE of the amount's own: steps of a millisecond against a half-life of weeks still count, and an
institution's memory may be 80 PiB before 64 bits are full."""
_BITS = 80
_ONE = 1 << _BITS
_DIGIT_BITS, _DIGITS = 10, 6
_FRACTION_BITS = _DIGIT_BITS * _DIGITS
_DIGIT = (1 << _DIGIT_BITS) - 1


def _powers() -> tuple[tuple[int, ...], ...]:
    """For each digit of a fraction, highest first, and each value of it, 0.5^(what the digit stands for), in units of 2^-80."""
    roots = [isqrt(1 << (2 * _BITS - 1))]
    while len(roots) < _FRACTION_BITS:
        roots.append(isqrt(roots[-1] << _BITS))
    tables = []
    for first in range(0, _FRACTION_BITS, _DIGIT_BITS):
        powers = [_ONE]
        # From the digit's lowest bit up: each next root doubles the table.
        for root in reversed(roots[first : first + _DIGIT_BITS]):
            powers += [power * root >> _BITS for power in powers]
        tables.append(tuple(powers))
    return tuple(tables)


_POWERS = _powers()


class Average(NamedTuple):
    """The decayed average at ``as_of_ms``, in units of 1/``SCALE`` of a milli-core, a MiB, a milli-GPU."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0
    as_of_ms: int = 0

    @property
    def amount(self) -> Resources:
        """The average, rounded to whole units."""
        return Resources(*((value + SCALE // 2) // SCALE for value in self[:3]))


NEVER_HELD = Average()


@lru_cache(maxsize=4096)
def _left(elapsed_ms: int, half_life_ms: int) -> int:
    """0.5^(elapsed / half-life), in units of 2^-80; never rises with the time elapsed."""
    halvings, rest = divmod(elapsed_ms, half_life_ms)
    fraction = (rest << _FRACTION_BITS) // half_life_ms
    left = _ONE
    shift = _FRACTION_BITS
    for powers in _POWERS:
        shift -= _DIGIT_BITS
        left = left * powers[fraction >> shift & _DIGIT] >> _BITS
    return left >> halvings


def decayed(average: Average, held: Resources, now_ms: int, half_life_ms: int) -> Average:
    """The average at ``now_ms``, when ``held`` was held all the time since ``average`` was taken.

    Never falls when ``average`` or ``held`` rises. At an instant that is not later, the average is returned as it is.
    """
    elapsed_ms = now_ms - average.as_of_ms
    if elapsed_ms <= 0:
        return average
    left = _left(elapsed_ms, half_life_ms)
    come = (_ONE - left) * SCALE
    half = _ONE >> 1
    return Average(
        (average.cpu * left + held.cpu_milli * come + half) >> _BITS,
        (average.memory * left + held.memory_mib * come + half) >> _BITS,
        (average.gpu * left + held.gpu_milli * come + half) >> _BITS,
        now_ms,
    )
