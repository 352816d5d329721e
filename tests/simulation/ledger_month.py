"""Two made-up months of many institutions, with all that may happen to a ledger, and every figure of it held against the others.

    python -m tests.simulation.ledger_month --jobs 100000 --institutions 50 [--seed 1] [--store sqlite:////tmp/x.db]

Time is virtual. Jobs begin, end, fail and are lost; the control plane is killed and taken over; prices change; records are corrected; the
first month is closed while some of its jobs still run, and some of their ends are heard of only then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from random import Random

from scheduler.api.usage_metrics import usage_families
from scheduler.domain.agent import AttemptEvent, AttemptEvents, Finished, Started
from scheduler.domain.errors import Deposed, FailedPrecondition, InvalidArgument
from scheduler.domain.records import AttemptRecord, InstitutionRecord, LedgerRecord, ProjectRecord
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome, EntryKind
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.chain import digest_of
from scheduler.metering.focus import Account, FocusMonth
from scheduler.metering.lines import cost_of
from scheduler.metering.price_text import read_prices
from scheduler.metering.segments import DAY_MS, month_start_ms
from scheduler.metering.statement import build_statement
from scheduler.metering.verifying import Fault
from scheduler.service import corrections, months, prices, statements, tenants
from scheduler.service.accounting import apply_budget, load_totals
from scheduler.service.contract import Correction, Gauges, Metered, PriceListDraft, Replacement
from scheduler.service.ports import Store, UsageQuery
from scheduler.service.posting import post_until
from scheduler.service.verification import Verification
from scheduler.store.sql import SqlStore
from tests.unit.service.harness import SETTINGS, Site, node, spec

FIRST, SECOND = "2026-10", "2026-11"
HOUR_MS = 3_600_000
ENDS = (AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.NODE_LOST, AttemptOutcome.OUT_OF_MEMORY)
_HELD = (EntryKind.USAGE, EntryKind.REVERSAL, EntryKind.CORRECTION)


class Months:
    """The two months. ``happened`` counts what was done to the ledger."""

    def __init__(self, store: Store, seed: int, institutions: int) -> None:
        self.rng = Random(seed)
        self.site = Site(
            settings=SETTINGS, nodes=[node(f"e{n}", Resources(64_000, 262_144, 0)) for n in range(40)], store=store
        )
        gpus = [node(f"w{n}", Resources(64_000, 262_144, 8_000), "gpu", "A100") for n in range(20)]
        self.site.check_fit = False
        self.site.add_region("west", gpus)
        self.names = [f"uni-{n:02d}" for n in range(institutions)]
        for name in self.names:
            tenants.put_institution(self.site.engine.state, InstitutionRecord(name, f"University {name}", 1000, "", 0))
            tenants.put_project(self.site.engine.state, ProjectRecord(name, "vision", "", 1000, 0))
        self.site.turn()
        self.happened: Counter[str] = Counter()
        self.counted = load_totals(store)
        """As the live counters: of each commit as it is made, never read again."""
        self.site.committed.append(self.counted.add)
        self.submitted = 0

    def play(self, jobs: int) -> None:
        """Both months, up to the end of the second."""
        self.site.clock.at_ms = max(self.site.clock.at_ms, month_start_ms(FIRST))
        self._price()
        for name in self.names[:10]:
            self._budget(name)
        days = 30
        for day in range(2 * days):
            for _ in range(6):
                self._step(jobs // (12 * days) + 1, 4 * HOUR_MS, jobs)
            self.site.wait(max(0, month_start_ms(FIRST) + (day + 1) * DAY_MS - self.site.clock.at_ms))
            if day % 7 == 3:
                self._price()
            if day % 5 == 2:
                self._restart()
            if day % 9 == 4:
                self._fail_over()
            for _ in range(3):
                self._correct()
            if day == days + 3:
                self._close(FIRST)
        while any(region.held for region in self.site.agents.values()):
            self._ends(1.0)

    def _step(self, jobs: int, ms: int, most: int) -> None:
        rng, site = self.rng, self.site
        count = min(jobs, most - self.submitted)
        self.submitted += count
        if count:
            site.submit(*(self._job() for _ in range(count)))
        self._ends(0.5)
        site.wait(rng.randrange(ms // 2, ms))

    def _job(self):
        rng = self.rng
        gpu = rng.choice((0, 0, 0, 250, 1000, 2000))
        return spec(
            rng.choice(self.names),
            cpu=rng.choice((1000, 2000, 4000)),
            memory=rng.choice((1024, 3000, 7777)),
            gpu=gpu,
            project=rng.choice(("default", "vision")),
            priority_class=rng.choice((1, 2, 3)),
            preemptible=rng.random() < 0.3,
            purpose=rng.choice(("", "teaching")),
            max_runtime_ms=40 * 24 * HOUR_MS,
        )

    def _ends(self, part: float) -> None:
        """Of what runs, some end; of some that is heard long after."""
        rng = self.rng
        for agent in self.site.agents.values():
            events = []
            for job_id in [job_id for job_id in agent.held if rng.random() < part]:
                ref = agent.held.pop(job_id)
                age_ms = rng.choice((0, 0, 17, 40_000, 9 * HOUR_MS))
                outcome = rng.choices(ENDS, (80, 10, 5, 5))[0]
                used = {
                    "cpu_used_ms": rng.randrange(1 << 30),
                    "peak_memory_mib": rng.randrange(7000),
                    "gpu_used_milli_ms": rng.randrange(1 << 30),
                }
                for event in (Started(), Finished(outcome, **used)):
                    agent.event_seq += 1
                    events.append(AttemptEvent(agent.event_seq, ref, age_ms, event))
                self.happened["ends"] += 1
            agent.say(AttemptEvents(tuple(events)))
        self.site.turn()

    def _price(self) -> None:
        rng, site = self.rng, self.site
        rates = "\n".join(
            f"  - {{pools: [{pool}], cpu_core_hour: 0.0{rng.randrange(10, 99)}, memory_gib_hour: 0.00{rng.randrange(1, 9)}, gpu_hour: {rng.randrange(1, 9)}.{rng.randrange(10, 99)}}}"
            for pool in ("east/*", "west/gpu")
        )
        document = (
            f"name: p{site.clock.at_ms}\ncurrency: CNY\nrates:\n{rates}\n"
            f"discounts: [{{institution: {rng.choice(self.names)}, percent: 12.5}}]\n"
            f"free: [{{cpu_core_hours: 3, gpu_hours: 0.5}}]\ncredited: [node-lost]\n"
        )
        prices.put_price_list(site.engine.state, PriceListDraft(document, read_prices(document)), "fin")
        site.turn()
        self.happened["price lists"] += 1

    def _budget(self, name: str) -> None:
        budget = Budget(
            f"b-{name}",
            name,
            frozenset(),
            BudgetUnit.MONEY,
            10**9,
            month_start_ms(FIRST),
            month_start_ms("2027-01"),
            hard=False,
        )
        assert apply_budget(self.site.engine.state, budget, "fin", 0, 0) is not None
        self.site.turn()

    def _restart(self) -> None:
        self.site.restart()
        self.happened["restarts"] += 1

    def _fail_over(self) -> None:
        """The old leader does not know it yet, posts, and is refused."""
        old = self.site.engine
        epoch, commit_no = old.state.epoch, self.site.commits
        self.site.submit(self._job())
        self.submitted += 1
        for attempt in list(old.state.attempts.values())[:3]:
            post_until(old.state, attempt, old.state.now())
        turn = old.take_turn()
        self.site.restart()
        try:
            self.site.store.commit(epoch, commit_no + 1, turn.batch)
            raise AssertionError("a deposed leader wrote")
        except Deposed:
            self.happened["deposed commits"] += 1

    def _correct(self) -> None:
        rng, site = self.rng, self.site
        last = site.engine.state.counters.ledger_seq
        if not last:
            return
        (record,) = site.store.ledger_after(rng.randrange(last), 1)
        kind = rng.choice(("reverse", "credit", "replace"))
        replacement = None
        if kind == "replace":
            replacement = Replacement(
                project="vision", end_ms=(record.start_ms + record.end_ms + 1) // 2, cpu_milli=500
            )
        asked = Correction(record.sequence, "A mistake.", replacement, kind == "credit")
        try:
            corrections.correct(site.engine.state, asked, record, site.store.ledger_of([record.job_id]), "fin")
            self.happened[kind] += 1
        except (FailedPrecondition, InvalidArgument):
            self.happened["corrections refused"] += 1
        site.turn()

    def _close(self, month: str) -> None:
        """As ``Accounting.close_month`` does it."""
        site = self.site
        months.post_month(site.engine.state, month)
        site.turn()
        periods = [each.key.period for each in site.store.usage_sums(UsageQuery(group_by=("period",)))]
        assert months.check_closable(site.engine.state, month, periods) is None
        sums = site.store.usage_sums(UsageQuery(period=month))
        months.close(site.engine.state, month, digest_of(sums), site.store.count_posted(month), "fin")
        site.turn()
        self.happened["months closed"] += 1

    # --- what must hold -----------------------------------------------------------------------------------------------

    def records(self) -> Iterator[LedgerRecord]:
        """All, in order."""
        after = 0
        while page := self.site.store.ledger_after(after, 10_000):
            yield from page
            after = page[-1].sequence

    def attempts(self) -> Iterator[AttemptRecord]:
        """All."""
        after = (0, 0)
        while page := self.site.store.attempts_after(*after, 10_000):
            yield from page
            after = (page[-1].job_no, page[-1].attempt)

    def faults(self) -> list[Fault]:
        """What a verification finds."""
        store = self.site.store
        run = Verification(store, self.site.engine.state, 0, None, store.last_sequences()[1])
        while run.step():
            pass
        run.finish()
        return run.progress().faults

    def check(self) -> dict[str, object]:
        """Everything against everything; the counts of what was compared."""
        records = list(self.records())
        self._intervals(records)
        self._counters(records)
        self._statements(records)
        self._budgets(records)
        assert self.faults() == []
        assert any(each.period != FIRST and each.end_ms <= month_start_ms(SECOND) for each in records), "late facts"
        by_itself = Counter(EntryKind(each.kind).name.lower() for each in records if not each.author)
        return {"records": len(records), "by itself": by_itself, **self.happened}

    def _intervals(self, records: list[LedgerRecord]) -> None:
        """What was metered of each institution is what its allocations held."""
        held: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for attempt in self.attempts():
            assert attempt.end_ms, "everything has ended"
            ms = attempt.end_ms - attempt.grant_ms
            for at, amount in enumerate((attempt.cpu_milli, attempt.memory_mib, attempt.gpu_milli)):
                held[attempt.institution][at] += amount * ms
        metered: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for each in records:
            if each.kind == EntryKind.USAGE or (each.kind == EntryKind.REVERSAL and not each.author):
                ms = each.end_ms - each.start_ms
                for at, amount in enumerate((each.cpu_milli, each.memory_mib, each.gpu_milli)):
                    metered[each.institution][at] += amount * ms
        assert metered == held

    def _counters(self, records: list[LedgerRecord]) -> None:
        """What Prometheus is shown is what the records make, also when it was counted commit by commit."""
        state = self.site.engine.state
        read = load_totals(self.site.store)
        assert sorted(self.counted.rows()) == sorted(read.rows())
        assert self.counted.sequence == read.sequence == len(records)
        gauges = Gauges({}, [], [], [], 0, 0, 0)
        metered = Metered(self.counted.rows(), self.counted.sequence, [], state.metering.prices, None)
        shown = {
            (sample.name, *list(sample.labels.values())[:5]): sample.value
            for family in usage_families(metered, gauges, [])
            for sample in family.samples
        }
        made: Counter[tuple[str, ...]] = Counter()
        for each in records:
            if each.kind == EntryKind.USAGE:
                place = (each.institution, each.project, each.region, each.pool, each.accelerator)
                made["suanli_usage_cpu_core_seconds_total", *place] += each.cpu_milli * (each.end_ms - each.start_ms)
        assert made
        for key, amount in made.items():
            assert shown[key] == amount / 1_000_000

    def _statements(self, records: list[LedgerRecord]) -> None:
        """Statements charge what the records cost, rounded once a line; the export's rows make up their lines."""
        state, book = self.site.engine.state, self.site.engine.state.metering.prices
        by_statement: dict[tuple[str, str], list[LedgerRecord]] = defaultdict(list)
        for each in records:
            by_statement[each.institution, each.period].append(each)
        for (institution, period), of_it in sorted(by_statement.items()):
            heading = statements.heading_of(state, institution, period)
            read = statements.read(self.site.store, institution, period)
            statement = build_statement(heading, read.sums, read.days, book, earlier=read.earlier)
            exact = sum(line.cost_units for line in statement.lines if line.key.charge != "free")
            assert exact == sum(cost_of(each, book) for each in of_it)
            assert statement.total_minor == sum(line.amount_minor for line in statement.lines)
            self._export(institution, period, of_it, statement)

    def _export(self, institution: str, period: str, records: list[LedgerRecord], statement) -> None:
        account = Account(institution, statement.currency, statement.digits)
        month = FocusMonth(account, period, statement.lines, self.site.engine.state.metering.prices)
        rows = [row for each in records for row in month.rows(each)] + list(month.closing())
        billed: dict[str, Decimal] = defaultdict(Decimal)
        for row in rows:
            billed[row["InvoiceDetailId"]] += Decimal(row["BilledCost"])
        charged = {
            f"{institution}-{period}-{line.number}": Decimal(line.amount_minor) / 100 for line in statement.lines
        }
        assert {key: amount for key, amount in billed.items() if amount} == {k: a for k, a in charged.items() if a}

    def _budgets(self, records: list[LedgerRecord]) -> None:
        state = self.site.engine.state
        for account in state.metering.budgets.accounts.values():
            mine = [each for each in records if each.institution == account.budget.institution]
            assert account.spent == sum(account.budget.charge_of(each, state.metering.prices) for each in mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--institutions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="", help="a database's URL; default: SQLite in a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = SqlStore(asked.store or f"sqlite:///{Path(folder) / 'suanli.db'}")
        store.migrate()
        begin = time.monotonic()
        played = Months(store, asked.seed, asked.institutions)
        played.play(asked.jobs)
        played_s = time.monotonic() - begin
        found = played.check()
        store.close()
    print(json.dumps({**found, "play_s": round(played_s, 1), "check_s": round(time.monotonic() - begin - played_s, 1)}))


if __name__ == "__main__":
    main()
