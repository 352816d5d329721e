"""``MemoryStore``: the ``Store`` port in memory, for simulations and fast tests.

It *is* the disk: a service that crashes is dropped, and the next one is given the same object. Nothing here keeps a
service's own objects alive but the immutable records it committed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

from scheduler.domain.errors import Deposed, Internal, Unavailable
from scheduler.domain.holdings import HoldingKey
from scheduler.domain.records import (
    AttemptRecord,
    AuditHeadRecord,
    AuditRecord,
    BudgetNoticeRecord,
    BudgetSpendingRecord,
    EventRecord,
    JobRecord,
    LedgerRecord,
    PolicyRecord,
    PriceListRecord,
    RequestRecord,
)
from scheduler.domain.states import FINAL_STATE, RUNTIME_OUTCOMES, TERMINAL, AttemptOutcome, AttemptState
from scheduler.planning.runtimes import JobFeatures
from scheduler.service.ports import (
    AuditQuery,
    Clock,
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
from scheduler.store.counters import Counters, counters_of
from scheduler.store.memory_holdings import MemoryHoldings
from scheduler.store.memory_ledger import MemoryLedger, Sequences, after, audit_is_asked, check_new, refused

REQUESTS_LOADED = 200_000
RUNTIMES_LOADED = 20_000

_Key = Callable[[Any], Any]
# The small tables: how many leading fields are the key, and the table the first field of which must exist in another.
_KEY_WIDTH = {
    "institutions": 1,
    "projects": 2,
    "users": 1,
    "api_keys": 1,
    "quotas": 2,
    "regions": 1,
    "enrolments": 1,
    "nodes": 2,
    "fair_usage": 3,
    "policies": 1,
    "price_lists": 1,
    "months": 1,
    "budgets": 1,
    "budget_spending": 1,
    "budget_notices": 1,
    "data_sets": 2,
    "grants": 1,
    "audit": 1,
    "audit_heads": 1,
    "holdings": len(HoldingKey._fields),
    "stored": 2,
    "storage_marks": 1,
}
# Those that ``load`` returns whole.
_LOADED = _KEY_WIDTH.keys() - {"policies", "budget_notices", "audit", "audit_heads", "holdings"}
_APPEND_ONLY = ("policies", "price_lists", "months", "budget_notices", "audit", "audit_heads")
_PARENT: dict[str, tuple[str, int]] = {
    "projects": ("institutions", 0),
    "quotas": ("institutions", 0),
    "enrolments": ("regions", 1),
    "nodes": ("regions", 0),
    "budgets": ("institutions", 1),
    "budget_spending": ("budgets", 0),
    "data_sets": ("institutions", 2),
    "grants": ("institutions", 1),
}


class MemoryStore(MemoryHoldings):
    """The port's rules, kept by plain dictionaries. ``clock`` is "the database's own" for leases."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._epoch = 0
        self._expire_ms = 0
        self._holder = ""
        self._commit_no = 0
        self._counters = Counters()
        self._jobs: dict[int, JobRecord] = {}
        self._job_numbers: dict[str, int] = {}
        self._numbers: list[int] = []  # Of all jobs, rising.
        self._attempts: dict[int, dict[int, AttemptRecord]] = {}
        self._events: list[EventRecord] = []
        self._ledger = MemoryLedger()
        self._requests: dict[tuple[str, str], RequestRecord] = {}
        self._tables: dict[str, dict[tuple[Any, ...], Any]] = {name: {} for name in _KEY_WIDTH}
        self._failure = ""
        self._away = False

    # For tests and simulations.

    def fail_next_commit(self, when: Literal["before", "after"]) -> None:
        """Have the next commit raise ``Unavailable`` before anything is written, or after all of it is."""
        self._failure = when

    def set_away(self, away: bool) -> None:
        """Have every call raise ``Unavailable``, as when the database cannot be reached, until set back."""
        self._away = away

    # The port.

    def migrate(self) -> None:
        """Nothing to build."""
        self._check_reachable()

    def acquire_leadership(self, holder: str, ttl_ms: int) -> Leadership | None:
        """Take the lease if nobody holds a live one, by the clock given. Epoch = the last one + 1."""
        with self._lock:
            self._check_reachable()
            now_ms = self._clock.now_ms()
            if self._expire_ms > now_ms:
                return None
            self._epoch += 1
            self._holder = holder
            self._expire_ms = now_ms + ttl_ms
            return Leadership(self._epoch, ttl_ms)

    def renew_leadership(self, epoch: int, ttl_ms: int) -> None:
        """Extend the lease. Raises ``Deposed`` when another epoch has begun, or this one was released."""
        with self._lock:
            self._check_reachable()
            if epoch != self._epoch or not self._holder:
                raise _deposed(epoch)
            self._expire_ms = self._clock.now_ms() + ttl_ms

    def release_leadership(self, epoch: int) -> None:
        """End the lease now. No error when already deposed."""
        with self._lock:
            self._check_reachable()
            if epoch == self._epoch:
                self._holder = ""
                self._expire_ms = 0

    def load(self) -> StoredState:
        """Everything live."""
        with self._lock:
            self._check_reachable()
            jobs = {number: self._jobs[number] for number in self._numbers if self._jobs[number].state not in TERMINAL}
            arrays = {job.array_id for job in jobs.values() if job.array_id}
            for job_id in arrays & self._job_numbers.keys():
                number = self._job_numbers[job_id]
                jobs[number] = self._jobs[number]
            policies = self._tables["policies"]
            requests = sorted(self._requests.values(), key=lambda request: request.first_job_no)
            return StoredState(
                jobs=[jobs[number] for number in sorted(jobs)],
                attempts=[
                    attempt
                    for number in sorted(self._attempts)
                    for _, attempt in sorted(self._attempts[number].items())
                    if attempt.state != AttemptState.ENDED
                ],
                requests=requests[-REQUESTS_LOADED:],
                requests_complete=len(requests) <= REQUESTS_LOADED,
                **{name: self._whole(name) for name in _LOADED},
                holdings=self._holdings_of({job.job_id for job in jobs.values() if job.state not in TERMINAL}),
                runtimes=self._recent_runtimes(RUNTIMES_LOADED),
                policy=policies[max(policies)] if policies else None,
                last_budget_notice=max(self._tables["budget_notices"], default=(0,))[0],
                ledger_hash=self._ledger.newest_hash,
                audit_newest=self._newest("audit"),
                audit_head_newest=self._newest("audit_heads"),
                last_job_no=self._counters.job_no,
                last_event_seq=self._counters.event_seq,
                last_ledger_seq=self._counters.ledger_seq,
                last_launch_seq=self._counters.launch_seq,
                last_commit_no=self._commit_no,
                last_time_ms=self._counters.time_ms,
            )

    def _whole(self, name: str) -> list[Any]:
        return [row for _, row in sorted(self._tables[name].items())]

    def _newest(self, name: str) -> Any:
        table = self._tables[name]
        return table[max(table)] if table else None

    def commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        """Write the batch whole or not at all, fenced and idempotent as the port says."""
        with self._lock:
            failure, self._failure = self._failure, ""
            if self._away or failure == "before":
                raise Unavailable("The store is away.", reason="DATABASE_UNAVAILABLE")
            self._commit(epoch, commit_no, batch)
            if failure == "after":
                raise Unavailable("The store went away.", reason="DATABASE_UNAVAILABLE")

    def _commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        if epoch != self._epoch:
            raise _deposed(epoch)
        if commit_no == self._commit_no:
            return
        if commit_no != self._commit_no + 1:
            raise Internal(f"commit {commit_no} after commit {self._commit_no}", reason="COMMIT_OUT_OF_ORDER")
        self._check(batch)
        self._apply(batch)
        self._counters = self._counters.merged(counters_of(batch))
        self._commit_no = commit_no

    def _check(self, batch: CommitBatch) -> None:
        """Raise ``Internal`` for what the database's constraints would refuse."""
        taken = self._job_numbers
        check_new("jobs", (job.job_no for job in batch.new_jobs), self._jobs)
        check_new("jobs", (job.job_id for job in batch.new_jobs), taken)
        for job in batch.jobs:
            if taken.get(job.job_id, job.job_no) != job.job_no:
                raise refused("jobs", job.job_id)
        for attempt in batch.new_attempts:
            if attempt.attempt in self._attempts.get(attempt.job_no, ()):
                raise refused("attempts", (attempt.job_no, attempt.attempt))
        check_new("attempts", ((attempt.job_no, attempt.attempt) for attempt in batch.new_attempts), ())
        check_new("events", (event.sequence for event in batch.events), Sequences(self._events))
        self._ledger.check(batch.ledger)
        check_new("requests", ((request.user, request.request_id) for request in batch.requests), self._requests)
        for name in _APPEND_ONLY:
            check_new(name, (row[:1] for row in getattr(batch, name)), self._tables[name])
        for name, (parent, at) in _PARENT.items():
            known = {row[0] for row in getattr(batch, parent)}
            for row in getattr(batch, name):
                if row[at] not in known and (row[at],) not in self._tables[parent]:
                    raise refused(name, row[at])

    def _apply(self, batch: CommitBatch) -> None:
        for jobs in (batch.new_jobs, batch.jobs):
            for job in jobs:
                if job.job_no not in self._jobs:
                    insort(self._numbers, job.job_no)
                self._jobs[job.job_no] = job
                self._job_numbers[job.job_id] = job.job_no
        for attempts in (batch.new_attempts, batch.attempts):
            for attempt in attempts:
                self._attempts.setdefault(attempt.job_no, {})[attempt.attempt] = attempt
        for event in batch.events:
            insort(self._events, event)
        self._ledger.add(batch.ledger)
        for request in batch.requests:
            self._requests[request.user, request.request_id] = request
        for name, width in _KEY_WIDTH.items():
            table = self._tables[name]
            for row in getattr(batch, name):
                table[row[:width]] = row
        for key in batch.gone_nodes:
            self._tables["nodes"].pop(key, None)
        for holding in batch.gone_holdings:
            self._tables["holdings"].pop(holding, None)

    def _check_reachable(self) -> None:
        if self._away:
            raise Unavailable("The store is away.", reason="DATABASE_UNAVAILABLE")

    def _with_spec(self, job: JobRecord) -> JobRecord:
        number = self._job_numbers.get(job.array_id) if job.array_id else None
        return job if number is None else job._replace(spec=self._jobs[number].spec)

    def find_request(self, user: str, request_id: str) -> RequestRecord | None:
        """The submission made with this key, if any."""
        with self._lock:
            self._check_reachable()
            return self._requests.get((user, request_id))

    def get_jobs(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """These jobs; unknown ids are left out."""
        with self._lock:
            self._check_reachable()
            numbers = (self._job_numbers.get(job_id) for job_id in dict.fromkeys(job_ids))
            return [self._with_spec(self._jobs[number]) for number in numbers if number is not None]

    def jobs_by_number(self, first_job_no: int, count: int) -> list[JobRecord]:
        """The jobs numbered from ``first_job_no`` to ``first_job_no + count - 1``, by number."""
        with self._lock:
            self._check_reachable()
            first = bisect_left(self._numbers, first_job_no)
            end = bisect_left(self._numbers, first_job_no + count)
            return [self._with_spec(self._jobs[number]) for number in self._numbers[first:end]]

    def list_jobs(self, query: JobQuery) -> list[JobRecord]:
        """A page of jobs, newest first."""
        with self._lock:
            self._check_reachable()
            end = bisect_left(self._numbers, query.before_job_no) if query.before_job_no else len(self._numbers)
            page: list[JobRecord] = []
            while end > 0 and len(page) < query.limit:
                end -= 1
                job = self._jobs[self._numbers[end]]
                if _is_asked(job, query):
                    page.append(self._with_spec(job))
            return page

    def attempts_of(self, job_id: str, limit: int) -> list[AttemptRecord]:
        """The newest ``limit`` attempts of a job, oldest first."""
        with self._lock:
            self._check_reachable()
            attempts = self._attempts.get(self._job_numbers.get(job_id, -1), {})
            return [attempts[number] for number in sorted(attempts)[max(0, len(attempts) - limit) :]]

    def recent_runtimes(self, limit: int) -> list[RuntimeSample]:
        """The runtimes of the newest ``limit`` jobs that ended by themselves or at their limit, oldest first."""
        with self._lock:
            self._check_reachable()
            return self._recent_runtimes(limit)

    def _recent_runtimes(self, limit: int) -> list[RuntimeSample]:
        found: list[RuntimeSample] = []
        for number in sorted(self._attempts, reverse=True):
            if len(found) == limit:
                break
            job = self._jobs[number]
            attempt = self._attempts[number].get(job.attempt)
            if attempt is None or not attempt.outcome or not attempt.start_ms:
                continue
            outcome = AttemptOutcome(attempt.outcome)
            if outcome in RUNTIME_OUTCOMES and job.state == FINAL_STATE[outcome]:
                features = JobFeatures(attempt.institution, attempt.project, attempt.user, job.name, attempt.gpu_milli)
                found.append(RuntimeSample(features, job.done_ms + attempt.end_ms - attempt.start_ms))
        return found[::-1]

    def events(self, query: EventQuery) -> list[EventRecord]:
        """A page of events, oldest first."""
        with self._lock:
            self._check_reachable()
            ids = frozenset(query.job_ids)
            page: list[EventRecord] = []
            for at in range(after(self._events, query.after), len(self._events)):
                event = self._events[at]
                if len(page) >= query.limit:
                    break
                if (
                    (not ids or event.job_id in ids or (event.array_id and event.array_id in ids))
                    and query.institution in ("", event.institution)
                    and query.project in ("", event.project)
                ):
                    page.append(event)
            return page

    def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """A page of the ledger, oldest first."""
        with self._lock:
            self._check_reachable()
            return self._ledger.page(query)

    def ledger_of(self, job_ids: Sequence[str]) -> list[LedgerRecord]:
        """All records of these jobs, oldest first."""
        with self._lock:
            self._check_reachable()
            return self._ledger.of_jobs(job_ids)

    def budget_spending(self) -> list[BudgetSpendingRecord]:
        """What is kept of every budget's spending, by id."""
        with self._lock:
            self._check_reachable()
            rows = self._tables["budget_spending"]
            return [rows[key] for key in sorted(rows)]

    def count_posted(self, period: str) -> int:
        """How many records were posted to an accounting month."""
        with self._lock:
            self._check_reachable()
            return self._ledger.count_posted(period)

    def ledger_after(self, sequence: int, limit: int) -> list[LedgerRecord]:
        """The next ``limit`` records, in the order of their numbers."""
        with self._lock:
            self._check_reachable()
            return self._ledger.page(LedgerQuery(after=sequence, limit=limit))

    def attempts_after(self, job_no: int, attempt: int, limit: int) -> list[AttemptRecord]:
        """The next ``limit`` attempts by (job, attempt)."""
        with self._lock:
            self._check_reachable()
            keys = ((job, number) for job in sorted(self._attempts) for number in sorted(self._attempts[job]))
            later = (key for key in keys if key > (job_no, attempt))
            return [self._attempts[job][number] for job, number in islice(later, limit)]

    def usage_sums(self, query: UsageQuery) -> list[UsageSum]:
        """Sums by key. Raises ``InvalidArgument`` for a field to group by that is none of a key's."""
        with self._lock:
            self._check_reachable()
            return self._ledger.sums(query)

    def usage_days(self, institution: str, from_day: str, to_day: str) -> list[DaySum]:
        """Sums of the days in [from_day, to_day] (empty: open), by day; of one institution, or (empty) of all."""
        with self._lock:
            self._check_reachable()
            return self._ledger.days(institution, from_day, to_day)

    def find_price_list(self, version: int) -> PriceListRecord | None:
        """A version of the price list, if there is one of this number."""
        with self._lock:
            self._check_reachable()
            return self._tables["price_lists"].get((version,))

    def list_budget_notices(
        self, institution: str, budget: str, before_number: int, limit: int
    ) -> list[BudgetNoticeRecord]:
        """A page of notices, newest first."""
        with self._lock:
            self._check_reachable()
            found: list[BudgetNoticeRecord] = sorted(self._tables["budget_notices"].values(), reverse=True)
            return [
                notice
                for notice in found
                if institution in ("", notice.institution)
                and budget in ("", notice.budget)
                and (not before_number or notice.number < before_number)
            ][:limit]

    def audit(self, query: AuditQuery) -> list[AuditRecord]:
        """A page of the audit log."""
        with self._lock:
            self._check_reachable()
            found: list[AuditRecord] = sorted(self._tables["audit"].values(), reverse=query.newest_first)
            return [record for record in found if audit_is_asked(record, query)][: query.limit]

    def audit_heads(self, after_sequence: int, limit: int) -> list[AuditHeadRecord]:
        """The next ``limit`` signed heads of the audit log."""
        with self._lock:
            self._check_reachable()
            found: list[AuditHeadRecord] = sorted(self._tables["audit_heads"].values())
            return [head for head in found if head.sequence > after_sequence][:limit]

    def find_policy(self, version: int) -> PolicyRecord | None:
        """A version of the policy, if there is one of this number."""
        with self._lock:
            self._check_reachable()
            return self._tables["policies"].get((version,))

    def list_policies(self, before_version: int, limit: int) -> list[PolicyRecord]:
        """A page of versions, newest first, without their texts."""
        with self._lock:
            self._check_reachable()
            found: list[PolicyRecord] = sorted(self._tables["policies"].values(), reverse=True)
            page = [policy for policy in found if not before_version or policy.version < before_version][:limit]
            return [policy._replace(document="", effective="") for policy in page]

    def last_sequences(self) -> tuple[int, int]:
        """The newest event's and the newest ledger record's sequence numbers."""
        with self._lock:
            self._check_reachable()
            return self._counters.event_seq, self._counters.ledger_seq

    def close(self) -> None:
        """Nothing to release: the disk stays."""


def _deposed(epoch: int) -> Deposed:
    return Deposed(f"Leader epoch {epoch} has ended; another process may have taken over.")


def _is_asked(job: JobRecord, query: JobQuery) -> bool:
    return (
        query.institution in ("", job.institution)
        and query.project in ("", job.project)
        and query.user in ("", job.user)
        and query.name in ("", job.name)
        and query.array_id in ("", job.array_id)
        and query.region in ("", job.region)
        and (not query.states or job.state in query.states)
        and (not query.submitted_from_ms or job.submit_ms >= query.submitted_from_ms)
        and (not query.submitted_to_ms or job.submit_ms < query.submitted_to_ms)
    )
