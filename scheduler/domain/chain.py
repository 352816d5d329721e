"""Chains of hashes over append-only records: each hash covers all fields of its record and the hash of the record before.

Whoever changes, takes out or exchanges a record has to hash every later one anew, and then the newest hash is another than the one that
was told elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple, TypeVar

FIRST = b""
"""The hash before the first record."""
encode = json.JSONEncoder(separators=(",", ":")).encode
"""Without spaces, ASCII only."""
RecordT = TypeVar("RecordT", bound=NamedTuple)


def hash_of(before: bytes, record: NamedTuple) -> bytes:
    """SHA-256 over the hash before and the record's fields but the last (its hash) in their order, as a JSON list."""
    return hashlib.sha256(before + encode(record[:-1]).encode()).digest()


def chained(before: bytes, record: RecordT) -> RecordT:
    """The record, whose last field is ``hash``, with its hash."""
    return record._replace(hash=hash_of(before, record))
