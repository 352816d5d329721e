"""The audit log's chain of hashes and its signed heads, checked on the reader's own machine (docs/howto/audit.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.suanli.v1 import audit_pb2

FIELDS = [field.name for field in audit_pb2.AuditRecord.DESCRIPTOR.fields if field.name != "hash"]
"""What a record's hash covers, in this order."""


class Fault(NamedTuple):
    """What is wrong, and with which record first."""

    sequence: int
    code: str
    message: str


def hash_of(before: bytes, record: audit_pb2.AuditRecord) -> bytes:
    """SHA-256 over the hash of the record before and this one's fields, as a JSON list without spaces, ASCII only."""
    values = [getattr(record, name) for name in FIELDS]
    return hashlib.sha256(before + json.dumps(values, separators=(",", ":")).encode()).digest()


def is_signed(head: audit_pb2.AuditHead) -> bool:
    """Whether the signature is that of the head's public key."""
    statement = f"suanli audit head 1\n{head.sequence}\n{head.hash.hex()}\n{head.time_ms}\n".encode()
    try:
        Ed25519PublicKey.from_public_bytes(head.public_key).verify(head.signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


class AuditChain:
    """Takes all records from the first on, each with the heads that came with it; ``fault`` is the first thing that is wrong."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.sequence = self.records = self.heads = 0
        self.head = b""
        self.fault: Fault | None = None
        self._keys = frozenset(keys)
        self._hashes: dict[int, bytes] = {}

    def add(self, response: audit_pb2.StreamAuditResponse) -> None:
        """The next part of the log."""
        self._hashes.clear()
        for record in response.records:
            if record.sequence != self.sequence + 1:
                self._bad(self.sequence + 1, "RECORD_MISSING", "it is missing")
            elif hash_of(self.head, record) != record.hash:
                self._bad(record.sequence, "CHAIN_BROKEN", "it, or the one before it, is not the one that was written")
            self.sequence, self.head = record.sequence, record.hash
            self._hashes[record.sequence] = record.hash
            self.records += 1
        for head in response.heads:
            self._check(head)

    def _check(self, head: audit_pb2.AuditHead) -> None:
        self.heads += 1
        if head.public_key not in self._keys:
            self._bad(head.sequence, "HEAD_UNTRUSTED", "its head was signed with a key that is not trusted")
        elif not is_signed(head):
            self._bad(head.sequence, "HEAD_FORGED", "the signature of its head is not right")
        elif head.sequence not in self._hashes:
            self._bad(min(head.sequence, self.sequence + 1), "RECORD_MISSING", "it is missing, and its head was signed")
        elif self._hashes[head.sequence] != head.hash:
            self._bad(head.sequence, "HEAD_DIFFERS", "its hash is not the one it had when its head was signed")

    def _bad(self, sequence: int, code: str, message: str) -> None:
        if self.fault is None or sequence < self.fault.sequence:
            self.fault = Fault(sequence, code, f"Record {sequence}: {message}.")
