"""The audit log, as the API layer calls it: a part of ``scheduler.service.contract.Service``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from scheduler.domain.audit import AuditFault
from scheduler.domain.records import AuditHeadRecord, AuditRecord, JobRecord
from scheduler.service.ports import AuditQuery
from scheduler.service.refusals import Refusal


class AuditProgress(NamedTuple):
    """How far a verification is; ``faults`` are complete when it is ``done``."""

    checked: int
    total: int
    done: bool
    faults: Sequence[AuditFault]
    head_sequence: int
    head: bytes
    heads: int
    """Signed heads that were looked at."""


class AuditKey(NamedTuple):
    """The public key of the signed heads, those before it, and the newest head (None before the first)."""

    public_key: bytes
    earlier: Sequence[bytes]
    newest: AuditHeadRecord | None


class AuditService(Protocol):
    """Who did what, and whether the log of it is whole."""

    def note_refusal(self, refusal: Refusal) -> None:
        """A call was refused, or failed. It is in the log a second later, or in a minute (``service.refusals``)."""
        ...

    async def tell_access(self, action: str, job: JobRecord) -> None:
        """Record that the caller is given what belongs to another user's job; durable when it returns."""
        ...

    async def list_audit(self, query: AuditQuery) -> list[AuditRecord]:
        """A page."""
        ...

    async def audit_heads(self, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
        """Signed heads of later records, by their numbers."""
        ...

    def verify_audit(self, from_sequence: int, expected: tuple[int, bytes] | None) -> AsyncIterator[AuditProgress]:
        """Check the chain from a record on (0, 1: all) and the signed heads; ``expected`` is a record's number and the hash it had."""
        ...

    async def audit_key(self) -> AuditKey:
        """``FailedPrecondition`` (NO_AUDIT_KEY) when heads are not signed here."""
        ...
