"""What the ledger is priced by."""

from __future__ import annotations

from scheduler.metering.prices import PriceBook, PriceList


class Metering:
    """The prices in force."""

    def __init__(self) -> None:
        self.prices = PriceBook()

    def use_price_list(self, one: PriceList) -> None:
        """Price by this list in its window from now on."""
        self.prices = self.prices.with_list(one)
