"""The chain over the ledger (``scheduler.domain.chain``), and the digests of closed months.

The newest hash is printed on statements and kept with closed months.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.domain.chain import FIRST, chained, encode, hash_of

__all__ = ["FIRST", "chained", "digest_of", "hash_of"]


def digest_of(sums: Iterable[Sequence[Any]]) -> bytes:
    """SHA-256 over sums of an accounting month (a key and its figures each), as a sorted JSON list without spaces, ASCII only."""
    rows = sorted([*key, *map(str, figures)] for key, *figures in sums)
    return hashlib.sha256(encode(rows).encode()).digest()
