"""The ledger's chain of hashes, reckoned on the reader's own machine (docs/explanation/metering.md)."""

from __future__ import annotations

import hashlib
import json

from protos.suanli.v1 import usage_pb2

FIELDS = [
    "sequence",
    "institution",
    "project",
    "user",
    "job_id",
    "attempt",
    "segment",
    "region",
    "pool",
    "accelerator",
    "start_ms",
    "end_ms",
    "cpu_milli",
    "memory_mib",
    "gpu_milli",
    "outcome",
    "kind",
    "revision",
    "priority",
    "preemptible",
    "purpose",
    "price_list",
    "rate",
    "discount_bp",
    "period",
    "posted_ms",
    "cpu_used_ms",
    "peak_memory_mib",
    "gpu_used_milli_ms",
    "gpu_peak_memory_mib",
    "reference",
    "reason",
    "author",
]
"""What a record's hash covers, in this order."""


def hash_of(before: bytes, record: usage_pb2.LedgerRecord) -> bytes:
    """SHA-256 over the hash of the record before and this one's fields, as a JSON list without spaces, ASCII only."""
    values = [getattr(record, name) for name in FIELDS]
    values[FIELDS.index("preemptible")] = int(record.preemptible)
    return hashlib.sha256(before + json.dumps(values, separators=(",", ":")).encode()).digest()


class Chain:
    """Takes all records from the first on; ``bad`` is the number of the first that does not fit, 0 for none."""

    def __init__(self) -> None:
        self.bad = self.sequence = self.records = 0
        self.head = b""

    def add(self, record: usage_pb2.LedgerRecord) -> None:
        """The next record."""
        follows = record.sequence == self.sequence + 1 and hash_of(self.head, record) == record.hash
        if not follows and not self.bad:
            self.bad = min(record.sequence, self.sequence + 1)
        self.sequence, self.head = record.sequence, record.hash
        self.records += 1
