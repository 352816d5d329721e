"""Records for tests of stores: plausible values, any of which can be given."""

from __future__ import annotations

from typing import Any

from scheduler.domain.data_records import DataSetRecord, GrantRecord
from scheduler.domain.holdings import HoldingKind, HoldingRecord
from scheduler.domain.records import (
    ApiKeyRecord,
    AttemptRecord,
    BudgetNoticeRecord,
    BudgetRecord,
    BudgetSpendingRecord,
    EnrolmentRecord,
    EventRecord,
    FairUsageRecord,
    InstitutionRecord,
    JobRecord,
    LedgerRecord,
    MonthRecord,
    NodeRecord,
    PolicyRecord,
    PriceListRecord,
    ProjectRecord,
    QuotaRecord,
    RegionRecord,
    RequestRecord,
    UserRecord,
)
from scheduler.domain.states import AttemptState, EntryKind, JobState
from scheduler.metering.prices import NO_RATE

# 2026-10-05 00:00 UTC
T0_MS = 1_791_158_400_000


def job(number: int, **values: Any) -> JobRecord:
    defaults: dict[str, Any] = dict.fromkeys(JobRecord._fields, 0)
    defaults |= dict.fromkeys(("reason", "message", "region", "pool", "results", "checkpoint", "array_id"), "")
    defaults |= {
        "job_no": number,
        "job_id": f"j{number:010d}",
        "institution": "tongji",
        "project": "default",
        "user": "li",
        "name": "train",
        "state": int(JobState.QUEUED),
        "priority": 2,
        "spec": b"\x00spec\xff",
        "submit_ms": T0_MS + number,
        "sequence": number,
    }
    return JobRecord(**(defaults | values))


def attempt(number: int, no: int = 1, **values: Any) -> AttemptRecord:
    defaults: dict[str, Any] = dict.fromkeys(AttemptRecord._fields, 0)
    defaults |= {
        "job_no": number,
        "attempt": no,
        "job_id": f"j{number:010d}",
        "institution": "tongji",
        "project": "default",
        "user": "li",
        "region": "east",
        "pool": "cpu",
        "accelerator": "",
        "placement": '[["n1",[]]]',
        "message": "",
        "logs": "",
        "state": int(AttemptState.RUNNING),
        "launch_seq": number,
        "grant_ms": T0_MS,
    }
    return AttemptRecord(**(defaults | values))


def event(sequence: int, number: int = 1, **values: Any) -> EventRecord:
    defaults: dict[str, Any] = {
        "sequence": sequence,
        "job_no": number,
        "job_id": f"j{number:010d}",
        "array_id": "",
        "institution": "tongji",
        "project": "default",
        "time_ms": T0_MS + sequence,
        "kind": "submitted",
        "state": int(JobState.QUEUED),
        "attempt": 0,
        "region": "",
        "pool": "",
        "reason": "",
        "message": "",
    }
    return EventRecord(**(defaults | values))


def segment(sequence: int, **values: Any) -> LedgerRecord:
    defaults: dict[str, Any] = {
        "sequence": sequence,
        "institution": "tongji",
        "project": "default",
        "user": "li",
        "job_id": f"j{sequence:010d}",
        "attempt": 1,
        "segment": 0,
        "region": "east",
        "pool": "cpu",
        "accelerator": "",
        "start_ms": T0_MS,
        "end_ms": T0_MS + 1000,
        "cpu_milli": 2000,
        "memory_mib": 512,
        "gpu_milli": 0,
        "outcome": 1,
        "kind": int(EntryKind.USAGE),
        "revision": 0,
        "priority": 2,
        "preemptible": 0,
        "purpose": "",
        "price_list": 0,
        "rate": NO_RATE,
        "discount_bp": 0,
        "period": "2026-10",
        "posted_ms": T0_MS + 1000,
        "cpu_used_ms": 0,
        "peak_memory_mib": 0,
        "gpu_used_milli_ms": 0,
        "gpu_peak_memory_mib": 0,
        "reference": 0,
        "reason": "",
        "author": "",
        "hash": b"\x04" * 32,
    }
    return LedgerRecord(**(defaults | values))


def request(first_job_no: int, request_id: str = "", **values: Any) -> RequestRecord:
    defaults: dict[str, Any] = {
        "user": "li",
        "request_id": request_id or f"r{first_job_no}",
        "fingerprint": b"\x01" * 32,
        "first_job_no": first_job_no,
        "job_count": 1,
        "time_ms": T0_MS,
    }
    return RequestRecord(**(defaults | values))


def institution(name: str = "tongji", **values: Any) -> InstitutionRecord:
    return InstitutionRecord(name, "Tongji", 1, "east", T0_MS)._replace(**values)


def region(name: str = "east", **values: Any) -> RegionRecord:
    return RegionRecord(name, "", 0, "", 0, T0_MS)._replace(**values)


def node(node_id: str = "n1", **values: Any) -> NodeRecord:
    return NodeRecord("east", node_id, node_id, "cpu", "", 8000, 16384, 0, "{}", 1, 0)._replace(**values)


def project(name: str = "default", **values: Any) -> ProjectRecord:
    return ProjectRecord("tongji", name, "Default", 1, T0_MS)._replace(**values)


def user(name: str = "li", **values: Any) -> UserRecord:
    return UserRecord(name, "tongji", "Li", 1, 0, T0_MS)._replace(**values)


def api_key(prefix: str = "abc", **values: Any) -> ApiKeyRecord:
    return ApiKeyRecord(prefix, b"\x02" * 32, "li", "tongji", 1, "", "laptop", T0_MS, 0, 0)._replace(**values)


def enrolment(token_hash: bytes = b"\x00\x03" * 16, **values: Any) -> EnrolmentRecord:
    return EnrolmentRecord(token_hash, "east", T0_MS, T0_MS + 1, 0)._replace(**values)


def fair_usage(user: str = "li", **values: Any) -> FairUsageRecord:
    return FairUsageRecord("tongji", "default", user, 10**15, 2 * 10**18, 0, T0_MS)._replace(**values)


def quota(**values: Any) -> QuotaRecord:
    return QuotaRecord("tongji", "", -1, -1, -1, -1)._replace(**values)


def policy(version: int = 1, **values: Any) -> PolicyRecord:
    return PolicyRecord(version, "preset: fair\n", '{"preset":"fair"}', "why", "admin", T0_MS + version)._replace(
        **values
    )


def price_list(version: int = 1, **values: Any) -> PriceListRecord:
    texts = ("rates: []\n", '{"rates":[]}', "2026", "CNY")
    return PriceListRecord(version, *texts, T0_MS, 0, "why", "admin", T0_MS + version)._replace(**values)


def month(name: str = "2026-10", **values: Any) -> MonthRecord:
    return MonthRecord(name, T0_MS, "admin", 7, b"\x05" * 32, b"\x06" * 32, 3)._replace(**values)


def budget(name: str = "b1", **values: Any) -> BudgetRecord:
    record = BudgetRecord(name, "tongji", "[]", 1, 10**6, T0_MS, T0_MS + 10**9, 1, "[50,80]", "AI", "admin", T0_MS, 0)
    return record._replace(**values)


def budget_spending(name: str = "b1", **values: Any) -> BudgetSpendingRecord:
    return BudgetSpendingRecord(name, str(10**40), 0)._replace(**values)


def budget_notice(number: int, **values: Any) -> BudgetNoticeRecord:
    return BudgetNoticeRecord(number, "b1", "tongji", 50, T0_MS + number, 500_000, 10**6, 1)._replace(**values)


def data_set(name: str = "census", version: str = "2024", **values: Any) -> DataSetRecord:
    defaults: dict[str, Any] = dict.fromkeys(DataSetRecord._fields, "") | {
        "data_set": name,
        "version": version,
        "institution": "tongji",
        "steward": "li",
        "classification": 4,
        "title": "普查",
        "allowed_regions": "[]",
        "purposes": "[]",
        "replicas": "{}",
        "size_mib": 2**40,
        "create_ms": T0_MS,
    }
    for column in ("personal", "minors", "deidentification", "retention_until_ms", "listed", "withdrawn_ms"):
        defaults[column] = 0
    return DataSetRecord(**(defaults | {"on_revoke": 1} | values))


def grant(name: str = "g1", **values: Any) -> GrantRecord:
    defaults: dict[str, Any] = dict.fromkeys(GrantRecord._fields, "") | {
        "grant_id": name,
        "institution": "tongji",
        "data_set": "census",
        "version": "*",
        "purpose": "论文",
        "actions": "[1]",
        "status": 1,
        "request_ms": T0_MS,
    }
    for column in ("deidentification", "from_ms", "to_ms", "decide_ms", "revoke_ms"):
        defaults[column] = 0
    return GrantRecord(**(defaults | values))


def holding(item: str, **values: Any) -> HoldingRecord:
    defaults: dict[str, Any] = {
        "institution": "tongji",
        "project": "default",
        "kind": int(HoldingKind.UPLOAD),
        "item": item,
        "digest": item,
        "job_id": "",
        "user": "li",
        "size_bytes": 100,
        "since_ms": T0_MS,
    }
    return HoldingRecord(**(defaults | values))


def held_by_job(number: int, kind: HoldingKind = HoldingKind.RESULT, **values: Any) -> HoldingRecord:
    job_id = f"j{number:010d}"
    item = values.pop("item", f"{job_id}/1" if kind is HoldingKind.LOG else job_id)
    return holding(item, **({"kind": int(kind), "digest": f"sha256:{number:064x}", "job_id": job_id} | values))
