"""The ports: what the service needs of the world, as contracts.

The live server and the simulator differ only in what stands behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from scheduler.domain.data_records import DataSetRecord, GrantRecord
from scheduler.domain.holdings import HoldingKey, HoldingRecord, StorageMark, StoredRecord
from scheduler.domain.records import (
    ApiKeyRecord,
    AttemptRecord,
    AuditHeadRecord,
    AuditRecord,
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
from scheduler.domain.spec import Dependency, JobSpec
from scheduler.planning.runtimes import Accuracy, JobFeatures
from scheduler.service.storage_ports import HoldingStore


class RuntimeSample(NamedTuple):
    """How long a job ran in all, up to its end: its last attempt, and what the checkpoint it began from had saved."""

    features: JobFeatures
    runtime_ms: int


class Prediction(Protocol):
    """How long a job will go on."""

    @property
    def expected_remaining_ms(self) -> int:
        """The expected time until it ends by itself or at its limit; at least 1."""
        ...

    @property
    def p90_ms(self) -> int:
        """The time that nine of ten such jobs do not exceed; at least 1."""
        ...


class RuntimePredictor(Protocol):
    """Learns from the jobs that have ended how long others will run. Deterministic; calls are cheap."""

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        """A job of these features has ended by itself or at its limit, after running this long in all."""
        ...

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Prediction:
        """How long a job goes on that has run for ``elapsed_ms`` and is ended at ``limit_ms``."""
        ...

    def accuracy(self) -> Accuracy:
        """How good its predictions were lately."""
        ...


class Clock(Protocol):
    """Wall time. Never goes back within a process; the service carries it forward over restarts."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        ...


class IdSource(Protocol):
    """Fresh identifiers, safe to show."""

    def job_id(self, now_ms: int) -> str:
        """A new job id: 1 to 32 of [a-z0-9], rising with time so that an index on it grows at its end."""
        ...

    def token(self, size_bytes: int) -> bytes:
        """Random bytes for secrets."""
        ...


@dataclass(slots=True)
class CommitBatch:
    """What one transaction writes. Records replace those of the same key, except the append-only ones.

    Append-only: ``events``, ``ledger``, ``requests``, ``policies``, ``price_lists``, ``months``, ``budget_notices``,
    ``audit``, ``audit_heads``. Keys: jobs ``job_no``; attempts ``(job_no, attempt)``; data sets ``(data_set, version)``; the others
    their leading identifying fields (holdings: those of ``HoldingKey``). ``new_jobs`` and ``new_attempts`` are known not to be there yet (plain inserts).
    """

    new_jobs: list[JobRecord] = field(default_factory=list)
    jobs: list[JobRecord] = field(default_factory=list)
    new_attempts: list[AttemptRecord] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    ledger: list[LedgerRecord] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    institutions: list[InstitutionRecord] = field(default_factory=list)
    projects: list[ProjectRecord] = field(default_factory=list)
    users: list[UserRecord] = field(default_factory=list)
    api_keys: list[ApiKeyRecord] = field(default_factory=list)
    enrolments: list[EnrolmentRecord] = field(default_factory=list)
    quotas: list[QuotaRecord] = field(default_factory=list)
    regions: list[RegionRecord] = field(default_factory=list)
    nodes: list[NodeRecord] = field(default_factory=list)
    fair_usage: list[FairUsageRecord] = field(default_factory=list)
    policies: list[PolicyRecord] = field(default_factory=list)
    price_lists: list[PriceListRecord] = field(default_factory=list)
    months: list[MonthRecord] = field(default_factory=list)
    budgets: list[BudgetRecord] = field(default_factory=list)
    budget_spending: list[BudgetSpendingRecord] = field(default_factory=list)
    budget_notices: list[BudgetNoticeRecord] = field(default_factory=list)
    data_sets: list[DataSetRecord] = field(default_factory=list)
    grants: list[GrantRecord] = field(default_factory=list)
    audit: list[AuditRecord] = field(default_factory=list)
    audit_heads: list[AuditHeadRecord] = field(default_factory=list)
    holdings: list[HoldingRecord] = field(default_factory=list)
    stored: list[StoredRecord] = field(default_factory=list)
    storage_marks: list[StorageMark] = field(default_factory=list)
    gone_nodes: list[tuple[str, str]] = field(default_factory=list)
    """(region, node id) of nodes to delete."""
    gone_holdings: list[HoldingKey] = field(default_factory=list)
    """Those to delete; none of them is in ``holdings``."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)


class Leadership(NamedTuple):
    """The fenced right to write. ``epoch`` rises with every change of leader."""

    epoch: int
    ttl_ms: int


@dataclass(slots=True)
class StoredState:
    """All that is live, to rebuild the memory from: jobs that have not ended (and their arrays), attempts that have not
    ended, every tenant record, every region and node, the newest request keys and runtimes, the newest policy, all price lists, closed
    months, budgets, data sets and grants, what unfinished jobs hold in the artifact store and everybody's sums of it, the hash of the newest ledger record (empty before the first), the newest audit record and signed head, the
    counters' last values.

    ``requests_complete`` is False when older request keys exist than the ones loaded.
    """

    jobs: list[JobRecord]
    attempts: list[AttemptRecord]
    requests: list[RequestRecord]
    requests_complete: bool
    institutions: list[InstitutionRecord]
    projects: list[ProjectRecord]
    users: list[UserRecord]
    api_keys: list[ApiKeyRecord]
    enrolments: list[EnrolmentRecord]
    quotas: list[QuotaRecord]
    regions: list[RegionRecord]
    nodes: list[NodeRecord]
    fair_usage: list[FairUsageRecord]
    runtimes: list[RuntimeSample]
    policy: PolicyRecord | None
    price_lists: list[PriceListRecord]
    months: list[MonthRecord]
    budgets: list[BudgetRecord]
    budget_spending: list[BudgetSpendingRecord]
    last_budget_notice: int
    data_sets: list[DataSetRecord]
    grants: list[GrantRecord]
    holdings: list[HoldingRecord]
    stored: list[StoredRecord]
    storage_marks: list[StorageMark]
    ledger_hash: bytes
    audit_newest: AuditRecord | None
    audit_head_newest: AuditHeadRecord | None
    last_job_no: int
    last_event_seq: int
    last_ledger_seq: int
    last_launch_seq: int
    last_commit_no: int
    last_time_ms: int
    """The newest instant in any event, ledger or audit record: the clock starts no earlier."""


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list, newest (highest ``job_no``) first; empty fields do not filter.

    ``before_job_no`` is the page's cursor (0: from the newest). ``labels`` are not filtered by the store.
    """

    institution: str = ""
    project: str = ""
    user: str = ""
    states: tuple[int, ...] = ()
    name: str = ""
    array_id: str = ""
    region: str = ""
    submitted_from_ms: int = 0
    submitted_to_ms: int = 0
    before_job_no: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Events with ``sequence > after``, oldest first, of these jobs (or tasks of these arrays), or of all."""

    after: int
    limit: int
    job_ids: tuple[str, ...] = ()
    institution: str = ""
    project: str = ""


@dataclass(frozen=True, slots=True)
class LedgerQuery:
    """Ledger records with ``sequence > after``, oldest first; of one accounting month where ``period`` is not empty.

    ``from_ms`` and ``to_ms`` bound the metered time: a record is returned when its [start_ms, end_ms) overlaps
    [from_ms, to_ms); 0 is open.
    """

    institution: str = ""
    project: str = ""
    job_id: str = ""
    period: str = ""
    from_ms: int = 0
    to_ms: int = 0
    after: int = 0
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Audit records with ``after < sequence < before`` (0: open); empty fields do not filter.

    ``institution`` is that of the actor or the one on whose behalf it was; ``[from_ms, to_ms)`` bounds the time, 0 is open.
    """

    actor: str = ""
    institution: str = ""
    action: str = ""
    outcome: int = 0
    from_ms: int = 0
    to_ms: int = 0
    after: int = 0
    before: int = 0
    newest_first: bool = False
    limit: int = 1000


class UsageKey(NamedTuple):
    """What usage is summed by: ``month`` is the UTC month of the segment, as in "2026-10", the rest are fields of the record."""

    institution: str
    project: str
    user: str
    region: str
    pool: str
    accelerator: str
    month: str
    period: str
    kind: int
    priority: int
    preemptible: int
    purpose: str
    price_list: int
    rate: int
    discount_bp: int


class UsageSum(NamedTuple):
    """Exact sums over ledger segments of amount × milliseconds: what was held, and what of it was used.

    ``segments`` and ``attempts`` count what was metered, not what was corrected; an attempt is counted where its first segment is.
    """

    key: UsageKey
    cpu_milli_ms: int
    memory_mib_ms: int
    gpu_milli_ms: int
    cpu_used_milli_ms: int
    memory_peak_mib_ms: int
    gpu_used_milli_ms: int
    segments: int
    attempts: int


class DaySum(NamedTuple):
    """What was held in a UTC day (as in "2026-10-09", that of the segment), reversals and corrections included, credits not."""

    day: str
    institution: str
    region: str
    pool: str
    cpu_milli_ms: int
    memory_mib_ms: int
    gpu_milli_ms: int


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which sums: empty fields do not filter; months are inclusive bounds, as in "2026-10".

    ``group_by`` are fields of ``UsageKey``: the rest of a key is empty (0 for numbers) and summed over; empty means all of them.
    """

    institution: str = ""
    project: str = ""
    user: str = ""
    from_month: str = ""
    to_month: str = ""
    period: str = ""
    group_by: tuple[str, ...] = ()


class SpecCodec(Protocol):
    """Specs to and from the form the store keeps."""

    def decode(self, encoded: bytes) -> JobSpec:
        """The spec of ``JobSpec.encoded``; equal bytes give the same object."""
        ...

    def with_dependencies(self, spec: JobSpec, dependencies: tuple[Dependency, ...]) -> JobSpec:
        """The spec with these dependencies instead of its own, encoded anew."""
        ...


class Store(HoldingStore, Protocol):
    """Durable state in SQL. All calls block; the live shell runs them in threads, the simulator calls them.

    One writer: ``commit`` is called by one thread at a time. Reads may run at the same time from other threads and see
    committed state only. Raises ``Unavailable`` when the database is away (nothing is known of a commit's fate then:
    repeat it with the same ``commit_no``), ``Deposed`` when the epoch is no longer the newest.
    """

    def migrate(self) -> None:
        """Create or upgrade the schema. Idempotent; safe when two processes start at once."""
        ...

    def acquire_leadership(self, holder: str, ttl_ms: int) -> Leadership | None:
        """Take the lease if nobody holds a live one, by the database's own clock. Epoch = the last one + 1."""
        ...

    def renew_leadership(self, epoch: int, ttl_ms: int) -> None:
        """Extend the lease. Raises ``Deposed`` when another epoch has begun."""
        ...

    def release_leadership(self, epoch: int) -> None:
        """End the lease now, so that a standby need not wait. No error when already deposed."""
        ...

    def load(self) -> StoredState:
        """Everything live. Called once, by a new leader, before its first commit."""
        ...

    def commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        """Write the batch in one durable transaction.

        Fenced: nothing is written and ``Deposed`` raised unless ``epoch`` is the newest. Idempotent: ``commit_no`` is the
        last one + 1; when it equals the last one, the batch is already durable and the call returns at once. The rows of
        ``usage_by_month`` (the sums of ``LedgerRecord`` by ``UsageKey``) and ``usage_by_day`` are kept in the same transaction.
        """
        ...

    def find_request(self, user: str, request_id: str) -> RequestRecord | None:
        """The submission made with this key, if any."""
        ...

    def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """These jobs, in any order; unknown ids are left out. A task's ``spec`` is its array's."""
        ...

    def jobs_by_number(self, first_job_no: int, count: int) -> list[JobRecord]:
        """``count`` jobs from ``first_job_no`` on, by number."""
        ...

    def list_jobs(self, query: JobQuery) -> list[JobRecord]:
        """A page of jobs. A task's ``spec`` is its array's."""
        ...

    def attempts_of(self, job_id: str, limit: int) -> list[AttemptRecord]:
        """The newest ``limit`` attempts of a job, oldest first."""
        ...

    def recent_runtimes(self, limit: int) -> list[RuntimeSample]:
        """The runtimes of the newest ``limit`` jobs (by number) that ended with one of ``RUNTIME_OUTCOMES``, oldest first."""
        ...

    def events(self, query: EventQuery) -> list[EventRecord]:
        """A page of events."""
        ...

    def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """A page of the ledger."""
        ...

    def usage_sums(self, query: UsageQuery) -> list[UsageSum]:
        """Sums by key, from the rollup."""
        ...

    def usage_days(self, institution: str, from_day: str, to_day: str) -> list[DaySum]:
        """Sums of the days in [from_day, to_day], by day; of one institution, or (empty) of all."""
        ...

    def count_posted(self, period: str) -> int:
        """How many records were posted to an accounting month."""
        ...

    def ledger_of(self, job_ids: Sequence[str]) -> list[LedgerRecord]:
        """All records of these jobs, by number."""
        ...

    def budget_spending(self) -> list[BudgetSpendingRecord]:
        """What is kept of every budget's spending, by id."""
        ...

    def ledger_after(self, sequence: int, limit: int) -> list[LedgerRecord]:
        """The next ``limit`` records, in the order of their numbers, whatever is in them. For verification."""
        ...

    def attempts_after(self, job_no: int, attempt: int, limit: int) -> list[AttemptRecord]:
        """The next ``limit`` attempts by (job, attempt), live ones included. For verification."""
        ...

    def find_price_list(self, version: int) -> PriceListRecord | None:
        """A version of the price list, if there is one of this number."""
        ...

    def list_budget_notices(
        self, institution: str, budget: str, before_number: int, limit: int
    ) -> list[BudgetNoticeRecord]:
        """Notices below ``before_number`` (0: from the newest), newest first; empty fields do not filter."""
        ...

    def audit(self, query: AuditQuery) -> list[AuditRecord]:
        """A page of the audit log, oldest first unless the query says otherwise."""
        ...

    def audit_heads(self, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
        """The next ``limit`` signed heads of the audit log, by the number of their record."""
        ...

    def find_policy(self, version: int) -> PolicyRecord | None:
        """A version of the policy, if there is one of this number."""
        ...

    def list_policies(self, before_version: int, limit: int) -> list[PolicyRecord]:
        """Versions below ``before_version`` (0: from the newest), newest first, without their texts."""
        ...

    def last_sequences(self) -> tuple[int, int]:
        """The newest event's and the newest ledger record's sequence numbers."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


def records_in(batch: CommitBatch) -> Iterable[tuple[str, list[NamedTuple]]]:
    """The batch's non-empty lists of records with their names, for stores that treat them alike."""
    for name in batch.__slots__:
        rows = getattr(batch, name)
        if rows and not name.startswith("gone_"):
            yield name, rows
