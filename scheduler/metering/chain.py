"""The chain over the ledger: each record's hash covers all its fields and the hash of the record before.

Whoever changes, takes out or exchanges a record has to hash every later one anew, and then the newest hash is another than the one that
is printed on statements and kept with closed months.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.domain.records import LedgerRecord

FIRST = b""
"""The hash before the first record."""
_HASH = len(LedgerRecord._fields) - 1
assert LedgerRecord._fields[-1] == "hash"
_encode = json.JSONEncoder(separators=(",", ":")).encode


def hash_of(before: bytes, record: LedgerRecord) -> bytes:
    """SHA-256 over the hash before and the record's other fields in their order, as a JSON list without spaces, ASCII only."""
    return hashlib.sha256(before + _encode(record[:_HASH]).encode()).digest()


def digest_of(sums: Iterable[Sequence[Any]]) -> bytes:
    """SHA-256 over sums of an accounting month (a key and its figures each), as a sorted JSON list without spaces, ASCII only."""
    rows = sorted([*key, *map(str, figures)] for key, *figures in sums)
    return hashlib.sha256(_encode(rows).encode()).digest()


def chained(before: bytes, record: LedgerRecord) -> LedgerRecord:
    """The record with its hash."""
    return record._replace(hash=hash_of(before, record))
