"""How fast a large ledger is written and summed, and what metering adds to a job: ``python -m benchmarks.metering``.

The ledger is of 50 institutions with 20 users each, in six pools, over twelve months, in commits of 2,000 records; one
record in fifty takes an older one back. ``usage_by_institution_ms`` is a usage query as the API answers it, costs reckoned. What metering
adds to a job that ends is the time of the ends of the same jobs with and without posting, the median of rounds in turn; in the store it is
the time of commits of ledger records alone. The last line is JSON. 10,000,000 records take some minutes to write.
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
from unittest.mock import patch

from scheduler.domain.agent import AttemptEvent, AttemptEvents, Finished
from scheduler.domain.records import LedgerRecord
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome, EntryKind
from scheduler.metering.chain import FIRST, chained
from scheduler.metering.money import HourlyPrice
from scheduler.metering.price_text import read_prices
from scheduler.metering.prices import PriceBook, PriceList, Rate
from scheduler.metering.usage import Aggregation, Dimension, grouping
from scheduler.planning.policy import Policy
from scheduler.service import ending, prices
from scheduler.service.contract import PriceListDraft
from scheduler.service.ports import CommitBatch, LedgerQuery, UsageQuery
from scheduler.store.schema import COSTED
from scheduler.store.sql import SqlStore
from tests.support import rows
from tests.support.postgres import running_postgres
from tests.support.sums import negated
from tests.unit.service.harness import Site, node, spec

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
    figures["commit_us_per_record"] = round(spent / count * 1e6, 1)
    figures["usage_by_institution_ms"] = _ms(lambda: _by_institution(store))
    for name, query in QUERIES.items():
        figures[f"{name}_ms"] = _ms(partial(store.usage_sums, query))
    figures["days_of_a_month_ms"] = _ms(lambda: store.usage_days("", "2027-06-01", "2027-06-30"))
    page = LedgerQuery("i07", period="2027-06", after=count // 2, limit=1000)
    figures["a_page_of_an_export_ms"] = _ms(lambda: store.ledger(page))
    figures["count_posted_ms"] = _ms(lambda: store.count_posted("2027-06"))
    store.close()
    return figures


PRICES = PriceBook(
    PriceList(version, "bench", "CNY", 2, from_ms, rates=(Rate(HourlyPrice(10**6, 10**5, 10**8)),) * len(POOLS))
    for version, from_ms in ((1, 1), (2, STARTS[6]))
)


def _by_institution(store: SqlStore) -> None:
    """What GetUsage does with the sums."""
    group_by = [Dimension.INSTITUTION]
    aggregation = Aggregation(group_by, PRICES)
    for row in store.usage_sums(UsageQuery(group_by=grouping(group_by))):
        aggregation.add_sum(*row)
    if len(aggregation.rows()) != INSTITUTIONS:
        raise SystemExit("the sums are not those of all institutions")


def _ends(jobs: int) -> float:
    """Seconds that the engine takes for the ends of so many jobs."""
    site = Site(nodes=[node("n1", Resources(jobs * 1000, jobs * 64, 0))], policy=Policy(max_starts_per_round=jobs))
    site.check_fit = False
    document = "currency: CNY\nrates: [{cpu_core_hour: 1, memory_gib_hour: 0.1}]\n"
    prices.put_price_list(site.engine.state, PriceListDraft(document, read_prices(document)), "bench")
    site.submit(*(spec() for _ in range(jobs)))
    site.clock.at_ms += 1_000
    ends = [
        AttemptEvent(number, ref, 0, Finished(AttemptOutcome.SUCCEEDED))
        for number, ref in enumerate(site.east.held.values(), 1)
    ]
    if len(ends) != jobs:
        raise SystemExit("not all jobs were started")
    began = time.perf_counter()
    site.east.say(AttemptEvents(tuple(ends)))
    return time.perf_counter() - began


def added_to_an_end(jobs: int = 5_000, rounds: int = 7) -> dict[str, float]:
    """Microseconds a job: its end, and how much of that is metering."""
    whole, without = [], []
    for _ in range(rounds):
        whole.append(_ends(jobs))
        with patch.object(ending, "post_release", lambda state, attempt: None):
            without.append(_ends(jobs))
    end_us = median(whole) / jobs * 1e6
    return {"end_of_a_job_us": round(end_us, 1), "metering_us": round(end_us - median(without) / jobs * 1e6, 1)}


def main() -> None:
    """Measure SQLite and PostgreSQL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--only", choices=["sqlite", "postgres"], default="")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        figures: dict[str, object] = {"engine": added_to_an_end()}
        print("engine", figures["engine"], flush=True)
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
