"""Checking a ledger: its chain, that it says what the allocations held, and that every total kept of it is what its records make.

Everything is reckoned anew from the records, by other code than that which wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scheduler.domain.records import AttemptRecord, LedgerRecord, MonthRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.budgets import Budget
from scheduler.metering.chain import digest_of, hash_of
from scheduler.metering.prices import PriceBook
from scheduler.metering.segments import day_of, month_of, next_month, segments

MAX_FAULTS = 100
_KINDS = frozenset(EntryKind)
Key = tuple[Any, ...]


class Fault(NamedTuple):
    """Something is not as it must be; ``sequence`` is the first bad record's, 0 where it is no record's."""

    sequence: int
    code: str
    message: str


class Totals(NamedTuple):
    """What is kept of the ledger beside its records: sums by ``UsageKey`` and by day, each with its figures, and what budgets have spent."""

    sums: Mapping[Key, Sequence[int]]
    days: Mapping[Key, Sequence[int]]
    spent: Mapping[str, int]


class LedgerCheck:
    """Takes the records in the order of their numbers; afterwards ``faults`` says what is wrong, the first first.

    Begun in the middle (``before``: the number and hash of the record before), only the chain can be checked, not totals.
    """

    def __init__(
        self,
        prices: PriceBook,
        budgets: Iterable[Budget],
        months: Iterable[MonthRecord],
        before: tuple[int, bytes] = (0, b""),
        expected: tuple[int, bytes] | None = None,
    ) -> None:
        self.faults: list[Fault] = []
        self.sequence, self.head = before
        self.records = 0
        self._whole = before[0] == 0
        self._prices = prices
        self._budgets = list(budgets)
        self._months = list(months)
        self._closed = {each.month: each.ledger_sequence for each in self._months}
        self._expected = {
            each.ledger_sequence: (f"when {each.month} was closed", each.head_hash)
            for each in self._months
            if each.ledger_sequence > before[0]
        }
        if expected is not None:
            self._expected[expected[0]] = ("as you were told", expected[1])
        self._posted_ms = 0
        self._sums: dict[Key, list[int]] = {}
        self._days: dict[Key, list[int]] = {}
        self._spent = {each.budget: 0 for each in self._budgets}
        self._of_period: dict[str, int] = {}

    def add(self, record: LedgerRecord) -> None:
        """The next record."""
        expected = self.sequence + 1
        if record.sequence != expected:
            gone = (
                f"record {expected} is"
                if record.sequence == expected + 1
                else f"records {expected} to {record.sequence - 1} are"
            )
            self._fault(expected, "RECORD_MISSING", f"{gone} missing")
        elif hash_of(self.head, record) != record.hash:
            self._fault(
                record.sequence, "CHAIN_BROKEN", "the record, or the one before it, is not the one that was posted"
            )
        self._check(record)
        self.sequence, self.head = record.sequence, record.hash
        self.records += 1
        self._expect(record)
        if self._whole:
            self._count(record)

    def finish(self, last_sequence: int, totals: Totals) -> None:
        """All records have been added: ``last_sequence`` is the newest number given, ``totals`` what is kept, both as of then."""
        if self.sequence < last_sequence:
            self._fault(
                self.sequence + 1,
                "RECORD_MISSING",
                f"records {self.sequence + 1} to {last_sequence} are missing at the end",
            )
        for sequence, (when, _) in sorted(self._expected.items()):
            if sequence > self.sequence:
                self._fault(sequence, "RECORD_MISSING", f"there is no record {sequence}, which was the newest {when}")
        if not self._whole:
            return
        self._compare("ROLLUP_DIFFERS", "the sum of", self._sums, totals.sums)
        self._compare("ROLLUP_DIFFERS", "the day's sum of", self._days, totals.days)
        for name, spent in totals.spent.items():
            if self._spent.get(name, spent) != spent:
                self._fault(
                    0, "BUDGET_DIFFERS", f'budget "{name}" has spent {self._spent[name]} by the records, not {spent}'
                )
        for month in self._months:
            rows = [(key, *figures) for key, figures in self._sums.items() if key[7] == month.month]
            if self._of_period.get(month.month, 0) != month.records or digest_of(rows) != month.digest:
                self._fault(0, "MONTH_DIFFERS", f"{month.month} is not what it was when it was closed")

    def _check(self, record: LedgerRecord) -> None:
        if record.posted_ms < self._posted_ms:
            self._fault(record.sequence, "OUT_OF_ORDER", "it was posted before the one before it")
        self._posted_ms = max(self._posted_ms, record.posted_ms)
        # Before the ledger had prices, its segments were cut at the ends of months only.
        inside = record.start_ms < record.end_ms and month_of(record.start_ms) == month_of(record.end_ms - 1)
        if record.kind not in _KINDS or not inside:
            self._fault(record.sequence, "BAD_RECORD", "its kind or its interval cannot be right")
        elif record.period != self._period_of(record):
            self._fault(
                record.sequence, "BAD_RECORD", f"it belongs to {self._period_of(record)}, not to {record.period}"
            )
        elif record.price_list and self._prices.get(record.price_list) is None:
            self._fault(record.sequence, "BAD_RECORD", f"there is no price list {record.price_list}")

    def _period_of(self, record: LedgerRecord) -> str:
        """Its own month, or the first after it that was open when it was posted."""
        month = month_of(record.start_ms)
        while self._closed.get(month, record.sequence) < record.sequence:
            month = next_month(month)
        return month

    def _expect(self, record: LedgerRecord) -> None:
        when, head = self._expected.pop(record.sequence, ("", record.hash))
        if head != record.hash:
            self._fault(record.sequence, "HEAD_DIFFERS", f"its hash is not the one it had {when}")

    def _count(self, record: LedgerRecord) -> None:
        ms = record.end_ms - record.start_ms
        metered = record.kind == EntryKind.USAGE
        held = (record.cpu_milli * ms, record.memory_mib * ms, record.gpu_milli * ms)
        figures = (
            *held,
            record.cpu_used_ms * 1000,
            record.peak_memory_mib * ms,
            record.gpu_used_milli_ms,
            int(metered),
            int(metered and record.segment == 0),
        )
        _add(self._sums, _usage_key(record), figures)
        if record.kind != EntryKind.CREDIT:
            for start_ms, end_ms in segments(record.start_ms, record.end_ms):
                part_ms = end_ms - start_ms
                part = (record.cpu_milli * part_ms, record.memory_mib * part_ms, record.gpu_milli * part_ms)
                _add(self._days, (day_of(start_ms), record.institution, record.region, record.pool), part)
        self._of_period[record.period] = self._of_period.get(record.period, 0) + 1
        for budget in self._budgets:
            if budget.is_for(record.institution, record.project):
                self._spent[budget.budget] += budget.charge_of(record, self._prices)

    def _compare(
        self, code: str, what: str, made: Mapping[Key, Sequence[int]], kept: Mapping[Key, Sequence[int]]
    ) -> None:
        for key in sorted({*made, *kept}, key=repr):
            ours, theirs = made.get(key), kept.get(key)
            if any(ours or ()) != any(theirs or ()) or (ours and theirs and list(ours) != list(theirs)):
                name = "/".join(str(part) for part in key)
                self._fault(0, code, f"{what} {name} is {theirs and list(theirs)}, and the records make {ours}")

    def _fault(self, sequence: int, code: str, message: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            where = f"Record {sequence}: " if sequence else ""
            self.faults.append(Fault(sequence, code, f"{where}{message}."))


def check_attempt(attempt: AttemptRecord, records: Sequence[LedgerRecord]) -> Fault | None:
    """Whether what was metered of an attempt is what its allocation held: its segments tile it, with its amounts, corrections aside."""
    until_ms = attempt.end_ms or attempt.metered_ms or attempt.grant_ms
    amounts = (attempt.cpu_milli, attempt.memory_mib, attempt.gpu_milli)
    name = f"attempt {attempt.attempt} of job {attempt.job_id}"
    at_ms = attempt.grant_ms
    taken_back_from_ms = until_ms
    usage = sorted((each for each in records if each.kind == EntryKind.USAGE), key=lambda each: each.segment)
    for number, each in enumerate(usage):
        if (each.cpu_milli, each.memory_mib, each.gpu_milli) != amounts:
            return Fault(each.sequence, "NOT_HELD", f"Record {each.sequence}: {name} held {amounts}, not what it says.")
        if each.segment != number or each.start_ms != at_ms:
            code = "GAP" if each.start_ms > at_ms else "OVERLAP"
            return Fault(
                each.sequence,
                code,
                f"Record {each.sequence}: {name} is metered up to {at_ms}, and this goes on at {each.start_ms}.",
            )
        at_ms = each.end_ms
    # What was posted beyond the end, before that was known, is taken back by records that nobody wrote.
    for each in sorted(records, key=lambda each: each.start_ms):
        if each.kind == EntryKind.REVERSAL and not each.author:
            if (
                each.start_ms != taken_back_from_ms
                or tuple(-a for a in (each.cpu_milli, each.memory_mib, each.gpu_milli)) != amounts
            ):
                return Fault(
                    each.sequence, "NOT_HELD", f"Record {each.sequence}: {name} did not hold what it takes back."
                )
            taken_back_from_ms = each.end_ms
    if at_ms != max(taken_back_from_ms, until_ms):
        sequence = usage[-1].sequence if usage else 0
        message = f"{name[0].upper()}{name[1:]} held its allocation until {until_ms}, and is metered up to {at_ms}."
        return Fault(sequence, "GAP", message)
    return None


def _usage_key(record: LedgerRecord) -> Key:
    return (
        record.institution,
        record.project,
        record.user,
        record.region,
        record.pool,
        record.accelerator,
        month_of(record.start_ms),
        record.period,
        record.kind,
        record.priority,
        record.preemptible,
        record.purpose,
        record.price_list,
        record.rate,
        record.discount_bp,
    )


def _add(into: dict[Key, list[int]], key: Key, figures: Sequence[int]) -> None:
    known = into.get(key)
    if known is None:
        into[key] = list(figures)
    else:
        for index, figure in enumerate(figures):
            known[index] += figure
