"""A change and its record are one; refusals are few; heads are signed; all of it over crashes."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from scheduler.domain.audit import AuditCheck
from scheduler.domain.errors import Unavailable
from scheduler.domain.records import InstitutionRecord, UserRecord
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.auditing import ACTING, SIGN_EVERY_MS, Acting, document, sign_head, tell_refusal
from scheduler.service.engine import Engine
from scheduler.service.ports import AuditQuery
from scheduler.service.refusals import MAX_KEPT, MAX_OF_ACTOR, MINUTE_MS, Refusal, Refusals
from scheduler.service.state import Settings
from scheduler.store.memory import MemoryStore
from tests.support import rows
from tests.support.audit import KEY
from tests.unit.service.harness import CODEC, T0_MS, CountedIds, ManualClock


class Process:
    """A leader on a store, that may be killed: whatever was not committed is gone with it."""

    def __init__(self, clock: ManualClock, store: MemoryStore) -> None:
        self.clock, self.store = clock, store
        self.engine = Engine(clock, CountedIds(), CODEC, Policy(), Settings())
        lease = store.acquire_leadership("p", 1)
        assert lease is not None
        self.epoch = lease.epoch
        stored = store.load()
        self.commit_no = stored.last_commit_no
        self.engine.rebuild(stored, self.epoch)

    @property
    def state(self) -> Any:
        return self.engine.state

    def commit(self) -> None:
        self.commit_no += 1
        self.store.commit(self.epoch, self.commit_no, self.engine.take_turn().batch)

    def killed(self) -> Process:
        self.clock.at_ms += 10
        return Process(self.clock, self.store)

    def put_user(self, name: str) -> None:
        tenants.put_user(self.state, UserRecord(name, "north", "", 1, 0, 0))


@pytest.fixture
def process() -> Process:
    clock = ManualClock()
    made = Process(clock, MemoryStore(clock))
    tenants.put_institution(made.state, InstitutionRecord("north", "", 0, "", 0))
    made.commit()
    return made


def actions(process: Process) -> list[tuple[int, str, str]]:
    return [(each.sequence, each.action, each.target) for each in process.store.audit(AuditQuery())]


def faults(process: Process) -> list[str]:
    check = AuditCheck(KEY.trusted, KEY.verify)
    for head in process.store.audit_heads(0, 100):
        check.add_head(head)
    for record in process.store.audit(AuditQuery()):
        check.add(record)
    check.finish(process.state.audit.sequence)
    return [each.code for each in check.faults]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_a_change_with_its_record_or_neither(process: Process, when: Literal["before", "after"]) -> None:
    process.put_user("li")
    process.store.fail_next_commit(when)
    with pytest.raises(Unavailable):
        process.commit()
    process = process.killed()
    assert ("li" in process.state.users) is (when == "after")
    assert ((2, "PutUser", "li") in actions(process)) is (when == "after")
    process.put_user("wang")
    process.commit()
    assert actions(process)[-1] == (len(actions(process)), "PutUser", "wang")
    assert faults(process) == []


def test_a_change_and_its_record_are_of_one_transaction(process: Process) -> None:
    process.put_user("li")
    batch = process.engine.take_turn().batch
    assert [each.user for each in batch.users] == [each.target for each in batch.audit] == ["li"]


def test_a_step_that_fails_is_not_told_as_done(process: Process) -> None:
    with pytest.raises(Exception, match="no institution"):
        tenants.put_user(process.state, UserRecord("li", "nowhere", "", 1, 0, 0))
    assert not process.engine.take_turn().batch.audit


def test_who_acts_is_known_from_the_call(process: Process) -> None:
    acting = Acting("ann", 2, "north", "192.0.2.1", "abc")
    token = ACTING.set(acting)
    try:
        process.put_user("li")
    finally:
        ACTING.reset(token)
    process.put_user("wang")
    process.commit()
    *_, called, own = process.store.audit(AuditQuery())
    assert (called.actor, called.role, called.institution, called.peer, called.key_prefix) == (
        "ann",
        2,
        "north",
        "192.0.2.1",
        "abc",
    )
    assert (own.actor, own.role, acting.told) == ("system", 0, True)


def test_heads_are_signed_at_most_every_minute_and_when_there_is_something_new(process: Process) -> None:
    def heads() -> list[int]:
        sign_head(process.state, KEY)
        process.commit()
        return [each.sequence for each in process.store.audit_heads(0, 100)]

    assert heads() == heads() == [1]
    process.put_user("li")
    assert heads() == [1]
    process.clock.at_ms += SIGN_EVERY_MS
    assert heads() == [1, 2]
    process.put_user("wang")
    process = process.killed()
    process.put_user("wu")
    sign_head(process.state, KEY, at_once=True)
    process.commit()
    assert [each.sequence for each in process.store.audit_heads(0, 100)] == [1, 2, 3]
    assert faults(process) == []


def test_a_number_that_was_signed_is_not_given_again_when_the_log_is_cut_off(process: Process) -> None:
    process.put_user("li")
    sign_head(process.state, KEY)
    process.commit()
    del process.store._tables["audit"][2,]
    process = process.killed()
    process.put_user("wang")
    process.commit()
    assert [number for number, *_ in actions(process)] == [1, 3]
    assert faults(process)[0] == "RECORD_MISSING"


def test_time_does_not_go_back_over_a_restart(process: Process) -> None:
    process.clock.at_ms += 1_000_000
    process.put_user("li")
    process.commit()
    process.clock.at_ms = T0_MS
    process.store.release_leadership(process.epoch)
    process = Process(process.clock, process.store)
    process.put_user("wang")
    process.commit()
    assert faults(process) == []


def test_a_document_holds_no_secret_and_no_long_text() -> None:
    shown = document(rows.api_key())
    assert "secret" not in shown
    assert '"prefix":"abc"' in shown
    assert "token" not in document(rows.enrolment())
    assert "preset" not in document(rows.policy())
    assert document({"list": [rows.api_key()], "bytes": b"\1"}).count("secret") == 0
    assert document(None) == ""


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(actor: str = "bob", target: str = "t", peer: str = "p", **values: Any) -> Refusal:
    return Refusal(actor, 1, "south", "GetJob", target, 2, "WHY", peer, "k")._replace(**values)


def test_the_first_of_a_known_caller_is_given_at_once_and_repeats_in_a_minute() -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.note(refusal(), 0)
    refusals.note(refusal(target="u"), 0)
    assert refusals.take(0) == [(refusal(), 3), (refusal(target="u"), 1)]
    refusals.note(refusal(), 5)
    assert refusals.take(5) == refusals.take(MINUTE_MS - 1) == []
    assert refusals.take(MINUTE_MS) == [(refusal(), 1)]
    refusals.note(refusal(), MINUTE_MS)
    assert refusals.take(MINUTE_MS) == [(refusal(), 1)]


def test_unknown_callers_are_one_record_for_each_peer_and_minute() -> None:
    refusals = Refusals()
    for number in range(1_000):
        refusals.note(refusal("", target=str(number), peer="ab"[number % 2], action=str(number)), number)
    assert refusals.take(1_000) == []
    found = refusals.take(MINUTE_MS + 1)
    assert [(each.peer, each.target, calls) for each, calls in found] == [("a", "0", 500), ("b", "1", 500)]
    assert refusals.take(10 * MINUTE_MS, everything=True) == []


def test_a_flood_of_many_names_is_bounded_and_counted_whole() -> None:
    refusals = Refusals()
    for number in range(5 * MAX_OF_ACTOR):
        refusals.note(refusal(target=str(number)), 0)
    found = refusals.take(0, everything=True)
    assert (len(found), sum(calls for _, calls in found)) == (MAX_OF_ACTOR + 1, 5 * MAX_OF_ACTOR)
    assert found[-1] == (refusal(target=""), 4 * MAX_OF_ACTOR)
    for number in range(3 * MAX_KEPT):
        refusals.note(refusal("", peer=str(number)), 0)
    found = refusals.take(0, everything=True)
    assert (len(found), sum(calls for _, calls in found)) == (MAX_KEPT + 1, 3 * MAX_KEPT)
    assert found[-1][0].reason == "TOO_MANY_TO_TELL_APART"
    refusals.note(refusal(), 0)
    assert refusals.take(0) == [(refusal(), 1)], "the next minute begins anew"


def test_refusals_are_in_the_chain(process: Process) -> None:
    tell_refusal(process.state, refusal(), 7)
    process.commit()
    record = process.store.audit(AuditQuery(actor="bob"))[0]
    assert (record.outcome, record.calls, record.reason, record.on_behalf_of) == (2, 7, "WHY", "")
    assert faults(process) == []
