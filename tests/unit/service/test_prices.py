"""Price lists are put while metering goes on, and outlive the process."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.domain.errors import FailedPrecondition, Internal
from scheduler.domain.records import PriceListRecord
from scheduler.domain.resources import Resources
from scheduler.metering.money import COST_UNITS_PER_MINOR, HOUR_MS
from scheduler.metering.price_text import read_effective, read_prices
from scheduler.planning.policy_text import read_policy
from scheduler.service import prices
from scheduler.service.contract import PriceListDraft, PriceListPut
from tests.unit.service.harness import T0_MS, Site, node, spec

LIST = "currency: CNY\nrates: [{cpu_core_hour: 0.1, gpu_hour: 8}]\n"
DAY_MS = 24 * HOUR_MS


def put(site: Site, document: str = LIST, author: str = "op", **values: Any) -> PriceListPut:
    done = prices.put_price_list(site.engine.state, PriceListDraft(document, read_prices(document), **values), author)
    site.turn()
    return done


def refused(site: Site, document: str, **values: Any) -> FailedPrecondition:
    with pytest.raises(FailedPrecondition) as caught:
        put(site, document, **values)
    return caught.value


def in_force(site: Site, at_ms: int = T0_MS) -> int:
    one = site.engine.state.metering.prices.at(at_ms)
    return one.version if one else 0


def test_the_first_is_in_force_at_once(site: Site) -> None:
    record = put(site, comment="the senate's").record

    assert record == site.store.find_price_list(1)
    assert (record.version, record.document, record.comment, record.author) == (1, LIST, "the senate's", "op")
    assert (record.name, record.currency, record.create_ms) == ("prices", "CNY", T0_MS)
    # "from" was left out: it is the moment at which it was put, and is kept as such.
    assert (record.from_ms, record.to_ms) == (T0_MS, 0)
    assert read_effective(record.effective, 1) == site.engine.state.metering.prices.at(T0_MS)
    assert in_force(site, T0_MS - 1) == 0


def test_the_newest_of_those_for_an_instant_holds(site: Site) -> None:
    put(site)
    put(site, LIST + "from: 2026-10-07\nto: 2026-10-08\n")

    assert [in_force(site, T0_MS + days * DAY_MS) for days in (0, 2, 3)] == [1, 2, 1]
    listed = prices.list_price_lists(site.engine.state, 0, 10)
    assert [(one.version, one.from_ms, one.to_ms) for one in listed] == [
        (2, T0_MS + 2 * DAY_MS, T0_MS + 3 * DAY_MS),
        (1, T0_MS, 0),
    ]
    assert {(one.document, one.effective) for one in listed} == {("", "")}
    assert [one.version for one in prices.list_price_lists(site.engine.state, 2, 10)] == [1]
    assert [one.version for one in prices.list_price_lists(site.engine.state, 0, 1)] == [2]


@pytest.mark.parametrize("validate_only", [False, True])
def test_what_has_been_metered_keeps_its_price(site: Site, validate_only: bool) -> None:
    put(site)
    site.clock.at_ms += DAY_MS
    for setting, field in (
        ("from: 2026-10-05", "prices.from"),
        ("to: 2026-10-05", "prices.to"),
        ("to: 2026-10-06", "prices.to"),
    ):
        error = refused(site, f"{LIST}{setting}\n", validate_only=validate_only)
        assert (error.reason, error.field) == ("PRICES_IN_THE_PAST", field)
        assert error.message.startswith(f"{field}: 2026-10-0")
        assert "has passed" in error.message
    # The present is no past.
    assert put(site, LIST + "from: 2026-10-06\n", validate_only=validate_only).record.version == 2 * (not validate_only)


def test_one_currency_for_the_platform(site: Site) -> None:
    put(site)
    for validate_only in (False, True):
        error = refused(site, LIST.replace("CNY", "EUR"), validate_only=validate_only)
        assert (error.reason, error.field) == ("CURRENCY_CHANGED", "prices.currency")
        assert "are in CNY" in error.message
    site.restart()
    assert refused(site, LIST.replace("CNY", "EUR")).reason == "CURRENCY_CHANGED"


def test_a_repeated_call_makes_one_version(site: Site) -> None:
    assert put(site, comment="why").record.version == 1
    site.clock.at_ms += DAY_MS
    # The answer was lost, and the same call comes again.
    assert put(site, comment="why").record == site.store.find_price_list(1)
    site.restart()
    assert put(site, comment="why").record == site.store.find_price_list(1)
    assert put(site, comment="why", author="deputy").record.version == 2
    assert put(site, comment="because", author="deputy").record.version == 3
    assert put(site, LIST + "# another\n", comment="because", author="deputy").record.version == 4
    # Also when its beginning has passed meanwhile.
    later = LIST + "from: 2026-10-07\n"
    assert put(site, later).record.version == 5
    site.clock.at_ms += 5 * DAY_MS
    assert put(site, later).record.version == 5


def test_a_check_changes_nothing(site: Site) -> None:
    site.engine.take_turn()
    done = put(site, LIST + "to: 2027-01-01\n", validate_only=True)

    assert (done.record.version, done.record.from_ms) == (0, T0_MS)
    assert [warning[:30] for warning in done.warnings] == ["prices: from 2027-01-01 on no "]
    assert not site.engine.take_turn()
    assert (in_force(site), site.engine.state.price_lists) == (0, {})


def test_stored_lists_outlive_the_process(site: Site) -> None:
    put(site)
    put(site, LIST + "from: 2026-10-07\n")
    before = site.engine.state.metering.prices

    site.restart()

    after = site.engine.state.metering.prices
    assert [after.get(version) for version in (1, 2, 3)] == [before.get(1), before.get(2), None]
    assert after.newest == before.newest
    assert [one.version for one in prices.list_price_lists(site.engine.state, 0, 10)] == [2, 1]
    assert put(site).record.version == 3


def test_a_stored_list_that_cannot_be_read_ends_the_start(site: Site) -> None:
    for effective in ('{"from_the_future": 1}', "no json"):
        record = PriceListRecord(4, "", effective, "a", "CNY", 1, 0, "", "op", 1)
        with pytest.raises(Internal, match="version 4, cannot be read") as caught:
            prices.use_stored(site.engine.state, [record])
        assert caught.value.reason == "PRICES_UNREADABLE"


def test_warnings_go_by_the_platform_as_it_is(site: Site) -> None:
    document = "currency: CNY\nrates: [{pools: [west/*]}]\ndiscounts: [{institution: x, percent: 1}]\n"
    found = put(site, document).warnings
    assert [warning.partition(":")[0] for warning in found] == [
        "prices.rates",
        "prices.rates[0]",
        "prices.discounts[0].institution",
    ]
    site.add_region("west", [node("w1")])
    assert len(put(site, document, comment="again").warnings) == 2


def estimated(site: Site, **values: Any) -> list[tuple[str, str, int, int, bool]]:
    found = prices.estimate_job(site.engine.state, site.engine.policy, spec(**values), "ada")
    assert (found.currency, found.digits) == ("CNY", 2)
    return [
        (
            f"{one.place.region}/{one.place.pool}",
            one.place.accelerator,
            one.max_cost_units,
            one.expected_ms,
            one.unpriced,
        )
        for one in found.places
    ]


def test_a_job_is_estimated_where_it_could_run(site: Site) -> None:
    site.add_region("west", [node("w1", Resources(64_000, 262_144, 8_000), "gpu", "A100"), node("w2", pool="gpu")])
    put(
        site,
        "currency: CNY\nrates: [{pools: [west/*], cpu_core_hour: 0.2, gpu_hour: 8}, {pools: [east/*], cpu_core_hour: 0.1}]\n",
    )
    hour = {"max_runtime_ms": HOUR_MS - 30_000, "grace_period_ms": 30_000}
    fen = COST_UNITS_PER_MINOR

    # Two cores for an hour with its grace; the dearest first.
    assert estimated(site, cpu=2_000, **hour) == [
        ("west/gpu", "", 40 * fen, HOUR_MS - 30_000, False),
        ("west/gpu", "A100", 40 * fen, HOUR_MS - 30_000, False),
        ("east/cpu", "", 20 * fen, HOUR_MS - 30_000, False),
    ]
    # What does not fit, or may not be used, is not estimated.
    assert [one[:3] for one in estimated(site, cpu=1_000, gpu=2_000, **hour)] == [("west/gpu", "A100", 1620 * fen)]
    assert [one[:2] for one in estimated(site, cpu=16_000, **hour)] == [("west/gpu", "A100")]
    assert [one[:2] for one in estimated(site, cpu=1_000, pools=["cpu"], **hour)] == [("east/cpu", "")]
    # An array costs its tasks, a gang its replicas.
    assert estimated(site, cpu=1_000, pools=["cpu"], size=50, **hour)[0][2] == 500 * fen
    assert estimated(site, cpu=1_000, pools=["cpu"], replicas=3, **hour)[0][2] == 30 * fen


def test_spot_pools_are_estimated_for_preemptible_jobs_alone(site: Site) -> None:
    put(site)
    site.engine.state.use_policy(read_policy("pools: {east/cpu: {spot: true}}").policy)
    assert estimated(site, preemptible=False) == []
    assert len(estimated(site, preemptible=True)) == 1


def test_nothing_costs_anything_before_there_is_a_price(site: Site) -> None:
    found = prices.estimate_job(site.engine.state, site.engine.policy, spec(), "ada")
    assert (found.currency, [(one.max_cost_units, one.unpriced) for one in found.places]) == ("", [(0, True)])
