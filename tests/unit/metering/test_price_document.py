"""The price list as a document: what may be written, and where everything else is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from scheduler.domain.document_text import yaml_of
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import AttemptOutcome
from scheduler.metering.currencies import CODES, minor_digits
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS, Amounts, HourlyPrice
from scheduler.metering.price_document import MAX_TIME_MS, dump, parse
from scheduler.metering.price_text import effective_of, read_effective, read_prices
from scheduler.metering.prices import NO_END, Allowance, Discount, PriceList, Rate

EVERYTHING = """
name: list-2027
currency: CNY
from: 2027-01-01
to: 2028-01-01T00:00:00+08:00
rates:
  - pools: [east/gpu-a100, "*/spot", west/*]
    accelerators: [A100, NVIDIA-H100]
    priorities: [high, urgent]
    preemptible: false
    gpu_hour: 12.5
    cpu_core_hour: "0.085"
    memory_gib_hour: 0.00000001
    service_units: {gpu_hour: 10, cpu_core_hour: 0.000001}
  - cpu_core_hour: 0.05
discounts:
  - {institution: north, percent: 12.5}
  - {institution: north, project: thesis, percent: 100}
free:
  - {cpu_core_hours: 1000}
  - {institution: south, gpu_hours: 0.5, memory_gib_hours: 2.001}
credited: [node-lost, preempted]
energy:
  cpu_core_watts: 6.5
  memory_gib_watts: 0.375
  gpu_watts: {A100: 400, default: 300}
  pue: 1.3
  grid_g_per_kwh: {east: 570, default: 500.5}
"""


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc, arg-type]


def test_every_setting_is_read() -> None:
    prices = read_prices(EVERYTHING).price_list

    assert (prices.version, prices.name, prices.currency, prices.digits) == (0, "list-2027", "CNY", 2)
    assert (prices.from_ms, prices.to_ms) == (ms(2027, 1, 1), ms(2027, 12, 31, 16))
    first, second = prices.rates
    assert first.pools == ("east/gpu-a100", "*/spot", "west/*")
    assert first.accelerators == ("A100", "NVIDIA-H100")
    assert (first.priorities, first.preemptible) == ((PriorityClass.HIGH, PriorityClass.URGENT), False)
    # Yuan, in millionths of a fen: × 10^8.
    assert first.price == HourlyPrice(8_500_000, 1, 1_250_000_000)
    assert first.service == HourlyPrice(1, 0, 10_000_000)
    assert second == Rate(HourlyPrice(5_000_000, 0, 0))
    assert prices.discounts == (Discount("north", "", 1250), Discount("north", "thesis", 10_000))
    assert prices.allowances == (
        Allowance("", Amounts(1000 * 1000 * HOUR_MS)),
        Allowance("south", Amounts(0, 2001 * 1024 * HOUR_MS // 1000, 500 * HOUR_MS)),
    )
    assert prices.credited == {AttemptOutcome.NODE_LOST, AttemptOutcome.PREEMPTED}
    assert (prices.energy.cpu_core_mw, prices.energy.memory_gib_mw, prices.energy.pue_milli) == (6500, 375, 1300)
    assert prices.energy.gpu_mw == {"A100": 400_000, "": 300_000}
    assert prices.energy.grid_mg_per_kwh == {"east": 570_000, "": 500_500}


def test_a_core_hour_costs_what_is_written() -> None:
    for currency, written, minor in (("CNY", "1.25", 125), ("JPY", "7", 7), ("KWD", "0.015", 15)):
        prices = parse({"currency": currency, "rates": [{"cpu_core_hour": written}]})
        one_hour = Amounts(1000 * HOUR_MS)
        assert prices.price(0).cost_units(one_hour) == minor * COST_UNITS_PER_MINOR, currency


def test_what_is_not_given() -> None:
    assert parse({"currency": "EUR"}) == PriceList(0, "prices", "EUR", 2, 0, NO_END)


def test_digits_of_currencies() -> None:
    assert {code for code in CODES if minor_digits(code) == 0} == {
        "JPY",
        "KRW",
        "VND",
        "CLP",
        "ISK",
        "UGX",
        "XAF",
        "XOF",
        "XPF",
        "PYG",
        "RWF",
        "KMF",
        "GNF",
        "DJF",
        "BIF",
        "VUV",
    }
    assert {code for code in CODES if minor_digits(code) == 3} == {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}
    assert (minor_digits("CNY"), minor_digits("HUF")) == (2, 2)
    with pytest.raises(KeyError):
        minor_digits("XXX")


@pytest.mark.parametrize(
    ("value", "at_ms"),
    [
        ("2026-12-01", ms(2026, 12, 1)),
        (date(2026, 12, 1), ms(2026, 12, 1)),
        ("2026-12-01T00:00:00Z", ms(2026, 12, 1)),
        ("2026-12-01T08:00:00+08:00", ms(2026, 12, 1)),
        (datetime(2026, 12, 1, 8, tzinfo=timezone(timedelta(hours=8))), ms(2026, 12, 1)),
        ("2026-12-01T00:00:00.125Z", ms(2026, 12, 1) + 125),
        ("9999-12-31T23:59:59.999Z", MAX_TIME_MS),
    ],
)
def test_times(value: Any, at_ms: int) -> None:
    prices = parse({"currency": "CNY", "from": value})
    assert prices.from_ms == at_ms
    assert parse(dump(prices)) == prices


def test_a_number_is_what_is_written_not_the_float_next_to_it() -> None:
    text = "currency: CNY\nrates: [{gpu_hour: 999999999.99999999}]"
    assert read_prices(text).price_list.rates[0].price.gpu == 99999999999999999
    assert parse({"currency": "CNY", "rates": [{"gpu_hour": Decimal("0.1")}]}).rates[0].price.gpu == 10_000_000
    assert (
        "0.10000000000000000001 is not a number"
        in refused("currency: CNY\nrates: [{gpu_hour: 0.10000000000000000001}]").message
    )
    assert "at most eight decimals" in refused("currency: CNY\nrates: [{gpu_hour: 0.000000001}]").message
    assert read_prices("currency: CNY\nrates: [{gpu_hour: 1.50000000}]").price_list.rates[0].price.gpu == 150_000_000


def rate(**values: Any) -> dict[str, Any]:
    return {"currency": "CNY", "rates": [{"cpu_core_hour": 1}, values]}


def put(**values: Any) -> dict[str, Any]:
    return {"currency": "CNY"} | values


R = "prices.rates[1]"
WRONG: list[tuple[str, Any, str, str]] = [
    # what is wrong, the document, the path, a part of what is said
    ("no mapping", [], "prices", "not a mapping"),
    ("an unknown setting", put(rate=[]), "prices.rate", "did you mean rates?"),
    ("no currency", {}, "prices.currency", "missing"),
    ("a currency that is none", {"currency": "RMB"}, "prices.currency", "ISO 4217 code, as in CNY"),
    ("a currency in small letters", {"currency": "cny"}, "prices.currency", "ISO 4217"),
    ("a currency that is a list", {"currency": ["CNY"]}, "prices.currency", "a list is not a currency"),
    ("a name with capitals", put(name="Ours"), "prices.name", "lower-case"),
    ("a time without offset", put(**{"from": "2026-12-01T00:00:00"}), "prices.from", "with its offset"),
    ("a naive time", put(**{"from": datetime(2026, 12, 1)}), "prices.from", "with its offset"),
    ("a word for a time", put(**{"from": "now"}), "prices.from", "'now' is not a time"),
    ("a number for a time", put(**{"from": 20261201}), "prices.from", "is not a time"),
    ("a day that there is not", put(**{"from": "2026-02-30"}), "prices.from", "is not a time"),
    ("a time before all", put(**{"from": "1969-12-31"}), "prices.from", "from 1970"),
    ("a time after all", put(to="9999-12-31T23:59:59-01:00"), "prices.to", "to 9999"),
    ("too fine a time", put(**{"from": "2026-12-01T00:00:00.0001Z"}), "prices.from", "three decimals"),
    ("an end at the beginning", put(**{"from": "2026-12-01", "to": "2026-12-01"}), "prices.to", "not after prices.from"),
    ("rates that are no list", put(rates={}), "prices.rates", "not a list of rates"),
    ("too many rates", put(rates=[{}] * 1001), "prices.rates", "at most 1,000"),
    ("a rate that is none", put(rates=[5]), "prices.rates[0]", "not a mapping"),
    ("an unknown resource", rate(gpus_hour=1), f"{R}.gpus_hour", "did you mean gpu_hour?"),
    ("a negative price", rate(gpu_hour=-1), f"{R}.gpu_hour", "from 0 to 1,000,000,000"),
    ("a negative text", rate(gpu_hour="-1"), f"{R}.gpu_hour", "not a number"),
    ("a price beyond all", rate(gpu_hour=10**9 + 1), f"{R}.gpu_hour", "from 0 to 1,000,000,000"),
    ("true for a price", rate(gpu_hour=True), f"{R}.gpu_hour", "True is not a number"),
    ("a price with its currency", rate(gpu_hour="1 CNY"), f"{R}.gpu_hour", "not a number"),
    ("a price with a comma", rate(gpu_hour="1,5"), f"{R}.gpu_hour", "not a number"),
    ("a price of many digits", rate(gpu_hour=10**5000), f"{R}.gpu_hour", "this large"),
    ("no number", rate(gpu_hour=float("nan")), f"{R}.gpu_hour", "nan is not"),
    ("an infinite price", rate(gpu_hour=float("inf")), f"{R}.gpu_hour", "inf is not"),
    ("nothing for a price", rate(gpu_hour=None), f"{R}.gpu_hour", "nothing is not a number"),
    ("too fine a price", rate(gpu_hour="0.123456789"), f"{R}.gpu_hour", "eight decimals"),
    (
        "too fine a price of yen",
        {"currency": "JPY", "rates": [{"cpu_core_hour": "0.1234567"}]},
        "prices.rates[0].cpu_core_hour",
        "six decimals",
    ),
    ("too fine a service unit", rate(service_units={"gpu_hour": "0.1234567"}), f"{R}.service_units.gpu_hour", "six dec"),
    ("an unknown service unit", rate(service_units={"gpus": 1}), f"{R}.service_units.gpus", "cpu_core_hour"),
    ("service units that are a number", rate(service_units=3), f"{R}.service_units", "not a mapping"),
    ("a pool without region", rate(pools=["gpu"]), f"{R}.pools[0]", '"region/pool"'),
    ("any pool", rate(pools=["a/b", "*/*"]), f"{R}.pools[1]", '"region/pool"'),
    ("a part of a pool", rate(pools=["east/gpu-*"]), f"{R}.pools[0]", '"region/*"'),
    ("no pool", rate(pools=[]), f"{R}.pools", "leave it out for all"),
    ("a pool that is no list", rate(pools="east/gpu"), f"{R}.pools", "not a list of pools"),
    ("a pool twice", rate(pools=["a/b", "a/b"]), f"{R}.pools[1]", "already, as prices.rates[1].pools[0]"),
    ("an accelerator's name", rate(accelerators=[""]), f"{R}.accelerators[0]", "accelerator type"),
    ("no accelerator", rate(accelerators=[]), f"{R}.accelerators", "leave it out"),
    ("an unknown priority", rate(priorities=["top"]), f"{R}.priorities[0]", "low, normal, high, urgent"),
    ("a priority that is a list", rate(priorities=[["low"]]), f"{R}.priorities[0]", "a list is not a priority"),
    ("no priority", rate(priorities=[]), f"{R}.priorities", "leave it out"),
    ("a word for a flag", rate(preemptible="no"), f"{R}.preemptible", "neither true nor false"),
    ("a discount of nobody", put(discounts=[{"percent": 1}]), "prices.discounts[0].institution", "missing"),
    ("a discount of nothing", put(discounts=[{"institution": "a"}]), "prices.discounts[0].percent", "missing"),
    (
        "a discount beyond all",
        put(discounts=[{"institution": "a", "percent": 100.01}]),
        "prices.discounts[0].percent",
        "from 0 to 100 with at most two decimals",
    ),
    (
        "too fine a discount",
        put(discounts=[{"institution": "a", "percent": "1.234"}]),
        "prices.discounts[0].percent",
        "two decimals",
    ),
    (
        "a discount twice",
        put(discounts=[{"institution": "a", "percent": 1}, {"institution": "a", "percent": 2}]),
        "prices.discounts[1]",
        "the same as prices.discounts[0]",
    ),
    ("a discount's project", put(discounts=[{"institution": "a", "project": "B", "percent": 1}]), "prices.discounts[0].project", "a project's id"),
    ("free of nobody's", put(free=[{"institution": 1}]), "prices.free[0].institution", "an institution's id"),
    ("free for all twice", put(free=[{"gpu_hours": 1}, {"cpu_core_hours": 1}]), "prices.free[1]", "same as prices.free[0]"),
    ("too fine a free amount", put(free=[{"gpu_hours": "0.0001"}]), "prices.free[0].gpu_hours", "three decimals"),
    ("an unknown free amount", put(free=[{"gpu_hour": 1}]), "prices.free[0].gpu_hour", "did you mean gpu_hours?"),
    ("a success credited", put(credited=["succeeded"]), "prices.credited[0]", "there are failed, timed-out, cancelled, pre"),
    ("an outcome twice", put(credited=["node-lost", "node-lost"]), "prices.credited[1]", "already"),
    ("an unknown factor", put(energy={"gpu_watt": {}}), "prices.energy.gpu_watt", "did you mean gpu_watts?"),
    ("watts as one number", put(energy={"gpu_watts": 300}), "prices.energy.gpu_watts", "not a mapping from accelerator"),
    ("negative watts", put(energy={"gpu_watts": {"A100": -1}}), "prices.energy.gpu_watts.A100", "from 0 to"),
    ("a building that makes energy", put(energy={"pue": 0.9}), "prices.energy.pue", "from 1 to 10"),
    ("a region's id", put(energy={"grid_g_per_kwh": {"East": 1}}), "prices.energy.grid_g_per_kwh", "a region's id"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "path", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_cannot_be_meant_is_refused_where_it_stands(document: Any, path: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(document)

    assert caught.value.field == path
    assert caught.value.message.startswith(f"{path}: ")
    assert said in caught.value.message
    assert len(caught.value.message) < 500


def refused(text: str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read_prices(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("", "prices.currency", "prices.currency: it is missing"),
        ("currency: CNY\nrates:\n  - gpu_hour: -1\n", "prices.rates[0].gpu_hour", "(line 3, column 5): -1 is not"),
        (
            "currency: CNY\nrates:\n- pools: [a/b,\n    c]\n",
            "prices.rates[0].pools[1]",
            "(line 4, column 5): 'c' is not",
        ),
        ("currency: CNY\nfrom: 2026-12-01 00:00:00\n", "prices.from", "(line 2, column 1): 2026-12-01 00:00:00 is not"),
        ("currency: CNY\ndiscounts:\n  - percent: 3\n", "prices.discounts[0].institution", "(line 3, column 5): it is"),
        ("currency: CNY\nrates: [\n", "prices", "prices (line 3, column 1): this is not readable YAML"),
        ("currency: CNY\ncurrency: EUR\n", "prices", "(line 2, column 1): 'currency' is given twice"),
        ("- CNY\n", "prices", "(line 1, column 1): a price list is written as names and values"),
        ("currency: CNY\nfrom: 2026-99-01\n", "prices", "not readable YAML"),
    ],
)
def test_errors_say_line_and_column(text: str, field: str, said: str) -> None:
    error = refused(text)

    assert error.field == field
    assert said in error.message
    assert (error.reason == "PRICES_UNREADABLE") == (field == "prices")


def test_the_effective_document_keeps_its_meaning() -> None:
    text = read_prices(EVERYTHING)

    assert read_effective(text.effective, 7) == replace(text.price_list, version=7)
    assert read_prices(yaml_of(text.effective)).price_list == text.price_list
    assert effective_of(text.price_list) == text.effective


def test_the_canonical_form_is_what_people_write() -> None:
    data = dump(read_prices(EVERYTHING).price_list)

    assert (data["from"], data["to"]) == ("2027-01-01", "2027-12-31T16:00:00Z")
    assert data["rates"][0]["cpu_core_hour"] == "0.085"
    assert data["rates"][0]["memory_gib_hour"] == "0.00000001"
    assert data["rates"][1] == {"cpu_core_hour": "0.05", "memory_gib_hour": "0", "gpu_hour": "0"}
    assert data["discounts"][0] == {"institution": "north", "percent": "12.5"}
    assert data["free"][1] == {
        "institution": "south",
        "cpu_core_hours": "0",
        "memory_gib_hours": "2.001",
        "gpu_hours": "0.5",
    }
    assert data["credited"] == ["preempted", "node-lost"]
    assert data["energy"]["gpu_watts"] == {"default": 300, "A100": 400}
