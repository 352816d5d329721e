"""The tables. Columns are named and ordered as the fields of the records they keep, so that a record *is* its row.

The migrations in ``migrations/versions`` build these tables; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_type_hints

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import SchemaItem

from scheduler.domain import data_records, holdings, records
from scheduler.service.ports import DaySum, UsageKey

METADATA = MetaData()
# SQLite makes a primary key the row's own address only when its type reads INTEGER; both hold 64 bits.
INT = BigInteger().with_variant(Integer(), "sqlite")
_TYPES: dict[type, Any] = {int: INT, str: Text(), bytes: LargeBinary()}

# The numbers of scheduler.domain.states, which are never renumbered: conditions of an index must be constants.
LIVE_STATES_END = 5
LIVE_JOB = f"state < {LIVE_STATES_END}"
LIVE_ATTEMPT = "state < 3"
IN_ARRAY = "array_id <> ''"


def columns_of(record: Any) -> list[Column[Any]]:
    """One column for each field of a record type, none of them nullable."""
    return [Column(name, _TYPES[kind], nullable=False) for name, kind in get_type_hints(record).items()]


def _table(name: str, record: Any, key: str, *parts: SchemaItem, rowid: bool = True) -> Table:
    primary = PrimaryKeyConstraint(*key.split(), name=f"{name}_pkey")
    return Table(name, METADATA, *columns_of(record), primary, *parts, sqlite_with_rowid=rowid)


def _partial(name: str, condition: str, *columns: str) -> Index:
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


# Each index costs every insert: there is one for each question the port asks, and no more.
JOBS = _table(
    "jobs",
    records.JobRecord,
    "job_no",
    UniqueConstraint("job_id", name="jobs_by_id"),
    Index("jobs_by_institution", "institution", "job_no"),
    Index("jobs_by_project", "institution", "project", "job_no"),
    _partial("jobs_live", LIVE_JOB, "job_no"),
    _partial("jobs_by_array", IN_ARRAY, "array_id", "job_no"),
)
ATTEMPTS = _table(
    "attempts",
    records.AttemptRecord,
    "job_no attempt",
    _partial("attempts_live", LIVE_ATTEMPT, "job_no", "attempt"),
    rowid=False,
)
EVENTS = _table(
    "events",
    records.EventRecord,
    "sequence",
    Index("events_by_job", "job_no", "sequence"),
    Index("events_by_institution", "institution", "sequence"),
    _partial("events_by_array", IN_ARRAY, "array_id", "sequence"),
)
LEDGER = _table(
    "ledger",
    records.LedgerRecord,
    "sequence",
    UniqueConstraint("job_id", "attempt", "segment", "revision", "kind", name="ledger_once"),
    Index("ledger_by_institution", "institution", "sequence"),
    # An export is of an accounting month, of everyone or of one institution, in pages.
    Index("ledger_by_period", "period", "sequence"),
    Index("ledger_by_institution_period", "institution", "period", "sequence"),
)
MONTHS = _table("months", records.MonthRecord, "month")
PRICE_LISTS = _table("price_lists", records.PriceListRecord, "version")
REQUESTS = _table(
    "requests",
    records.RequestRecord,
    "user request_id",
    Index("requests_by_age", "first_job_no"),
    rowid=False,
)
INSTITUTIONS = _table("institutions", records.InstitutionRecord, "institution")
PROJECTS = _table(
    "projects",
    records.ProjectRecord,
    "institution project",
    ForeignKeyConstraint(["institution"], ["institutions.institution"], name="projects_institution"),
)
USERS = _table("users", records.UserRecord, "user")
API_KEYS = _table("api_keys", records.ApiKeyRecord, "prefix")
ENROLMENTS = _table(
    "enrolments",
    records.EnrolmentRecord,
    "token_hash",
    ForeignKeyConstraint(["region"], ["regions.region"], name="enrolments_region"),
)
QUOTAS = _table(
    "quotas",
    records.QuotaRecord,
    "institution project",
    ForeignKeyConstraint(["institution"], ["institutions.institution"], name="quotas_institution"),
)
FAIR_USAGE = _table("fair_usage", records.FairUsageRecord, "institution project user", rowid=False)
POLICIES = _table("policies", records.PolicyRecord, "version")
BUDGETS = _table(
    "budgets",
    records.BudgetRecord,
    "budget",
    ForeignKeyConstraint(["institution"], ["institutions.institution"], name="budgets_institution"),
)
BUDGET_SPENDING = _table(
    "budget_spending",
    records.BudgetSpendingRecord,
    "budget",
    ForeignKeyConstraint(["budget"], ["budgets.budget"], name="budget_spending_budget"),
)
BUDGET_NOTICES = _table(
    "budget_notices",
    records.BudgetNoticeRecord,
    "number",
    Index("budget_notices_by_institution", "institution", "number"),
    Index("budget_notices_by_budget", "budget", "number"),
)
DATA_SETS = _table(
    "data_sets",
    data_records.DataSetRecord,
    "data_set version",
    ForeignKeyConstraint(["institution"], ["institutions.institution"], name="data_sets_institution"),
)
# A grant names a pattern of versions, not one of them.
GRANTS = _table(
    "grants",
    data_records.GrantRecord,
    "grant_id",
    ForeignKeyConstraint(["institution"], ["institutions.institution"], name="grants_institution"),
)
AUDIT = _table(
    "audit",
    records.AuditRecord,
    "sequence",
    Index("audit_by_actor", "actor", "sequence"),
    Index("audit_by_institution", "institution", "sequence"),
    Index("audit_by_beneficiary", "on_behalf_of", "sequence"),
)
AUDIT_HEADS = _table("audit_heads", records.AuditHeadRecord, "sequence")
HELD_BY_JOB = "job_id <> ''"
UNMEASURED = "size_bytes < 0"
HOLDINGS = _table(
    "holdings",
    holdings.HoldingRecord,
    "institution project kind item",
    Index("holdings_by_digest", "digest", "institution"),
    Index("holdings_by_age", "institution", "since_ms"),
    Index("holdings_by_size", "institution", "size_bytes"),
    _partial("holdings_by_job", HELD_BY_JOB, "job_id"),
    _partial("holdings_unmeasured", UNMEASURED, "institution", "project", "kind", "item"),
    rowid=False,
)
STORED = _table("stored", holdings.StoredRecord, "institution project", rowid=False)
STORAGE_MARKS = _table("storage_marks", holdings.StorageMark, "name")
REGIONS = _table("regions", records.RegionRecord, "region")
NODES = _table(
    "nodes",
    records.NodeRecord,
    "region node_id",
    ForeignKeyConstraint(["region"], ["regions.region"], name="nodes_region"),
)

# A sum may pass 64 bits, so each is kept in two columns: value = *_high × SUM_BASE + *_low, 0 <= *_low < SUM_BASE, with
# *_high below zero where the value is. The base is small enough that the low halves of thousands of millions of rows are
# added within 64 bits, too.
SUM_BASE = 10**9
DAY_SUMS = ("cpu_milli_ms", "memory_mib_ms", "gpu_milli_ms")
SUMS = (*DAY_SUMS, "cpu_used_milli_ms", "memory_peak_mib_ms", "gpu_used_milli_ms")


def _rollup(
    name: str, key: list[Column[Any]], sums: Sequence[str], counts: Sequence[str], first: Sequence[str] = ()
) -> Table:
    """A table of sums; ``first`` are the fields of the key by which its rows are ordered first."""
    order = sorted((column.name for column in key), key=lambda name: name not in first)
    return Table(
        name,
        METADATA,
        *key,
        *(Column(f"{name}_{part}", INT, nullable=False) for name in sums for part in ("high", "low")),
        *(Column(name, INT, nullable=False) for name in counts),
        PrimaryKeyConstraint(*order, name=f"{name}_pkey"),
        sqlite_with_rowid=False,
    )


COUNTS = ("segments", "attempts")
# What costs are reckoned by comes first: SQLite then sums row after row, and need not sort them.
COSTED = ("institution", "kind", "price_list", "rate", "discount_bp")
USAGE = _rollup("usage_by_month", columns_of(UsageKey), SUMS, COUNTS, first=COSTED)
DAYS = _rollup("usage_by_day", columns_of(DaySum)[: -len(DAY_SUMS)], DAY_SUMS, ())
# One row: who may write, and the last value of every counter. Each commit changes it first, which makes it the fence.
LEADER = Table(
    "leader",
    METADATA,
    Column("id", INT, nullable=False),
    Column("epoch", INT, nullable=False),
    Column("holder", Text, nullable=False),
    Column("expire_ms", INT, nullable=False),
    Column("commit_no", INT, nullable=False),
    Column("job_no", INT, nullable=False),
    Column("event_seq", INT, nullable=False),
    Column("ledger_seq", INT, nullable=False),
    Column("launch_seq", INT, nullable=False),
    Column("time_ms", INT, nullable=False),
    PrimaryKeyConstraint("id", name="leader_pkey"),
    CheckConstraint("id = 1", name="leader_is_one_row"),
)

# What a CommitBatch's lists are kept in, in the order of writing: what is referred to comes first.
TABLES: dict[str, Table] = {
    "institutions": INSTITUTIONS,
    "projects": PROJECTS,
    "users": USERS,
    "api_keys": API_KEYS,
    "quotas": QUOTAS,
    "policies": POLICIES,
    "price_lists": PRICE_LISTS,
    "months": MONTHS,
    "budgets": BUDGETS,
    "budget_spending": BUDGET_SPENDING,
    "budget_notices": BUDGET_NOTICES,
    "data_sets": DATA_SETS,
    "grants": GRANTS,
    "regions": REGIONS,
    "enrolments": ENROLMENTS,
    "nodes": NODES,
    "new_jobs": JOBS,
    "jobs": JOBS,
    "new_attempts": ATTEMPTS,
    "attempts": ATTEMPTS,
    "events": EVENTS,
    "ledger": LEDGER,
    "requests": REQUESTS,
    "fair_usage": FAIR_USAGE,
    "audit": AUDIT,
    "audit_heads": AUDIT_HEADS,
    "holdings": HOLDINGS,
    "stored": STORED,
    "storage_marks": STORAGE_MARKS,
}
# Sums of the ledger: to rows of a key that is there already, others are added.
ROLLUPS: dict[str, Table] = {"usage_by_month": USAGE, "usage_by_day": DAYS}
INSERT_ONLY = frozenset(
    {
        "new_jobs",
        "new_attempts",
        "events",
        "ledger",
        "requests",
        "policies",
        "price_lists",
        "months",
        "budget_notices",
        "audit",
        "audit_heads",
    }
)
