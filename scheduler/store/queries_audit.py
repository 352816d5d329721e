"""What is asked of the audit log."""

from __future__ import annotations

from sqlalchemy import Connection, or_, select

from scheduler.domain.records import AuditHeadRecord, AuditRecord
from scheduler.service.ports import AuditQuery
from scheduler.store.queries import records_of
from scheduler.store.schema import AUDIT, AUDIT_HEADS


def audit(connection: Connection, asked: AuditQuery) -> list[AuditRecord]:
    """A page, in the order of the records' numbers or against it."""
    sequence = AUDIT.c.sequence
    query = select(AUDIT).order_by(sequence.desc() if asked.newest_first else sequence).limit(asked.limit)
    if asked.institution:
        query = query.where(or_(AUDIT.c.institution == asked.institution, AUDIT.c.on_behalf_of == asked.institution))
    for name in ("actor", "action", "outcome"):
        if value := getattr(asked, name):
            query = query.where(AUDIT.c[name] == value)
    if asked.from_ms:
        query = query.where(AUDIT.c.time_ms >= asked.from_ms)
    if asked.to_ms:
        query = query.where(AUDIT.c.time_ms < asked.to_ms)
    if asked.after:
        query = query.where(sequence > asked.after)
    if asked.before:
        query = query.where(sequence < asked.before)
    return records_of(connection, query, AuditRecord._make)


def heads(connection: Connection, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
    """The next signed heads."""
    sequence = AUDIT_HEADS.c.sequence
    query = select(AUDIT_HEADS).where(sequence > after_sequence).order_by(sequence).limit(limit)
    return records_of(connection, query, AuditHeadRecord._make)


def newest(connection: Connection) -> AuditRecord | None:
    """The newest record."""
    row = connection.execute(select(AUDIT).order_by(AUDIT.c.sequence.desc()).limit(1)).first()
    return None if row is None else AuditRecord._make(row)


def newest_head(connection: Connection) -> AuditHeadRecord | None:
    """The newest signed head."""
    row = connection.execute(select(AUDIT_HEADS).order_by(AUDIT_HEADS.c.sequence.desc()).limit(1)).first()
    return None if row is None else AuditHeadRecord._make(row)
