"""Parts of the PromQL that our Grafana dashboards ask."""

from __future__ import annotations

TENANT = 'institution=~"$institution", project=~"$project"'
USE = f'{TENANT}, region=~"$region"'
MINE = 'institution=~"$institution"'
PLACE_REGION = 'region=~"$region"'
PLACE = 'region=~"$region", pool=~"$pool"'
CPU = "suanli_usage_cpu_core_seconds_total"
GPU = "suanli_usage_gpu_seconds_total"
MEMORY = "suanli_usage_memory_gib_seconds_total"
USED_CPU = "suanli_used_cpu_core_seconds_total"
USED_GPU = "suanli_used_gpu_seconds_total"
FAULTS = 'code=~"DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN"'


def used(metric: str, labels: str, by: str, window: str = "$__range", per: int = 3600) -> str:
    """A counter's increase over the window by some labels; of seconds in hours."""
    group = f" by ({by})" if by else ""
    total = f"sum{group} (increase({metric}{{{labels}}}[{window}]))"
    return total if per == 1 else f"{total} / {per}"


def share(part: str, whole: str, labels: str, by: str) -> str:
    """One gauge as a share of another by some labels, where there is any of the other."""
    return f"sum by ({by}) ({part}{{{labels}}}) / (sum by ({by}) ({whole}{{{labels}}}) > 0)"


def quantile(part: float, histogram: str, labels: str = "", by: str = "", window: str = "$__rate_interval") -> str:
    """A quantile of a histogram's observations within the window."""
    keys = f"{by}, le" if by else "le"
    return f"histogram_quantile({part}, sum by ({keys}) (rate({histogram}_bucket{{{labels}}}[{window}])))"


def efficiency(kind: str, labels: str, by: str) -> str:
    """What was used of what was allocated, of allocations posted within the chosen time."""
    part, whole = (USED_CPU, CPU) if kind == "cpu" else (USED_GPU, GPU)
    return f"{used(part, labels, by, per=1)} / ({used(whole, labels, by, per=1)} > 0)"


def bound(labels: str) -> str:
    """The part of each budget that is spent or promised to running jobs."""
    spent, committed, amount = (
        f"sum by (budget, institution, unit) (suanli_budget_{name}{{{labels}}})"
        for name in ("spent", "committed", "amount")
    )
    return f"({spent} + {committed}) / ({amount} > 0)"
