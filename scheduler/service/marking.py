"""Which blobs are needed, in bounded memory: a bit for each value of a few digits of a digest.

A digest is as good as random, so with m bits and n needed blobs about one in m/n of those that nobody needs looks needed (a Bloom filter
of one hash function; Bloom, CACM 13(7), 1970). Such a one stays until another sweep, which looks at other digits. What is needed
always looks needed.
"""

from __future__ import annotations

BITS = 27
"""16 MiB of memory: of a million needed blobs, fewer than one in a hundred of the others stay for a sweep longer."""
_DIGITS = 8
_PLACES = 64 // _DIGITS


class Marked:
    """The digests that were marked, and a few others. ``sweep`` numbers the sweeps."""

    def __init__(self, sweep: int, bits: int = BITS) -> None:
        self._from = len("sha256:") + sweep % _PLACES * _DIGITS
        self._shift = 4 * _DIGITS - bits
        self._marks = bytearray(1 << bits >> 3)

    def add(self, digest: str) -> None:
        """Mark a digest ("sha256:" and 64 hexadecimal digits)."""
        place = self._place(digest)
        self._marks[place >> 3] |= 1 << (place & 7)

    def __contains__(self, digest: str) -> bool:
        place = self._place(digest)
        return bool(self._marks[place >> 3] >> (place & 7) & 1)

    def _place(self, digest: str) -> int:
        return int(digest[self._from : self._from + _DIGITS], 16) >> self._shift
