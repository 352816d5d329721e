"""Whatever a policy says, its document says the same; and no text at all does more than be refused."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain import document_values as v
from scheduler.domain.classification import Classification
from scheduler.domain.document_text import yaml_of
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.resources import Resources
from scheduler.planning import policy_document as doc
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
from scheduler.planning.policy_text import effective_of, read_effective, read_policy
from scheduler.planning.policy_values import BOUNDS
from scheduler.planning.policy_warnings import warnings
from scheduler.planning.types import UNLIMITED

SLUGS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True) | st.sampled_from(["no", "on", "y", "null", "default"])
POOLS = st.builds("{}/{}".format, SLUGS, SLUGS)
YEAR_MS = 365 * DAY_MS
WEIGHT = st.integers(0, 1_000_000)


def amounts(bounds: tuple[int, ...], *rest: int) -> st.SearchStrategy[Resources]:
    """Of each resource something up to its bound, or one of ``rest``."""
    return st.builds(Resources, *(st.integers(0, bound) | st.sampled_from([0, *rest]) for bound in bounds))


@st.composite
def guarantees(draw: st.DrawFn) -> tuple[Guarantee, ...]:
    keys = draw(st.lists(st.tuples(SLUGS, POOLS), max_size=4, unique=True))
    made = []
    for institution, pool in keys:
        amount = draw(amounts(BOUNDS))
        borrowing = draw(st.none() | amounts(BOUNDS, UNLIMITED.cpu_milli))
        lending = draw(st.none() | amounts(tuple(amount)))
        made.append(Guarantee(institution, pool, amount, borrowing, lending))
    return tuple(made)


def mapping(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(keys, values, max_size=4).map(MappingProxyType)


REGIONS = st.lists(SLUGS, max_size=3, unique=True).map(tuple)
POLICIES = st.builds(
    Policy,
    name=SLUGS,
    order=st.builds(
        OrderPolicy,
        fair_levels=st.integers(0, 3).map(lambda count: LEVELS[:count]),
        shortness_milli=st.integers(0, 10**9),
        class_head_start_ms=st.integers(0, YEAR_MS),
        class_factor=st.integers(1, 1000),
        past_milli=st.integers(0, 1000),
        half_life_ms=st.integers(60_000, 10 * YEAR_MS),
    ),
    guarantees=guarantees(),
    reclaim_within_ms=st.integers(1_000, 7 * DAY_MS),
    preemption=st.builds(
        PreemptionPolicy,
        reclaim=st.booleans(),
        fair_share=st.booleans(),
        priority=st.booleans(),
        shorter_milli=st.just(0) | st.integers(1000, 1_000_000),
        min_runtime_ms=st.integers(0, 30 * DAY_MS),
        per_hour=st.integers(0, 1_000_000),
        per_round=st.integers(0, 100_000),
    ),
    backfill=st.builds(BackfillPolicy, reservations=st.integers(0, 10_000), look=st.integers(0, 100_000)),
    score=st.builds(ScorePolicy, WEIGHT, WEIGHT, WEIGHT, WEIGHT, WEIGHT, WEIGHT, st.booleans()),
    pools=mapping(
        POOLS,
        st.builds(
            PoolPolicy,
            st.booleans(),
            st.integers(0, doc.MAX_PRICE),
            st.integers(0, doc.MAX_PRICE),
            st.sampled_from(Classification),
        ),
    ),
    data_sets=mapping(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,8}", fullmatch=True),
        st.builds(DataSet, st.integers(0, v.MAX_MEMORY_MIB), REGIONS, REGIONS),
    ),
    speed_milli=mapping(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), st.integers(1, 1_000_000)),
    bandwidth_mib_s=mapping(st.just("") | POOLS, st.integers(1, doc.MAX_RATE_MIB_S)),
    max_starts_per_round=st.integers(1, 100_000),
    max_passed_over_ms=st.integers(0, YEAR_MS),
)


def test_the_strategy_names_every_setting() -> None:
    """A field added to the policy is to be added to the document, too."""
    document = doc.dump(PRESETS["suanli"])

    assert len(document) == len(Policy.__dataclass_fields__) - 1  # The two bounds of a round are one section.
    assert set(document["score"]) == set(ScorePolicy.__dataclass_fields__)
    assert len(document["preemption"]) == len(PreemptionPolicy.__dataclass_fields__)
    assert len(document["backfill"]) == len(BackfillPolicy.__dataclass_fields__)
    assert len(document["order"]) == len(OrderPolicy.__dataclass_fields__) - 2  # Classes and past are sections.


@given(POLICIES)
def test_a_policys_document_says_that_policy(policy: Policy) -> None:
    assert doc.parse(doc.dump(policy)) == policy
    assert doc.dump(doc.parse(doc.dump(policy))) == doc.dump(policy)


@settings(max_examples=50)
@given(POLICIES)
def test_so_do_its_texts(policy: Policy) -> None:
    text = read_policy(yaml_of(effective_of(policy)))

    assert text.policy == policy
    assert read_effective(text.effective) == policy
    assert len(warnings(policy, set(), {}, set())) <= v.MAX_WARNINGS


# Single values, often near what is right, so that errors come from everywhere in a document.
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["fair", "7d", "64GiB", "10Gbit/s", "east/gpu", "unlimited", "none", "institution"])
)
_NAMES = (
    *doc.dump(PRESETS["suanli"]),
    *(
        "preset",
        "fair_levels",
        "shortness",
        "priority",
        "head_start",
        "past",
        "weight",
        "half_life",
        "institution",
        "pool",
    ),
    *(
        "amount",
        "cpu",
        "memory",
        "gpus",
        "borrowing",
        "lending",
        "reclaim",
        "price",
        "spot",
        "size",
        "regions",
        "max_starts",
    ),
    *("east/gpu", "default", "A100"),
)
_KEYS = st.sampled_from(_NAMES) | st.text(max_size=4)
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)


def outcome(read: Callable[[], Policy]) -> Policy | InvalidArgument:
    try:
        return read()
    except InvalidArgument as error:
        return error


@given(st.dictionaries(_KEYS, _DATA, max_size=4))
def test_any_data_is_a_policy_or_is_refused_by_path(document: dict[str, Any]) -> None:
    found = outcome(lambda: doc.parse(document))

    if isinstance(found, Policy):
        assert doc.parse(doc.dump(found)) == found
    else:
        assert found.field.split(".")[0].split("[")[0] == doc.ROOT
        assert found.message.startswith(found.field)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#?%@`,\n\t 0.~\x00\u2028", max_size=40))
def test_any_text_is_a_policy_or_is_refused(text: str) -> None:
    found = outcome(lambda: read_policy(text).policy)

    assert isinstance(found, Policy) or found.field.startswith(doc.ROOT)
