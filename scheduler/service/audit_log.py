"""The audit log on the live server; ``ControlPlane`` inherits it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from scheduler.domain.audit import AuditCheck
from scheduler.domain.errors import FailedPrecondition, Unavailable
from scheduler.domain.records import AuditHeadRecord, AuditRecord, JobRecord
from scheduler.service.audit_contract import AuditKey, AuditProgress
from scheduler.service.audit_trail import AuditVerified
from scheduler.service.auditing import Signer, sign_head, tell, tell_refusal
from scheduler.service.engine import Engine
from scheduler.service.ports import AuditQuery, Store
from scheduler.service.refusals import Refusal, Refusals

T = TypeVar("T")
log = logging.getLogger(__name__)
PAGE = 2_000
VERIFY_FIRST_S = 600
VERIFY_PAUSE_S = 0.25


class AuditLog:
    """Refusals, signed heads, reading and verifying."""

    engine: Engine
    _store: Store

    def __init__(self, signer: Signer | None) -> None:
        self._signer = signer
        self._refusals = Refusals()

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        raise NotImplementedError

    async def _settled(self, work: Callable[[], T]) -> T:
        """Read from the store what is there once everything so far is durable."""
        raise NotImplementedError

    def note_refusal(self, refusal: Refusal) -> None:
        """See ``AuditService``."""
        self._refusals.note(refusal, self.engine.state.now())

    def keep_audit(self, at_once: bool = False) -> None:
        """Journal the refusals that are due and a signed head if one is (``at_once``: all that there are)."""
        state = self.engine.state
        for refusal, calls in self._refusals.take(state.now(), at_once):
            tell_refusal(state, refusal, calls)
        if self._signer is not None:
            sign_head(state, self._signer, at_once)

    async def tell_access(self, action: str, job: JobRecord) -> None:
        """See ``AuditService``."""
        owner = {"user": job.user}
        await self._change(lambda: tell(self.engine.state, action, job.job_id, job.institution, after=owner))

    async def list_audit(self, query: AuditQuery) -> list[AuditRecord]:
        """See ``AuditService``."""
        self.keep_audit()
        return await self._settled(lambda: self._store.audit(query))

    async def audit_heads(self, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
        """See ``AuditService``."""
        return await self._settled(lambda: self._store.audit_heads(after_sequence, limit))

    async def audit_key(self) -> AuditKey:
        """See ``AuditService``."""
        signer = self._signer
        if signer is None:
            raise FailedPrecondition("Heads of the audit log are not signed here.", reason="NO_AUDIT_KEY")
        signed = self.engine.state.audit.signed_sequence
        newest = await self._settled(lambda: self._store.audit_heads(signed - 1, 1)) if signed else []
        return AuditKey(signer.public_key, sorted(signer.trusted - {signer.public_key}), newest[0] if newest else None)

    async def verify_audit(
        self, from_sequence: int, expected: tuple[int, bytes] | None
    ) -> AsyncIterator[AuditProgress]:
        """See ``AuditService``."""
        state, signer = self.engine.state, self._signer
        upto, head = state.audit.sequence, state.audit.head
        before = (0, b"")
        if from_sequence > 1:
            query = AuditQuery(after=from_sequence - 2, limit=1)
            found = await self._settled(lambda: self._store.audit(query))
            before = (from_sequence - 1, found[0].hash if found else b"")
        trusted, verify = (signer.trusted, signer.verify) if signer else (frozenset[bytes](), _no_signature)
        check = AuditCheck(trusted, verify, before, expected)
        # What the leader itself remembers: it shows what was changed in the store since, be it signed or not.
        check.expect(upto, head, "when it was written")
        heads_after = check.begin - 1
        while page := await self._settled(lambda: self._store.audit(AuditQuery(after=check.sequence, limit=PAGE))):
            heads_after = await self._add_heads(check, heads_after, min(upto, page[-1].sequence))
            for record in page:
                check.add(record)
            yield _progress(check, upto, done=False)
            if check.sequence >= upto:
                break
        # A head that is signed meanwhile is of a record that is not looked at; one of a record that is gone is not.
        await self._add_heads(check, heads_after, upto)
        check.finish(upto)
        if from_sequence <= 1:
            state.audit.verified = AuditVerified(state.now(), len(check.faults))
        yield _progress(check, upto, done=True)

    async def _add_heads(self, check: AuditCheck, after: int, upto: int) -> int:
        while heads := await self.audit_heads(after, PAGE):
            for head in heads:
                if head.sequence > upto:
                    return after
                check.add_head(head)
                after = head.sequence
        return after

    async def keep_verifying_audit(self, every_s: float) -> None:
        """Verify the whole log again and again, with pauses, until cancelled."""
        await asyncio.sleep(min(VERIFY_FIRST_S, every_s))
        while True:
            try:
                async for progress in self.verify_audit(0, None):
                    await asyncio.sleep(VERIFY_PAUSE_S)
                    for fault in progress.faults if progress.done else ():
                        log.critical("the audit log is not what it must be: %s: %s", fault.code, fault.message)
            except Unavailable as error:
                log.warning("the audit log could not be verified: %s", error)
            await asyncio.sleep(every_s)


def _no_signature(key: bytes, statement: bytes, signature: bytes) -> bool:
    del key, statement, signature
    return False


def _progress(check: AuditCheck, upto: int, *, done: bool) -> AuditProgress:
    return AuditProgress(
        check.records, max(upto, check.sequence), done, check.faults, check.sequence, check.head, check.heads
    )
