"""``SqlStore``: the ``Store`` port on SQLite and PostgreSQL."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import Connection, select

from scheduler.domain.data_records import DataSetRecord, GrantRecord
from scheduler.domain.errors import Internal
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
from scheduler.service.ports import (
    AuditQuery,
    CommitBatch,
    DaySum,
    EventQuery,
    JobQuery,
    Leadership,
    LedgerQuery,
    RuntimeSample,
    StoredState,
    UsageQuery,
    UsageSum,
)
from scheduler.service.storage_ports import HoldingQuery
from scheduler.service.sums import sum_days, sum_usage
from scheduler.store import queries, queries_audit, queries_holdings, queries_metering, schema
from scheduler.store.counters import Counters, counters_of
from scheduler.store.engines import open_engines
from scheduler.store.failures import translated
from scheduler.store.lease import POSTGRES_NOW_MS, SQLITE_NOW_MS, FileLock, Lease, deposed
from scheduler.store.migrate import migrate
from scheduler.store.statements import Statements, parts

REQUESTS_LOADED = 200_000
RUNTIMES_LOADED = 20_000
# From this many rows on, PostgreSQL takes them faster by COPY than by INSERT.
_COPY_FROM_ROWS = 20


class SqlStore:
    """Durable state in the database at ``url`` (``sqlite:////path`` or ``postgresql://…``). Connects at the first call.

    On SQLite, whose processes are all on one host, a lock file beside the database says whether the holder of the lease is
    alive: when it has died its lease ends at once, and while it lives no other process leads even when its lease has run
    out. Tasks read with ``get_jobs``, ``jobs_by_number`` and ``list_jobs`` have their array's ``spec``; ``load`` returns
    jobs as they are stored.
    """

    def __init__(self, url: str) -> None:
        self._engines = open_engines(url)
        path = self._engines.path
        self._on_postgres = path is None
        self._alive = None if path is None else FileLock(path.with_name(path.name + ".leader"))
        self._epoch = 0  # The newest one this object took: the lock file stands for it.
        self._lease = Lease(POSTGRES_NOW_MS if path is None else SQLITE_NOW_MS)
        self._sql = Statements(self._engines.write.dialect)

    def migrate(self) -> None:
        """Create or upgrade the schema. Idempotent; safe when two processes start at once."""
        with translated("the upgrade of the schema"):
            migrate(self._engines)

    def acquire_leadership(self, holder: str, ttl_ms: int) -> Leadership | None:
        """Take the lease if nobody holds a live one. Epoch = the last one + 1."""
        with translated("taking the lease"):
            freed = False
            if self._alive is not None and not self._alive.held:
                freed = self._alive.acquire()
                if not freed:
                    return None
            epoch: int | None = None
            try:
                with self._engines.write.begin() as connection:
                    epoch = self._lease.acquire(connection, holder, ttl_ms, holder_is_dead=freed)
            finally:
                if epoch is None and freed and self._alive is not None:
                    self._alive.release()
            if epoch is None:
                return None
            self._epoch = epoch
            return Leadership(epoch, ttl_ms)

    def renew_leadership(self, epoch: int, ttl_ms: int) -> None:
        """Extend the lease. Raises ``Deposed`` when another epoch has begun, or this one was released."""
        with translated("renewing the lease"), self._engines.write.begin() as connection:
            self._lease.renew(connection, epoch, ttl_ms)

    def release_leadership(self, epoch: int) -> None:
        """End the lease now, so that a standby need not wait. No error when already deposed."""
        with translated("releasing the lease"), self._engines.write.begin() as connection:
            self._lease.release(connection, epoch)
        if self._alive is not None and epoch == self._epoch:
            self._alive.release()

    def load(self) -> StoredState:
        """Everything live. Called once, by a new leader, before its first commit."""
        with translated("loading the state"), self._reading() as connection, _no_collector():
            if self._on_postgres:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            leader = connection.execute(select(schema.LEADER)).one()
            requests = queries.newest_requests(connection, REQUESTS_LOADED + 1)
            complete = len(requests) <= REQUESTS_LOADED
            return StoredState(
                jobs=queries.live_jobs(connection),
                attempts=queries.live_attempts(connection),
                requests=requests if complete else requests[1:],
                requests_complete=complete,
                institutions=queries.all_of(connection, schema.INSTITUTIONS, InstitutionRecord._make),
                projects=queries.all_of(connection, schema.PROJECTS, ProjectRecord._make),
                users=queries.all_of(connection, schema.USERS, UserRecord._make),
                api_keys=queries.all_of(connection, schema.API_KEYS, ApiKeyRecord._make),
                enrolments=queries.all_of(connection, schema.ENROLMENTS, EnrolmentRecord._make),
                quotas=queries.all_of(connection, schema.QUOTAS, QuotaRecord._make),
                regions=queries.all_of(connection, schema.REGIONS, RegionRecord._make),
                nodes=queries.all_of(connection, schema.NODES, NodeRecord._make),
                fair_usage=queries.all_of(connection, schema.FAIR_USAGE, FairUsageRecord._make),
                runtimes=queries.recent_runtimes(connection, RUNTIMES_LOADED),
                policy=queries.find_policy(connection, 0),
                price_lists=queries.all_of(connection, schema.PRICE_LISTS, PriceListRecord._make),
                months=queries.all_of(connection, schema.MONTHS, MonthRecord._make),
                budgets=queries.all_of(connection, schema.BUDGETS, BudgetRecord._make),
                data_sets=queries.all_of(connection, schema.DATA_SETS, DataSetRecord._make),
                grants=queries.all_of(connection, schema.GRANTS, GrantRecord._make),
                holdings=queries_holdings.of_live_jobs(connection),
                stored=queries.all_of(connection, schema.STORED, StoredRecord._make),
                storage_marks=queries.all_of(connection, schema.STORAGE_MARKS, StorageMark._make),
                budget_spending=queries.all_of(connection, schema.BUDGET_SPENDING, BudgetSpendingRecord._make),
                last_budget_notice=queries_metering.last_budget_notice(connection),
                ledger_hash=queries_metering.ledger_hash(connection),
                audit_newest=queries_audit.newest(connection),
                audit_head_newest=queries_audit.newest_head(connection),
                last_job_no=leader.job_no,
                last_event_seq=leader.event_seq,
                last_ledger_seq=leader.ledger_seq,
                last_launch_seq=leader.launch_seq,
                last_commit_no=leader.commit_no,
                last_time_ms=leader.time_ms,
            )

    def commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        """Write the batch in one durable transaction, fenced and idempotent as the port says."""
        counters = counters_of(batch)
        sums: dict[str, list[Any]] = {
            "usage_by_month": [queries_metering.usage_row(total) for total in sum_usage(batch.ledger)],
            "usage_by_day": [queries_metering.day_row(total) for total in sum_days(batch.ledger)],
        }
        with translated(f"commit {commit_no}"), self._engines.write.begin() as connection:
            if not self._pass_fence(connection, epoch, commit_no, counters):
                return
            for name in schema.TABLES:
                rows = getattr(batch, name)
                if rows:
                    self._write(connection, name, rows)
            for name, rows in sums.items():
                if rows:
                    self._write(connection, name, rows)
            if batch.gone_nodes:
                connection.exec_driver_sql(self._sql.delete_node, batch.gone_nodes)
            if batch.gone_holdings:
                connection.exec_driver_sql(self._sql.delete_holding, [tuple(key) for key in batch.gone_holdings])

    def _pass_fence(self, connection: Connection, epoch: int, commit_no: int, counters: Counters) -> bool:
        """Lock the leader's row and move it on. False when this very commit has been made before."""
        values = self._sql.fence_values(epoch, commit_no, counters)
        if connection.exec_driver_sql(self._sql.fence, values).rowcount == 1:
            return True
        newest_epoch, last_commit_no = connection.exec_driver_sql(self._sql.leader).one()
        if newest_epoch != epoch:
            raise deposed(epoch)
        if last_commit_no != commit_no:
            raise Internal(f"commit {commit_no} after commit {last_commit_no}", reason="COMMIT_OUT_OF_ORDER")
        return False

    def _write(self, connection: Connection, name: str, rows: list[Any]) -> None:
        if self._on_postgres and name in schema.INSERT_ONLY and len(rows) >= _COPY_FROM_ROWS:
            self._copy(connection, name, rows)
        elif self._on_postgres:
            connection.exec_driver_sql(self._sql.write[name], rows)
        else:
            # Many rows a statement: SQLite's driver gives up the interpreter's lock at each one, and a thread that has to
            # win it back from a busy one a thousand times a commit is fifty times slower.
            for part in parts(rows):
                connection.exec_driver_sql(self._sql.write_many(name, len(part)), tuple(chain.from_iterable(part)))

    def _copy(self, connection: Connection, name: str, rows: list[Any]) -> None:
        cursor = connection.connection.cursor()
        try:
            with cursor.copy(self._sql.copy[name]) as copy:
                for row in rows:
                    copy.write_row(row)
        finally:
            cursor.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engines.read.begin() as connection:
            yield connection

    def find_request(self, user: str, request_id: str) -> RequestRecord | None:
        """The submission made with this key, if any."""
        with translated("reading a request"), self._reading() as connection:
            return queries.find_request(connection, user, request_id)

    def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """These jobs, in any order; unknown ids are left out."""
        with translated("reading jobs"), self._reading() as connection:
            return queries.jobs_by_id(connection, job_ids)

    def jobs_by_number(self, first_job_no: int, count: int) -> list[JobRecord]:
        """The jobs numbered from ``first_job_no`` to ``first_job_no + count - 1``, by number."""
        with translated("reading jobs"), self._reading() as connection:
            return queries.jobs_by_number(connection, first_job_no, count)

    def list_jobs(self, query: JobQuery) -> list[JobRecord]:
        """A page of jobs, newest first."""
        with translated("listing jobs"), self._reading() as connection:
            return queries.list_jobs(connection, query)

    def attempts_of(self, job_id: str, limit: int) -> list[AttemptRecord]:
        """The newest ``limit`` attempts of a job, oldest first."""
        with translated("reading attempts"), self._reading() as connection:
            return queries.attempts_of(connection, job_id, limit)

    def recent_runtimes(self, limit: int) -> list[RuntimeSample]:
        """The runtimes of the newest ``limit`` jobs that ended by themselves or at their limit, oldest first."""
        with translated("reading runtimes"), self._reading() as connection:
            return queries.recent_runtimes(connection, limit)

    def events(self, query: EventQuery) -> list[EventRecord]:
        """A page of events, oldest first."""
        with translated("reading events"), self._reading() as connection:
            return queries.events(connection, query)

    def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """A page of the ledger, oldest first."""
        with translated("reading the ledger"), self._reading() as connection:
            return queries_metering.ledger(connection, query)

    def ledger_of(self, job_ids: Sequence[str]) -> list[LedgerRecord]:
        """All records of these jobs, oldest first."""
        with translated("reading the ledger"), self._reading() as connection:
            return queries_metering.ledger_of(connection, job_ids)

    def budget_spending(self) -> list[BudgetSpendingRecord]:
        """What is kept of every budget's spending, by id."""
        with translated("reading budgets"), self._reading() as connection:
            return queries.all_of(connection, schema.BUDGET_SPENDING, BudgetSpendingRecord._make)

    def count_posted(self, period: str) -> int:
        """How many records were posted to an accounting month."""
        with translated("counting records"), self._reading() as connection:
            return queries_metering.count_posted(connection, period)

    def ledger_after(self, sequence: int, limit: int) -> list[LedgerRecord]:
        """The next ``limit`` records, in the order of their numbers."""
        with translated("reading the ledger"), self._reading() as connection:
            return queries_metering.ledger_after(connection, sequence, limit)

    def attempts_after(self, job_no: int, attempt: int, limit: int) -> list[AttemptRecord]:
        """The next ``limit`` attempts by (job, attempt)."""
        with translated("reading attempts"), self._reading() as connection:
            return queries_metering.attempts_after(connection, job_no, attempt, limit)

    def usage_sums(self, query: UsageQuery) -> list[UsageSum]:
        """Sums by key, from the rollup. Raises ``InvalidArgument`` for a field to group by that is none of a key's."""
        with translated("reading usage"), self._reading() as connection:
            return queries_metering.usage_sums(connection, query)

    def usage_days(self, institution: str, from_day: str, to_day: str) -> list[DaySum]:
        """Sums of the days in [from_day, to_day] (empty: open), by day; of one institution, or (empty) of all."""
        with translated("reading usage"), self._reading() as connection:
            return queries_metering.usage_days(connection, institution, from_day, to_day)

    def find_price_list(self, version: int) -> PriceListRecord | None:
        """A version of the price list, if there is one of this number."""
        with translated("reading a price list"), self._reading() as connection:
            return queries_metering.find_price_list(connection, version)

    def list_budget_notices(
        self, institution: str, budget: str, before_number: int, limit: int
    ) -> list[BudgetNoticeRecord]:
        """A page of notices, newest first."""
        with translated("listing notices"), self._reading() as connection:
            return queries_metering.list_budget_notices(connection, institution, budget, before_number, limit)

    def audit(self, query: AuditQuery) -> list[AuditRecord]:
        """A page of the audit log."""
        with translated("reading the audit log"), self._reading() as connection:
            return queries_audit.audit(connection, query)

    def audit_heads(self, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
        """The next ``limit`` signed heads of the audit log."""
        with translated("reading the audit log"), self._reading() as connection:
            return queries_audit.heads(connection, after_sequence, limit)

    def list_holdings(self, query: HoldingQuery) -> list[HoldingRecord]:
        """A page of what an institution holds in the artifact store."""
        with translated("listing holdings"), self._reading() as connection:
            return queries_holdings.list_holdings(connection, query)

    def find_holdings(self, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
        """Whatever an institution, or (None) anybody, holds under these digests."""
        with translated("reading holdings"), self._reading() as connection:
            return queries_holdings.find_holdings(connection, digests, institution)

    def get_holdings(self, keys: Sequence[HoldingKey]) -> list[HoldingRecord]:
        """Those of these keys that there are, in any order."""
        with translated("reading holdings"), self._reading() as connection:
            return queries_holdings.get_holdings(connection, keys)

    def unmeasured_holdings(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones whose size is not known, by key."""
        with translated("reading holdings"), self._reading() as connection:
            return queries_holdings.unmeasured(connection, after, limit)

    def holdings_after(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones of everybody, by key."""
        with translated("reading holdings"), self._reading() as connection:
            return queries_holdings.holdings_after(connection, after, limit)

    def find_policy(self, version: int) -> PolicyRecord | None:
        """A version of the policy, if there is one of this number."""
        with translated("reading a policy"), self._reading() as connection:
            return queries.find_policy(connection, version) if version > 0 else None

    def list_policies(self, before_version: int, limit: int) -> list[PolicyRecord]:
        """A page of versions, newest first, without their texts."""
        with translated("listing policies"), self._reading() as connection:
            return queries.list_policies(connection, before_version, limit)

    def last_sequences(self) -> tuple[int, int]:
        """The newest event's and the newest ledger record's sequence numbers."""
        with translated("reading the counters"), self._reading() as connection:
            row = connection.execute(select(schema.LEADER.c.event_seq, schema.LEADER.c.ledger_seq)).one()
            return row.event_seq, row.ledger_seq

    def close(self) -> None:
        """Release connections, and the lock of a leader: like its death, this ends its lease on SQLite."""
        self._engines.read.dispose()
        self._engines.write.dispose()
        if self._alive is not None:
            self._alive.release()


@contextmanager
def _no_collector() -> Iterator[None]:
    """Millions of new tuples and none to free: looking for cycles among them again and again doubles a load's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
