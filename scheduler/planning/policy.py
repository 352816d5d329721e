"""How to plan: the policy, as plain immutable values, and its named presets.

Operators write it as a YAML document (``policy_document``); ``docs/howto/policy.md`` is its manual and
``docs/explanation/fairness.md`` gives the formulas. Every number is an integer: milliseconds, MiB, or thousandths ("milli").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from scheduler.domain.classification import Classification
from scheduler.domain.resources import Resources

INSTITUTION, PROJECT, USER = "institution", "project", "user"
LEVELS = (INSTITUTION, PROJECT, USER)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class OrderPolicy:
    """Who goes next.

    ``fair_levels``: the levels of the tenant tree at which the lowest weighted dominant share goes first (a subset of
    ``LEVELS``, from the top); below them jobs go by rank alone. A job's rank, smaller first, is fixed when it is queued:

        rank = submit_ms - class_head_start_ms * (class - NORMAL) + shortness * expected service / class_factor^(class - NORMAL)

    where the expected service is the expected runtime times the GPUs asked for (``rank.service_ms``), and ``shortness_milli`` is
    1000 times the factor: 0 is first come, first served. A job waits behind newcomers for no longer than its own term, so every
    finite ``shortness`` bounds how long anything can be passed over.

    ``past_milli``: the part of a share that is the decayed average of what was held in the past, in thousandths (0: only what is
    held now counts); ``half_life_ms``: after this time past use counts half.
    """

    fair_levels: tuple[str, ...] = (INSTITUTION,)
    shortness_milli: int = 0
    class_head_start_ms: int = DAY_MS
    class_factor: int = 4
    past_milli: int = 0
    half_life_ms: int = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What an institution may always have of a pool ("region/pool").

    ``borrowing``: how much more it may hold while it is idle (None: no limit); ``lending``: how much of its own others may
    hold while it does not need it (None: all of it). Kueue calls these nominal quota, borrowing limit and lending limit.
    """

    institution: str
    pool: str
    amount: Resources
    borrowing: Resources | None = None
    lending: Resources | None = None


@dataclass(frozen=True, slots=True)
class PreemptionPolicy:
    """When a running preemptible job may be stopped for a waiting one.

    ``reclaim``: for an institution within its guarantee, from those beyond theirs. ``fair_share``: for an institution that would
    still hold less than the victim's after the exchange. ``priority``: for a higher class of the same institution.
    ``shorter_milli``: for a job of the same institution, if the victim's expected remaining service is at least this many
    thousandths of its own, and the victim's rank, made anew from what remains, is higher (0: never; 1000 or less would let equals
    evict each other). ``move``: for a larger job of the same institution and no lower class, if the victim has
    room elsewhere at once.

    A job is not evicted before it has run ``min_runtime_ms`` (except to reclaim), and an institution loses at most ``per_hour``
    attempts in an hour to anything but reclaim (0: none). ``per_round`` bounds the evictions of a round.
    """

    reclaim: bool = True
    fair_share: bool = False
    priority: bool = True
    shorter_milli: int = 0
    move: bool = False
    min_runtime_ms: int = 600_000
    per_hour: int = 60
    per_round: int = 64


@dataclass(frozen=True, slots=True)
class BackfillPolicy:
    """Reservations for jobs that cannot start yet.

    ``reservations``: how many of the first blocked jobs get one (0: none); ``look``: how far into a line the planner looks
    for a job that ends before a reservation begins. ``horizon_ms``: a reservation that could only begin later than that from now is
    not made, except for the job that has waited too long: to keep nodes free for weeks, since nobody says how long jobs run, helps
    nobody.
    """

    reservations: int = 16
    look: int = 16
    horizon_ms: int = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class ScorePolicy:
    """The weights of the terms by which places are compared, in thousandths; 0 leaves a term out.

    ``fragmentation`` and ``best_fit`` choose the node; the others choose between pools: ``home`` the institution's home region,
    ``locality`` the hours it takes to bring the job's data sets there, ``price`` the price of an hour of the request,
    ``speed`` the slowness of the accelerator type. ``accelerator_order``: whether a job's list of accelerators is an order of
    preference, or only says which will do.
    """

    fragmentation: int = 1000
    best_fit: int = 1000
    home: int = 1000
    locality: int = 1000
    price: int = 0
    speed: int = 0
    accelerator_order: bool = True


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """What operators say of a pool: ``spot`` takes preemptible jobs only; prices per hour in minor units of currency.

    ``trust`` is the highest level of registered data that may go there: what is sensitive goes only where somebody has said so.
    """

    spot: bool = False
    cpu_core_hour: int = 0
    gpu_hour: int = 0
    trust: Classification = Classification.RESTRICTED


@dataclass(frozen=True, slots=True)
class DataSet:
    """Where a data set lies (``regions``), its size, and where it may be processed (``allowed_regions``; empty: anywhere).

    ``level``: only in pools trusted so far. A policy says nothing of it; the register of data sets does.
    """

    size_mib: int
    regions: tuple[str, ...] = ()
    allowed_regions: tuple[str, ...] = ()
    level: Classification = Classification.PUBLIC


def _no_mapping() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Policy:
    """How to plan.

    ``max_starts_per_round`` bounds a round, so that commits stay small. ``max_passed_over_ms``: the oldest job that has waited
    this long, of tenants below their fair part, goes first, and until it fits only what ends before it could start is let into
    the pools that could hold it. ``reclaim_within_ms``: guaranteed capacity is back with its owner after this time.

    ``speed_milli``: how fast an accelerator type is, by its name (1000, the default: as fast as runtimes are stated for).
    ``bandwidth_mib_s``: between two regions, by "from/to", or "" for all others.
    """

    name: str = "suanli"
    order: OrderPolicy = field(default_factory=OrderPolicy)
    guarantees: tuple[Guarantee, ...] = ()
    reclaim_within_ms: int = 120_000
    preemption: PreemptionPolicy = field(default_factory=PreemptionPolicy)
    backfill: BackfillPolicy = field(default_factory=BackfillPolicy)
    score: ScorePolicy = field(default_factory=ScorePolicy)
    pools: Mapping[str, PoolPolicy] = field(default_factory=lambda: MappingProxyType({}))
    data_sets: Mapping[str, DataSet] = field(default_factory=lambda: MappingProxyType({}))
    speed_milli: Mapping[str, int] = field(default_factory=_no_mapping)
    bandwidth_mib_s: Mapping[str, int] = field(default_factory=_no_mapping)
    max_starts_per_round: int = 512
    max_passed_over_ms: int = 1_800_000


def _presets() -> dict[str, Policy]:
    suanli = Policy(
        order=OrderPolicy((INSTITUTION,), shortness_milli=30_000, past_milli=500),
        preemption=PreemptionPolicy(shorter_milli=1250, move=True),
    )
    return {
        "suanli": suanli,
        "fair": replace(suanli, name="fair", order=OrderPolicy(LEVELS, past_milli=500), preemption=PreemptionPolicy()),
        "fifo": replace(suanli, name="fifo", order=OrderPolicy(()), preemption=PreemptionPolicy()),
        "shortest": replace(
            suanli, name="shortest", order=OrderPolicy((), shortness_milli=30_000), preemption=PreemptionPolicy()
        ),
    }


PRESETS: Mapping[str, Policy] = MappingProxyType(_presets())
"""``suanli`` (the default): fair between institutions, short expected response within one. ``fair``: fair at all three levels, in
order of submission within a user. ``fifo``: in order of submission. ``shortest``: by expected service."""
