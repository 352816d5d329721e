"""The policy document: what may be written, and where everything else is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.domain.document_text import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_EFFECTIVE_BYTES,
    MAX_VALUES,
    yaml_of,
)
from scheduler.domain.document_values import MAX_WARNINGS
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.policy import LEVELS, PRESETS, DataSet, Guarantee, OrderPolicy, Policy, PoolPolicy
from scheduler.planning.policy_document import PRESET_NOTES, dump, parse
from scheduler.planning.policy_text import effective_of, read_effective, read_policy
from scheduler.planning.policy_warnings import warnings
from scheduler.planning.types import UNLIMITED

EVERYTHING = """
preset: fair
name: two-universities
order:
  fair_levels: [institution, project]
  shortness: 2.5
  priority: {head_start: 1d12h, factor: 3}
  past: {weight: 0.25, half_life: 14d}
guarantees:
  - institution: beishan
    pool: east/gpu
    amount: {cpu: 64, memory: 512GiB, gpus: 8}
    borrowing: {gpus: 4, memory: unlimited}
    lending: none
  - institution: nanhu
    pool: east/gpu
    amount: {cpu: 500m, gpus: "0.5"}
    lending: {gpus: 0.25}
reclaim_within: 90s
preemption: {reclaim: true, fair_share: true, priority: false, shorter: 3, min_runtime: 0, per_hour: 5, per_round: 7}
backfill: {reservations: 3, look: 4}
score: {fragmentation: 0.5, best_fit: 0, home: 2, locality: 3, price: 0.125, speed: 1, accelerator_order: false}
pools:
  west/spot: {spot: true, price: {cpu_core_hour: 2, gpu_hour: 150}}
data_sets:
  census/v1.2: {size: 500GB, regions: [east], allowed_regions: [east, west]}
speed: {A100: 1, V100: 0.45}
bandwidth: {default: 100MiB/s, east/west: 10Gbit/s}
round: {max_starts: 100, max_passed_over: 2h}
"""


def test_every_setting_is_read() -> None:
    policy = read_policy(EVERYTHING).policy

    assert policy.name == "two-universities"
    assert policy.order == OrderPolicy(("institution", "project"), 2_500, 129_600_000, 3, 250, 14 * 86_400_000)
    first, second = policy.guarantees
    assert (first.institution, first.pool, first.amount) == ("beishan", "east/gpu", Resources(64_000, 524_288, 8_000))
    assert first.borrowing == Resources(UNLIMITED.cpu_milli, UNLIMITED.memory_mib, 4_000)
    assert first.lending == ZERO
    assert second == Guarantee("nanhu", "east/gpu", Resources(500, 0, 500), None, Resources(500, 0, 250))
    assert policy.reclaim_within_ms == 90_000
    assert (policy.preemption.fair_share, policy.preemption.priority) == (True, False)
    assert (policy.preemption.shorter_milli, policy.preemption.min_runtime_ms) == (3_000, 0)
    assert (policy.preemption.per_hour, policy.preemption.per_round) == (5, 7)
    assert (policy.backfill.reservations, policy.backfill.look) == (3, 4)
    assert (policy.score.fragmentation, policy.score.best_fit, policy.score.price) == (500, 0, 125)
    assert policy.score.accelerator_order is False
    assert policy.pools == {"west/spot": PoolPolicy(True, 2, 150)}
    # 500 × 10^9 bytes are 476,837.16 MiB.
    assert policy.data_sets == {"census/v1.2": DataSet(476_838, ("east",), ("east", "west"))}
    assert policy.speed_milli == {"A100": 1000, "V100": 450}
    # 1.25 × 10^9 bytes a second are 1,192.09 MiB.
    assert policy.bandwidth_mib_s == {"": 100, "east/west": 1192}
    assert (policy.max_starts_per_round, policy.max_passed_over_ms) == (100, 7_200_000)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_that_preset(name: str) -> None:
    assert parse({"preset": name}) == PRESETS[name]
    assert PRESET_NOTES[name]
    assert set(PRESET_NOTES) == set(PRESETS)


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "---\n", "{}", "null"])
def test_an_empty_document_is_the_default(text: str) -> None:
    assert read_policy(text).policy == PRESETS["suanli"]


def test_what_is_not_given_is_the_presets() -> None:
    changed = parse({"preset": "fair", "order": {"past": {"weight": 0}}, "backfill": {"look": 5}})

    fair = PRESETS["fair"]
    assert changed == replace(fair, order=replace(fair.order, past_milli=0), backfill=replace(fair.backfill, look=5))


def test_limits_that_are_not_named_do_not_bind() -> None:
    document = {"institution": "a", "pool": "e/p", "amount": {"cpu": 4, "gpus": 2}, "lending": {}, "borrowing": {}}
    (guarantee,) = parse({"guarantees": [document]}).guarantees

    assert guarantee.lending == guarantee.amount
    assert guarantee.borrowing == UNLIMITED
    (free,) = parse({"guarantees": [document | {"lending": "unlimited", "borrowing": "unlimited"}]}).guarantees
    assert (free.lending, free.borrowing) == (None, None)


def guarantee(**values: Any) -> dict[str, Any]:
    one = {"institution": "a", "pool": "east/gpu", "amount": {"gpus": 4}} | values
    return {"guarantees": [{"institution": "z", "pool": "z/z", "amount": {}}, one]}


G = "policy.guarantees[1]"
WRONG: list[tuple[str, Any, str, str]] = [
    # what is wrong, the document, the path, a part of what is said
    ("no mapping", [], "policy", "not a mapping"),
    ("an unknown setting", {"preemptions": {}}, "policy.preemptions", "did you mean preemption?"),
    ("one that resembles none", {"xyz": 1}, "policy.xyz", "There are: preset, name, order"),
    ("a key that is no text", {True: 1}, "policy", "no setting True"),
    ("an unknown preset", {"preset": "best"}, "policy.preset", "suanli, fair, fifo, shortest"),
    ("a preset that is no name", {"preset": ["fair"]}, "policy.preset", "a list is not a preset"),
    ("a name with capitals", {"name": "Ours"}, "policy.name", "lower-case"),
    ("an empty section", {"order": None}, "policy.order", "nothing is not a mapping"),
    ("a section that is a list", {"backfill": [1]}, "policy.backfill", "a list is not a mapping"),
    ("an unknown inner setting", {"order": {"shortnes": 1}}, "policy.order.shortnes", "did you mean shortness?"),
    ("levels not from the top", {"order": {"fair_levels": ["project"]}}, "policy.order.fair_levels", "from the top"),
    (
        "levels with a gap",
        {"order": {"fair_levels": ["institution", "user"]}},
        "policy.order.fair_levels",
        "[institution, project, user]",
    ),
    ("an unknown level", {"order": {"fair_levels": ["team"]}}, "policy.order.fair_levels[0]", "institution, project"),
    ("a level that is a list", {"order": {"fair_levels": [[]]}}, "policy.order.fair_levels[0]", "not a level"),
    ("levels that are no list", {"order": {"fair_levels": "project"}}, "policy.order.fair_levels", "not a list"),
    (
        "a level twice",
        {"order": {"fair_levels": ["institution", "institution"]}},
        "policy.order.fair_levels[1]",
        "already, as policy.order.fair_levels[0]",
    ),
    (
        "too many levels",
        {"order": {"fair_levels": [*LEVELS, "institution"]}},
        "policy.order.fair_levels",
        "at most 3",
    ),
    ("a negative number", {"order": {"shortness": -1}}, "policy.order.shortness", "from 0 to 1,000,000"),
    ("a number that is none", {"order": {"shortness": float("nan")}}, "policy.order.shortness", "nan is not"),
    ("an infinite number", {"order": {"shortness": float("inf")}}, "policy.order.shortness", "inf is not"),
    ("a number of many digits", {"order": {"shortness": 10**5000}}, "policy.order.shortness", "this large"),
    ("too fine a number", {"order": {"shortness": 0.0001}}, "policy.order.shortness", "three decimals"),
    ("true for a number", {"order": {"shortness": True}}, "policy.order.shortness", "True is not a number"),
    ("a word for a number", {"order": {"shortness": "1e3"}}, "policy.order.shortness", "'1e3' is not a number"),
    ("no unit", {"order": {"priority": {"head_start": 30}}}, "policy.order.priority.head_start", "with its unit"),
    ("a false for a time", {"order": {"priority": {"head_start": False}}}, "policy.order.priority.head_start", "unit"),
    ("an unknown unit", {"order": {"priority": {"head_start": "3y"}}}, "policy.order.priority.head_start", "1h30m"),
    ("a negative time", {"reclaim_within": "-3s"}, "policy.reclaim_within", "not a length of time"),
    ("a time too short", {"reclaim_within": "10ms"}, "policy.reclaim_within", "give 1s to 7d"),
    ("a time too long", {"reclaim_within": "8d"}, "policy.reclaim_within", "give 1s to 7d"),
    ("a half-life of nothing", {"order": {"past": {"half_life": 0}}}, "policy.order.past.half_life", "give 1m to"),
    ("a weight above one", {"order": {"past": {"weight": 1.5}}}, "policy.order.past.weight", "from 0 to 1 "),
    ("a factor of nothing", {"order": {"priority": {"factor": 0}}}, "policy.order.priority.factor", "1 to 1,000"),
    ("a part of a count", {"backfill": {"look": 1.5}}, "policy.backfill.look", "1.5 is not a whole number"),
    ("a count below the range", {"round": {"max_starts": 0}}, "policy.round.max_starts", "1 to 100,000"),
    ("a word for a flag", {"preemption": {"reclaim": "yes"}}, "policy.preemption.reclaim", "neither true nor false"),
    ("a one for a flag", {"preemption": {"reclaim": 1}}, "policy.preemption.reclaim", "neither true nor false"),
    ("a shorter that is longer", {"preemption": {"shorter": 0.5}}, "policy.preemption.shorter", "a longer one"),
    ("an unknown weight", {"score": {"size": 1}}, "policy.score.size", "fragmentation, best_fit"),
    ("guarantees that are no list", {"guarantees": {}}, "policy.guarantees", "not a list"),
    ("a guarantee that is none", {"guarantees": ["a"]}, "policy.guarantees[0]", "not a mapping"),
    ("too many guarantees", {"guarantees": [{}] * 10_001}, "policy.guarantees", "at most 10,000"),
    ("a guarantee of nobody", {"guarantees": [{"pool": "a/b"}]}, "policy.guarantees[0].institution", "missing"),
    ("a pool without region", guarantee(pool="gpu"), f"{G}.pool", '"region/pool", as in east/gpu'),
    ("a pool that is a number", guarantee(pool=7), f"{G}.pool", "7 is not of the form"),
    ("a pool with two slashes", guarantee(pool="a/b/c"), f"{G}.pool", "not of the form"),
    ("an institution that YAML takes for false", guarantee(institution=False), f"{G}.institution", "in quotes"),
    ("an unknown resource", guarantee(amount={"gpu": 4}), f"{G}.amount.gpu", "did you mean gpus?"),
    ("an amount without unit", guarantee(amount={"memory": 64}), f"{G}.amount.memory", "with its unit"),
    ("an unknown size", guarantee(amount={"memory": "64g"}), f"{G}.amount.memory", "512MiB"),
    ("a size beyond all", guarantee(amount={"memory": "2000PiB"}), f"{G}.amount.memory", "at most 1024PiB"),
    ("a bandwidth for a size", guarantee(amount={"memory": "64GiB/s"}), f"{G}.amount.memory", "not a size"),
    ("cores beyond all", guarantee(amount={"cpu": 10**10}), f"{G}.amount.cpu", "from 0 to 1,000,000,000"),
    ("more lent than there is", guarantee(lending={"gpus": 5}), f"{G}.lending.gpus", "more is lent"),
    ("lent of what there is none of", guarantee(lending={"cpu": 1}), f"{G}.lending.cpu", "more is lent"),
    ("a limit that is none", guarantee(borrowing="all"), f"{G}.borrowing", "write none, unlimited"),
    ("an unknown limit", guarantee(borrowing={"gpus": "all"}), f"{G}.borrowing.gpus", "not a number"),
    ("a guarantee twice", guarantee(institution="z", pool="z/z"), G, "already, as policy.guarantees[0]"),
    ("a pool's key", {"pools": {"spot": {}}}, "policy.pools", '"region/pool"'),
    ("an unknown setting of a pool", {"pools": {"e/p": {"cost": 1}}}, "policy.pools.e/p.cost", "spot, price"),
    ("a part of a price", {"pools": {"e/p": {"price": {"gpu_hour": 0.5}}}}, "policy.pools.e/p.price.gpu_hour", "whole"),
    ("a level", {"pools": {"e/p": {"trust": "secret"}}}, "policy.pools.e/p.trust", "public, internal, restricted"),
    ("pools that are a list", {"pools": []}, "policy.pools", "not a mapping from pools"),
    ("a data set of no size", {"data_sets": {"d": {}}}, "policy.data_sets.d.size", "missing"),
    ("a data set's name", {"data_sets": {"a b": {}}}, "policy.data_sets", "not a data set's name"),
    (
        "a region twice",
        {"data_sets": {"d": {"size": 0, "regions": ["e", "e"]}}},
        "policy.data_sets.d.regions[1]",
        "alr",
    ),
    (
        "a region with a dot",
        {"data_sets": {"d": {"size": 0, "regions": ["e.f"]}}},
        "policy.data_sets.d.regions[0]",
        "id",
    ),
    ("no speed", {"speed": {"A100": 0}}, "policy.speed.A100", "from 0.001 to 1,000"),
    ("an accelerator's name", {"speed": {"": 1}}, "policy.speed", "not an accelerator type"),
    ("a rate without time", {"bandwidth": {"a/b": "1GiB"}}, "policy.bandwidth.a/b", "10Gbit/s"),
    ("no rate", {"bandwidth": {"a/b": "1Mbit/s"}}, "policy.bandwidth.a/b", "give 1MiB/s to"),
    ("a link of one end", {"bandwidth": {"a": "1GiB/s"}}, "policy.bandwidth", '"from/to"'),
    ("too many speeds", {"speed": {f"A{n}": 1 for n in range(1001)}}, "policy.speed", "at most 1,000"),
]


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
        read_policy(text)
    return caught.value


def test_errors_say_line_and_column() -> None:
    error = refused(
        "preset: fair\nguarantees:\n  - {institution: a, pool: a/b, amount: {}}\n  - pool: gpu\n    institution: b\n"
    )
    assert error.field == "policy.guarantees[1].pool"
    assert error.message.startswith("policy.guarantees[1].pool (line 4, column 5): 'gpu' is not")

    # What is missing has no place of its own: that of the thing it is missing from.
    assert "amount (line 2, column 5)" in refused("guarantees:\n  - pool: a/b\n    institution: b\n").message
    assert "v1.2.size (line 2, column 10)" in refused("data_sets:\n  v1.2: {size: big}\n  v1: {size: 0}\n").message
    assert "policy (line 1, column 1): there is no setting 5" in refused("5: 1\n").message
    assert "policy.order (line 2, column 1)" in refused("name: a\norder:\n").message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("order: [a\n", "policy (line 2, column 1): this is not readable YAML"),
        ("a: b: c\n", "(line 1, column 5)"),
        ("\tname: a\n", "(line 1, column 1)"),
        ("name: a\nname: b\n", "(line 2, column 1): 'name' is given twice"),
        ("order: {shortness: 1, shortness: 2}\n", "(line 1, column 23): 'shortness' is given twice"),
        ("- a\n", "(line 1, column 1): a policy is written as names and values"),
        ("fair\n", "a policy is written as names and values"),
        ("a: 1\n---\nb: 2\n", "(line 2, column 1)"),
        ("a: &a {<<: *a}\n", "(line 1, column 8)"),
        ("a: &a [*a]\n", "contains itself"),
        ("? [a]\n: b\n", "a plain word"),
        ("a: !!python/object:os.system {}\n", "(line 1, column 4)"),
        ("a: !!int x\n", "not readable"),
        ("a: 2026-99-99\n", "not readable"),
        ("a: \x07\n", "not readable"),
        ("a: " + "9" * 5000 + "\n", "not readable"),
        ("x: " + "[" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels"),
        ("x: " + "[" * 100_000, "(line 1, column 1"),
        ("a: " + "x" * MAX_DOCUMENT_BYTES, "larger than 262,144 bytes"),
    ],
)
def test_unreadable_text_is_refused_where_it_is(text: str, said: str) -> None:
    error = refused(text)
    assert said in error.message
    assert error.reason == "POLICY_UNREADABLE" or "larger" in said
    assert len(error.message) < 400


def test_aliases_that_multiply_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert "too many values" in refused(bomb).message
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))
    assert "too many values" in refused(chain).message


def test_aliases_that_do_not_are_read() -> None:
    text = "guarantees:\n" + "".join(
        f"  - {{institution: i{n}, pool: east/gpu, amount: {'&a {gpus: 4}' if n == 0 else '*a'}}}\n"
        for n in range(3000)
    )
    policy = read_policy(text).policy
    assert {one.amount for one in policy.guarantees} == {Resources(0, 0, 4000)}
    assert len(policy.guarantees) == 3000
    assert MAX_VALUES > 10_000 * 13  # As many as the guarantees that are allowed, each with all it may say, take.


def test_a_document_that_grows_beyond_all_is_refused() -> None:
    regions = ", ".join("r" * 60 + f"{n:03}" for n in range(900))
    text = f"data_sets:\n  d0: &d {{size: 0, regions: [{regions}]}}\n" + "".join(f"  d{n}: *d\n" for n in range(1, 200))
    assert f"larger than {MAX_EFFECTIVE_BYTES:,} bytes" in refused(text).message


def test_the_effective_document_keeps_its_meaning() -> None:
    text = read_policy(EVERYTHING)

    assert read_effective(text.effective) == text.policy
    assert read_policy(yaml_of(text.effective)).policy == text.policy
    # Later settings are to be those of the preset that was meant, so it is named.
    assert yaml_of(text.effective).startswith("preset: fair\nname: two-universities\n")
    assert read_effective(effective_of(PRESETS["fifo"])) == PRESETS["fifo"]


def test_the_canonical_form_is_what_people_write() -> None:
    data = dump(read_policy(EVERYTHING).policy)

    assert data["guarantees"][0]["borrowing"] == {"cpu": "unlimited", "memory": "unlimited", "gpus": 4}
    assert data["guarantees"][1]["amount"] == {"cpu": 0.5, "memory": "0MiB", "gpus": 0.5}
    assert data["order"]["priority"] == {"head_start": "1d12h", "factor": 3}
    assert data["data_sets"]["census/v1.2"]["size"] == "476838MiB"
    assert data["bandwidth"] == {"default": "100MiB/s", "east/west": "1192MiB/s"}
    assert list(data) == [key for key in data if key != "preset"]


def test_two_policies_that_are_equal_read_alike_whatever_their_order() -> None:
    assert dump(parse({"speed": {"B": 1, "A": 2}})) == dump(parse({"speed": {"A": 2, "B": 1}}))
    assert list(dump(parse({"speed": {"B": 1, "A": 2}}))["speed"]) == ["A", "B"]


# --- warnings -----------------------------------------------------------------------------------------------------------

POOLS = {"east/gpu": Resources(128_000, 1 << 20, 9_000), "west/spot": Resources(64_000, 1 << 18, 4_000)}


def warned(text: str) -> list[str]:
    return warnings(read_policy(text).policy, {"beishan", "nanhu"}, POOLS, {"A100", "V100"})


def test_a_sensible_policy_has_no_warnings() -> None:
    assert warned(EVERYTHING) == []
    assert warnings(Policy(), set(), {}, set()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guarantees: [{institution: x, pool: east/gpu, amount: {cpu: 1}}]", "guarantees[0].institution: there is no"),
        ("guarantees: [{institution: nanhu, pool: east/cpu, amount: {cpu: 1}}]", 'no pool "east/cpu"'),
        ("guarantees: [{institution: nanhu, pool: east/gpu, amount: {}}]", "nothing is guaranteed"),
        (
            "guarantees: [{institution: nanhu, pool: east/gpu, amount: {gpus: 6}}, "
            "{institution: beishan, pool: east/gpu, amount: {gpus: 6}}]",
            '133 % of the GPUs of pool "east/gpu"',
        ),
        (
            "{guarantees: [{institution: nanhu, pool: west/spot, amount: {cpu: 1}}], pools: {west/spot: {spot: true}}}",
            "for preemptible jobs only",
        ),
        (
            "{guarantees: [{institution: nanhu, pool: east/gpu, amount: {cpu: 1}}], preemption: {reclaim: false}}",
            "only when their jobs end",
        ),
        ("pools: {west/cpu: {}}", 'no pool "west/cpu"'),
        ("data_sets: {d: {size: 1GiB, regions: [north]}}", 'data_sets.d.regions: region "north"'),
        ("data_sets: {d: {size: 1GiB, regions: [east], allowed_regions: [west]}}", "in no region in which"),
        ("speed: {H100: 3}", 'accelerator "H100"'),
        ("bandwidth: {east/north: 1GiB/s}", 'region "north" of "east/north"'),
        ("preemption: {shorter: 1}", "in turn"),
        ("preemption: {per_round: 0}", "nothing is ever stopped"),
    ],
)
def test_what_is_probably_not_meant_is_said(text: str, said: str) -> None:
    (warning,) = warned(text)
    assert said in warning


def test_warnings_are_bounded() -> None:
    found = warned("speed: {" + ", ".join(f"N{n}: 1" for n in range(200)) + "}")
    assert len(found) == MAX_WARNINGS
    assert found[-1] == f"There are {200 - MAX_WARNINGS + 1} more warnings."
