"""The use cases, as the API layer calls them: the contract of ``scheduler.service.control_plane.ControlPlane``.

The API layer authenticates, translates and authorises; whatever depends on the state is decided behind this contract. Every
call that changes something returns after the change is durable; every call that reads sees at least everything acknowledged
before it. All raise the errors of ``scheduler.domain.errors``; ``Unavailable`` when this process is not the leader.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from scheduler.domain.agent import AgentCommand, AgentMessage
from scheduler.domain.records import (
    AttemptRecord,
    BudgetNoticeRecord,
    EventRecord,
    InstitutionRecord,
    JobRecord,
    LedgerRecord,
    MonthRecord,
    PolicyRecord,
    PriceListRecord,
    ProjectRecord,
    QuotaRecord,
    RegionRecord,
    UserRecord,
)
from scheduler.domain.resources import Resources
from scheduler.domain.spec import JobSpec
from scheduler.metering.budgets import Budget
from scheduler.metering.estimate import PlaceCost
from scheduler.metering.price_text import PriceText
from scheduler.metering.prices import PriceBook
from scheduler.metering.totals import Total
from scheduler.metering.verifying import Fault
from scheduler.planning.explanation import Explanation
from scheduler.planning.policy_text import PolicyText
from scheduler.planning.runtimes import Accuracy
from scheduler.planning.types import GroupKey, NodeView, PendingJob, PoolKey
from scheduler.service.audit_contract import AuditService
from scheduler.service.audit_trail import AuditVerified
from scheduler.service.data_contract import DataService
from scheduler.service.people import People
from scheduler.service.ports import EventQuery, JobQuery, LedgerQuery, UsageQuery, UsageSum
from scheduler.service.statements import StatementFacts
from scheduler.service.storage_contract import ProjectStorage, StorageService


@dataclass(frozen=True, slots=True)
class Submission:
    """Jobs to accept together. ``fingerprint`` is the SHA-256 of the request without its id.

    The specs are valid in themselves, algorithms resolved and working folders present; what depends on the state (the tenant
    exists, a dependency exists and closes no cycle, some pool could hold it, quotas) is checked by ``submit``, whose errors name
    the spec by its place ("jobs[3]").
    """

    user: str
    specs: Sequence[JobSpec]
    request_id: str = ""
    fingerprint: bytes = b""
    validate_only: bool = False


class Submitted(NamedTuple):
    """The jobs' ids in the order of the request; ``duplicate`` when an earlier call had submitted them."""

    job_ids: list[str]
    duplicate: bool


class JobExplanation(NamedTuple):
    """A job's state with why it waits.

    ``job`` is None for one that was not submitted; ``waiting_for`` are the ids of jobs it depends on that have not ended; ``job_ids`` those of
    the jobs, by number, that the explanation names; ``asked``: the place in the queue that it was explained as, for a forecast.
    """

    job: JobRecord | None
    explanation: Explanation
    waiting_for: tuple[str, ...] = ()
    job_ids: Mapping[int, str] = MappingProxyType({})
    asked: tuple[GroupKey, PendingJob] | None = None


class RegionStatus(NamedTuple):
    """A region and what goes on in it."""

    record: RegionRecord
    online: bool
    nodes: int
    capacity: Resources
    allocated: Resources
    active_attempts: int


class PoolStatus(NamedTuple):
    """A pool and what is held in it. ``nodes_isolated`` keep jobs apart."""

    key: PoolKey
    accelerator: str
    nodes: int
    nodes_draining: int
    nodes_isolated: int
    capacity: Resources
    allocated: Resources


AS_IT_WAS = -2
"""In the place of a new limit, from callers that do not know of it: the present one stays."""


class QuotaStatus(NamedTuple):
    """A quota and what is held under it now; ``stored_bytes`` in the artifact store."""

    record: QuotaRecord
    in_use: Resources
    stored_bytes: int = 0


class NodeStatus(NamedTuple):
    """A node and how many attempts hold part of it."""

    view: NodeView
    active_attempts: int


@dataclass(frozen=True, slots=True)
class PolicyDraft:
    """A policy to put: the document as it was given, and what it says.

    ``expected_version``: the version that it is meant to follow; 0 is any. ``validate_only``: change nothing.
    """

    document: str
    text: PolicyText
    comment: str = ""
    expected_version: int = 0
    validate_only: bool = False


class PolicyPut(NamedTuple):
    """The version that was put (number 0: only checked), and what in it is probably not meant."""

    record: PolicyRecord
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class PriceListDraft:
    """A price list to put: the document as it was given, and what it says. ``validate_only``: change nothing."""

    document: str
    text: PriceText
    comment: str = ""
    validate_only: bool = False


class PriceListPut(NamedTuple):
    """The version that was put (number 0: only checked), and what in it is probably not meant."""

    record: PriceListRecord
    warnings: list[str]


class CostEstimates(NamedTuple):
    """What a job would cost in each place where it could run, the dearest first; in no currency ("") before any list was put.

    ``not_covered``: why its budgets could never cover it, or empty.
    """

    places: list[PlaceCost]
    currency: str
    digits: int
    not_covered: str = ""


class Usage(NamedTuple):
    """Exact sums; ``running`` holds the part of open allocations that is not in the ledger, up to ``as_of_ms``, as if they ended then (empty unless asked)."""

    sums: list[UsageSum]
    running: list[LedgerRecord]
    as_of_ms: int
    ledger_sequence: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """What stands in a record's place; None: as it was."""

    project: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    cpu_milli: int | None = None
    memory_mib: int | None = None
    gpu_milli: int | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """Take a record back, or (``credit``) its cost only."""

    sequence: int
    reason: str
    replacement: Replacement | None = None
    credit: bool = False


class BudgetStatus(NamedTuple):
    """How a budget stands, in its unit: ``running`` up to now, ``committed`` at most from now on. ``digits``: of the currency's minor
    unit, 3 for other units. ``exhausted_ms``: when it will be used up at its average speed so far, 0 for not before its end."""

    budget: Budget
    spent: int
    running: int
    committed: int
    available: int
    threshold: int
    held_jobs: int
    exhausted_ms: int
    currency: str
    digits: int


class Verified(NamedTuple):
    """The result of the last verification of the whole ledger."""

    time_ms: int
    chain_faults: int
    other_faults: int


class VerifyProgress(NamedTuple):
    """How far a verification is: records checked of ``total``; with ``done`` the faults, the first bad record's first."""

    checked: int
    total: int
    done: bool
    faults: list[Fault]
    head_sequence: int
    head: bytes
    attempts: int
    sums: int


class Metered(NamedTuple):
    """All that is metered: the ledger's totals as of its record ``sequence``, and ``open``, what running attempts hold beside it by now."""

    totals: list[Total]
    sequence: int
    open: list[LedgerRecord]
    prices: PriceBook
    verified: Verified | None


class Gauges(NamedTuple):
    """What /metrics shows of the present: counts by (institution, state), statuses, and loop figures."""

    jobs: dict[tuple[str, int], int]
    regions: list[RegionStatus]
    pools: list[PoolStatus]
    quotas: list[QuotaStatus]
    leader_epoch: int
    ledger_sequence: int
    event_sequence: int
    policy_version: int = 0
    predictions: Accuracy = Accuracy(0, 0, 0)
    audit_sequence: int = 0
    audit_verified: AuditVerified | None = None
    storage: Sequence[ProjectStorage] = ()


class AgentSession(Protocol):
    """One connected agent, seen from the service. Made by ``open_agent_session``; the newest of a region wins."""

    async def receive(self, message: AgentMessage) -> None:
        """Handle one message of the agent. Returns when it is taken in, not when it is durable."""
        ...

    def commands(self) -> AsyncIterator[AgentCommand]:
        """What to send, in order, as it becomes durable. Ends when the session is superseded or the leader steps down."""
        ...

    async def close(self) -> None:
        """The stream has ended."""
        ...


class Service(People, AuditService, DataService, StorageService, Protocol):
    """Everything the API layer may ask for."""

    async def submit(self, submission: Submission) -> Submitted:
        """Accept jobs, all or none. ``AlreadyExists`` (REQUEST_ID_REUSED) for a request_id with another fingerprint."""
        ...

    async def cancel(self, job_ids: Sequence[str], user: str, reason: str) -> tuple[list[str], list[str]]:
        """Ask for cancellation; (cancelling, already ended). ``NotFound`` when any id is unknown, and then none is cancelled."""
        ...

    async def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """In the order asked; ``NotFound`` names the first unknown id."""
        ...

    async def attempts_of(self, job_id: str) -> list[AttemptRecord]:
        """The newest 100 attempts, oldest first."""
        ...

    async def list_jobs(self, query: JobQuery) -> list[JobRecord]:
        """A page, newest first."""
        ...

    async def explain(self, job_id: str, what_if: JobSpec | None = None) -> JobExplanation:
        """Why it waits and when it will probably start; with ``what_if``, why and when if this were its specification.

        ``FailedPrecondition`` (NOT_WAITING) when it has started or ended and ``what_if`` is given.
        """
        ...

    async def explain_spec(self, spec: JobSpec, user: str) -> JobExplanation:
        """The same of a job that has not been submitted, as if its dependencies had ended. Raises what ``submit`` would."""
        ...

    def watch(self, query: EventQuery) -> AsyncIterator[tuple[list[EventRecord], int]]:
        """Pages of committed events after ``query.after`` (-1: from now on) without end, each with the sequence number up to
        which the stream is then complete; an empty page at least every 15 s. ``FailedPrecondition`` (SEQUENCE_TOO_OLD) when
        events after ``query.after`` have been pruned."""
        ...

    async def usage(self, query: UsageQuery, include_running: bool = False, *, sums: bool = True) -> Usage:
        """The sums asked for; without ``sums`` only the instant, and what runs at it (of which ``query`` chooses no months)."""
        ...

    def price_book(self) -> PriceBook:
        """All price lists."""
        ...

    async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """A page of the ledger."""
        ...

    async def metered(self) -> Metered:
        """For counters: from memory, at once, and only what is durable."""
        ...

    async def correct_ledger(self, asked: Correction, institution: str, author: str) -> list[LedgerRecord]:
        """Reverse or credit a record of an institution (empty: of any), and put another in its place; the new records.

        ``NotFound``; ``FailedPrecondition``: NOT_CORRECTABLE, ALREADY_CORRECTED, STILL_RUNNING.
        """
        ...

    def verify_ledger(self, from_sequence: int, expected: tuple[int, bytes] | None) -> AsyncIterator[VerifyProgress]:
        """Derive everything anew from records and allocations, from a record on (0: all); ``expected``: a record's number and hash."""
        ...

    async def close_month(self, month: str, author: str) -> MonthRecord:
        """Close an accounting month ("2026-10"); idempotent. ``FailedPrecondition``: MONTH_NOT_OVER, EARLIER_MONTH_OPEN."""
        ...

    async def list_months(self) -> list[MonthRecord]:
        """The closed ones, newest first."""
        ...

    async def put_budget(self, budget: Budget, author: str, validate_only: bool) -> BudgetStatus:
        """Create a budget or change its terms. ``NotFound`` for its tenants; ``FailedPrecondition``: NO_PRICE_LIST, BUDGET_FIXED."""
        ...

    async def list_budgets(self, institution: str, include_past: bool) -> list[BudgetStatus]:
        """Of one institution or (empty) of all, by id."""
        ...

    async def budget_terms(self, institution: str) -> list[Budget]:
        """The budgets of one institution or (empty) of all, closed ones and past ones too, without how they stand; by id."""
        ...

    async def list_budget_notices(
        self, institution: str, budget: str, before_number: int, limit: int
    ) -> list[BudgetNoticeRecord]:
        """Below ``before_number`` (0: from the newest), newest first; empty fields do not filter."""
        ...

    async def statement(self, institution: str, month: str) -> StatementFacts:
        """What a month's statement is made of, as of one instant. ``NotFound`` without the institution; ``FailedPrecondition``
        (MONTH_NOT_BEGUN) for a month in the future."""
        ...

    async def put_institution(self, record: InstitutionRecord, actor: str) -> InstitutionRecord:
        """Create or change (``create_ms`` is kept). A new institution gets a project "default"."""
        ...

    async def list_institutions(self) -> list[InstitutionRecord]:
        """All, by id."""
        ...

    async def put_project(self, record: ProjectRecord, actor: str) -> ProjectRecord:
        """Create or change; ``NotFound`` without its institution."""
        ...

    async def list_projects(self, institution: str) -> list[ProjectRecord]:
        """Of one institution or (empty) of all, by id."""
        ...

    async def put_user(self, record: UserRecord, actor: str) -> UserRecord:
        """Create or change. A user's institution never changes (``FailedPrecondition``)."""
        ...

    async def list_users(self, institution: str) -> list[UserRecord]:
        """Of one institution or (empty) of all, by id."""
        ...

    async def set_quota(self, record: QuotaRecord, actor: str) -> QuotaRecord:
        """Replace the quota; running jobs are not touched."""
        ...

    async def list_quotas(self, institution: str) -> list[QuotaStatus]:
        """Of one institution or (empty) of all."""
        ...

    async def get_policy(self, version: int) -> PolicyRecord:
        """A version of the policy; 0 is the one in force, whose version is 0 when none was ever put. ``NotFound``."""
        ...

    async def put_policy(self, draft: PolicyDraft, actor: str) -> PolicyPut:
        """A new version, in force from the next round on. ``FailedPrecondition`` (POLICY_CHANGED) when
        ``expected_version`` is not the newest."""
        ...

    async def list_policies(self, before_version: int, limit: int) -> list[PolicyRecord]:
        """Versions below ``before_version`` (0: from the newest), newest first, without their texts."""
        ...

    async def get_price_list(self, version: int) -> PriceListRecord:
        """A version of the price list; 0 is the one in force now. ``NotFound``."""
        ...

    async def put_price_list(self, draft: PriceListDraft, actor: str) -> PriceListPut:
        """A new version, in force in its window. ``FailedPrecondition`` (PRICES_IN_THE_PAST, CURRENCY_CHANGED)."""
        ...

    async def list_price_lists(self, before_version: int, limit: int) -> list[PriceListRecord]:
        """Versions below ``before_version`` (0: from the newest), newest first, without their texts."""
        ...

    async def estimate(self, spec: JobSpec, user: str) -> CostEstimates:
        """What a job that has not been submitted would cost. Raises what ``submit`` would, as if its dependencies had ended."""
        ...

    async def create_enrolment_token(self, region: str, ttl_ms: int, actor: str) -> tuple[str, int]:
        """A token and when it expires; creates the region."""
        ...

    async def enrol_agent(self, token: str, region: str, agent_name: str) -> str:
        """The agent's key. ``Unauthenticated`` for an unknown, used or expired token or another region's."""
        ...

    async def list_regions(self) -> list[RegionStatus]:
        """By id."""
        ...

    async def list_pools(self, region: str) -> list[PoolStatus]:
        """By region and id; an empty region is all."""
        ...

    async def list_nodes(self, region: str, pool: str) -> list[NodeStatus]:
        """By region, pool and name; empty fields do not filter."""
        ...

    async def drain_node(self, region: str, node: str, draining: bool, evict: bool, actor: str) -> NodeStatus:
        """By id or name; ``NotFound``."""
        ...

    def open_agent_session(self, region: str) -> AgentSession:
        """For an authenticated agent of this region. Its first message must be Hello."""
        ...

    def gauges(self) -> Gauges:
        """The present, from memory, at once."""
        ...
