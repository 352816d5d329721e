"""What is probably not meant in a price list."""

from __future__ import annotations

import pytest

from scheduler.domain.document_values import MAX_WARNINGS
from scheduler.metering.price_text import read_effective, read_prices
from scheduler.metering.price_warnings import Site, warnings
from scheduler.metering.prices import PriceBook, PriceList

NOW_MS = 1_791_158_400_000
SITES = {Site("east", "cpu", ""), Site("east", "gpu", "A100"), Site("west", "gpu", "V100")}
TENANTS = {("north", ""), ("north", "thesis")}


def a_list(text: str, version: int = 1) -> PriceList:
    return read_effective(read_prices("currency: CNY\n" + text).effective, version)


def warned(text: str, *before: str) -> list[str]:
    earlier = [a_list(each, version) for version, each in enumerate(before, 1)]
    return warnings(a_list(text, len(before) + 1), PriceBook(earlier), NOW_MS, SITES, TENANTS)


def test_a_sensible_list_has_none() -> None:
    text = """
rates:
  - {pools: ["*/gpu"], accelerators: [A100], gpu_hour: 8}
  - {pools: [west/gpu], preemptible: true, gpu_hour: 1}
  - {pools: [west/*], gpu_hour: 2}
  - {cpu_core_hour: 1}
discounts: [{institution: north, percent: 5}, {institution: north, project: thesis, percent: 5}]
free: [{gpu_hours: 1}, {institution: north}]
energy: {gpu_watts: {A100: 400, default: 300}, grid_g_per_kwh: {east: 570, default: 500}}
"""
    assert warned(text) == []


ALL = "rates: [{cpu_core_hour: 1}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'rates: [{pools: ["*/gpu"], gpu_hour: 1}]',
            'prices.rates: none applies to pool "east/cpu"; what is held there',
        ),
        (
            'rates: [{pools: ["*/gpu"], gpu_hour: 1}, {priorities: [normal, high, urgent]}]',
            'none applies in pool "east/cpu" to not preemptible low priority jobs',
        ),
        ("rates: [{pools: [north/cpu]}, {gpu_hour: 1}]", "prices.rates[0]: there is no pool (yet)"),
        ("rates: [{accelerators: [H100]}, {gpu_hour: 1}]", "prices.rates[0]: there is no pool (yet)"),
        (
            "rates: [{cpu_core_hour: 1}, {pools: [east/gpu]}]",
            "prices.rates[1]: it never applies; prices.rates[0] comes",
        ),
        ("rates: [{pools: [west/*]}, {pools: [west/gpu]}, {}]", "prices.rates[1]: it never applies; prices.rates[0]"),
        ("rates: [{pools: ['*/gpu']}, {accelerators: [A100]}, {}]", "prices.rates[1]: it never applies (yet)"),
        ("rates: [{preemptible: true}, {preemptible: false}, {}]", "prices.rates[2]: it never applies (yet)"),
        (ALL + "discounts: [{institution: x, percent: 1}]", 'discounts[0].institution: there is no institution "x"'),
        (ALL + "discounts: [{institution: north, project: x, percent: 1}]", 'has no project "x"'),
        (ALL + "free: [{institution: x}]", 'prices.free[0].institution: there is no institution "x"'),
        (ALL + "energy: {grid_g_per_kwh: {north: 1}}", 'region "north" has no nodes'),
        (ALL + "energy: {gpu_watts: {H100: 1}}", 'no node has an accelerator "H100"'),
        (ALL + "to: 2027-01-01", "prices: from 2027-01-01 on no price list is in force"),
        (ALL + "from: 2027-01-01", "prices: from now on until 2027-01-01 no price list is in force"),
    ],
)
def test_what_is_said(text: str, said: str) -> None:
    (warning,) = warned(text)
    assert said in warning


def test_a_list_that_takes_the_place_of_a_later_one() -> None:
    (warning,) = warned(ALL, ALL, ALL + "from: 2027-01-01\n")
    assert warning.startswith("prices: version 2, which was to be in force from 2027-01-01 on, never will be")
    # The one in force now ends, as it should; also where it would have come back.
    assert warned(ALL, ALL) == []
    assert len(warned(ALL, ALL, ALL + "from: 2027-01-01\nto: 2028-01-01\n")) == 1
    assert warned(ALL + "from: 2027-01-01\n", ALL) == []
    assert warned(ALL + "from: 2027-01-01\nto: 2028-01-01\n", ALL, ALL + "from: 2027-06-01\n") == []


def test_they_are_bounded() -> None:
    found = warned(ALL + "free: [" + ", ".join(f"{{institution: n{n}}}" for n in range(200)) + "]")
    assert len(found) == MAX_WARNINGS
