"""What /metrics shows of the ledger: counters that are its sums, and how budgets stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from scheduler.domain.states import EntryKind
from scheduler.metering import names
from scheduler.metering.money import COST_UNITS_PER_MINOR
from scheduler.metering.totals import TotalKey
from scheduler.service.contract import BudgetStatus, Gauges, Metered

# Series of zero, so that increase() sees the first use; not more of them than this.
_MAX_ZERO_SERIES = 5000
_CORE_SECOND = 1_000_000  # milli-cores × milliseconds; milli-GPUs × milliseconds
_GIB_SECOND = 1024 * 1000  # MiB × milliseconds
_CREDITS = (EntryKind.REVERSAL, EntryKind.CREDIT)
_Key = tuple[str, ...]


class _Sums:
    """Sums by labels."""

    def __init__(self) -> None:
        self.by_key: dict[_Key, int] = {}

    def add(self, key: _Key, amount: int) -> None:
        self.by_key[key] = self.by_key.get(key, 0) + amount

    def into(self, family: Metric, per: int) -> Metric:
        for key, amount in self.by_key.items():
            family.add_metric(key, amount / per)  # type: ignore[attr-defined]
        return family


def usage_families(metered: Metered, gauges: Gauges, projects: Sequence[tuple[str, str]]) -> Iterator[Metric]:
    """Counters of what was held, used and charged, by tenant and place; never by user or job."""
    held = [_Sums() for _ in range(3)]
    used = [_Sums() for _ in range(2)]
    cost, service, adjusted = _Sums(), _Sums(), _Sums()
    for key in _zeros(gauges, projects):
        for sums in (*held, *used, cost, service):
            sums.add(key, 0)
        for direction in ("credit", "debit"):
            adjusted.add((*key, direction), 0)
    for row in metered.totals:
        key = _place(row.key)
        money = row.cost_units(metered.prices)
        if row.key.kind == EntryKind.USAGE:
            for sums, amount in zip(held, row.held, strict=True):
                sums.add(key, amount)
            used[0].add(key, row.cpu_used_milli_ms)
            used[1].add(key, row.gpu_used_milli_ms)
            cost.add(key, money)
            service.add(key, row.service_units(metered.prices))
        else:
            credit = row.key.kind in _CREDITS
            adjusted.add((*key, "credit" if credit else "debit"), -money if credit else money)
    labels = names.USAGE_LABELS
    yield held[0].into(_counter(names.USAGE_CPU, "Allocated core-seconds, from the ledger.", labels), _CORE_SECOND)
    yield held[1].into(_counter(names.USAGE_MEMORY, "Allocated GiB-seconds, from the ledger.", labels), _GIB_SECOND)
    yield held[2].into(_counter(names.USAGE_GPU, "Allocated GPU-seconds, from the ledger.", labels), _CORE_SECOND)
    yield used[0].into(_counter(names.USED_CPU, "Core-seconds used, of those allocated.", labels), _CORE_SECOND)
    yield used[1].into(_counter(names.USED_GPU, "GPU-seconds used, of those allocated.", labels), _CORE_SECOND)
    newest = metered.prices.newest
    if newest is not None:
        per = COST_UNITS_PER_MINOR * 10**newest.digits
        cost.by_key = {(*key, newest.currency): amount for key, amount in cost.by_key.items()}
        adjusted.by_key = {(*key, newest.currency): amount for key, amount in adjusted.by_key.items()}
        text = "What usage costs after discount, in the currency."
        yield cost.into(_counter(names.USAGE_COST, text, (*labels, "currency")), per)
        text = "Reversals and credits (credit), and what stands in their place (debit), in the currency."
        yield adjusted.into(_counter(names.LEDGER_ADJUSTED_COST, text, (*labels, "direction", "currency")), per)
        text = "What usage costs in service units."
        yield service.into(_counter(names.USAGE_SERVICE_UNITS, text, labels), COST_UNITS_PER_MINOR)
    yield GaugeMetricFamily(names.LEDGER_LAST_SEQUENCE, "The newest ledger record counted.", value=metered.sequence)
    yield from _open_families(metered)
    yield from _verified_families(metered)


def _open_families(metered: Metered) -> Iterator[Metric]:
    sums = [_Sums() for _ in range(3)]
    for record in metered.open:
        key = (record.institution, record.project, record.region, record.pool, record.accelerator)
        ms = record.end_ms - record.start_ms
        for one, amount in zip(sums, (record.cpu_milli, record.memory_mib, record.gpu_milli), strict=True):
            one.add(key, amount * ms)
    labels = names.USAGE_LABELS
    text = "held by running attempts up to now, and not in the ledger yet."
    yield sums[0].into(GaugeMetricFamily(names.OPEN_CPU, f"Core-seconds {text}", labels=labels), _CORE_SECOND)
    yield sums[1].into(GaugeMetricFamily(names.OPEN_MEMORY, f"GiB-seconds {text}", labels=labels), _GIB_SECOND)
    yield sums[2].into(GaugeMetricFamily(names.OPEN_GPU, f"GPU-seconds {text}", labels=labels), _CORE_SECOND)


def _verified_families(metered: Metered) -> Iterator[Metric]:
    verified = metered.verified
    if verified is None:
        return
    text = "Whether the ledger's chain was whole when it was last verified."
    yield GaugeMetricFamily(names.LEDGER_CHAIN_OK, text, value=int(not verified.chain_faults))
    text = "Totals that were not what the records make, when the ledger was last verified."
    yield GaugeMetricFamily(names.LEDGER_RECONCILE_DIFFERENCE, text, value=verified.other_faults)
    text = "When the ledger was last verified."
    yield GaugeMetricFamily(names.LEDGER_LAST_VERIFIED, text, value=verified.time_ms / 1000)


def budget_families(budgets: Iterable[BudgetStatus]) -> Iterator[Metric]:
    """How the budgets that are in force stand, in their unit."""
    labels = ("budget", "institution", "unit")
    amount = GaugeMetricFamily(names.BUDGET_AMOUNT, "The amount of a budget.", labels=labels)
    spent = GaugeMetricFamily(names.BUDGET_SPENT, "What is spent of it, by the ledger.", labels=labels)
    text = "What running attempts have cost since, and may yet cost at most."
    committed = GaugeMetricFamily(names.BUDGET_COMMITTED, text, labels=labels)
    hard = GaugeMetricFamily(names.BUDGET_HARD, "Whether it is a limit (1) or gives notice only (0).", labels=labels)
    end = GaugeMetricFamily(names.BUDGET_END, "When it ends.", labels=labels)
    held = GaugeMetricFamily(names.BUDGET_HELD_JOBS, "Jobs that wait for it.", labels=labels)
    for status in budgets:
        budget, per = status.budget, 10**status.digits
        key = (budget.budget, budget.institution, budget.unit.name.lower())
        amount.add_metric(key, budget.amount / per)
        spent.add_metric(key, status.spent / per)
        committed.add_metric(key, (status.running + status.committed) / per)
        hard.add_metric(key, int(budget.hard))
        end.add_metric(key, budget.to_ms / 1000)
        held.add_metric(key, status.held_jobs)
    yield from (amount, spent, committed, hard, end, held)


def _place(key: TotalKey) -> _Key:
    return (key.institution, key.project, key.region, key.pool, key.accelerator)


def _zeros(gauges: Gauges, projects: Sequence[tuple[str, str]]) -> Iterator[_Key]:
    """A key for every project and pool; not too many."""
    left = _MAX_ZERO_SERIES
    for institution, project in projects:
        for pool in gauges.pools:
            if left == 0:
                return
            left -= 1
            yield (institution, project, pool.key.region, pool.key.pool, pool.accelerator)


def _counter(name: str, text: str, labels: Sequence[str]) -> Metric:
    return CounterMetricFamily(name, text, labels=labels)
