"""The audit log: protocol messages and what they mean."""

from __future__ import annotations

from protos.suanli.v1 import audit_pb2
from scheduler.domain.audit import AuditFault, AuditOutcome
from scheduler.domain.records import AuditHeadRecord, AuditRecord
from scheduler.service.ports import AuditQuery
from scheduler.wire import check
from scheduler.wire.admin import MAX_TIME_MS

MAX_NAME = 128


def query_from_proto(
    request: audit_pb2.ListAuditRequest | audit_pb2.StreamAuditRequest, institution: str
) -> AuditQuery:
    """What is asked for, without the page; of this institution. ``InvalidArgument`` names the field."""
    check.optional_slug(institution, "institution", "an institution's id")
    check.text(request.actor, MAX_NAME, "actor")
    check.text(request.action, MAX_NAME, "action")
    if request.outcome not in {0, *AuditOutcome}:
        check.invalid("outcome", "give ALLOWED, REFUSED or FAILED, or leave it out.")
    from_ms = check.integer(request.from_ms, 0, MAX_TIME_MS, "from_ms", "ms since 1970 (0: open)")
    to_ms = check.integer(request.to_ms, 0, MAX_TIME_MS, "to_ms", "ms since 1970 (0: open)")
    if to_ms and to_ms <= from_ms:
        check.invalid("to_ms", "it is not after from_ms; give a later instant.")
    return AuditQuery(request.actor, institution, request.action, int(request.outcome), from_ms, to_ms)


def record_to_proto(record: AuditRecord) -> audit_pb2.AuditRecord:
    """All fields."""
    return audit_pb2.AuditRecord(
        sequence=record.sequence,
        time_ms=record.time_ms,
        actor=record.actor,
        role=record.role,
        institution=record.institution,
        action=record.action,
        target=record.target,
        on_behalf_of=record.on_behalf_of,
        outcome=record.outcome,  # type: ignore[arg-type]
        reason=record.reason,
        before_json=record.before,
        after_json=record.after,
        peer=record.peer,
        key_prefix=record.key_prefix,
        calls=record.calls,
        hash=record.hash,
    )


def head_to_proto(head: AuditHeadRecord) -> audit_pb2.AuditHead:
    """All fields."""
    return audit_pb2.AuditHead(
        sequence=head.sequence,
        hash=head.hash,
        time_ms=head.time_ms,
        public_key=head.key,
        signature=head.signature,
    )


def fault_to_proto(fault: AuditFault) -> audit_pb2.AuditFault:
    """All fields."""
    return audit_pb2.AuditFault(sequence=fault.sequence, code=fault.code, message=fault.message)
