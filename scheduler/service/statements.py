"""What a statement is made of, read from the ledger as of one instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scheduler.domain.errors import FailedPrecondition, NotFound
from scheduler.domain.records import LedgerRecord, MonthRecord
from scheduler.metering.prices import PriceBook
from scheduler.metering.segments import month_start_ms
from scheduler.metering.statement import NO_HEAD, Head, Heading
from scheduler.service.ports import DaySum, UsageKey, UsageQuery, UsageSum

if TYPE_CHECKING:  # it imports the contract, which names what is here
    from scheduler.service.state import State

GROUP_BY = tuple(name for name in UsageKey._fields if name not in ("user", "purpose"))
"""Statements know neither users nor purposes."""


class StatementFacts(NamedTuple):
    """``earlier``: sums of the months of use that ``sums`` has, posted to accounting months before. ``prices``: all price lists."""

    heading: Heading
    sums: Sequence[UsageSum]
    earlier: Sequence[UsageSum]
    days: Sequence[DaySum]
    prices: PriceBook


class LedgerReads(Protocol):
    """What of ``ports.Store`` a statement needs."""

    def usage_sums(self, query: UsageQuery) -> list[UsageSum]:
        """See ``Store``."""
        ...

    def usage_days(self, institution: str, from_day: str, to_day: str) -> list[DaySum]:
        """See ``Store``."""
        ...

    def last_sequences(self) -> tuple[int, int]:
        """See ``Store``."""
        ...

    def ledger_after(self, sequence: int, limit: int) -> list[LedgerRecord]:
        """See ``Store``."""
        ...


class Reading(NamedTuple):
    """What the store said at one instant."""

    sums: list[UsageSum]
    earlier: list[UsageSum]
    days: list[DaySum]
    head: Head


def metered(state: State) -> tuple[PriceBook, Mapping[str, MonthRecord]]:
    """All price lists, and the closed months."""
    return state.metering.prices, state.metering.months


def heading_of(state: State, institution: str, month: str) -> Heading:
    """Whose statement it will be, without the ledger's head unless the month is closed: then it is the one it was closed with.

    ``NotFound`` without the institution; ``FailedPrecondition`` (MONTH_NOT_BEGUN) for a month that lies in the future.
    """
    record = state.institutions.get(institution)
    if record is None:
        raise NotFound(f'There is no institution "{institution}".', reason="INSTITUTION_NOT_FOUND", field="institution")
    now_ms = state.now()
    if month_start_ms(month) > now_ms:
        raise FailedPrecondition(f"{month} has not begun yet (in UTC).", reason="MONTH_NOT_BEGUN", field="month")
    titles = {project: each.title for (owner, project), each in state.projects.items() if owner == institution}
    _, closed = metered(state)
    end = closed.get(month)
    head = Head(end.ledger_sequence, end.head_hash) if end else NO_HEAD
    return Heading(institution, month, record.title, titles, end is not None, head, now_ms)


def read(store: LedgerReads, institution: str, month: str) -> Reading:
    """Read all that a statement needs. Nothing may be committed meanwhile."""
    sums = store.usage_sums(UsageQuery(institution, period=month, group_by=GROUP_BY))
    late = {one.key.month for one in sums} - {month}
    earlier: list[UsageSum] = []
    if late:
        query = UsageQuery(institution, from_month=min(late), to_month=max(late), group_by=GROUP_BY)
        earlier = [one for one in store.usage_sums(query) if one.key.month in late and one.key.period < month]
    days = store.usage_days(institution, f"{month}-01", f"{month}-31")
    _, sequence = store.last_sequences()
    newest = store.ledger_after(sequence - 1, 1) if sequence else []
    return Reading(sums, earlier, days, Head(newest[0].sequence, newest[0].hash) if newest else NO_HEAD)
