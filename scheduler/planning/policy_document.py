"""The policy as operators write it: plain YAML data with human units, read strictly, and written in one canonical form.

``parse`` takes a preset as the base and the settings of the document over it. What it does not know, or cannot be meant, is refused
with the path of the setting ("policy.guarantees[2].pool") and what may stand there. ``dump`` writes every setting, so that two
documents can be compared line by line; ``parse(dump(policy)) == policy``. The manual is ``docs/howto/policy.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from scheduler.domain import document_values as v
from scheduler.domain.classification import Classification
from scheduler.domain.document_values import Section, refuse, shown
from scheduler.planning import policy_values as amounts
from scheduler.planning.policy import (
    DAY_MS,
    LEVELS,
    PRESETS,
    BackfillPolicy,
    DataSet,
    Guarantee,
    OrderPolicy,
    Policy,
    PoolPolicy,
    PreemptionPolicy,
    ScorePolicy,
)
from scheduler.planning.types import UNLIMITED

DEFAULT_PRESET = "suanli"
PRESET_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "suanli": "Fair between institutions; within one, the shortest expected response goes first. The default.",
        "fair": "Fair between institutions, projects and users; a user's jobs in order of submission.",
        "fifo": "In order of submission, whoever submits; backfill fills the gaps.",
        "shortest": "The shortest expected service first, whoever submits.",
    }
)
"""What each preset is for, in a sentence."""

MAX_GUARANTEES = MAX_POOLS = MAX_DATA_SETS = MAX_LINKS = 10_000
MAX_SPEEDS = MAX_REGIONS = 1_000
MAX_PRICE = 10**12
MAX_RATE_MIB_S = 1 << 30
ROOT = "policy"
_SECONDS_MS, _MINUTE_MS, _YEAR_MS = 1_000, 60_000, 365 * DAY_MS
_ANY_LINK = "default"
_TOP = (
    "preset",
    "name",
    "order",
    "guarantees",
    "reclaim_within",
    "preemption",
    "backfill",
    "score",
    "pools",
    "data_sets",
    "speed",
    "bandwidth",
    "round",
)
_ACCELERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DATA_SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,127}")


def parse(document: Mapping[str, Any]) -> Policy:
    """The policy that a document says. ``InvalidArgument`` names the setting that is wrong; ``field`` is its path."""
    top = Section(document, ROOT, _TOP)
    preset = top.take("preset", _preset, DEFAULT_PRESET)
    base = PRESETS[preset]
    rounds = top.part("round", ("max_starts", "max_passed_over"))
    pools = v.table(v.read_pool, _pool, MAX_POOLS, "pools")
    data_sets = v.table(
        v.matching(_DATA_SET, "is not a data set's name; use letters, digits and . _ / @ -, at most 128"),
        _data_set,
        MAX_DATA_SETS,
        "data sets",
    )
    speed = v.table(
        v.matching(_ACCELERATOR, "is not an accelerator type; write one as `suanli pools` shows it"),
        v.milli(1, 1_000_000),
        MAX_SPEEDS,
        "accelerator types",
    )
    bandwidth = v.table(_link, v.rate(1, MAX_RATE_MIB_S), MAX_LINKS, "links")
    return Policy(
        name=top.take("name", v.slug("a policy's name"), base.name),
        order=_order(top, base.order),
        guarantees=_guarantees(document["guarantees"]) if top.has("guarantees") else base.guarantees,
        reclaim_within_ms=top.take("reclaim_within", v.duration(_SECONDS_MS, 7 * DAY_MS), base.reclaim_within_ms),
        preemption=_preemption(top, base.preemption),
        backfill=_backfill(top, base.backfill),
        score=_score(top, base.score),
        pools=MappingProxyType(top.take("pools", pools, dict(base.pools))),
        data_sets=MappingProxyType(top.take("data_sets", data_sets, dict(base.data_sets))),
        speed_milli=MappingProxyType(top.take("speed", speed, dict(base.speed_milli))),
        bandwidth_mib_s=MappingProxyType(top.take("bandwidth", bandwidth, dict(base.bandwidth_mib_s))),
        max_starts_per_round=rounds.take("max_starts", v.integer(1, 100_000), base.max_starts_per_round),
        max_passed_over_ms=rounds.take("max_passed_over", v.duration(0, _YEAR_MS), base.max_passed_over_ms),
    )


def preset_of(document: Mapping[str, Any]) -> str:
    """The preset that a good document is based on."""
    return str(document.get("preset", DEFAULT_PRESET))


def _preset(value: Any, path: str) -> str:
    if not isinstance(value, str) or value not in PRESETS:
        refuse(path, f"{shown(value)} is not a preset; there are {', '.join(PRESETS)}.")
    return value


def _order(top: Section, base: OrderPolicy) -> OrderPolicy:
    order = top.part("order", ("fair_levels", "shortness", "priority", "past"))
    priority = order.part("priority", ("head_start", "factor"))
    past = order.part("past", ("weight", "half_life"))
    return OrderPolicy(
        fair_levels=order.take("fair_levels", _fair_levels, base.fair_levels),
        shortness_milli=order.take("shortness", v.milli(0, 10**9), base.shortness_milli),
        class_head_start_ms=priority.take("head_start", v.duration(0, _YEAR_MS), base.class_head_start_ms),
        class_factor=priority.take("factor", v.integer(1, 1000), base.class_factor),
        past_milli=past.take("weight", v.milli(0, 1000), base.past_milli),
        half_life_ms=past.take("half_life", v.duration(_MINUTE_MS, 10 * _YEAR_MS), base.half_life_ms),
    )


def _fair_levels(value: Any, path: str) -> tuple[str, ...]:
    levels = v.listing(_level, len(LEVELS), "levels")(value, path)
    if levels != LEVELS[: len(levels)]:
        ways = ", ".join(f"[{', '.join(LEVELS[:count])}]" for count in range(len(LEVELS) + 1))
        refuse(path, f"[{', '.join(levels)}] does not go from the top down; write one of {ways}.")
    return levels


def _level(value: Any, path: str) -> str:
    if value not in LEVELS:
        refuse(path, f"{shown(value)} is not a level; there are {', '.join(LEVELS)}.")
    return str(value)


def _guarantees(value: Any) -> tuple[Guarantee, ...]:
    path = f"{ROOT}.guarantees"
    if not isinstance(value, list | tuple):
        refuse(path, f"{shown(value)} is not a list of guarantees.")
    if len(value) > MAX_GUARANTEES:
        refuse(path, f"{len(value):,} guarantees are too many; give at most {MAX_GUARANTEES:,}.")
    found: dict[tuple[str, str], int] = {}
    guarantees = []
    for index, item in enumerate(value):
        guarantee = _guarantee(item, f"{path}[{index}]")
        key = (guarantee.institution, guarantee.pool)
        if key in found:
            refuse(
                f"{path}[{index}]",
                f"{key[0]} has a guarantee of {key[1]} already, as {path}[{found[key]}]; write both amounts as one.",
            )
        found[key] = index
        guarantees.append(guarantee)
    return tuple(guarantees)


def _guarantee(value: Any, path: str) -> Guarantee:
    section = Section(value, path, ("institution", "pool", "amount", "borrowing", "lending"))
    institution = section.need("institution", v.slug("an institution's id"))
    pool = section.need("pool", v.read_pool)
    amount = section.need("amount", amounts.resources)
    lending = section.take(
        "lending", lambda value, at: None if value == amounts.NO_LIMIT else amounts.limits(value, at, amount), None
    )
    if lending is not None:
        for name, lent, whole in zip(("cpu", "memory", "gpus"), lending, amount, strict=True):
            if lent > whole:
                refuse(
                    f"{path}.lending.{name}", "more is lent than is guaranteed; give at most what stands under amount."
                )
    return Guarantee(
        institution,
        pool,
        amount,
        section.take(
            "borrowing",
            lambda value, at: None if value == amounts.NO_LIMIT else amounts.limits(value, at, UNLIMITED),
            None,
        ),
        lending,
    )


def _preemption(top: Section, base: PreemptionPolicy) -> PreemptionPolicy:
    section = top.part(
        "preemption", ("reclaim", "fair_share", "priority", "shorter", "move", "min_runtime", "per_hour", "per_round")
    )
    shorter = section.take("shorter", v.milli(0, 1_000_000), base.shorter_milli)
    if 0 < shorter < 1000:
        refuse(
            f"{section.path}.shorter",
            f"{v.number(shorter)} would stop a job for a longer one; give 0 for never, or at least 1.",
        )
    return PreemptionPolicy(
        reclaim=section.take("reclaim", v.flag, base.reclaim),
        fair_share=section.take("fair_share", v.flag, base.fair_share),
        priority=section.take("priority", v.flag, base.priority),
        shorter_milli=shorter,
        move=section.take("move", v.flag, base.move),
        min_runtime_ms=section.take("min_runtime", v.duration(0, 30 * DAY_MS), base.min_runtime_ms),
        per_hour=section.take("per_hour", v.integer(0, 1_000_000), base.per_hour),
        per_round=section.take("per_round", v.integer(0, 100_000), base.per_round),
    )


def _backfill(top: Section, base: BackfillPolicy) -> BackfillPolicy:
    section = top.part("backfill", ("reservations", "look", "horizon"))
    return BackfillPolicy(
        reservations=section.take("reservations", v.integer(0, 10_000), base.reservations),
        look=section.take("look", v.integer(0, 100_000), base.look),
        horizon_ms=section.take("horizon", v.duration(0, 10 * 365 * DAY_MS), base.horizon_ms),
    )


_WEIGHTS = ("fragmentation", "best_fit", "home", "locality", "price", "speed")


def _score(top: Section, base: ScorePolicy) -> ScorePolicy:
    section = top.part("score", (*_WEIGHTS, "accelerator_order"))
    weight = v.milli(0, 1_000_000)
    return ScorePolicy(
        **{name: section.take(name, weight, getattr(base, name)) for name in _WEIGHTS},
        accelerator_order=section.take("accelerator_order", v.flag, base.accelerator_order),
    )


def _pool(value: Any, path: str) -> PoolPolicy:
    section = Section(value, path, ("spot", "price", "trust"))
    price = section.part("price", ("cpu_core_hour", "gpu_hour"))
    amount = v.integer(0, MAX_PRICE)
    return PoolPolicy(
        spot=section.take("spot", v.flag, False),
        cpu_core_hour=price.take("cpu_core_hour", amount, 0),
        gpu_hour=price.take("gpu_hour", amount, 0),
        trust=section.take("trust", _trust, Classification.RESTRICTED),
    )


def _trust(value: Any, path: str) -> Classification:
    if not isinstance(value, str) or value.upper() not in Classification.__members__:
        names = ", ".join(level.name.lower() for level in Classification)
        refuse(path, f"{shown(value)} is no level of data; give one of {names}.")
    return Classification[value.upper()]


def _data_set(value: Any, path: str) -> DataSet:
    section = Section(value, path, ("size", "regions", "allowed_regions"))
    regions = v.listing(v.read_region, MAX_REGIONS, "regions")
    return DataSet(
        size_mib=section.need("size", v.size),
        regions=section.take("regions", regions, ()),
        allowed_regions=section.take("allowed_regions", regions, ()),
    )


def _link(value: Any, path: str) -> str:
    return "" if value == _ANY_LINK else v.pair("from", "to")(value, path)


# --- writing ------------------------------------------------------------------------------------------------------------


def dump(policy: Policy) -> dict[str, Any]:
    """Every setting of a policy as plain data in canonical form: the same policy gives the same data, in the same order."""
    order, preemption = policy.order, policy.preemption
    return {
        "name": policy.name,
        "order": {
            "fair_levels": list(order.fair_levels),
            "shortness": v.number(order.shortness_milli),
            "priority": {"head_start": v.duration_text(order.class_head_start_ms), "factor": order.class_factor},
            "past": {"weight": v.number(order.past_milli), "half_life": v.duration_text(order.half_life_ms)},
        },
        "guarantees": [_guarantee_data(guarantee) for guarantee in policy.guarantees],
        "reclaim_within": v.duration_text(policy.reclaim_within_ms),
        "preemption": {
            "reclaim": preemption.reclaim,
            "fair_share": preemption.fair_share,
            "priority": preemption.priority,
            "shorter": v.number(preemption.shorter_milli),
            "move": preemption.move,
            "min_runtime": v.duration_text(preemption.min_runtime_ms),
            "per_hour": preemption.per_hour,
            "per_round": preemption.per_round,
        },
        "backfill": {
            "reservations": policy.backfill.reservations,
            "look": policy.backfill.look,
            "horizon": v.duration_text(policy.backfill.horizon_ms),
        },
        "score": {name: v.number(getattr(policy.score, name)) for name in _WEIGHTS}
        | {"accelerator_order": policy.score.accelerator_order},
        "pools": {
            name: {
                "spot": pool.spot,
                "price": {"cpu_core_hour": pool.cpu_core_hour, "gpu_hour": pool.gpu_hour},
                "trust": pool.trust.name.lower(),
            }
            for name, pool in sorted(policy.pools.items())
        },
        "data_sets": {
            name: {
                "size": v.size_text(one.size_mib),
                "regions": list(one.regions),
                "allowed_regions": list(one.allowed_regions),
            }
            for name, one in sorted(policy.data_sets.items())
        },
        "speed": {name: v.number(speed) for name, speed in sorted(policy.speed_milli.items())},
        "bandwidth": {name or _ANY_LINK: v.rate_text(rate) for name, rate in sorted(policy.bandwidth_mib_s.items())},
        "round": {
            "max_starts": policy.max_starts_per_round,
            "max_passed_over": v.duration_text(policy.max_passed_over_ms),
        },
    }


def _guarantee_data(guarantee: Guarantee) -> dict[str, Any]:
    return {
        "institution": guarantee.institution,
        "pool": guarantee.pool,
        "amount": amounts.resources_data(guarantee.amount),
        "borrowing": amounts.NO_LIMIT if guarantee.borrowing is None else amounts.resources_data(guarantee.borrowing),
        "lending": amounts.NO_LIMIT if guarantee.lending is None else amounts.resources_data(guarantee.lending),
    }
