"""Usage and the ledger's records as protocol messages."""

from __future__ import annotations

from decimal import Decimal

from protos.suanli.v1 import usage_pb2
from scheduler.domain.records import LedgerRecord
from scheduler.metering.lines import cost_of
from scheduler.metering.money import decimal_of
from scheduler.metering.prices import PriceBook
from scheduler.metering.usage import UsageRow

_UJ_PER_WH = 3_600_000_000
_UG_PER_G = 1_000_000
_PLACES = 6


def ledger_to_proto(record: LedgerRecord, prices: PriceBook) -> usage_pb2.LedgerRecord:
    """One record, with what it costs by its price list."""
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
        kind=record.kind,  # type: ignore[arg-type]
        revision=record.revision,
        priority=record.priority,  # type: ignore[arg-type]
        preemptible=bool(record.preemptible),
        purpose=record.purpose,
        price_list=record.price_list,
        rate=record.rate,
        discount_bp=record.discount_bp,
        period=record.period,
        posted_ms=record.posted_ms,
        cpu_used_ms=record.cpu_used_ms,
        peak_memory_mib=record.peak_memory_mib,
        gpu_used_milli_ms=record.gpu_used_milli_ms,
        gpu_peak_memory_mib=record.gpu_peak_memory_mib,
        reference=record.reference,
        reason=record.reason,
        author=record.author,
        hash=record.hash,
        cost_units=str(cost_of(record, prices)),
    )


def row_to_proto(row: UsageRow, energy: bool) -> usage_pb2.UsageRow:
    """Sums as decimal strings; energy and carbon, which are estimates, to a millionth of a Wh and of a gram."""
    return usage_pb2.UsageRow(
        key=row.key,
        cpu_milli_ms=str(row.cpu_milli_ms),
        memory_mib_ms=str(row.memory_mib_ms),
        gpu_milli_ms=str(row.gpu_milli_ms),
        segments=row.segments,
        attempts=row.attempts,
        cpu_used_milli_ms=str(row.cpu_used_milli_ms),
        memory_peak_mib_ms=str(row.memory_peak_mib_ms),
        gpu_used_milli_ms=str(row.gpu_used_milli_ms),
        cost_units=str(row.cost_units),
        list_cost_units=str(row.list_cost_units),
        service_cost_units=str(row.service_cost_units),
        energy_wh=_decimal(row.energy_uj, _UJ_PER_WH) if energy else "",
        carbon_g=_decimal(row.carbon_ug, _UG_PER_G) if energy else "",
    )


def _decimal(numerator: int, denominator: int) -> str:
    value: Decimal = decimal_of(numerator, denominator, _PLACES)
    return f"{value:f}"
