"""What a job would cost, against figures worked out by hand."""

from __future__ import annotations

from fractions import Fraction

from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.metering.estimate import Asked, estimate
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS
from scheduler.metering.price_text import read_effective, read_prices
from scheduler.metering.prices import Place, PriceBook

NOW_MS = 1_791_158_400_000
EAST = Place("east", "gpu", "A100", PriorityClass.NORMAL, False)
LIST = """
currency: CNY
rates:
  - pools: [east/gpu]
    cpu_core_hour: 0.10
    memory_gib_hour: 0.01
    gpu_hour: 8
    service_units: {gpu_hour: 10, cpu_core_hour: 0.5}
discounts: [{institution: north, percent: 25}]
"""


def book(*documents: str) -> PriceBook:
    return PriceBook(
        read_effective(read_prices(document).effective, version) for version, document in enumerate(documents, 1)
    )


def asked(institution: str = "south", tasks: int = 1, max_h: int = 10, expected_h: int = 4) -> Asked:
    # Two replicas of 4 cores, 8 GiB and a GPU.
    return Asked(institution, "p", Resources(8_000, 16_384, 2_000), tasks, max_h * HOUR_MS, expected_h * HOUR_MS)


def fen(cost_units: int) -> Fraction:
    return Fraction(cost_units, COST_UNITS_PER_MINOR)


def test_gang_array_and_discount() -> None:
    # An hour: 8 × 0.10 + 16 × 0.01 + 2 × 8 = 16.96 yuan, and 2 × 10 + 8 × 0.5 = 24 service units.
    one = estimate(book(LIST), EAST, asked(), NOW_MS)
    assert (one.max_cost_units, one.expected_cost_units) == (
        16960 * COST_UNITS_PER_MINOR,
        6784 * COST_UNITS_PER_MINOR,
    )
    assert (one.max_service_units, one.expected_service_units) == (
        240 * COST_UNITS_PER_MINOR,
        96 * COST_UNITS_PER_MINOR,
    )
    assert (one.max_ms, one.expected_ms, one.unpriced) == (10 * HOUR_MS, 4 * HOUR_MS, False)

    many = estimate(book(LIST), EAST, asked(tasks=1000), NOW_MS)
    assert many.max_cost_units == 1000 * one.max_cost_units
    # A discount is one of money; service units are what they are.
    north = estimate(book(LIST), EAST, asked("north"), NOW_MS)
    assert north.max_cost_units * 4 == one.max_cost_units * 3
    assert north.max_service_units == one.max_service_units


def test_prices_that_change_meanwhile() -> None:
    dearer = LIST.replace("gpu_hour: 8", "gpu_hour: 16") + "from: 2026-10-05T03:00:00Z\n"
    found = estimate(book(LIST, dearer), EAST, asked(), NOW_MS)

    assert fen(found.expected_cost_units) == 1696 * 3 + 3296
    assert fen(found.max_cost_units) == 1696 * 3 + 3296 * 7


def test_what_has_no_price() -> None:
    west = Place("west", "gpu", "A100", PriorityClass.NORMAL, False)
    for prices, place in ((book(LIST), west), (book(), EAST), (book(LIST + "to: 2026-10-05\n"), EAST)):
        found = estimate(prices, place, asked(), NOW_MS)
        assert (found.max_cost_units, found.max_service_units, found.unpriced) == (0, 0, True)
    later = estimate(book(LIST + "from: 2026-10-05T05:00:00Z\n"), EAST, asked(), NOW_MS)
    assert (fen(later.max_cost_units), later.expected_cost_units, later.unpriced) == (1696 * 5, 0, False)
