"""Price lists: which price applies to what is held where, when and by whom.

A list is immutable and has a half-open window of time. Of the lists whose windows cover an instant the one with the highest version is
in force, so that a later list overrides, never changes, an earlier one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from scheduler.domain.spec import PriorityClass
from scheduler.domain.states import AttemptOutcome
from scheduler.metering.money import FREE, Amounts, HourlyPrice

NO_RATE = -1
"""No rate of the list applies: what is held costs nothing."""
NO_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Place:
    """What decides which rate applies to an allocation."""

    region: str
    pool: str
    accelerator: str
    priority: PriorityClass
    preemptible: bool


@dataclass(frozen=True, slots=True)
class Rate:
    """A price and what it is for; an empty condition is met by everything.

    ``pools`` are "region/pool" or "region/*" ("*/pool" for one of that name in any region). ``price`` is in money, ``service`` in service units.
    """

    price: HourlyPrice = FREE
    service: HourlyPrice = FREE
    pools: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    priorities: tuple[PriorityClass, ...] = ()
    preemptible: bool | None = None

    def applies(self, place: Place) -> bool:
        """Whether every condition is met."""
        names = (f"{place.region}/{place.pool}", f"{place.region}/*", f"*/{place.pool}")
        return (
            (not self.pools or any(name in self.pools for name in names))
            and (not self.accelerators or place.accelerator in self.accelerators)
            and (not self.priorities or place.priority in self.priorities)
            and self.preemptible in (None, place.preemptible)
        )


@dataclass(frozen=True, slots=True)
class Discount:
    """Hundredths of a per cent off every price, for an institution or (``project`` not empty) one of its projects."""

    institution: str
    project: str
    basis_points: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an institution (empty: each that has none of its own) need not pay in a month: the part of its use of a resource up to this amount."""

    institution: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class EnergyFactors:
    """For estimates: watts of what is held, the building's overhead, and the grid's carbon.

    ``cpu_core_mw``, ``memory_gib_mw`` and ``gpu_mw`` (by accelerator, "" for any other) are milliwatts; ``pue_milli`` is the power usage
    effectiveness (ISO/IEC 30134-2) in thousandths; ``grid_mg_per_kwh`` milligrams of CO2e a kWh by region, "" for any other.
    """

    cpu_core_mw: int = 0
    memory_gib_mw: int = 0
    gpu_mw: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    pue_milli: int = 1000
    grid_mg_per_kwh: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def energy_uj(self, amounts: Amounts, accelerator: str) -> int:
        """Microjoules: exact for CPU and GPU; memory to a 1024th. Held, not used: an idle core is reckoned as a busy one."""
        gpu_mw = self.gpu_mw.get(accelerator, self.gpu_mw.get("", 0)) if accelerator else 0
        # Milli-units × ms × mW are 10^-9 J.
        of_milli = amounts.cpu_milli_ms * self.cpu_core_mw + amounts.gpu_milli_ms * gpu_mw
        of_mib = amounts.memory_mib_ms * self.memory_gib_mw * 1000 // 1024
        return (of_milli + of_mib) * self.pue_milli // 1_000_000

    def carbon_ug(self, energy_uj: int, region: str) -> int:
        """Micrograms of CO2e."""
        mg_per_kwh = self.grid_mg_per_kwh.get(region, self.grid_mg_per_kwh.get("", 0))
        # A kWh is 3.6 × 10^12 µJ, a milligram 1,000 µg.
        return energy_uj * mg_per_kwh // 3_600_000_000


@dataclass(frozen=True)
class PriceList:
    """One version. ``to_ms`` is ``NO_END`` for one without end; ``digits`` are those of the currency's minor unit.

    ``credited``: outcomes after which what an attempt held is credited as soon as it is posted.
    """

    version: int
    name: str
    currency: str
    digits: int
    from_ms: int
    to_ms: int = NO_END
    rates: tuple[Rate, ...] = ()
    discounts: tuple[Discount, ...] = ()
    allowances: tuple[Allowance, ...] = ()
    credited: frozenset[AttemptOutcome] = frozenset()
    energy: EnergyFactors = EnergyFactors()

    def rate_of(self, place: Place) -> int:
        """The number of the first rate that applies, or ``NO_RATE``."""
        known = self._known.get(place)
        if known is None:
            known = next((number for number, rate in enumerate(self.rates) if rate.applies(place)), NO_RATE)
            self._known[place] = known
        return known

    def discount_bp(self, institution: str, project: str) -> int:
        """What the project has off, else what its institution has."""
        return self._discounts.get((institution, project), self._discounts.get((institution, ""), 0))

    def allowance(self, institution: str) -> Amounts:
        """What is free a month."""
        return self._allowances.get(institution, self._allowances.get("", Amounts()))

    def price(self, rate: int) -> HourlyPrice:
        """Of a rate, by number."""
        return FREE if rate == NO_RATE else self.rates[rate].price

    def service(self, rate: int) -> HourlyPrice:
        """Of a rate, by number, in service units."""
        return FREE if rate == NO_RATE else self.rates[rate].service

    @cached_property
    def _known(self) -> dict[Place, int]:
        return {}

    @cached_property
    def _discounts(self) -> dict[tuple[str, str], int]:
        return {(each.institution, each.project): each.basis_points for each in self.discounts}

    @cached_property
    def _allowances(self) -> dict[str, Amounts]:
        return {each.institution: each.amounts for each in self.allowances}


class PriceBook:
    """All price lists, and which is in force when."""

    def __init__(self, lists: Iterable[PriceList] = ()) -> None:
        self._lists = {each.version: each for each in sorted(lists, key=lambda each: each.version)}
        self._starts: list[int] = []
        self._in_force: list[PriceList | None] = []
        bounds = sorted({0, *(at for each in self._lists.values() for at in (each.from_ms, each.to_ms) if at < NO_END)})
        for at in bounds:
            found = next((each for each in reversed(self._lists.values()) if each.from_ms <= at < each.to_ms), None)
            if not self._starts or found is not self._in_force[-1]:
                self._starts.append(at)
                self._in_force.append(found)

    def __bool__(self) -> bool:
        return bool(self._lists)

    @cached_property
    def credited(self) -> frozenset[AttemptOutcome]:
        """The outcomes that any of the lists credits."""
        return frozenset().union(*(each.credited for each in self._lists.values()))

    @property
    def newest(self) -> PriceList | None:
        """The highest version."""
        return self._lists[max(self._lists)] if self._lists else None

    def with_list(self, one: PriceList) -> PriceBook:
        """This book and one more list."""
        return PriceBook((*self._lists.values(), one))

    def get(self, version: int) -> PriceList | None:
        """A version; None for 0, and for one that is not there."""
        return self._lists.get(version)

    def at(self, time_ms: int) -> PriceList | None:
        """The list in force at an instant."""
        return self._in_force[bisect_right(self._starts, time_ms) - 1]

    def windows(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, int, PriceList | None]]:
        """[start, end), cut where another list comes into force."""
        at = bisect_right(self._starts, start_ms) - 1
        while start_ms < end_ms:
            cut = min(end_ms, self._starts[at + 1]) if at + 1 < len(self._starts) else end_ms
            yield start_ms, cut, self._in_force[at]
            start_ms, at = cut, at + 1
