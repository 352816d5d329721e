"""Whatever a price list says, its document says the same; and no data and no text does more than be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.document_text import yaml_of
from scheduler.domain.document_values import MAX_WARNINGS
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import AttemptOutcome
from scheduler.metering import price_document as doc
from scheduler.metering.currencies import CODES, minor_digits
from scheduler.metering.money import HOUR_MS, Amounts, HourlyPrice
from scheduler.metering.price_text import effective_of, read_effective, read_prices
from scheduler.metering.price_warnings import Site, warnings
from scheduler.metering.prices import NO_END, Allowance, Discount, EnergyFactors, PriceBook, PriceList, Rate

SLUGS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True) | st.sampled_from(["no", "on", "y", "null"])
REGIONS = SLUGS.filter(lambda text: text != "default")
TYPES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(lambda text: text != "default")
POOLS = st.builds("{}/{}".format, SLUGS, SLUGS | st.just("*")) | st.builds("*/{}".format, SLUGS)
THOUSANDTH_HOURS = (HOUR_MS, 1024 * HOUR_MS // 1000, HOUR_MS)


def some(values: st.SearchStrategy[Any], key: Callable[[Any], Any] | None = None) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3, unique_by=key or (lambda value: value)).map(tuple)


def hourly(places: int) -> st.SearchStrategy[HourlyPrice]:
    amount = st.integers(0, 10**4) | st.integers(0, doc.MAX_PRICE * 10**places)
    return st.builds(HourlyPrice, amount, amount, amount)


def table(keys: st.SearchStrategy[str], high: int) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.just("") | keys, st.integers(0, high), max_size=3).map(MappingProxyType)


HOURS = st.integers(0, 10**6) | st.integers(0, doc.MAX_HOURS * 1000)
ALLOWANCES = st.builds(
    lambda institution, hours: Allowance(
        institution, Amounts(*(n * unit for n, unit in zip(hours, THOUSANDTH_HOURS, strict=True)))
    ),
    st.just("") | SLUGS,
    st.tuples(HOURS, HOURS, HOURS),
)
WATTS = st.integers(0, doc.MAX_WATTS * 1000)


@st.composite
def price_lists(draw: st.DrawFn) -> PriceList:
    currency = draw(st.sampled_from(sorted(CODES)))
    digits = minor_digits(currency)
    from_ms = draw(st.just(0) | st.integers(1, doc.MAX_TIME_MS - 1))
    rates = st.builds(
        Rate,
        hourly(digits + doc.PRICE_PLACES),
        hourly(doc.PRICE_PLACES),
        some(POOLS),
        some(TYPES),
        some(st.sampled_from(PriorityClass)),
        st.none() | st.booleans(),
    )
    return PriceList(
        version=0,
        name=draw(SLUGS),
        currency=currency,
        digits=digits,
        from_ms=from_ms,
        to_ms=draw(st.just(NO_END) | st.integers(from_ms + 1, doc.MAX_TIME_MS)),
        rates=draw(some(rates)),
        discounts=draw(
            some(
                st.builds(Discount, SLUGS, st.just("") | SLUGS, st.integers(0, 10_000)),
                lambda one: (one.institution, one.project),
            )
        ),
        allowances=draw(some(ALLOWANCES, lambda one: one.institution)),
        credited=frozenset(draw(st.sets(st.sampled_from([o for o in AttemptOutcome if o.name != "SUCCEEDED"])))),
        energy=draw(
            st.builds(
                EnergyFactors,
                WATTS,
                WATTS,
                table(TYPES, doc.MAX_WATTS * 1000),
                st.integers(1000, 10_000),
                table(REGIONS, 10_000_000),
            )
        ),
    )


def test_the_strategy_names_every_setting() -> None:
    """A field added to a price list is to be added to the document, too."""
    document = doc.dump(PriceList(0, "a", "CNY", 2, 1, 2))

    # The version and the currency's digits are no settings.
    assert len(document) == len(PriceList.__dataclass_fields__) - 2
    assert len(document["energy"]) == len(EnergyFactors.__dataclass_fields__)


@given(price_lists())
def test_a_lists_document_says_that_list(prices: PriceList) -> None:
    assert doc.parse(doc.dump(prices)) == prices
    assert doc.dump(doc.parse(doc.dump(prices))) == doc.dump(prices)


@settings(max_examples=50)
@given(price_lists(), st.integers(0, 9))
def test_so_do_its_texts(prices: PriceList, version: int) -> None:
    text = read_prices(yaml_of(effective_of(prices)))

    assert text.price_list == prices
    assert read_effective(text.effective, version) == replace(prices, version=version)
    assert len(warnings(prices, PriceBook(), 0, {Site("a", "b", "")}, set())) <= MAX_WARNINGS


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.dates()
    | st.datetimes()
    | st.text(max_size=8)
    | st.sampled_from(["CNY", "0.085", "east/*", "low", "node-lost", "2026-12-01"])
)
_KEYS = st.sampled_from(
    [
        *doc.dump(PriceList(0, "a", "CNY", 2, 1, 2)),
        *("pools", "accelerators", "priorities", "preemptible", "gpu_hour", "service_units", "institution", "project"),
        *("percent", "gpu_hours", "gpu_watts", "pue", "grid_g_per_kwh", "default"),
    ]
) | st.text(max_size=4)
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)


def outcome(read: Callable[[], PriceList]) -> PriceList | InvalidArgument:
    try:
        return read()
    except InvalidArgument as error:
        return error


@given(st.dictionaries(_KEYS, _DATA, max_size=4), st.booleans())
def test_any_data_is_a_list_or_is_refused_by_path(document: dict[str, Any], with_currency: bool) -> None:
    if with_currency:
        document["currency"] = "CNY"
    found = outcome(lambda: doc.parse(document))

    if isinstance(found, PriceList):
        assert doc.parse(doc.dump(found)) == found
    else:
        assert found.field.split(".")[0].split("[")[0] == doc.ROOT
        assert found.message.startswith(found.field)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#?%@`,\n\t 0.~\x00\u2028", max_size=40))
def test_any_text_is_refused(text: str) -> None:
    found = outcome(lambda: read_prices(text).price_list)

    assert isinstance(found, InvalidArgument)
    assert found.field.startswith(doc.ROOT)
