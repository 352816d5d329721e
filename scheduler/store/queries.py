"""What the store is asked, as SQL. Each query is bounded and has an index that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, case, func, literal, select, text

from scheduler.domain.records import AttemptRecord, EventRecord, JobRecord, PolicyRecord, RequestRecord
from scheduler.domain.states import FINAL_STATE, RUNTIME_OUTCOMES
from scheduler.planning.runtimes import JobFeatures
from scheduler.service.ports import (
    EventQuery,
    JobQuery,
    RuntimeSample,
)
from scheduler.store.schema import (
    ATTEMPTS,
    EVENTS,
    IN_ARRAY,
    JOBS,
    LIVE_ATTEMPT,
    LIVE_JOB,
    LIVE_STATES_END,
    POLICIES,
    REQUESTS,
)

_Record = TypeVar("_Record")

# Ids named in one statement: both databases bound the number of parameters.
IDS_AT_ONCE = 1000
_ROWS_AT_ONCE = 20_000

_ARRAYS = JOBS.alias("arrays")
# A task has its array's specification; looked up for the rows of the page only.
_SPEC = case(
    (JOBS.c.array_id == "", JOBS.c.spec),
    else_=func.coalesce(
        select(_ARRAYS.c.spec).where(_ARRAYS.c.job_id == JOBS.c.array_id).scalar_subquery(), JOBS.c.spec
    ),
).label("spec")
_JOB_COLUMNS = [_SPEC if column.name == "spec" else column for column in JOBS.columns]


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in parts that one statement may name."""
    for start in range(0, len(ids), IDS_AT_ONCE):
        yield ids[start : start + IDS_AT_ONCE]


def records_of(connection: Connection, query: Select[Any], make: Callable[[Any], _Record]) -> list[_Record]:
    """What a query of whole rows finds."""
    return [make(row) for row in connection.execute(query)]


def all_of(connection: Connection, table: Table, make: Callable[[Any], _Record]) -> list[_Record]:
    """A whole table, by its key. For the small ones."""
    return records_of(connection, select(table).order_by(*table.primary_key), make)


def live_jobs(connection: Connection) -> list[JobRecord]:
    """Jobs that have not ended and the arrays of such tasks, by number, as they are stored."""
    jobs: list[JobRecord] = []
    page = select(JOBS).where(text(LIVE_JOB)).order_by(JOBS.c.job_no).limit(_ROWS_AT_ONCE)
    while True:
        last = jobs[-1].job_no if jobs else -1
        # Straight from the driver: a million rows, none of which needs SQLAlchemy's help.
        rows = _raw(connection, page.where(JOBS.c.job_no > last))
        jobs.extend(map(JobRecord._make, rows))
        if len(rows) < _ROWS_AT_ONCE:
            break
    known = {job.job_id for job in jobs if job.array_size}
    ended = sorted({job.array_id for job in jobs if job.array_id} - known)
    if ended:
        for ids in chunks(ended):
            jobs += records_of(connection, select(JOBS).where(JOBS.c.job_id.in_(ids)), JobRecord._make)
        jobs.sort()
    return jobs


def live_attempts(connection: Connection) -> list[AttemptRecord]:
    """Attempts that have not ended, by job."""
    query = select(ATTEMPTS).where(text(LIVE_ATTEMPT)).order_by(ATTEMPTS.c.job_no, ATTEMPTS.c.attempt)
    return records_of(connection, query, AttemptRecord._make)


def newest_requests(connection: Connection, limit: int) -> list[RequestRecord]:
    """The newest ``limit`` submissions' keys, oldest first."""
    query = select(REQUESTS).order_by(REQUESTS.c.first_job_no.desc()).limit(limit)
    requests = list(map(RequestRecord._make, _raw(connection, query)))
    requests.reverse()
    return requests


def find_policy(connection: Connection, version: int) -> PolicyRecord | None:
    """The policy's version of this number; the newest one for 0."""
    query = select(POLICIES).order_by(POLICIES.c.version.desc()).limit(1)
    if version:
        query = query.where(POLICIES.c.version == version)
    row = connection.execute(query).first()
    return None if row is None else PolicyRecord._make(row)


_NO_TEXT = [
    literal("").label(column.name) if column.name in ("document", "effective") else column
    for column in POLICIES.columns
]


def list_policies(connection: Connection, before_version: int, limit: int) -> list[PolicyRecord]:
    """A page of versions, newest first, without their texts, which are large."""
    query = select(*_NO_TEXT).order_by(POLICIES.c.version.desc()).limit(limit)
    if before_version:
        query = query.where(POLICIES.c.version < before_version)
    return records_of(connection, query, PolicyRecord._make)


def _raw(connection: Connection, query: Select[Any]) -> list[tuple[Any, ...]]:
    compiled = query.compile(connection, compile_kwargs={"literal_binds": True})
    cursor = connection.connection.cursor()
    try:
        cursor.execute(str(compiled))
        return list(cursor.fetchall())
    finally:
        cursor.close()


def find_request(connection: Connection, user: str, request_id: str) -> RequestRecord | None:
    """The submission with this key."""
    query = select(REQUESTS).where(REQUESTS.c.user == user, REQUESTS.c.request_id == request_id)
    row = connection.execute(query).first()
    return None if row is None else RequestRecord._make(row)


def jobs_by_id(connection: Connection, job_ids: Sequence[str]) -> list[JobRecord]:
    """The known ones among these."""
    jobs: list[JobRecord] = []
    for ids in chunks(list(dict.fromkeys(job_ids))):
        jobs += records_of(connection, select(*_JOB_COLUMNS).where(JOBS.c.job_id.in_(ids)), JobRecord._make)
    return jobs


def jobs_by_number(connection: Connection, first_job_no: int, count: int) -> list[JobRecord]:
    """Those numbered from ``first_job_no`` to ``first_job_no + count - 1``."""
    query = select(*_JOB_COLUMNS).where(JOBS.c.job_no >= first_job_no, JOBS.c.job_no < first_job_no + count)
    return records_of(connection, query.order_by(JOBS.c.job_no), JobRecord._make)


def list_jobs(connection: Connection, asked: JobQuery) -> list[JobRecord]:
    """A page, newest first."""
    query = select(*_JOB_COLUMNS)
    for name in ("institution", "project", "user", "name", "region"):
        value = getattr(asked, name)
        if value:
            query = query.where(JOBS.c[name] == value)
    if asked.array_id:
        query = query.where(JOBS.c.array_id == asked.array_id, text(f"jobs.{IN_ARRAY}"))
    if asked.states:
        query = query.where(JOBS.c.state.in_(asked.states))
        if max(asked.states) < LIVE_STATES_END:
            query = query.where(text(f"jobs.{LIVE_JOB}"))
    if asked.submitted_from_ms:
        query = query.where(JOBS.c.submit_ms >= asked.submitted_from_ms)
    if asked.submitted_to_ms:
        query = query.where(JOBS.c.submit_ms < asked.submitted_to_ms)
    if asked.before_job_no:
        query = query.where(JOBS.c.job_no < asked.before_job_no)
    return records_of(connection, query.order_by(JOBS.c.job_no.desc()).limit(asked.limit), JobRecord._make)


def attempts_of(connection: Connection, job_id: str, limit: int) -> list[AttemptRecord]:
    """The newest of a job, oldest first."""
    job_no = select(JOBS.c.job_no).where(JOBS.c.job_id == job_id).scalar_subquery()
    query = select(ATTEMPTS).where(ATTEMPTS.c.job_no == job_no).order_by(ATTEMPTS.c.attempt.desc()).limit(limit)
    return records_of(connection, query, AttemptRecord._make)[::-1]


def recent_runtimes(connection: Connection, limit: int) -> list[RuntimeSample]:
    """Of the newest jobs that ended with one of the telling outcomes, by number."""
    # Over the attempts, which a queue of millions has none of, from the newest job on.
    ran = ATTEMPTS.c.end_ms - ATTEMPTS.c.start_ms + JOBS.c.done_ms
    features = (ATTEMPTS.c.institution, ATTEMPTS.c.project, ATTEMPTS.c.user, JOBS.c.name, ATTEMPTS.c.gpu_milli)
    query = (
        select(*features, ran)
        .join(JOBS, JOBS.c.job_no == ATTEMPTS.c.job_no)
        .where(
            JOBS.c.attempt == ATTEMPTS.c.attempt,
            JOBS.c.state.in_(sorted({int(FINAL_STATE[outcome]) for outcome in RUNTIME_OUTCOMES})),
            ATTEMPTS.c.outcome.in_(sorted(map(int, RUNTIME_OUTCOMES))),
            ATTEMPTS.c.start_ms > 0,
        )
        .order_by(ATTEMPTS.c.job_no.desc(), ATTEMPTS.c.attempt.desc())
        .limit(limit)
    )
    return [RuntimeSample(JobFeatures(*row[:5]), row[5]) for row in connection.execute(query)][::-1]


def events(connection: Connection, asked: EventQuery) -> list[EventRecord]:
    """A page, oldest first."""
    query = select(EVENTS).where(EVENTS.c.sequence > asked.after)
    if asked.institution:
        query = query.where(EVENTS.c.institution == asked.institution)
    if asked.project:
        query = query.where(EVENTS.c.project == asked.project)
    if not asked.job_ids:
        return records_of(connection, query.order_by(EVENTS.c.sequence).limit(asked.limit), EventRecord._make)
    found: dict[int, EventRecord] = {}
    for ids in chunks(list(dict.fromkeys(asked.job_ids))):
        numbers = list(connection.execute(select(JOBS.c.job_no).where(JOBS.c.job_id.in_(ids))).scalars())
        # Two index walks, each ordered and ended by the limit, in place of one sort of all of a large array's events.
        of_tasks = EVENTS.c.array_id.in_(ids) & text(IN_ARRAY)
        for part in (EVENTS.c.job_no.in_(numbers), of_tasks) if numbers else (of_tasks,):
            page = query.where(part).order_by(EVENTS.c.sequence).limit(asked.limit)
            for row in connection.execute(page):
                found[row[0]] = EventRecord._make(row)
    return [found[sequence] for sequence in sorted(found)[: asked.limit]]
