"""Ledgers for tests: random records at random prices, and a service that has nothing but them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

from hypothesis import strategies as st

from scheduler.domain.records import InstitutionRecord, LedgerRecord, ProjectRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.money import Amounts, HourlyPrice
from scheduler.metering.prices import Allowance, Discount, EnergyFactors, PriceBook, PriceList, Rate
from scheduler.metering.segments import month_of
from scheduler.metering.statement import Head, Heading
from scheduler.service.contract import Usage
from scheduler.service.ports import LedgerQuery, UsageKey, UsageQuery, UsageSum
from scheduler.service.statements import StatementFacts

DAY_MS = 86_400_000
# 2026-01-20 00:00 UTC
START_MS = 1_768_867_200_000
_NUMBERS = {name for name, kind in get_type_hints(UsageKey).items() if kind is int}

PRICES = PriceBook(
    [
        PriceList(
            1,
            "spring",
            "CNY",
            2,
            0,
            rates=(
                Rate(HourlyPrice(3_333_333, 700_001, 0), HourlyPrice(1_000_000), accelerators=("",)),
                Rate(HourlyPrice(3_000_000, 500_000, 123_456_789), HourlyPrice(500_000, 0, 9_000_001)),
            ),
            discounts=(Discount("uni-a", "", 1250),),
            allowances=(Allowance("uni-a", Amounts(10**13, 0, 10**10)),),
            energy=EnergyFactors(7_000, 300, {"": 300_000, "a100": 400_001}, 1350, {"": 500, "east": 611}),
        ),
        PriceList(2, "summer", "CNY", 2, START_MS + 30 * DAY_MS, rates=(Rate(HourlyPrice(1, 2, 3)),)),
    ]
)


def record(sequence: int, start_ms: int, end_ms: int, **changes: Any) -> LedgerRecord:
    """A record of what was metered, posted to the month in which it was held."""
    values: dict[str, Any] = dict.fromkeys(LedgerRecord._fields, 0)
    values |= {
        "sequence": sequence,
        "institution": "uni-a",
        "project": "p",
        "user": "u",
        "job_id": f"j{sequence}",
        "attempt": 1,
        "region": "east",
        "pool": "cpu",
        "accelerator": "",
        "start_ms": start_ms,
        "end_ms": end_ms,
        "cpu_milli": 1500,
        "memory_mib": 100,
        "gpu_milli": 250,
        "outcome": 1,
        "kind": int(EntryKind.USAGE),
        "priority": 2,
        "purpose": "",
        "rate": -1,
        "period": month_of(start_ms),
        "reason": "",
        "author": "",
        "hash": b"",
    }
    return LedgerRecord(**values | changes)


def taken_back(one: LedgerRecord, sequence: int, kind: EntryKind, **changes: Any) -> LedgerRecord:
    """A reversal or a credit of a record."""
    negative = ("cpu_milli", "memory_mib", "gpu_milli", "cpu_used_ms", "peak_memory_mib", "gpu_used_milli_ms")
    values = {name: -getattr(one, name) for name in negative}
    values |= {"sequence": sequence, "kind": int(kind), "revision": 1, "reference": one.sequence, "reason": "wrong"}
    return one._replace(**values | changes)


@st.composite
def ledgers(draw: st.DrawFn, most: int = 10) -> list[LedgerRecord]:
    """Records within UTC days of three months, some taken back, credited, put right, or posted to a later month."""
    records: list[LedgerRecord] = []
    for _ in range(draw(st.integers(0, most))):
        day_ms = START_MS + draw(st.integers(0, 75)) * DAY_MS
        start_ms = day_ms + draw(st.integers(0, DAY_MS - 1))
        price_list = draw(st.sampled_from([0, 1, 1, 2]))
        gpu = draw(st.sampled_from(["", "a100"]))
        one = record(
            len(records) + 1,
            start_ms,
            draw(st.integers(start_ms + 1, day_ms + DAY_MS)),
            segment=draw(st.integers(0, 1)),
            institution=draw(st.sampled_from(["uni-a", "uni-b"])),
            project=draw(st.sampled_from(["p", "q"])),
            user=draw(st.sampled_from(["u", "v"])),
            region=draw(st.sampled_from(["east", "west"])),
            accelerator=gpu,
            cpu_milli=draw(st.integers(0, 10**7)),
            memory_mib=draw(st.integers(0, 10**7)),
            gpu_milli=draw(st.integers(0, 8000)) if gpu else 0,
            priority=draw(st.integers(1, 4)),
            preemptible=draw(st.integers(0, 1)),
            purpose=draw(st.sampled_from(["", "teaching"])),
            price_list=price_list,
            rate={0: -1, 1: draw(st.integers(-1, 1)), 2: 0}[price_list],
            discount_bp=draw(st.sampled_from([0, 0, 1250, 10_000])),
            cpu_used_ms=draw(st.integers(0, 10**9)),
            peak_memory_mib=draw(st.integers(0, 10**6)),
            gpu_used_milli_ms=draw(st.integers(0, 10**9)),
        )
        late = {"period": "2026-05"} if draw(st.integers(0, 4)) == 0 else {}
        records.append(one._replace(**late))
        fate = draw(st.sampled_from(["", "", "", "reversed", "replaced", "credited"]))
        if fate in ("reversed", "replaced"):
            records.append(taken_back(one, len(records) + 1, EntryKind.REVERSAL))
        if fate == "replaced":
            right = {"cpu_milli": 7, "kind": int(EntryKind.CORRECTION), "sequence": len(records) + 1}
            records.append(one._replace(**right))
        if fate == "credited":
            records.append(taken_back(one, len(records) + 1, EntryKind.CREDIT, period="2026-05"))
    return records


def sums_of(records: Iterable[LedgerRecord], query: UsageQuery) -> list[UsageSum]:
    """What a store gives, reckoned plainly."""
    sums: dict[UsageKey, list[int]] = defaultdict(lambda: [0] * 8)
    for one in records:
        month, ms = month_of(one.start_ms), one.end_ms - one.start_ms
        whole = {name: getattr(one, name) for name in UsageKey._fields if name != "month"} | {"month": month}
        asked = all(getattr(query, name) in ("", whole[name]) for name in ("institution", "project", "user", "period"))
        if not asked or month < query.from_month or month > (query.to_month or "9999-12"):
            continue
        for name in whole.keys() - set(query.group_by or UsageKey._fields):
            whole[name] = 0 if name in _NUMBERS else ""
        metered = one.kind == EntryKind.USAGE
        added = [one.cpu_milli * ms, one.memory_mib * ms, one.gpu_milli * ms]
        added += [one.cpu_used_ms * 1000, one.peak_memory_mib * ms, one.gpu_used_milli_ms]
        added += [int(metered), int(metered and one.segment == 0)]
        into = sums[UsageKey(**whole)]
        into[:] = [have + more for have, more in zip(into, added, strict=True)]
    return [UsageSum(key, *values) for key, values in sorted(sums.items())]


class LedgerService:
    """As much of ``Service`` as reading the ledger takes, over records in memory. ``asked`` are the questions that came."""

    def __init__(
        self, records: Sequence[LedgerRecord], prices: PriceBook = PRICES, running: Sequence[LedgerRecord] = ()
    ) -> None:
        self.records = list(records)
        self.prices = prices
        self.running = list(running)
        self.asked: list[UsageQuery | LedgerQuery] = []
        self.titles = {"uni-a": "University A", "uni-b": "=B()"}

    async def usage(self, query: UsageQuery, include_running: bool = False, *, sums: bool = True) -> Usage:
        """The sums, and whatever runs."""
        self.asked.append(query)
        last = self.records[-1].sequence if self.records else 0
        return Usage(sums_of(self.records, query) if sums else [], self.running if include_running else [], 1, last)

    async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
        """A page."""
        self.asked.append(query)
        found = (
            one
            for one in self.records
            if one.sequence > query.after
            and query.institution in ("", one.institution)
            and query.project in ("", one.project)
            and query.period in ("", one.period)
            and (not query.from_ms or one.end_ms > query.from_ms)
            and (not query.to_ms or one.start_ms < query.to_ms)
        )
        return [one for one, _ in zip(found, range(query.limit), strict=False)]

    async def statement(self, institution: str, month: str) -> StatementFacts:
        """Of all records there are now."""
        query = UsageQuery(institution, period=month)
        earlier = [one for one in sums_of(self.records, UsageQuery(institution)) if one.key.period < month]
        titles = {project: f"Project {project}" for project in "pq"}
        head = Head(self.records[-1].sequence if self.records else 0, b"h")
        heading = Heading(institution, month, self.titles[institution], titles, False, head, 1)
        return StatementFacts(heading, sums_of(self.records, query), earlier, [], self.prices)

    def price_book(self) -> PriceBook:
        """All lists."""
        return self.prices

    async def list_institutions(self) -> list[InstitutionRecord]:
        """Two."""
        return [InstitutionRecord(name, title, 1000, "", 0) for name, title in self.titles.items()]

    async def list_projects(self, institution: str) -> list[ProjectRecord]:
        """Two in each."""
        names = [institution] if institution else list(self.titles)
        return [ProjectRecord(name, project, f"Project {project}", 1000, 0) for name in names for project in "pq"]
