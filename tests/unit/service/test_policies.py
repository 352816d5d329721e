"""The policy is changed while planning goes on, and outlives the process."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.domain.errors import FailedPrecondition, Internal
from scheduler.domain.resources import Resources
from scheduler.planning.policy import PRESETS, Policy
from scheduler.planning.policy_text import effective_of, read_effective, read_policy
from scheduler.service import policies
from scheduler.service.contract import PolicyDraft
from scheduler.store.memory import MemoryStore
from tests.support import rows
from tests.unit.service.harness import Site, launches, make, node, spec

ONE_AT_A_TIME = "preset: fifo\nround: {max_starts: 1}\n"


def draft(document: str, **values: Any) -> PolicyDraft:
    return PolicyDraft(document, read_policy(document), **values)


def put(site: Site, document: str, author: str = "admin", **values: Any) -> int:
    record = policies.put_policy(site.engine.state, draft(document, **values), author)
    site.turn()
    return record.version


def test_a_new_policy_holds_from_the_next_round_on(site: Site) -> None:
    assert site.engine.policy == Policy()
    assert not site.engine.state.round_needed
    put(site, "preset: fifo\n")

    policies.put_policy(site.engine.state, draft(ONE_AT_A_TIME), "admin")

    assert site.engine.state.round_needed
    assert site.engine.policy.max_starts_per_round == 1


def test_a_round_goes_by_the_policy_of_its_moment(site: Site) -> None:
    put(site, ONE_AT_A_TIME)
    site.engine.submit(make([spec() for _ in range(4)]), {})
    assert site.engine.round() == 1
    policies.put_policy(site.engine.state, draft("round: {max_starts: 2}\n"), "admin")
    assert site.engine.round() == 2
    assert len(launches(site.turn())) == 4


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("preset", "first"), [("fifo", "long"), ("shortest", "short")])
def test_those_who_wait_already_are_ordered_anew(site: Site, preset: str, first: str, restarted: bool) -> None:
    put(site, "preset: fifo\n" if preset == "shortest" else "preset: shortest\n")
    blocker = site.running(cpu=8_000)
    waiting = {
        "long": site.submit_one(cpu=8_000, max_runtime_ms=36_000_000),
        "short": site.submit_one(cpu=8_000, max_runtime_ms=60_000),
    }

    put(site, f"preset: {preset}\n")
    if restarted:
        site.restart()

    assert launches(site.east.finished(blocker)) == [waiting[first]]


def test_versions_rise_by_one_and_stay(site: Site) -> None:
    assert policies.active_policy(site.engine.state)[0::5] == (0, 0)
    assert read_effective(policies.active_policy(site.engine.state).effective) == Policy()

    assert put(site, "preset: fair\n", comment="the senate's wish") == 1
    site.clock.at_ms += 5_000
    assert put(site, "preset: fifo\n", author="deputy", expected_version=1) == 2

    first, second = site.store.find_policy(1), site.store.find_policy(2)
    assert first is not None
    assert second is not None
    assert (first.document, first.comment, first.author) == ("preset: fair\n", "the senate's wish", "admin")
    assert (second.document, second.comment, second.author) == ("preset: fifo\n", "", "deputy")
    assert second.create_ms - first.create_ms == 5_000
    assert site.store.load().policy == second
    assert [record.version for record in site.store.list_policies(0, 10)] == [2, 1]


def test_a_policy_that_changed_meanwhile_is_not_overwritten(site: Site) -> None:
    put(site, "preset: fair\n")
    put(site, "preset: fifo\n")

    for stale in (1, 3):
        with pytest.raises(FailedPrecondition, match="at version 2") as caught:
            put(site, "preset: shortest\n", expected_version=stale)
        assert caught.value.reason == "POLICY_CHANGED"
        assert caught.value.field == "expected_version"
        assert caught.value.metadata == {"version": "2"}
        with pytest.raises(FailedPrecondition):
            put(site, "preset: shortest\n", expected_version=stale, validate_only=True)
    assert site.engine.policy == PRESETS["fifo"]
    assert put(site, "preset: shortest\n", expected_version=2) == 3


def test_a_repeated_call_makes_one_version(site: Site) -> None:
    assert put(site, "preset: fair\n") == 1
    assert put(site, "preset: fifo\n", comment="why", expected_version=1) == 2
    # The answer was lost, and the same call comes again.
    assert put(site, "preset: fifo\n", comment="why", expected_version=1) == 2
    assert put(site, "preset: fifo\n", comment="why") == 2
    assert [record.version for record in site.store.list_policies(0, 10)] == [2, 1]

    assert put(site, "preset: fifo\n", comment="another reason") == 3
    assert put(site, "preset: fifo\n", comment="another reason", author="deputy") == 4
    with pytest.raises(FailedPrecondition):
        put(site, "preset: fifo\n", comment="another reason", author="deputy", expected_version=2)


def test_a_check_changes_nothing(site: Site) -> None:
    put(site, "preset: fair\n")
    site.engine.take_turn()
    site.engine.state.round_needed = False

    checked = policies.put_policy(site.engine.state, draft("preset: fifo\n", validate_only=True), "admin")

    assert checked.version == 0
    assert read_effective(checked.effective) == PRESETS["fifo"]
    assert site.engine.policy == PRESETS["fair"]
    assert not site.engine.state.round_needed
    assert not site.engine.take_turn()


def test_the_stored_policy_outlives_the_process(site: Site) -> None:
    site.restart()
    assert site.engine.policy == Policy()  # None was stored: the one the process was started with.
    put(site, ONE_AT_A_TIME, comment="why")
    before = site.engine.state.policy_record

    site.restart()

    assert site.engine.policy == read_policy(ONE_AT_A_TIME).policy
    assert site.engine.state.policy_record == before
    assert put(site, "preset: fair\n", expected_version=1) == 2


def test_a_policy_that_was_not_committed_is_not_there(site: Site) -> None:
    policies.put_policy(site.engine.state, draft(ONE_AT_A_TIME), "admin")

    site.restart()

    assert (site.engine.policy, site.engine.state.policy_record) == (Policy(), None)


def test_a_stored_policy_keeps_its_meaning_when_a_preset_changes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, "preset: fair\n")

    monkeypatch.setattr("scheduler.planning.policy_document.PRESETS", {**PRESETS, "fair": PRESETS["fifo"]})
    site.restart()

    assert site.engine.policy == PRESETS["fair"]


def test_a_stored_policy_that_cannot_be_read_ends_the_start(site: Site) -> None:
    store: MemoryStore = site.store
    for number, effective in enumerate(('{"from_the_future": 1}', "no json"), 1):
        store._tables["policies"][(number,)] = rows.policy(number, effective=effective)
        with pytest.raises(Internal, match=f"version {number}, cannot be read") as caught:
            site.restart()
        assert caught.value.reason == "POLICY_UNREADABLE"


def test_warnings_go_by_the_platform_as_it_is(site: Site) -> None:
    document = (
        "guarantees:\n"
        "  - {institution: north, pool: east/cpu, amount: {cpu: 9}}\n"
        "  - {institution: west, pool: east/gpu, amount: {gpus: 1}}\n"
        "speed: {A100: 1}\n"
    )

    found = policies.warnings_of(site.engine.state, draft(document))

    assert [sentence.partition(":")[0] for sentence in found] == [
        "policy.guarantees[1].institution",
        "policy.guarantees[1].pool",
        "policy.guarantees",
        "policy.speed",
    ]
    assert "112 % of the CPU" in found[2]
    site.add_region("west", [node("w1", Resources(8_000, 16_384, 1_000), "gpu", "A100")])
    assert len(policies.warnings_of(site.engine.state, draft(document))) == 3


def test_the_default_is_shown_until_one_is_put(site: Site) -> None:
    assert policies.active_policy(site.engine.state).effective == effective_of(Policy())
    put(site, "preset: fair\n")
    assert policies.active_policy(site.engine.state) == site.store.find_policy(1)
