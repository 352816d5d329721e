"""A price list as people write it: plain YAML data with prices in the currency's major unit, read strictly and exactly.

``parse`` refuses what it does not know, or cannot be meant, with the path of the setting ("prices.rates[2].pools[0]") and what may stand
there. ``dump`` writes the same list in one canonical form: ``parse(dump(x)) == x`` for a list without a version, which is not part of the
document. The manual is ``docs/howto/prices.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from scheduler.domain import document_values as v
from scheduler.domain.document_values import Section, refuse, shown
from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import AttemptOutcome
from scheduler.metering.currencies import CODES, minor_digits
from scheduler.metering.money import BASIS_POINTS, FREE, HOUR_MS, Amounts, HourlyPrice
from scheduler.metering.prices import NO_END, Allowance, Discount, EnergyFactors, PriceList, Rate

ROOT = "prices"
DEFAULT_NAME = "prices"
MAX_RATES = MAX_NAMES = 1_000
MAX_DISCOUNTS = MAX_ALLOWANCES = 10_000
MAX_PRICE = 10**9
"""In major units of the currency, or in service units, an hour."""
MAX_HOURS = 10**12
MAX_WATTS = 10**6
MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
PRICE_PLACES = 6
"""Decimals of a price below the minor unit, and of service units."""
_ANY_OTHER = "default"
_PRICES = ("cpu_core_hour", "memory_gib_hour", "gpu_hour")
_HOURS = ("cpu_core_hours", "memory_gib_hours", "gpu_hours")
# Milli-cores, MiB and milli-GPUs × ms of a thousandth of a core-, GiB- and GPU-hour.
_MILLI_HOUR = Amounts(HOUR_MS, 1024 * HOUR_MS // 1000, HOUR_MS)
_PRIORITIES = {priority.name.lower(): priority for priority in PriorityClass}
_OUTCOMES = {
    outcome.name.lower().replace("_", "-"): outcome
    for outcome in AttemptOutcome
    if outcome is not AttemptOutcome.SUCCEEDED
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_POOL = re.compile(r"(?:[a-z][a-z0-9-]{0,62}/(?:[a-z][a-z0-9-]{0,62}|\*)|\*/[a-z][a-z0-9-]{0,62})")
_ACCELERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
T = TypeVar("T")


def parse(document: Mapping[str, Any]) -> PriceList:
    """The price list that a document says, with version 0; its ``from_ms`` is 0 when it says none: it is that of the moment it is put.

    ``InvalidArgument`` names the setting that is wrong; ``field`` is its path.
    """
    top = Section(
        document,
        ROOT,
        ("name", "currency", "from", "to", "rates", "discounts", "free", "credited", "energy"),
    )
    currency = top.need("currency", _currency)
    digits = minor_digits(currency)
    from_ms = top.take("from", _instant, 0)
    to_ms = top.take("to", _instant, NO_END)
    if to_ms <= from_ms:
        refuse(f"{ROOT}.to", f"{instant_text(to_ms)} is not after prices.from, {instant_text(from_ms)}.")
    return PriceList(
        version=0,
        name=top.take("name", v.slug("a price list's name"), DEFAULT_NAME),
        currency=currency,
        digits=digits,
        from_ms=from_ms,
        to_ms=to_ms,
        rates=top.take("rates", _entries(lambda value, path: _rate(value, path, digits), MAX_RATES, "rates"), ()),
        discounts=top.take(
            "discounts",
            _entries(_discount, MAX_DISCOUNTS, "discounts", lambda one: (one.institution, one.project)),
            (),
        ),
        allowances=top.take(
            "free",
            _entries(_allowance, MAX_ALLOWANCES, "free amounts", lambda one: (one.institution,)),
            (),
        ),
        credited=top.take("credited", _credited, frozenset()),
        energy=_energy(top),
    )


def _currency(value: Any, path: str) -> str:
    if not isinstance(value, str) or value not in CODES:
        refuse(path, f"{shown(value)} is not a currency; write its ISO 4217 code, as in CNY, EUR or USD.")
    return value


def _instant(value: Any, path: str) -> int:
    """A UTC day, or an instant with its offset, as ms since 1970."""
    when = value
    if isinstance(value, str):
        try:
            when = date.fromisoformat(value) if _DAY.fullmatch(value) else datetime.fromisoformat(value)
        except ValueError:
            when = None
    if isinstance(when, date) and not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day, tzinfo=UTC)
    if not isinstance(when, datetime) or when.tzinfo is None:
        refuse(
            path,
            f"{shown(value)} is not a time; write a day (in UTC), as in 2026-12-01, or an instant with its offset, as in "
            "2026-12-01T08:00:00+08:00.",
        )
    since = when - _EPOCH
    if not timedelta(0) < since <= MAX_TIME_MS * _MS or since % _MS:
        refuse(
            path,
            f"{shown(value)} is out of range; give a time from 1970 to 9999, with at most three decimals of a second.",
        )
    return since // _MS


def instant_text(time_ms: int) -> str:
    """A UTC day where it is the beginning of one, else the instant: the inverse of what reads them."""
    if time_ms == NO_END:
        return "none"
    at = _EPOCH + time_ms * _MS
    if not time_ms % (24 * HOUR_MS):
        return at.date().isoformat()
    return at.isoformat(timespec="milliseconds" if time_ms % 1000 else "seconds").replace("+00:00", "Z")


def _entries(
    read: v.Reader[T], limit: int, what: str, key: Callable[[T], Hashable] | None = None
) -> v.Reader[tuple[T, ...]]:
    """A reader of lists of sections, of which no two may be for the same."""

    def read_entries(value: Any, path: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            refuse(path, f"{shown(value)} is not a list of {what}.")
        if len(value) > limit:
            refuse(path, f"{len(value):,} {what} are too many; give at most {limit:,}.")
        entries = [read(item, f"{path}[{index}]") for index, item in enumerate(value)]
        found: dict[Hashable, int] = {}
        for index, entry in enumerate(entries):
            earlier = found.setdefault(index if key is None else key(entry), index)
            if earlier != index:
                refuse(f"{path}[{index}]", f"it is for the same as {path}[{earlier}]; write them as one.")
        return tuple(entries)

    return read_entries


def _rate(value: Any, path: str, digits: int) -> Rate:
    section = Section(value, path, ("pools", "accelerators", "priorities", "preemptible", *_PRICES, "service_units"))
    service = section.part("service_units", _PRICES)
    return Rate(
        price=_hourly(section, digits + PRICE_PLACES),
        service=_hourly(service, PRICE_PLACES),
        pools=section.take(
            "pools",
            _some(
                v.matching(_POOL, 'is not a pool; write "region/pool", "region/*" or "*/pool", as in east/gpu'),
                MAX_NAMES,
                "pools",
            ),
            (),
        ),
        accelerators=section.take(
            "accelerators",
            _some(
                v.matching(_ACCELERATOR, "is not an accelerator type; write one as `suanli pools` shows it"),
                MAX_NAMES,
                "accelerator types",
            ),
            (),
        ),
        priorities=section.take("priorities", _some(_priority, len(_PRIORITIES), "priorities"), ()),
        preemptible=section.take("preemptible", v.flag, None),
    )


def _some(read: v.Reader[T], limit: int, what: str) -> v.Reader[tuple[T, ...]]:
    """A reader of lists that are not empty: a condition that nothing could meet is not meant."""

    def read_some(value: Any, path: str) -> tuple[T, ...]:
        found = v.listing(read, limit, what)(value, path)
        if not found:
            refuse(path, f"it names none; name some {what}, or leave it out for all.")
        return found

    return read_some


def _hourly(section: Section, places: int) -> HourlyPrice:
    read = v.scaled(places, 0, MAX_PRICE * 10**places)
    return HourlyPrice(*(section.take(name, read, 0) for name in _PRICES))


def _priority(value: Any, path: str) -> PriorityClass:
    return _one_of(_PRIORITIES, "a priority", value, path)


def _credited(value: Any, path: str) -> frozenset[AttemptOutcome]:
    return frozenset(v.listing(_outcome, len(_OUTCOMES), "outcomes")(value, path))


def _outcome(value: Any, path: str) -> AttemptOutcome:
    return _one_of(_OUTCOMES, "an outcome that can be credited", value, path)


def _one_of(words: Mapping[str, T], what: str, value: Any, path: str) -> T:
    if not isinstance(value, str) or value not in words:
        refuse(path, f"{shown(value)} is not {what}; there are {', '.join(words)}.")
    return words[value]


def _discount(value: Any, path: str) -> Discount:
    section = Section(value, path, ("institution", "project", "percent"))
    return Discount(
        institution=section.need("institution", v.slug("an institution's id")),
        project=section.take("project", v.slug("a project's id"), ""),
        basis_points=section.need("percent", v.scaled(2, 0, BASIS_POINTS)),
    )


def _allowance(value: Any, path: str) -> Allowance:
    section = Section(value, path, ("institution", *_HOURS))
    hours = v.scaled(3, 0, MAX_HOURS * 1000)
    return Allowance(
        institution=section.take("institution", v.slug("an institution's id"), ""),
        amounts=Amounts(*(section.take(name, hours, 0) * unit for name, unit in zip(_HOURS, _MILLI_HOUR, strict=True))),
    )


def _energy(top: Section) -> EnergyFactors:
    section = top.part("energy", ("cpu_core_watts", "memory_gib_watts", "gpu_watts", "pue", "grid_g_per_kwh"))
    watts = v.milli(0, MAX_WATTS * 1000)
    accelerator = v.matching(_ACCELERATOR, "is not an accelerator type; write one as `suanli pools` shows it")
    gpu_mw = v.table(_or_default(accelerator), watts, MAX_NAMES, "accelerator types")
    grid = v.table(_or_default(v.read_region), v.milli(0, 10_000_000), MAX_NAMES, "regions")
    return EnergyFactors(
        cpu_core_mw=section.take("cpu_core_watts", watts, 0),
        memory_gib_mw=section.take("memory_gib_watts", watts, 0),
        gpu_mw=MappingProxyType(section.take("gpu_watts", gpu_mw, {})),
        pue_milli=section.take("pue", v.milli(1000, 10_000), 1000),
        grid_mg_per_kwh=MappingProxyType(section.take("grid_g_per_kwh", grid, {})),
    )


def _or_default(read: v.Reader[str]) -> v.Reader[str]:
    return lambda value, path: "" if value == _ANY_OTHER else read(value, path)


# --- writing ------------------------------------------------------------------------------------------------------------


def dump(prices: PriceList) -> dict[str, Any]:
    """All that a list says but its version, as plain data in canonical form; prices are texts, so that nothing makes floats of them."""
    energy = prices.energy
    data: dict[str, Any] = {"name": prices.name, "currency": prices.currency}
    if prices.from_ms:
        data["from"] = instant_text(prices.from_ms)
    if prices.to_ms != NO_END:
        data["to"] = instant_text(prices.to_ms)
    return data | {
        "rates": [_rate_data(rate, prices.digits) for rate in prices.rates],
        "discounts": [
            {"institution": one.institution}
            | ({"project": one.project} if one.project else {})
            | {"percent": v.number_text(one.basis_points, 2)}
            for one in prices.discounts
        ],
        "free": [_allowance_data(one) for one in prices.allowances],
        "credited": [name for name, outcome in _OUTCOMES.items() if outcome in prices.credited],
        "energy": {
            "cpu_core_watts": v.number(energy.cpu_core_mw),
            "memory_gib_watts": v.number(energy.memory_gib_mw),
            "gpu_watts": {name or _ANY_OTHER: v.number(mw) for name, mw in sorted(energy.gpu_mw.items())},
            "pue": v.number(energy.pue_milli),
            "grid_g_per_kwh": {name or _ANY_OTHER: v.number(mg) for name, mg in sorted(energy.grid_mg_per_kwh.items())},
        },
    }


def _rate_data(rate: Rate, digits: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if rate.pools:
        data["pools"] = list(rate.pools)
    if rate.accelerators:
        data["accelerators"] = list(rate.accelerators)
    if rate.priorities:
        data["priorities"] = [priority.name.lower() for priority in rate.priorities]
    if rate.preemptible is not None:
        data["preemptible"] = rate.preemptible
    data |= _hourly_data(rate.price, digits + PRICE_PLACES)
    if rate.service != FREE:
        data["service_units"] = _hourly_data(rate.service, PRICE_PLACES)
    return data


def _hourly_data(price: HourlyPrice, places: int) -> dict[str, str]:
    return {name: v.number_text(amount, places) for name, amount in zip(_PRICES, price, strict=True)}


def _allowance_data(one: Allowance) -> dict[str, Any]:
    hours: Sequence[int] = [amount // unit for amount, unit in zip(one.amounts, _MILLI_HOUR, strict=True)]
    return ({"institution": one.institution} if one.institution else {}) | {
        name: v.number_text(thousandths, 3) for name, thousandths in zip(_HOURS, hours, strict=True)
    }
