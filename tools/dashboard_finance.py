"""The Grafana dashboard of finance."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboard_panels import Panel, bars, board, ceiling, columns, curve, floor, grid, note, number
from tools.dashboard_queries import CPU, GPU, MEMORY, MINE, USE, bound, efficiency, share, used

_CAVEAT = (
    "These are `increase()` of the ledger's counters over the chosen time. Prometheus extrapolates them to its ends, so that"
    " they may differ from the ledger by a little. Bills and reviews rest on statements, which read the ledger itself."
    " Use counts when an allocation ends; what still runs is below, *Not posted yet*."
)


def finance() -> Dashboard:
    """Who has used how much at what cost, what is left of the budgets, and whether the books are in order."""
    return board(
        "finance",
        "Use and cost by institution, budgets, and the state of the ledger.",
        "30d",
        ("institution", "project", "region"),
        [("Use", _use()), ("Budgets", _budgets()), ("Ledger", _ledger())],
    )


def _use() -> list[Panel]:
    cost, units = "suanli_usage_cost_total", "suanli_usage_service_units_total"
    by = "institution, project"
    hours = [(CPU, "core-hours"), (GPU, "GPU-hours"), (MEMORY, "GiB-hours")]
    totals = [
        number(name, "Posted in the chosen time.", (used(metric, USE, "", per=3600), "")) for metric, name in hours
    ]
    posted = [(used(metric, USE, by), name) for metric, name in hours]
    places = used(cost, USE, "region, pool, accelerator, currency", per=1)
    return [
        note("How to read this", _CAVEAT),
        number(
            "Cost",
            "At the prices in force when used.",
            (used(cost, USE, "currency", per=1), "{{currency}}"),
            decimals=2,
        ),
        number("Service units", "Posted in the chosen time.", (used(units, USE, "", per=1), "")),
        *totals,
        columns(
            "Cost",
            "When posted, by institution.",
            (used(cost, USE, "institution, currency", "$__interval", 1), "{{institution}} {{currency}}"),
            "short",
        ),
        columns(
            "Core-hours",
            "When posted, by institution.",
            (used(CPU, USE, "institution", "$__interval"), "{{institution}}"),
            "h",
        ),
        grid("Use", "Posted in the chosen time.", [*posted, (used(units, USE, by, per=1), "service units")], 14),
        grid("Cost", "In each currency.", [(used(cost, USE, f"{by}, currency", per=1), "cost")], 10),
        bars(
            "Cost by place", "In each currency.", (places, "{{region}}/{{pool}} {{accelerator}} {{currency}}"), "short"
        ),
        bars(
            "CPU efficiency",
            "CPU time used of core-time allocated, and billed.",
            (efficiency("cpu", USE, "institution"), "{{institution}}"),
            "percentunit",
            floor(0.25, 0.6),
            1,
        ),
        bars(
            "GPU efficiency",
            "GPU time busy of GPU-time allocated, and billed.",
            (efficiency("gpu", USE, "institution"), "{{institution}}"),
            "percentunit",
            floor(0.25, 0.6),
            1,
        ),
    ]


def _budgets() -> list[Panel]:
    keys = "budget, institution, unit"
    legend = "{{budget}} ({{institution}}, {{unit}})"
    ends = f"max by ({keys}) (suanli_budget_end_timestamp_seconds{{{MINE}}} > 0)"
    columns_of = [
        (f"sum by ({keys}) (suanli_budget_{name}{{{MINE}}})", name)
        for name in ("amount", "spent", "committed", "hard", "held_jobs")
    ]
    spent = share("suanli_budget_spent", "suanli_budget_amount", MINE, keys)
    return [
        bars("Spent", "Of the amount.", (spent, legend), "percentunit", ceiling(0.8, 1), 1),
        bars(
            "Spent or promised",
            "With the most that running jobs may cost.",
            (bound(MINE), legend),
            "percentunit",
            ceiling(0.9, 1),
            1,
        ),
        curve("Spent", "Of the amount, over time.", [(spent, legend)], "percentunit", 8),
        grid(
            "Budgets",
            "hard: 1 holds jobs back that it cannot cover.",
            [*columns_of, (f"({ends} - time()) / 86400", "days left")],
        ),
    ]


def _ledger() -> list[Panel]:
    adjusted = used("suanli_ledger_adjusted_cost_total", USE, "institution, direction, currency", per=1)
    by = "institution, project, region, pool"
    running = [
        (f"sum by ({by}) (suanli_usage_open_{name}{{{USE}}}) / 3600", title)
        for name, title in (
            ("cpu_core_seconds", "core-hours"),
            ("gpu_seconds", "GPU-hours"),
            ("memory_gib_seconds", "GiB-hours"),
        )
    ]
    return [
        number(
            "Chain",
            "1: the last verification found every record in its place.",
            ("min(suanli_ledger_chain_ok)", ""),
            "short",
            floor(1, 1),
            width=6,
        ),
        number(
            "Sums less records",
            "Must be 0.",
            ("max(abs(suanli_ledger_reconcile_difference))", ""),
            "short",
            ceiling(1e-9, 1e-9),
            width=6,
        ),
        number(
            "Last verified",
            "Time since then.",
            ("time() - max(suanli_ledger_last_verified_timestamp_seconds)", ""),
            "s",
            ceiling(86400, 2 * 86400),
            width=6,
        ),
        number("Newest record", "Its number.", ("max(suanli_ledger_last_sequence)", ""), decimals=0, width=6),
        grid("Credits and debits", "Cost that was changed after it had been posted.", [(adjusted, "amount")], 8),
        grid("Not posted yet", "What open allocations have used so far; not in any figure above.", running, 16),
    ]
