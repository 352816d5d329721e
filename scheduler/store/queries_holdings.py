"""What is asked of holdings in the artifact store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select, text, tuple_

from scheduler.domain.holdings import HoldingKey, HoldingRecord
from scheduler.service.storage_ports import HoldingQuery
from scheduler.store.queries import chunks, records_of
from scheduler.store.schema import HELD_BY_JOB, HOLDINGS, JOBS, LIVE_JOB, UNMEASURED

_KEY = tuple(HOLDINGS.c[name] for name in HoldingKey._fields)
# Keys named in one statement: each is four parameters.
_KEYS_AT_ONCE = 200


def list_holdings(connection: Connection, asked: HoldingQuery) -> list[HoldingRecord]:
    """A page, the newest or the largest first."""
    first = HOLDINGS.c.size_bytes if asked.by_size else HOLDINGS.c.since_ms
    order = (first, HOLDINGS.c.project, HOLDINGS.c.kind, HOLDINGS.c.item)
    query = select(HOLDINGS).where(HOLDINGS.c.institution == asked.institution)
    if asked.project:
        query = query.where(HOLDINGS.c.project == asked.project)
    if asked.user:
        query = query.where(or_(HOLDINGS.c.user == asked.user, HOLDINGS.c.project.in_(asked.projects)))
    if asked.kinds:
        query = query.where(HOLDINGS.c.kind.in_(asked.kinds))
    if asked.job_ids or asked.arrays:
        tasks = (HOLDINGS.c.job_id.startswith(f"{array}.", autoescape=True) for array in asked.arrays)
        query = query.where(or_(HOLDINGS.c.job_id.in_(asked.job_ids), *tasks), text(f"holdings.{HELD_BY_JOB}"))
    if asked.digests:
        query = query.where(HOLDINGS.c.digest.in_(asked.digests))
    if asked.before_ms:
        query = query.where(HOLDINGS.c.since_ms < asked.before_ms)
    if asked.after is not None:
        query = query.where(tuple_(*order) < tuple_(*asked.after))
    return _records(connection, query.order_by(*(column.desc() for column in order)).limit(asked.limit))


def find_holdings(connection: Connection, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
    """Whatever is held under these digests."""
    found: list[HoldingRecord] = []
    for part in chunks(list(dict.fromkeys(digests))):
        query = select(HOLDINGS).where(HOLDINGS.c.digest.in_(part))
        if institution is not None:
            # An expression, which keeps SQLite from walking all that the institution holds.
            query = query.where(HOLDINGS.c.institution.concat("") == institution)
        found += _records(connection, query)
    return found


def get_holdings(connection: Connection, keys: Sequence[HoldingKey]) -> list[HoldingRecord]:
    """Those of these keys."""
    found: list[HoldingRecord] = []
    unique = list(dict.fromkeys(keys))
    for start in range(0, len(unique), _KEYS_AT_ONCE):
        part = [_is(key) for key in unique[start : start + _KEYS_AT_ONCE]]
        found += _records(connection, select(HOLDINGS).where(or_(*part)))
    return found


def unmeasured(connection: Connection, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
    """The next ones without a size."""
    return _records(connection, _page(select(HOLDINGS).where(text(f"holdings.{UNMEASURED}")), after, limit))


def holdings_after(connection: Connection, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
    """The next ones of everybody."""
    return _records(connection, _page(select(HOLDINGS), after, limit))


def of_live_jobs(connection: Connection) -> list[HoldingRecord]:
    """What jobs hold that have not ended."""
    # From the jobs, of which few are live beside all that are held for.
    query = (
        select(HOLDINGS)
        .select_from(JOBS)
        .join(HOLDINGS, and_(HOLDINGS.c.job_id == JOBS.c.job_id, text(f"holdings.{HELD_BY_JOB}")))
        .where(text(f"jobs.{LIVE_JOB}"), JOBS.c.attempt > 0)
    )
    return sorted(_records(connection, query))


def _page(query: Select[Any], after: HoldingKey | None, limit: int) -> Select[Any]:
    if after is not None:
        query = query.where(tuple_(*_KEY) > tuple_(*after))
    return query.order_by(*_KEY).limit(limit)


def _is(key: HoldingKey) -> ColumnElement[bool]:
    return and_(*(column == value for column, value in zip(_KEY, key, strict=True)))


def _records(connection: Connection, query: Select[Any]) -> list[HoldingRecord]:
    return records_of(connection, query, HoldingRecord._make)
