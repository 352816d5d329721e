"""What /metrics shows. Usage counters come from the ledger's sums, so they are the same after a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.api.usage_metrics import budget_families, usage_families
from scheduler.domain.resources import Resources
from scheduler.domain.states import JobState
from scheduler.metering import names
from scheduler.service.contract import Gauges, Service

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)


class Metrics:
    """All metrics of one server. Implements ``scheduler.service.observe.Observer``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._present = _Present()
        self.registry.register(self._present)
        self._wait = Histogram(
            names.JOB_WAIT,
            "From a job's submission to its first start.",
            ["institution"],
            buckets=_WAIT,
            registry=self.registry,
        )
        self._round = Histogram(names.PLAN_ROUND, "One planning round.", buckets=_FAST, registry=self.registry)
        self._starts = Counter(names.PLAN_STARTS, "Starts that planning decided on.", registry=self.registry)
        self._evictions = Counter(
            names.EVICTIONS,
            "Attempts stopped for a waiting job, by whose they were and the rule of preemption.",
            ["institution", "rule"],
            registry=self.registry,
        )
        self._commit = Histogram(
            names.COMMIT, "One transaction, until it is durable.", buckets=_FAST, registry=self.registry
        )
        self._rows = Counter(names.COMMIT_ROWS, "Rows written.", registry=self.registry)
        self._rpc = Histogram(
            names.RPC_LATENCY,
            "Calls by method and status code.",
            ["method", "code"],
            buckets=_FAST,
            registry=self.registry,
        )
        self._limited = Counter(
            names.RPC_LIMITED, "Calls refused by a limit on callers.", ["method", "limit"], registry=self.registry
        )
        self._streams = Gauge(names.RPC_STREAMS, "Streams open now.", ["method"], registry=self.registry)
        self._expiry = Gauge(
            names.TLS_EXPIRY,
            "When the first certificate of this file that is in force runs out.",
            ["certificate"],
            registry=self.registry,
        )
        self._collected = Counter(
            names.COLLECTED_BYTES, "Removed from the artifact store, as nobody held it.", registry=self.registry
        )
        self._in_store = Gauge(
            names.STORE_BYTES,
            "What lies in the artifact store, each blob once, as of the last sweep.",
            registry=self.registry,
        )
        self._last_sweep = Gauge(
            names.COLLECTOR_LAST_RUN, "When the last sweep of the artifact store ended.", registry=self.registry
        )
        self._rpc_children: dict[tuple[str, str], Histogram] = {}

    def wait_ms(self, institution: str, ms: float) -> None:
        """See ``Observer``."""
        self._wait.labels(institution).observe(ms / 1000)

    def round_ms(self, ms: float, starts: int) -> None:
        """See ``Observer``."""
        self._round.observe(ms / 1000)
        self._starts.inc(starts)

    def evicted(self, institution: str, rule: str) -> None:
        """See ``Observer``."""
        self._evictions.labels(institution, rule).inc()

    def commit_ms(self, ms: float, rows: int) -> None:
        """See ``Observer``."""
        self._commit.observe(ms / 1000)
        self._rows.inc(rows)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A call has been answered."""
        child = self._rpc_children.get((method, code))
        if child is None:
            child = self._rpc_children[method, code] = self._rpc.labels(method, code)
        child.observe(seconds)

    def limited(self, method: str, limit: str) -> None:
        """A call has met a limit."""
        self._limited.labels(method, limit).inc()

    def stream(self, method: str, change: int) -> None:
        """A stream has been opened (+1) or has ended (-1)."""
        self._streams.labels(method).inc(change)

    def certificate_expiry(self, certificate: str, at_s: float) -> None:
        """See ``ExpiryObserver``."""
        self._expiry.labels(certificate).set(at_s)

    def swept(self, size_bytes: int, removed_bytes: int, at_s: float) -> None:
        """See ``KeeperObserver``."""
        self._collected.inc(removed_bytes)
        self._in_store.set(size_bytes - removed_bytes)
        self._last_sweep.set(at_s)

    async def page(self, service: Service | None) -> bytes:
        """The text for Prometheus. Without a service (a standby) only what this process has measured itself."""
        if service is None:
            self._present.families = []
        else:
            metered = await service.metered()
            projects = [(each.institution, each.project) for each in await service.list_projects("")]
            budgets = await service.list_budgets("", False)
            gauges = service.gauges()
            self._present.families = [
                *usage_families(metered, gauges, projects),
                *budget_families(budgets),
                *gauge_families(gauges),
            ]
        return generate_latest(self.registry)


class _Present(Collector):
    """Gives the families that were made last."""

    def __init__(self) -> None:
        self.families: Sequence[Metric] = ()

    def collect(self) -> Iterable[Metric]:
        return self.families


def gauge_families(gauges: Gauges) -> Iterator[Metric]:
    """The present: queue, regions, pools, quotas."""
    yield GaugeMetricFamily(names.LEADER_EPOCH, "The leadership's epoch.", value=gauges.leader_epoch)
    yield GaugeMetricFamily(names.POLICY_VERSION, "The policy in force (0: none was put).", value=gauges.policy_version)
    yield GaugeMetricFamily(names.EVENT_LAST_SEQUENCE, "The newest event.", value=gauges.event_sequence)
    yield GaugeMetricFamily(names.AUDIT_LAST_SEQUENCE, "The newest audit record.", value=gauges.audit_sequence)
    if gauges.audit_verified is not None:
        text = "Whether the audit log was whole and its signed heads were right when it was last verified."
        yield GaugeMetricFamily(names.AUDIT_CHAIN_OK, text, value=int(not gauges.audit_verified.faults))
    error = "Median of |log2(runtime / predicted)| of the last 1,000 jobs that ended."
    yield GaugeMetricFamily(names.PREDICTION_ERROR, error, value=gauges.predictions.median_error_milli / 1000)
    coverage = "Part of the last 1,000 jobs that ended within their predicted p90."
    yield GaugeMetricFamily(names.PREDICTION_COVERAGE, coverage, value=gauges.predictions.within_p90_milli / 1000)
    jobs = GaugeMetricFamily(names.JOBS, "Jobs by state that have not ended.", labels=("institution", "state"))
    for (institution, state), count in gauges.jobs.items():
        jobs.add_metric((institution, JobState(state).name), count)
    yield jobs
    up = GaugeMetricFamily(names.REGION_UP, "Whether the region's agent is connected.", labels=("region",))
    active = GaugeMetricFamily(names.REGION_ACTIVE_ATTEMPTS, "Attempts that hold an allocation.", labels=("region",))
    for region in gauges.regions:
        up.add_metric((region.record.region,), int(region.online))
        active.add_metric((region.record.region,), region.active_attempts)
    yield from (up, active)
    yield from _pool_families(gauges)
    limit = GaugeMetricFamily(
        names.QUOTA_LIMIT, "Hard limits (-1: none).", labels=("institution", "project", "resource")
    )
    used = GaugeMetricFamily(names.QUOTA_IN_USE, "Held under a quota.", labels=("institution", "project", "resource"))
    for quota in gauges.quotas:
        tenant = (quota.record.institution, quota.record.project)
        record = quota.record
        _add(limit, tenant, Resources(record.cpu_milli, record.memory_mib, record.gpu_milli))
        _add(used, tenant, quota.in_use)
    yield from (limit, used)
    yield from _storage_families(gauges)


def _storage_families(gauges: Gauges) -> Iterator[Metric]:
    """By institution only: projects may be many."""
    stored = GaugeMetricFamily(
        names.STORED_BYTES, "Kept in the artifact store, in full for each holder.", labels=("institution",)
    )
    quota = GaugeMetricFamily(names.STORED_QUOTA, "The quota on it, where there is one.", labels=("institution",))
    for each in gauges.storage:
        if each.project:
            continue
        stored.add_metric((each.institution,), each.size_bytes)
        if each.limit_bytes >= 0:
            quota.add_metric((each.institution,), each.limit_bytes)
    yield from (stored, quota)


def _pool_families(gauges: Gauges) -> Iterator[Metric]:
    labels = ("region", "pool")
    nodes = GaugeMetricFamily(names.POOL_NODES, "Nodes the agent reports.", labels=labels)
    draining = GaugeMetricFamily(names.POOL_NODES_DRAINING, "Nodes closed to new work.", labels=labels)
    unisolated = GaugeMetricFamily(
        names.POOL_NODES_UNISOLATED,
        "Nodes that do not keep jobs apart: for people who trust each other.",
        labels=labels,
    )
    capacity = GaugeMetricFamily(names.POOL_CAPACITY, "What the nodes offer.", labels=(*labels, "resource"))
    allocated = GaugeMetricFamily(names.POOL_ALLOCATED, "What attempts hold.", labels=(*labels, "resource"))
    for pool in gauges.pools:
        nodes.add_metric(tuple(pool.key), pool.nodes)
        draining.add_metric(tuple(pool.key), pool.nodes_draining)
        unisolated.add_metric(tuple(pool.key), pool.nodes - pool.nodes_isolated)
        _add(capacity, tuple(pool.key), pool.capacity)
        _add(allocated, tuple(pool.key), pool.allocated)
    yield from (nodes, draining, unisolated, capacity, allocated)


def _add(family: GaugeMetricFamily, key: tuple[str, ...], amount: Resources) -> None:
    for resource, value in zip(Resources._fields, amount, strict=True):
        family.add_metric((*key, resource), value)
