"""What an allocation would cost, before there is one: at the prices known now, without free allowances, which are a month's."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.domain.resources import Resources
from scheduler.metering.money import Amounts
from scheduler.metering.prices import NO_RATE, Place, PriceBook


class Asked(NamedTuple):
    """What is to be held, by whom and how often: ``total`` by a whole gang, ``tasks`` of them for an array."""

    institution: str
    project: str
    total: Resources
    tasks: int
    max_ms: int
    expected_ms: int


class PlaceCost(NamedTuple):
    """The cost of all tasks in one place, in cost units and in units of the same size of a service unit.

    ``unpriced``: no rate applies there at any time, so that it costs nothing.
    """

    place: Place
    max_cost_units: int
    expected_cost_units: int
    max_service_units: int
    expected_service_units: int
    max_ms: int
    expected_ms: int
    unpriced: bool


def estimate(book: PriceBook, place: Place, asked: Asked, now_ms: int) -> PlaceCost:
    """The cost if all tasks started now, each running to its limit or for as long as such jobs are expected to."""
    most = _held(book, place, asked, now_ms, asked.max_ms)
    expected = _held(book, place, asked, now_ms, asked.expected_ms)
    return PlaceCost(place, most[0], expected[0], most[1], expected[1], asked.max_ms, asked.expected_ms, most[2])


def _held(book: PriceBook, place: Place, asked: Asked, now_ms: int, for_ms: int) -> tuple[int, int, bool]:
    cost = service = 0
    unpriced = True
    for start_ms, end_ms, prices in book.windows(now_ms, now_ms + for_ms):
        rate = NO_RATE if prices is None else prices.rate_of(place)
        if prices is None or rate == NO_RATE:
            continue
        unpriced = False
        held = Amounts(*(amount * (end_ms - start_ms) * asked.tasks for amount in asked.total))
        cost += prices.price(rate).cost_units(held, prices.discount_bp(asked.institution, asked.project))
        service += prices.service(rate).cost_units(held)
    return cost, service, unpriced
