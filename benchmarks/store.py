"""Rows per second the store makes durable in batches, and how fast it loads: ``python -m benchmarks.store``.

One commit of the first kind is 1,000 submitted jobs (job and event rows, one request key); one of the second is 1,000 jobs
that end (changed jobs and attempts, events, ledger). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from scheduler.domain.records import JobRecord
from scheduler.domain.states import AttemptState, JobState
from scheduler.service.ports import CommitBatch, JobQuery
from scheduler.store.sql import SqlStore
from tests.support import rows
from tests.support.postgres import running_postgres

SPEC = bytes(range(250))


def _submitted(first: int, size: int) -> CommitBatch:
    numbers = range(first, first + size)
    tenant = {"institution": f"inst{first % 5}", "project": f"p{first % 7}"}
    return CommitBatch(
        new_jobs=[rows.job(n, spec=SPEC, **tenant) for n in numbers],
        events=[rows.event(n, n, **tenant) for n in numbers],
        requests=[rows.request(first, job_count=size)],
    )


def _granted(first: int, size: int, sequence: int) -> CommitBatch:
    numbers = range(first, first + size)
    return CommitBatch(
        jobs=[rows.job(n, spec=SPEC, state=int(JobState.RUNNING)) for n in numbers],
        new_attempts=[rows.attempt(n) for n in numbers],
        events=[rows.event(sequence + n, n, kind="running") for n in numbers],
    )


def _ended(first: int, size: int, sequence: int) -> CommitBatch:
    numbers = range(first, first + size)
    return CommitBatch(
        jobs=[rows.job(n, spec=SPEC, state=int(JobState.SUCCEEDED)) for n in numbers],
        attempts=[rows.attempt(n, state=int(AttemptState.ENDED)) for n in numbers],
        events=[rows.event(sequence + n, n, kind="ended") for n in numbers],
        ledger=[rows.segment(n) for n in numbers],
    )


def _row_count(batch: CommitBatch) -> int:
    return sum(len(getattr(batch, name)) for name in batch.__slots__)


def measure(url: str, batches: int, size: int) -> dict[str, float]:
    """Figures of one database, which must be empty."""
    store = SqlStore(url)
    store.migrate()
    lease = store.acquire_leadership("benchmark", 600_000)
    if lease is None:
        raise SystemExit("the database is in use")
    commit_no = 0

    def timed(make: Callable[[int], CommitBatch], count: int) -> tuple[float, list[float]]:
        nonlocal commit_no
        written, times = 0, []
        for number in range(count):
            batch = make(number)
            written += _row_count(batch)
            commit_no += 1
            began = time.perf_counter()
            store.commit(lease.epoch, commit_no, batch)
            times.append(time.perf_counter() - began)
        return written / sum(times), times

    total = batches * size
    figures: dict[str, Any] = {}
    figures["submit_rows_per_s"], times = timed(lambda n: _submitted(1 + n * size, size), batches)
    figures["submit_jobs_per_s"] = total / sum(times)
    figures["submit_commit_ms_p50"] = median(times) * 1000
    began = time.perf_counter()
    figures["load_jobs_per_s"] = len(store.load().jobs) / (time.perf_counter() - began)
    began = time.perf_counter()
    page: list[JobRecord] = store.list_jobs(JobQuery(institution="inst1", limit=100))
    figures["list_100_ms"] = (time.perf_counter() - began) * 1000 if page else 0.0
    figures["grant_rows_per_s"], _ = timed(lambda n: _granted(1 + n * size, size, total), batches // 2)
    figures["end_rows_per_s"], _ = timed(lambda n: _ended(1 + n * size, size, 2 * total), batches // 2)
    first = total + 1
    _, times = timed(lambda n: _submitted(first + 10**7 + n, 1), 200)
    figures["single_commits_per_s"] = len(times) / sum(times)
    store.release_leadership(lease.epoch)
    store.close()
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    """Measure SQLite and PostgreSQL, or the database given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--url", default="", help="an empty database, instead of a temporary SQLite and PostgreSQL")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        if chosen.url:
            urls = {"given": chosen.url}
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(running_postgres(fsync=True))
            urls = {"sqlite": f"sqlite:///{folder}/bench.db", "postgres": server.url("bench")}
        figures = {}
        for name, url in urls.items():
            figures[name] = measure(url, chosen.batches, chosen.size)
            print(name, figures[name], flush=True)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
