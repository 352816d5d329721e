"""The audit log: what its signed heads say, and checking that it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

from scheduler.domain.chain import FIRST, hash_of
from scheduler.domain.records import AuditHeadRecord, AuditRecord

MAX_FAULTS = 100


class AuditOutcome(IntEnum):
    """How it ended. The numbers are stored and are those of ``suanli.v1.AuditOutcome``."""

    ALLOWED = 1
    REFUSED = 2
    """The caller may not do this, or is unknown."""
    FAILED = 3
    """The caller may do this, and it could not be done."""


class AuditFault(NamedTuple):
    """Something is not as it must be; ``sequence`` is the first record concerned."""

    sequence: int
    code: str
    message: str


Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether a signature (third) of a statement (second) was made with the private key of a public one (first)."""


def statement_of(sequence: int, digest: bytes, time_ms: int) -> bytes:
    """What is signed: the number and hash of the newest record, and when that was so."""
    return f"suanli audit head 1\n{sequence}\n{digest.hex()}\n{time_ms}\n".encode()


class AuditCheck:
    """Takes records and signed heads, each in the order of their numbers; then ``faults`` says what is wrong, the first first.

    ``trusted`` are the public keys whose heads count (none: heads are not looked at). Begun in the middle, ``before`` is the number
    and hash of the record before.
    """

    def __init__(
        self,
        trusted: Iterable[bytes],
        verify: Verify,
        before: tuple[int, bytes] = (0, FIRST),
        expected: tuple[int, bytes] | None = None,
    ) -> None:
        self.faults: list[AuditFault] = []
        self.begin = before[0]
        self.sequence, self.head = before
        self.records = self.heads = 0
        self._trusted = frozenset(trusted)
        self._verify = verify
        self._time_ms = 0
        self._expected: dict[int, list[tuple[str, bytes]]] = {}
        if expected is not None:
            self.expect(*expected, "as you were told")

    def add_head(self, head: AuditHeadRecord) -> None:
        """A signed head; before the record that it is about, or when all records have been added."""
        if not self._trusted:
            return
        self.heads += 1
        if head.key not in self._trusted:
            self._fault(head.sequence, "HEAD_UNTRUSTED", "its head was signed with a key that is not trusted")
        elif not self._verify(head.key, statement_of(head.sequence, head.hash, head.time_ms), head.signature):
            self._fault(head.sequence, "HEAD_FORGED", "the signature of its head is not right")
        else:
            self.expect(head.sequence, head.hash, "when its head was signed")

    def expect(self, sequence: int, digest: bytes, when: str) -> None:
        """The record of this number has, or had, this hash."""
        if sequence > self.sequence:
            self._expected.setdefault(sequence, []).append((when, digest))
        elif sequence == self.sequence and digest != self.head:
            self._fault(sequence, "HEAD_DIFFERS", f"its hash is not the one it had {when}")

    def add(self, record: AuditRecord) -> None:
        """The next record."""
        expected = self.sequence + 1
        if record.sequence != expected:
            many = record.sequence > expected + 1
            gone = f"records {expected} to {record.sequence - 1} are" if many else f"record {expected} is"
            self._fault(expected, "RECORD_MISSING", f"{gone} missing")
        elif hash_of(self.head, record) != record.hash:
            self._fault(record.sequence, "CHAIN_BROKEN", "it, or the one before it, is not the one that was written")
        if record.time_ms < self._time_ms:
            self._fault(record.sequence, "OUT_OF_ORDER", "it was written before the one before it")
        self._time_ms = max(self._time_ms, record.time_ms)
        self.sequence, self.head = record.sequence, record.hash
        self.records += 1
        for when, digest in self._expected.pop(record.sequence, ()):
            if digest != record.hash:
                self._fault(record.sequence, "HEAD_DIFFERS", f"its hash is not the one it had {when}")

    def finish(self, last_sequence: int) -> None:
        """All records have been added; ``last_sequence`` is the newest number given."""
        last = max(last_sequence, *self._expected, 0)
        if self.sequence < last:
            when = self._expected[last][0][0] if last in self._expected else "and are missing"
            self._fault(self.sequence + 1, "RECORD_MISSING", f"up to record {last} all were there {when}")
        self.faults.sort(key=lambda each: each.sequence)

    def _fault(self, sequence: int, code: str, message: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(AuditFault(sequence, code, f"Record {sequence}: {message}."))
