"""What a statement is read from: which sums, and the head of which instant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler.domain.errors import FailedPrecondition, NotFound
from scheduler.domain.records import InstitutionRecord, LedgerRecord, MonthRecord, ProjectRecord
from scheduler.metering.prices import PriceBook
from scheduler.metering.segments import month_start_ms
from scheduler.metering.statement import NO_HEAD, Head
from scheduler.service.ports import DaySum, UsageKey, UsageQuery, UsageSum
from scheduler.service.state import State
from scheduler.service.statements import GROUP_BY, heading_of, read

NOW = month_start_ms("2026-10") + 5


def state(*closed: MonthRecord) -> State:
    found = SimpleNamespace(
        institutions={"uni": InstitutionRecord("uni", "The Uni", 1000, "", 0)},
        projects={
            ("uni", "p"): ProjectRecord("uni", "p", "Project P", 1000, 0),
            ("other", "q"): ProjectRecord("other", "q", "Not ours", 1000, 0),
        },
        metering=SimpleNamespace(prices=PriceBook(), months={one.month: one for one in closed}),
        now=lambda: NOW,
    )
    return cast(State, found)


class Ledger:
    """Answers as the store does, from rows."""

    def __init__(self, rows: list[UsageSum], records: int) -> None:
        self.rows = rows
        self.records = records
        self.days: tuple[str, ...] = ()

    def usage_sums(self, query: UsageQuery) -> list[UsageSum]:
        assert query.group_by == GROUP_BY
        return [
            row
            for row in self.rows
            if row.key.institution == query.institution
            and query.period in ("", row.key.period)
            and (query.from_month or "0") <= row.key.month <= (query.to_month or "9")
        ]

    def usage_days(self, *asked: str) -> list[DaySum]:
        self.days = asked
        return []

    def last_sequences(self) -> tuple[int, int]:
        return 99, self.records

    def ledger_after(self, sequence: int, limit: int) -> list[LedgerRecord]:
        assert limit == 1
        values: dict[str, Any] = dict.fromkeys(LedgerRecord._fields, 0)
        return [LedgerRecord(**values | {"sequence": sequence + 1, "hash": bytes([sequence + 1] * 32)})]


def row(month: str, period: str, cpu: int, institution: str = "uni") -> UsageSum:
    key = UsageKey(institution, "p", "", "east", "cpu", "", month, period, 1, 2, 0, "", 1, 0, 0)
    return UsageSum(key, cpu, 0, 0, 0, 0, 0, 1, 1)


def test_users_and_purposes_are_summed_away() -> None:
    assert set(UsageKey._fields) - set(GROUP_BY) == {"user", "purpose"}


def test_a_late_fact_brings_what_was_posted_before_it_for_its_month() -> None:
    ledger = Ledger(
        [
            row("2026-10", "2026-10", 1),
            row("2026-08", "2026-10", 2),
            row("2026-08", "2026-08", 3),
            row("2026-08", "2026-09", 4),
            row("2026-08", "2026-11", 5),
            row("2026-09", "2026-09", 6),
            row("2026-10", "2026-10", 7, "other"),
        ],
        records=7,
    )

    reading = read(ledger, "uni", "2026-10")

    assert sorted(one.cpu_milli_ms for one in reading.sums) == [1, 2]
    assert sorted(one.cpu_milli_ms for one in reading.earlier) == [3, 4]
    assert reading.head == Head(7, b"\7" * 32)
    assert ledger.days == ("uni", "2026-10-01", "2026-10-31")
    assert read(Ledger([], 0), "uni", "2026-10").head == NO_HEAD


def test_an_open_month_is_provisional_and_a_closed_one_keeps_the_head_it_was_closed_with() -> None:
    heading = heading_of(state(), "uni", "2026-10")
    assert (heading.final, heading.head, heading.issue_ms) == (False, NO_HEAD, NOW)
    assert (heading.number, heading.title, heading.project_titles) == ("uni-2026-10", "The Uni", {"p": "Project P"})

    closed = MonthRecord("2026-09", NOW, "fin", 41, b"h" * 32, b"d" * 32, 41)
    heading = heading_of(state(closed), "uni", "2026-09")
    assert (heading.final, heading.head) == (True, Head(41, b"h" * 32))


def test_what_there_is_no_statement_of() -> None:
    with pytest.raises(NotFound) as missing:
        heading_of(state(), "nowhere", "2026-10")
    assert (missing.value.reason, missing.value.field) == ("INSTITUTION_NOT_FOUND", "institution")
    with pytest.raises(FailedPrecondition) as early:
        heading_of(state(), "uni", "2026-11")
    assert (early.value.reason, early.value.field) == ("MONTH_NOT_BEGUN", "month")
