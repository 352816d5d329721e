"""What the ledger's writer keeps in memory: prices, closed months, budgets, and the end of the chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from scheduler.domain.records import LedgerRecord, MonthRecord
from scheduler.metering.chain import FIRST
from scheduler.metering.prices import PriceBook, PriceList
from scheduler.metering.segments import month_of, next_month
from scheduler.service.budgets import Budgets
from scheduler.service.contract import Verified

RECENT = 10_000
SegmentKey = tuple[str, int, int]
"""Job, attempt, segment."""


class Metering:
    """One leader's; filled anew by ``loading``."""

    def __init__(self) -> None:
        self.prices = PriceBook()
        self.months: dict[str, MonthRecord] = {}
        """The closed ones."""
        self.budgets = Budgets()
        self.head = FIRST
        """The newest record's hash."""
        self.recent: deque[LedgerRecord] = deque(maxlen=RECENT)
        """The newest records: what a reader of the store may have missed."""
        self.last_posted: dict[str, int] = {}
        """By accounting month, the newest record posted to it since this leader began."""
        self.day_ms = 0
        """The UTC day that is being metered."""
        self.unposted: deque[int] = deque()
        """Launch numbers of attempts whose past days are to be posted."""
        self.verified: Verified | None = None
        self.corrected: dict[SegmentKey, int] = {}
        """The newest revision of segments that this leader has corrected."""
        self.taken_back: set[int] = set()
        """The records that this leader has reversed or credited."""

    def use_price_list(self, one: PriceList) -> None:
        """Price by this list, too, from its window's beginning on."""
        self.prices = self.prices.with_list(one)
        self.budgets.use_prices(self.prices)

    def load(self, head: bytes, months: Iterable[MonthRecord]) -> None:
        """Take over from the store."""
        self.head = head
        self.months = {each.month: each for each in months}

    def period_of(self, time_ms: int) -> str:
        """The accounting month for what was held then: its own, or the first one after it that is open."""
        month = month_of(time_ms)
        while month in self.months:
            month = next_month(month)
        return month
