"""The columns in which ledger records are shown."""

from __future__ import annotations

from protos.suanli.v1 import common_pb2, usage_pb2
from suanli.cli import human
from suanli.cli.output import Column, short_name

Record = usage_pb2.LedgerRecord
_OUTCOMES = common_pb2.AttemptOutcome.DESCRIPTOR
_KINDS = usage_pb2.LedgerKind.DESCRIPTOR
COLUMNS: list[Column[Record]] = [
    Column("NO", lambda r: str(r.sequence), right=True),
    Column("JOB", lambda r: r.job_id, whole=True),
    Column("ATTEMPT", lambda r: str(r.attempt), right=True),
    Column("PART", lambda r: str(r.segment), right=True),
    Column("KIND", lambda r: (short_name(_KINDS, r.kind) or "").lower()),
    Column("PROJECT", lambda r: f"{r.institution}/{r.project}"),
    Column("USER", lambda r: r.user),
    Column("POOL", lambda r: f"{r.region}/{r.pool}"),
    Column("FROM", lambda r: human.instant(r.start_ms), whole=True),
    Column("HELD", lambda r: human.duration(r.end_ms - r.start_ms), right=True),
    Column("CPU", lambda r: human.cpus(r.cpu_milli), right=True),
    Column("MEMORY", lambda r: human.memory(r.memory_mib), right=True),
    Column("GPU", lambda r: human.cpus(r.gpu_milli), right=True),
    Column("OUTCOME", lambda r: short_name(_OUTCOMES, r.outcome) or ""),
]
