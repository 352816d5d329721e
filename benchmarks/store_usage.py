"""How fast a large ledger is written and summed: ``python -m benchmarks.store_usage``.

The ledger is of 50 institutions with 20 users each, in six pools, over twelve months, in commits of 2,000 records; one
record in fifty takes an older one back. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from statistics import median

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.chain import FIRST, chained
from scheduler.service.ports import CommitBatch, LedgerQuery, UsageQuery
from scheduler.store.schema import COSTED
from scheduler.store.sql import SqlStore
from tests.support import rows
from tests.support.postgres import running_postgres
from tests.support.sums import negated

INSTITUTIONS, USERS, MONTHS, COMMIT = 50, 20, 12, 2_000
POOLS = [(f"r{number // 2}", f"p{number}", "a100" if number % 2 else "") for number in range(6)]
DAY_MS = 86_400_000
STARTS = [int(datetime(2027, month, 1, tzinfo=UTC).timestamp() * 1000) for month in range(1, MONTHS + 1)]
QUERIES: dict[str, UsageQuery] = {
    "costs": UsageQuery(group_by=COSTED),
    "costs_of_a_month": UsageQuery(period="2027-06", group_by=COSTED),
    "statement_of_an_institution": UsageQuery("i07", period="2027-06"),
    "users_of_an_institution": UsageQuery("i07", group_by=("user", "month")),
    "months": UsageQuery(group_by=("month",)),
}


def _ledger(count: int) -> Iterator[LedgerRecord]:
    chance = random.Random(1)
    before, last = FIRST, rows.segment(0)
    for sequence in range(1, count + 1):
        month = (sequence - 1) * MONTHS // count
        institution, user, rate = chance.randrange(INSTITUTIONS), chance.randrange(USERS), chance.randrange(len(POOLS))
        region, pool, accelerator = POOLS[rate]
        start_ms = STARTS[month] + chance.randrange(28) * DAY_MS + chance.randrange(DAY_MS // 2)
        record = rows.segment(
            sequence,
            institution=f"i{institution:02d}",
            project=f"p{user % 4}",
            user=f"i{institution:02d}u{user:02d}",
            region=region,
            pool=pool,
            accelerator=accelerator,
            start_ms=start_ms,
            end_ms=start_ms + chance.randrange(1, DAY_MS // 2),
            cpu_used_ms=10**7,
            peak_memory_mib=200,
            price_list=1 + month // 6,
            rate=rate,
            discount_bp=1000 * (institution % 3),
            period=f"2027-{month + 1:02d}",
            posted_ms=start_ms,
        )
        if sequence % 50 == 0:
            kind = {"kind": int(EntryKind.REVERSAL), "revision": 1}
            record = negated(last, sequence=sequence, period=record.period, posted_ms=start_ms, **kind)
        record = last = chained(before, record)
        before = record.hash
        yield record


def _ms(ask: Callable[[], object], times: int = 7) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return round(median(taken) * 1000, 1)


def measure(url: str, count: int) -> dict[str, float]:
    """Figures of one database, which must be empty."""
    store = SqlStore(url)
    store.migrate()
    lease = store.acquire_leadership("benchmark", 3_600_000)
    if lease is None:
        raise SystemExit("the database is in use")
    spent, batch, commit_no = 0.0, CommitBatch(), 0
    for record in _ledger(count):
        batch.ledger.append(record)
        if len(batch.ledger) == COMMIT or record.sequence == count:
            commit_no += 1
            began = time.perf_counter()
            store.commit(lease.epoch, commit_no, batch)
            spent += time.perf_counter() - began
            batch = CommitBatch()
    figures = {"records": float(count), "records_per_s": round(count / spent)}
    figures["sums"] = float(len(store.usage_sums(UsageQuery())))
    for name, query in QUERIES.items():
        figures[f"{name}_ms"] = _ms(partial(store.usage_sums, query))
    figures["days_of_a_month_ms"] = _ms(lambda: store.usage_days("", "2027-06-01", "2027-06-30"))
    page = LedgerQuery("i07", period="2027-06", after=count // 2, limit=1000)
    figures["a_page_of_an_export_ms"] = _ms(lambda: store.ledger(page))
    figures["count_posted_ms"] = _ms(lambda: store.count_posted("2027-06"))
    store.close()
    return figures


def main() -> None:
    """Measure SQLite and PostgreSQL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["sqlite", "postgres"], default="")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        figures = {}
        for name in [chosen.only] if chosen.only else ["sqlite", "postgres"]:
            if name == "sqlite":
                url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/bench.db"
            else:
                url = stack.enter_context(running_postgres(fsync=True)).url("bench")
            figures[name] = measure(url, chosen.records)
            print(name, figures[name], flush=True)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
