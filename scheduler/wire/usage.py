"""The ledger's records as protocol messages."""

from __future__ import annotations

from protos.suanli.v1 import usage_pb2
from scheduler.domain.records import LedgerRecord


def ledger_to_proto(record: LedgerRecord) -> usage_pb2.LedgerRecord:
    """One segment of an allocation."""
    return usage_pb2.LedgerRecord(
        sequence=record.sequence,
        institution=record.institution,
        project=record.project,
        user=record.user,
        job_id=record.job_id,
        attempt=record.attempt,
        segment=record.segment,
        region=record.region,
        pool=record.pool,
        accelerator=record.accelerator,
        start_ms=record.start_ms,
        end_ms=record.end_ms,
        cpu_milli=record.cpu_milli,
        memory_mib=record.memory_mib,
        gpu_milli=record.gpu_milli,
        outcome=record.outcome,  # type: ignore[arg-type]
    )
