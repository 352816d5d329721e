"""Identifiers and time of the live server."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, lower case: in order, and without letters that are taken for digits."""
_RANDOM_BITS = 35


def _base32(value: int, length: int) -> str:
    text = ""
    for _ in range(length):
        value, digit = divmod(value, 32)
        text = _ALPHABET[digit] + text
    return text


class WallClock:
    """The host's wall clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000


class RandomIds:
    """Job ids in the manner of ULIDs (9 digits of time, 7 of chance), rising also within a millisecond."""

    def __init__(self) -> None:
        self._ms = 0
        self._low = 0

    def job_id(self, now_ms: int) -> str:
        """ "j" and 16 base-32 digits."""
        if now_ms > self._ms:
            self._ms = now_ms
            # Half of the range is left for those that follow within the same millisecond.
            self._low = secrets.randbits(_RANDOM_BITS - 1)
        else:
            self._low += 1 + secrets.randbits(8)
        return "j" + _base32(self._ms, 9) + _base32(self._low, 7)

    def token(self, size_bytes: int) -> bytes:
        """Random bytes fit for secrets."""
        return secrets.token_bytes(size_bytes)
