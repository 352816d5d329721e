"""Six hours of every metric, as a small platform would show them: two institutions, a pool with GPUs and one without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.prometheus import run_promtool

# 2026-10-05 06:00 UTC
END_S = 1_791_180_000
WINDOW_S = 6 * 3600
STEP_S = 60

_TENANTS = [
    f'institution="{i}",project="{p}"' for i, p in (("uni-a", "default"), ("uni-a", "physics"), ("uni-b", "default"))
]
_PLACES = ['region="east",pool="cpu"', 'region="west",pool="gpu"']
_USE = [
    f'{tenant},{place},accelerator="{accelerator}"'
    for tenant in _TENANTS
    for place, accelerator in zip(_PLACES, ("", "A100"), strict=True)
]
_BUDGET = 'budget="lab",institution="uni-a",unit="CNY"'
_TARGET = 'job="suanli",instance="cp-0:9464"'
_AMOUNTS = {"cpu_milli": 64_000, "memory_mib": 262_144, "gpu_milli": 8_000}
_BUCKETS = ("0.001", "0.1", "1", "60", "3600", "+Inf")

Series = tuple[str, str, str, list[tuple[str, float, float]]]
"""Name, kind, suffix of its samples, and for each: labels, first value, growth a second."""


def _counters() -> Iterator[Series]:
    for kind, growth in (("cpu_core", 4.0), ("gpu", 1.0), ("memory_gib", 16.0)):
        yield f"suanli_usage_{kind}_seconds", "counter", "_total", [(labels, 100, growth) for labels in _USE]
    for kind, growth in (("cpu_core", 3.0), ("gpu", 0.5)):
        yield f"suanli_used_{kind}_seconds", "counter", "_total", [(labels, 100, growth) for labels in _USE]
    priced = [f'{labels},currency="CNY"' for labels in _USE]
    yield "suanli_usage_cost", "counter", "_total", [(labels, 0, 0.01) for labels in priced]
    yield "suanli_usage_service_units", "counter", "_total", [(labels, 0, 0.02) for labels in _USE]
    changed = [(f'{labels},direction="{way}"', 0.0, 0.001) for labels in priced for way in ("credit", "debit")]
    yield "suanli_ledger_adjusted_cost", "counter", "_total", changed
    yield "suanli_evictions", "counter", "_total", [('institution="uni-a",rule="guarantee"', 1, 0.001)]
    yield "suanli_plan_starts", "counter", "_total", [(_TARGET, 1, 0.1)]
    yield "suanli_commit_rows", "counter", "_total", [(_TARGET, 1, 5)]


def _gauges() -> Iterator[Series]:
    for kind in ("cpu_core_seconds", "gpu_seconds", "memory_gib_seconds"):
        yield f"suanli_usage_open_{kind}", "gauge", "", [(labels, 3600, 0) for labels in _USE]
    for name, value in (("amount", 1000), ("spent", 400), ("committed", 100), ("hard", 1), ("held_jobs", 2)):
        yield f"suanli_budget_{name}", "gauge", "", [(_BUDGET, value, 0)]
    yield "suanli_budget_end_timestamp_seconds", "gauge", "", [(_BUDGET, END_S + 30 * 86_400, 0)]
    yield "suanli_ledger_chain_ok", "gauge", "", [("", 1, 0)]
    yield "suanli_ledger_reconcile_difference", "gauge", "", [("", 0, 0)]
    yield "suanli_ledger_last_verified_timestamp_seconds", "gauge", "", [("", END_S - 7200, 0)]
    yield "suanli_ledger_last_sequence", "gauge", "", [("", 10, 0.1)]
    yield "suanli_audit_chain_ok", "gauge", "", [("", 1, 0)]
    yield "suanli_audit_last_sequence", "gauge", "", [("", 10, 0.1)]
    yield "suanli_event_last_sequence", "gauge", "", [("", 10, 1)]
    yield (
        "suanli_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "",
        [(f'{_TARGET},certificate="server"', END_S + 60 * 86_400, 0)],
    )
    yield "suanli_leader_epoch", "gauge", "", [(_TARGET, 3, 0)]
    yield "suanli_policy_version", "gauge", "", [("", 2, 0)]
    yield "suanli_runtime_prediction_error_octaves", "gauge", "", [("", 0.4, 0)]
    yield "suanli_runtime_prediction_p90_coverage", "gauge", "", [("", 0.9, 0)]
    states = [(f'institution="{i}",state="{s}"', 5.0, 0.0) for i in ("uni-a", "uni-b") for s in ("QUEUED", "RUNNING")]
    yield "suanli_jobs", "gauge", "", states
    yield "suanli_region_up", "gauge", "", [('region="east"', 1, 0), ('region="west"', 0, 0)]
    yield "suanli_region_active_attempts", "gauge", "", [('region="east"', 12, 0), ('region="west"', 3, 0)]
    yield "suanli_pool_nodes", "gauge", "", [(place, 4, 0) for place in _PLACES]
    yield "suanli_pool_nodes_draining", "gauge", "", [(place, 1, 0) for place in _PLACES]
    yield "suanli_pool_nodes_unisolated", "gauge", "", [(place, 2, 0) for place in _PLACES]
    for name, part in (("capacity", 1.0), ("allocated", 0.5)):
        amounts = [(f'{place},resource="{r}"', part * n, 0.0) for place in _PLACES for r, n in _AMOUNTS.items()]
        yield f"suanli_pool_{name}", "gauge", "", amounts
    for name, part in (("limit", 1.0), ("in_use", 0.25)):
        quotas = [(f'institution="uni-a",project="",resource="{r}"', part * n, 0.0) for r, n in _AMOUNTS.items()]
        yield f"suanli_quota_{name}", "gauge", "", quotas
    yield "suanli_stored_bytes", "gauge", "", [('institution="uni-a"', 5e11, 0), ('institution="uni-b"', 1e9, 0)]
    yield "suanli_stored_quota_bytes", "gauge", "", [('institution="uni-a"', 1e12, 0)]
    yield "suanli_artifact_store_bytes", "gauge", "", [(_TARGET, 4e11, 0)]
    yield "suanli_artifact_collector_last_run_timestamp_seconds", "gauge", "", [(_TARGET, END_S - 3_600, 0)]
    yield "suanli_artifact_collected_bytes_total", "counter", "", [(_TARGET, 0.0, 100.0)]
    limited = [(f'{_TARGET},method="/suanli.v1.JobService/ListJobs",limit="user_calls"', 0.0, 0.01)]
    yield "suanli_rpc_limited_total", "counter", "", limited
    yield "suanli_rpc_open_streams", "gauge", "", [(f'{_TARGET},method="/suanli.v1.RegionService/Connect"', 2, 0)]
    yield "ALERTS", "gauge", "", [('alertname="SuanliRegionOffline",alertstate="firing",region="west"', 1, 0)]


def _histograms() -> Iterator[Series]:
    calls = [f'{_TARGET},method="/suanli.v1.JobService/ListJobs",code="{code}"' for code in ("OK", "INTERNAL")]
    waits = [f'institution="{name}"' for name in ("uni-a", "uni-b")]
    for name, keys in (("plan_round", [_TARGET]), ("commit", [_TARGET]), ("rpc", calls), ("job_wait", waits)):
        buckets = [
            (f'{key},le="{bound}"', 0.0, 0.01 * number) for key in keys for number, bound in enumerate(_BUCKETS, 1)
        ]
        yield f"suanli_{name}_seconds", "histogram", "_bucket", buckets
        yield f"suanli_{name}_seconds", "", "_count", [(key, 0, 0.01 * len(_BUCKETS)) for key in keys]
        yield f"suanli_{name}_seconds", "", "_sum", [(key, 0, 1) for key in keys]


def prepared() -> Iterator[Series]:
    """Every series."""
    yield from _counters()
    yield from _gauges()
    yield from _histograms()


def store(folder: Path) -> Path:
    """Put the series into blocks that a Prometheus can be started on; gives their folder."""
    lines = []
    for name, kind, suffix, samples in prepared():
        if kind:
            lines.append(f"# TYPE {name} {kind}")
        for labels, first, growth in samples:
            for offset in range(0, WINDOW_S + 1, STEP_S):
                value = first + growth * offset
                lines.append(f"{name}{suffix}{{{labels}}} {value!r} {END_S - WINDOW_S + offset}")
    text = folder / "series.txt"
    text.write_text("\n".join([*lines, "# EOF\n"]))
    data = folder / "data"
    done = run_promtool("tsdb", "create-blocks-from", "openmetrics", str(text), str(data))
    assert done.returncode == 0, done.stderr
    return data
