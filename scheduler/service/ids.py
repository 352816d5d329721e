"""Identifiers and time of the live server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, lower case: in order, and without letters that are taken for digits."""
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_RANDOM_DIGITS = 8
_RANDOM_BITS = 5 * _RANDOM_DIGITS


def _base32(value: int, digits: int) -> str:
    """``value`` in an even number of digits."""
    text = ""
    for _ in range(0, digits, 2):
        text = _PAIRS[value & 1023] + text
        value >>= 10
    return text


class WallClock:
    """The host's wall clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000


class RandomIds:
    """Job ids in the manner of ULIDs (10 digits of time, 8 of chance), rising also within a millisecond."""

    def __init__(self) -> None:
        self._ms = 0
        self._low = 0
        self._prefix = ""
        self._steps: Iterator[int] = iter(())

    def job_id(self, now_ms: int) -> str:
        """ "j" and 18 base-32 digits."""
        if now_ms > self._ms:
            self._ms = now_ms
            self._prefix = "j" + _base32(now_ms, 10)
            # Half of the range is left for those that follow within the same millisecond.
            self._low = secrets.randbits(_RANDOM_BITS - 1)
        else:
            step = next(self._steps, None)
            if step is None:
                self._steps = iter(secrets.token_bytes(4096))
                step = next(self._steps)
            self._low += 1 + step
        return self._prefix + _base32(self._low, _RANDOM_DIGITS)

    def token(self, size_bytes: int) -> bytes:
        """Random bytes fit for secrets."""
        return secrets.token_bytes(size_bytes)
