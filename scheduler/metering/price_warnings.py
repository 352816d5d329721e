"""What is allowed in a price list and yet probably not meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from scheduler.domain.document_values import first_warnings
from scheduler.domain.spec import PriorityClass
from scheduler.metering.price_document import instant_text
from scheduler.metering.prices import NO_END, NO_RATE, Place, PriceBook, PriceList, Rate


class Site(NamedTuple):
    """Nodes of one pool with one type of accelerator (or none)."""

    region: str
    pool: str
    accelerator: str


def warnings(
    prices: PriceList,
    before: PriceBook,
    now_ms: int,
    sites: Collection[Site],
    tenants: Collection[tuple[str, str]],
) -> list[str]:
    """Sentences about a list that is put now, on a platform as it is.

    ``before``: the book without it; ``tenants``: (institution, project), the institution as a whole with project "".
    """
    return first_warnings(
        [
            *_of_windows(prices, before, now_ms),
            *_of_rates(prices, sites),
            *_of_tenants(prices, tenants),
            *_of_energy(prices, sites),
        ]
    )


def _of_windows(prices: PriceList, before: PriceBook, now_ms: int) -> Iterator[str]:
    after = before.with_list(prices)
    in_force = {one.version for _, _, one in after.windows(now_ms, NO_END) if one is not None}
    told: set[int] = set()
    for start_ms, _, one in before.windows(now_ms, NO_END):
        if one is not None and one.from_ms > now_ms and one.version not in in_force | told:
            told.add(one.version)
            yield (
                f"prices: version {one.version}, which was to be in force from {instant_text(start_ms)} on, never will "
                "be; the newest of the lists for a time holds."
            )
    for start_ms, end_ms, one in after.windows(now_ms, NO_END):
        if one is None:
            since = f"from {instant_text(start_ms)} on" if start_ms > now_ms else "from now on"
            until = "" if end_ms == NO_END else f" until {instant_text(end_ms)}"
            yield f"prices: {since}{until} no price list is in force; what is held then costs nothing."


def _of_rates(prices: PriceList, sites: Collection[Site]) -> Iterator[str]:
    matched: set[int] = set()
    first: set[int] = set()
    for site in sorted(sites):
        places = [Place(*site, priority, preemptible) for priority in PriorityClass for preemptible in (False, True)]
        rates = [prices.rate_of(place) for place in places]
        first.update(rates)
        matched.update(
            number for number, rate in enumerate(prices.rates) if any(rate.applies(place) for place in places)
        )
        name = f'pool "{site.region}/{site.pool}"' + (f" ({site.accelerator})" if site.accelerator else "")
        free = [place for place, rate in zip(places, rates, strict=True) if rate == NO_RATE]
        if len(free) == len(places):
            yield f"prices.rates: none applies to {name}; what is held there costs nothing."
        elif free:
            yield f"prices.rates: none applies in {name} to {_words(free[0])} jobs; what they hold costs nothing."
    for number, rate in enumerate(prices.rates):
        hidden = next((earlier for earlier in range(number) if _covers(prices.rates[earlier], rate)), None)
        if hidden is not None:
            yield f"prices.rates[{number}]: it never applies; prices.rates[{hidden}] comes first wherever it would."
        elif number not in matched:
            yield f"prices.rates[{number}]: there is no pool (yet) to which it applies."
        elif number not in first:
            yield f"prices.rates[{number}]: it never applies (yet); earlier rates come first in every pool there is."


def _words(place: Place) -> str:
    return f"{'' if place.preemptible else 'not '}preemptible {place.priority.name.lower()} priority"


def _covers(one: Rate, other: Rate) -> bool:
    """Whether ``one`` applies wherever ``other`` does, by what is written."""
    return (
        _wider(one.accelerators, other.accelerators)
        and _wider(one.priorities, other.priorities)
        and one.preemptible in (None, other.preemptible)
        and (
            not one.pools
            or (bool(other.pools) and all(_names(pool) & set(one.pools) for pool in other.pools))
        )
    )  # fmt: skip


def _wider(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return not one or (bool(other) and set(other) <= set(one))


def _names(pool: str) -> set[str]:
    """A pattern and those that are wider."""
    region, _, name = pool.partition("/")
    return {pool} if "*" in (region, name) else {pool, f"{region}/*", f"*/{name}"}


def _of_tenants(prices: PriceList, tenants: Collection[tuple[str, str]]) -> Iterator[str]:
    named = [
        *(("discounts", index, one.institution, one.project) for index, one in enumerate(prices.discounts)),
        *(("free", index, one.institution, "") for index, one in enumerate(prices.allowances)),
    ]
    for setting, index, institution, project in named:
        path = f"prices.{setting}[{index}]"
        if institution and (institution, "") not in tenants:
            yield f'{path}.institution: there is no institution "{institution}" (yet).'
        elif project and (institution, project) not in tenants:
            yield f'{path}.project: institution "{institution}" has no project "{project}" (yet).'


def _of_energy(prices: PriceList, sites: Collection[Site]) -> Iterator[str]:
    regions, accelerators = {site.region for site in sites}, {site.accelerator for site in sites}
    for region in prices.energy.grid_mg_per_kwh:
        if region and region not in regions:
            yield f'prices.energy.grid_g_per_kwh: region "{region}" has no nodes (yet).'
    for accelerator in prices.energy.gpu_mw:
        if accelerator and accelerator not in accelerators:
            yield f'prices.energy.gpu_watts: no node has an accelerator "{accelerator}" (yet).'
