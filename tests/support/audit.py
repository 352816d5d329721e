"""Audit logs to check, and a key to sign their heads with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scheduler.audit_key import AuditKey
from scheduler.domain.audit import AuditCheck, AuditFault, statement_of
from scheduler.domain.chain import FIRST, chained
from scheduler.domain.records import AuditHeadRecord, AuditRecord

T0_MS = 1_791_158_400_000
KEY = AuditKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = AuditKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))


def record(sequence: int, **values: Any) -> AuditRecord:
    """A record as no service would write it: without its hash."""
    plain = AuditRecord(
        sequence=sequence,
        time_ms=T0_MS + sequence,
        actor="op",
        role=4,
        institution="",
        action="SetQuota",
        target="uni-a",
        on_behalf_of="uni-a",
        outcome=1,
        reason="",
        before="",
        after='{"cpu_milli":1}',
        peer="192.0.2.1",
        key_prefix="abc",
        calls=1,
        hash=FIRST,
    )
    return plain._replace(**values)


def log_of(count: int, **values: Any) -> list[AuditRecord]:
    """A log that is whole."""
    records, head = [], FIRST
    for sequence in range(1, count + 1):
        records.append(chained(head, record(sequence, **values)))
        head = records[-1].hash
    return records


def head_of(one: AuditRecord, key: AuditKey = KEY) -> AuditHeadRecord:
    """Its signed head."""
    signature = key.sign(statement_of(one.sequence, one.hash, one.time_ms))
    return AuditHeadRecord(one.sequence, one.hash, one.time_ms, key.public_key, signature)


def faults_of(
    records: Iterable[AuditRecord], heads: Iterable[AuditHeadRecord] = (), last: int = 0, key: AuditKey = KEY
) -> list[AuditFault]:
    """What a check of it finds."""
    check = AuditCheck(key.trusted, key.verify)
    for head in heads:
        check.add_head(head)
    for one in records:
        check.add(one)
    check.finish(last)
    return check.faults
