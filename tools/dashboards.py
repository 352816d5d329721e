"""Write the Grafana dashboards of the chart: for researchers, operators and finance.

    python -m tools.dashboards           write helm/suanli/files/dashboards
    python -m tools.dashboards --check   write nothing; exit 1 and name the files that are not up to date

They need no recording rule. Sums of use are ``increase()`` of counters that the ledger feeds, over the chosen time;
Prometheus extrapolates them to the ends of that time, so they show and do not bill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboard_finance import finance
from tools.dashboard_panels import Panel, bars, board, ceiling, columns, curve, floor, grid, number
from tools.dashboard_queries import (
    CPU,
    FAULTS,
    GPU,
    MINE,
    PLACE,
    PLACE_REGION,
    USE,
    bound,
    efficiency,
    quantile,
    share,
    used,
)
from tools.dashboard_storage import storage

FOLDER = Path(__file__).resolve().parent.parent / "helm" / "suanli" / "files" / "dashboards"
VARIABLES = ("institution", "project", "region", "pool")


def researcher() -> Dashboard:
    """How full it is, how long one waits, what we have used and what is left."""
    places = f'{PLACE_REGION}, resource=~"cpu_milli|gpu_milli"'
    free = f"1 - {share('suanli_pool_allocated', 'suanli_pool_capacity', places, 'region, pool, resource')}"
    quota = share("suanli_quota_in_use", "suanli_quota_limit", MINE, "institution, project, resource")
    now = [
        number("Jobs waiting", "Of the chosen institutions.", (f'sum(suanli_jobs{{{MINE}, state="QUEUED"}})', "")),
        number("Jobs running", "Started or starting.", (f'sum(suanli_jobs{{{MINE}, state=~"STARTING|RUNNING"}})', "")),
        number(
            "Half of the jobs waited less than",
            "From submission to first start, of jobs that started in the chosen time.",
            (quantile(0.5, "suanli_job_wait_seconds", MINE, window="$__range"), ""),
            "s",
        ),
        number(
            "Nine in ten waited less than",
            "From submission to first start, of jobs that started in the chosen time.",
            (quantile(0.9, "suanli_job_wait_seconds", MINE, window="$__range"), ""),
            "s",
        ),
        number("Regions online", "Whose agents are connected.", ('sum(suanli_region_up{region=~"$region"})', "")),
        number(
            "Nodes closed to new work", "Being drained.", ('sum(suanli_pool_nodes_draining{region=~"$region"})', "")
        ),
        curve(
            "Jobs",
            "By state, of the chosen institutions; ended ones are not shown.",
            [(f"sum by (state) (suanli_jobs{{{MINE}}})", "{{state}}")],
            "short",
            stack=True,
        ),
        bars(
            "Free",
            "Of each pool: the part of its cores and GPUs that nothing holds.",
            (free, "{{region}}/{{pool}} {{resource}}"),
            "percentunit",
            floor(0.05, 0.2),
            1,
            12,
        ),
    ]
    ours = [
        columns("CPU", "Core-hours, when posted.", (used(CPU, USE, "project", "$__interval"), "{{project}}"), "h"),
        columns("GPU", "GPU-hours, when posted.", (used(GPU, USE, "project", "$__interval"), "{{project}}"), "h"),
        bars(
            "CPU efficiency",
            "CPU time used of core-time allocated. Low: ask for fewer cores.",
            (efficiency("cpu", USE, "project"), "{{project}}"),
            "percentunit",
            floor(0.25, 0.6),
            1,
        ),
        bars(
            "GPU efficiency",
            "GPU time busy of GPU-time allocated. Low: look at what the job waits for, or share a GPU.",
            (efficiency("gpu", USE, "project"), "{{project}}"),
            "percentunit",
            floor(0.25, 0.6),
            1,
        ),
        bars(
            "Quota in use",
            "Held now, of the hard limit; without a limit there is no bar.",
            (quota, "{{institution}} {{project}} {{resource}}"),
            "percentunit",
            ceiling(0.8, 1),
            1,
        ),
        bars(
            "Budget left",
            "Neither spent nor promised to running jobs.",
            (f"1 - {bound(MINE)}", "{{budget}} ({{unit}})"),
            "percentunit",
            floor(0, 0.2),
            1,
        ),
        grid(
            "Running, not posted yet",
            "What open allocations have used so far, in hours. It is posted when they end.",
            [
                (f"sum by (project, region, pool) (suanli_usage_open_cpu_core_seconds{{{USE}}}) / 3600", "core-hours"),
                (f"sum by (project, region, pool) (suanli_usage_open_gpu_seconds{{{USE}}}) / 3600", "GPU-hours"),
                (
                    f"sum by (project, region, pool) (suanli_usage_open_memory_gib_seconds{{{USE}}}) / 3600",
                    "GiB-hours",
                ),
            ],
            16,
        ),
    ]
    says = "How full the platform is, how long jobs wait, and what your projects have used."
    return board("researcher", says, "7d", ("institution", "project", "region"), [("Now", now), ("Our projects", ours)])


def operator() -> Dashboard:
    """Whether it works, how fast, and how full it is."""
    return board(
        "operator",
        "Health, speed and load of the control plane, regions and pools.",
        "6h",
        ("institution", "region", "pool"),
        [("Health", _health()), ("Speed", _speed()), ("Capacity", _capacity()), ("Queue", _queue())],
    )


def _health() -> list[Panel]:
    down = "sum(suanli_region_up == bool 0) or vector(0)"
    firing = 'count(ALERTS{alertname=~"Suanli.*", alertstate="firing"}) or vector(0)'
    expiry = "min by (certificate) (suanli_tls_certificate_expiry_timestamp_seconds)"
    failed = f"sum(rate(suanli_rpc_seconds_count{{{FAULTS}}}[$__range])) or vector(0)"
    return [
        number(
            "Leaders", "One control plane leads.", ("count(suanli_leader_epoch) or vector(0)", ""), "short", floor(1, 1)
        ),
        number("Regions offline", "Whose agents are not connected.", (down, ""), "short", ceiling(1, 1)),
        number("Alerts firing", "Those of the chart.", (firing, ""), "short", ceiling(1, 5)),
        number(
            "Calls failed",
            "Part of all calls that ended by the server's fault in the chosen time.",
            (f"({failed}) / (sum(rate(suanli_rpc_seconds_count[$__range])) > 0)", ""),
            "percentunit",
            ceiling(0.001, 0.01),
            2,
        ),
        number("Policy", "Version in force; 0: none was put.", ("max(suanli_policy_version)", "")),
        number(
            "Ledger's sums less its records",
            "Must be 0.",
            ("max(abs(suanli_ledger_reconcile_difference))", ""),
            "short",
            ceiling(1e-9, 1e-9),
        ),
        curve(
            "Regions",
            "1: the agent is connected.",
            [(f"suanli_region_up{{{PLACE_REGION}}}", "{{region}}")],
            "short",
            8,
        ),
        curve(
            "Leadership",
            "The epoch, by process; a step is a new leadership.",
            [("suanli_leader_epoch", "{{instance}}")],
            "short",
            8,
        ),
        curve(
            "Certificates",
            "Until each runs out.",
            [(f"{expiry} - time()", "{{certificate}}")],
            "s",
            8,
        ),
    ]


def _speed() -> list[Panel]:
    def halves(histogram: str) -> list[tuple[str, str]]:
        return [(quantile(part, histogram), f"p{100 * part:.0f}") for part in (0.5, 0.99)]

    calls = "sum by (code) (rate(suanli_rpc_seconds_count[$__rate_interval]))"
    slow = f"topk(10, {quantile(0.99, 'suanli_rpc_seconds', by='method')})"
    return [
        curve("Calls", "A second, by status.", [(calls, "{{code}}")], "reqps", stack=True),
        curve("Slowest calls", "99th percentile of the ten slowest methods.", [(slow, "{{method}}")], "s"),
        curve("Planning round", "Until its decisions are made.", halves("suanli_plan_round_seconds"), "s", 8),
        curve("Transaction", "Until it is durable.", halves("suanli_commit_seconds"), "s", 8),
        curve(
            "Starts and rows",
            "Jobs that planning started and rows that were written, a second.",
            [
                ("sum(rate(suanli_plan_starts_total[$__rate_interval]))", "starts"),
                ("sum(rate(suanli_commit_rows_total[$__rate_interval]))", "rows"),
            ],
            "short",
            8,
        ),
        curve(
            "Calls refused by a limit",
            "By method and limit.",
            [("sum by (method, limit) (rate(suanli_rpc_limited_total[$__rate_interval]))", "{{method}} {{limit}}")],
            "reqps",
            8,
        ),
        curve("Open streams", "By method.", [("sum by (method) (suanli_rpc_open_streams)", "{{method}}")], "short", 8),
        curve(
            "Records",
            "New events, ledger records and audit records, a second.",
            [
                ("max(deriv(suanli_event_last_sequence[$__rate_interval]))", "events"),
                ("max(deriv(suanli_ledger_last_sequence[$__rate_interval]))", "ledger"),
                ("max(deriv(suanli_audit_last_sequence[$__rate_interval]))", "audit"),
            ],
            "short",
            8,
        ),
        number(
            "Audit log",
            "1: the last verification found every record in its place and every signed head right.",
            ("min(suanli_audit_chain_ok)", ""),
            "short",
            floor(1, 1),
            width=6,
        ),
    ]


def _capacity() -> list[Panel]:
    panels = []
    for resource, title in (("cpu_milli", "Cores"), ("gpu_milli", "GPUs"), ("memory_mib", "Memory")):
        labels = f'{PLACE}, resource="{resource}"'
        held = share("suanli_pool_allocated", "suanli_pool_capacity", labels, "region, pool")
        panels.append(
            curve(f"{title} allocated", "Of what the nodes offer.", [(held, "{{region}}/{{pool}}")], "percentunit", 8)
        )
    nodes, draining, unisolated = (
        f"sum by (region, pool) (suanli_pool_{name}{{{PLACE}}})"
        for name in ("nodes", "nodes_draining", "nodes_unisolated")
    )
    attempts = f"sum by (region) (suanli_region_active_attempts{{{PLACE_REGION}}})"
    return [
        *panels,
        curve("Nodes", "That the agents report.", [(nodes, "{{region}}/{{pool}}")], "short", 8, stack=True),
        curve("Draining", "Nodes closed to new work.", [(draining, "{{region}}/{{pool}}")], "short", 8, stack=True),
        curve("Attempts", "That hold an allocation.", [(attempts, "{{region}}")], "short", 8, stack=True),
        curve(
            "Nodes without walls",
            "Their jobs run without a sandbox, for people who trust each other; sensitive data does not go there.",
            [(unisolated, "{{region}}/{{pool}}")],
            "short",
            24,
            stack=True,
        ),
    ]


def _queue() -> list[Panel]:
    waiting = f'sum by (institution) (suanli_jobs{{{MINE}, state="QUEUED"}})'
    wait = quantile(0.95, "suanli_job_wait_seconds", MINE, "institution", "1h")
    evictions = f"sum by (rule) (increase(suanli_evictions_total{{{MINE}}}[$__interval]))"
    quota = share("suanli_quota_in_use", "suanli_quota_limit", MINE, "institution, project, resource")
    return [
        curve("Waiting", "By institution.", [(waiting, "{{institution}}")], "short", 8, stack=True),
        curve(
            "In the queue",
            "By state.",
            [(f"sum by (state) (suanli_jobs{{{MINE}}})", "{{state}}")],
            "short",
            8,
            stack=True,
        ),
        curve("Wait", "95th percentile of the last hour's starts.", [(wait, "{{institution}}")], "s", 8),
        columns("Evictions", "Jobs stopped for waiting ones, by rule.", (evictions, "{{rule}}"), "short", 8),
        bars(
            "Quotas in use",
            "The ten nearest to their hard limit.",
            (f"topk(10, {quota})", "{{institution}} {{project}} {{resource}}"),
            "percentunit",
            ceiling(0.8, 1),
            1,
        ),
        curve(
            "Predicted runtimes",
            "Of the last 1,000 jobs: median error in octaves (1: off by a factor of two), and part within the p90.",
            [
                ("suanli_runtime_prediction_error_octaves", "error, octaves"),
                ("suanli_runtime_prediction_p90_coverage", "within p90"),
            ],
            "short",
            8,
        ),
        *storage(MINE),
    ]


DASHBOARDS = {"researcher": researcher, "operator": operator, "finance": finance}


def documents() -> dict[str, str]:
    """Every dashboard: file name -> JSON."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {f"{name}.json": f"{encoder.encode(make())}\n" for name, make in DASHBOARDS.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are (default: the chart's)")
    options = parser.parse_args(arguments)
    stale = 0
    for name, text in documents().items():
        target: Path = options.folder / name
        if target.exists() and target.read_text() == text:
            continue
        stale += 1
        if options.check:
            print(
                f"dashboards: {target} is not what the program says; run: python -m tools.dashboards", file=sys.stderr
            )
        else:
            target.write_text(text)
    if not options.check:
        print(f"dashboards: {len(DASHBOARDS)} files, {stale} changed")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
