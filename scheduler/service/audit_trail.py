"""Where the audit log stands, in the leader's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scheduler.domain.chain import FIRST
from scheduler.domain.records import AuditHeadRecord, AuditRecord


class AuditVerified(NamedTuple):
    """What the last verification of the whole log found."""

    time_ms: int
    faults: int


@dataclass(slots=True)
class AuditTrail:
    """The newest record and the newest signed head; filled anew by ``loading``."""

    sequence: int = 0
    head: bytes = FIRST
    signed_sequence: int = 0
    signed_ms: int = 0
    verified: AuditVerified | None = None

    def load(self, newest: AuditRecord | None, newest_head: AuditHeadRecord | None) -> None:
        """Take over from the store. A number that was signed is not given again, so a log that was cut off shows the gap."""
        if newest is not None:
            self.sequence, self.head = newest.sequence, newest.hash
        if newest_head is not None:
            self.signed_sequence, self.signed_ms = newest_head.sequence, newest_head.time_ms
            self.sequence = max(self.sequence, newest_head.sequence)
