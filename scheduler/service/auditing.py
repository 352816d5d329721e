"""Writing the audit log: each record in the step, and so in the transaction, of what it tells of.

A use case that changes something calls ``tell`` at its end, when nothing can fail any more. Who is acting is known where the call came in
(``scheduler.api.gate``), and stands in the context of the call's task meanwhile: use cases need not hand it on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from scheduler.domain.audit import AuditOutcome, statement_of
from scheduler.domain.chain import FIRST, chained
from scheduler.domain.records import AuditHeadRecord, AuditRecord
from scheduler.service.refusals import Refusal
from scheduler.service.state import State

SYSTEM = "system"
"""The actor of what nobody called for, as at the first start."""
SIGN_EVERY_MS = 60_000
# Besides secrets, texts of policies and price lists: they are kept with their versions, and never change there.
_NOT_SHOWN = frozenset({"secret_hash", "token_hash", "document", "effective"})


class Signer(Protocol):
    """Holds the key that heads are signed with."""

    @property
    def public_key(self) -> bytes:
        """32 bytes (Ed25519, RFC 8032)."""
        ...

    @property
    def trusted(self) -> frozenset[bytes]:
        """The public keys whose signatures count: this one and those before it."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """The signature, 64 bytes."""
        ...

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether the signature is right."""
        ...


@dataclass(slots=True)
class Acting:
    """Who has called; the fields are those of ``AuditRecord``. ``told``: what came of the call is in the log."""

    actor: str = ""
    role: int = 0
    institution: str = ""
    peer: str = ""
    key_prefix: str = ""
    told: bool = False


ACTING: ContextVar[Acting | None] = ContextVar("suanli_acting", default=None)


def tell(
    state: State,
    action: str,
    target: str,
    on_behalf_of: str = "",
    before: NamedTuple | Mapping[str, Any] | None = None,
    after: NamedTuple | Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """Record that this was allowed and is done, in the same transaction as whatever this step journals."""
    acting = ACTING.get() or Acting(SYSTEM)
    acting.told = True
    who = Refusal(
        acting.actor,
        acting.role,
        acting.institution,
        action,
        target,
        int(AuditOutcome.ALLOWED),
        reason,
        acting.peer,
        acting.key_prefix,
    )
    _append(state, who, on_behalf_of, 1, document(before), document(after))


def tell_refusal(state: State, refusal: Refusal, calls: int) -> None:
    """Record that so many calls were refused, or failed."""
    _append(state, refusal, "", calls, "", "")


def _append(state: State, what: Refusal, on_behalf_of: str, calls: int, before: str, after: str) -> None:
    trail = state.audit
    record = AuditRecord(
        sequence=trail.sequence + 1,
        time_ms=state.now(),
        actor=what.actor,
        role=what.role,
        institution=what.institution,
        action=what.action,
        target=what.target,
        on_behalf_of=on_behalf_of,
        outcome=what.outcome,
        reason=what.reason,
        before=before,
        after=after,
        peer=what.peer,
        key_prefix=what.key_prefix,
        calls=calls,
        hash=FIRST,
    )
    record = chained(trail.head, record)
    trail.sequence, trail.head = record.sequence, record.hash
    state.record.audit.append(record)


def sign_head(state: State, signer: Signer, at_once: bool = False) -> None:
    """Sign the newest record's hash, when there is a new one and the last head is a minute old (or ``at_once``)."""
    trail, now = state.audit, state.now()
    due = at_once or now - trail.signed_ms >= SIGN_EVERY_MS
    if trail.sequence == trail.signed_sequence or not due:
        return
    signature = signer.sign(statement_of(trail.sequence, trail.head, now))
    state.record.audit_heads.append(AuditHeadRecord(trail.sequence, trail.head, now, signer.public_key, signature))
    trail.signed_sequence, trail.signed_ms = trail.sequence, now


def document(thing: NamedTuple | Mapping[str, Any] | None) -> str:
    """What is shown of a record: a JSON object without secrets and long texts, bytes in hexadecimal; empty for None."""
    return "" if thing is None else json.dumps(_plain(thing), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if name not in _NOT_SHOWN}
    return value
