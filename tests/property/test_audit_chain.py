"""Whatever is done to an audit log, the first record concerned is named; here and on the reader's machine."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protos.suanli.v1 import audit_pb2
from scheduler.domain.chain import FIRST, chained
from scheduler.domain.records import AuditHeadRecord, AuditRecord
from scheduler.wire.audit import head_to_proto, record_to_proto
from suanli.reports.audit_chain import AuditChain
from tests.support.audit import KEY, OTHER, faults_of, head_of, log_of

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
SIZES = st.integers(2, 12)


def here(records: list[AuditRecord], heads: list[AuditHeadRecord]) -> tuple[int, str] | None:
    chain = AuditChain(KEY.trusted)
    response = audit_pb2.StreamAuditResponse(
        records=[record_to_proto(one) for one in records], heads=[head_to_proto(one) for one in heads]
    )
    chain.add(response)
    return (chain.fault.sequence, chain.fault.code) if chain.fault else None


def first(records: list[AuditRecord], heads: list[AuditHeadRecord]) -> tuple[int, str] | None:
    found = faults_of(records, heads)
    return (found[0].sequence, found[0].code) if found else None


@given(SIZES, TEXT, TEXT, st.integers(0, 2**62), st.data())
def test_a_whole_log_is_whole_whatever_is_in_it(
    size: int, actor: str, target: str, calls: int, data: st.DataObject
) -> None:
    log = log_of(size, actor=actor, target=target, before=actor, calls=calls)
    signed = data.draw(st.sets(st.sampled_from(log)))
    heads = sorted(head_of(one) for one in signed)
    assert first(log, heads) is here(log, heads) is None


@given(SIZES, st.data())
def test_a_changed_record_is_named(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    at = data.draw(st.integers(0, size - 1))
    name = data.draw(st.sampled_from(AuditRecord._fields[1:-1]))
    value: Any = getattr(log[at], name)
    log[at] = log[at]._replace(**{name: value + 1 if isinstance(value, int) else value + "x"})
    found = first(log, []), here(log, [])
    assert [each and each[0] for each in found] == [at + 1, at + 1]
    assert found[1] == (at + 1, "CHAIN_BROKEN")


@given(SIZES, st.data())
def test_a_log_that_was_hashed_anew_differs_from_its_signed_heads(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    at = data.draw(st.integers(0, size - 1))
    signed = data.draw(st.integers(at, size - 1))
    head = head_of(log[signed])
    before = log[at - 1].hash if at else FIRST
    log[at] = log[at]._replace(actor="somebody-else")
    for number in range(at, size):
        log[number] = chained(before, log[number])
        before = log[number].hash
    assert first(log, []) is None
    assert first(log, [head]) == here(log, [head]) == (signed + 1, "HEAD_DIFFERS")


@given(SIZES, st.data())
def test_a_deleted_record_is_named(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    at = data.draw(st.integers(0, size - 2))
    del log[at]
    assert first(log, []) == here(log, []) == (at + 1, "RECORD_MISSING")


@given(SIZES, st.data())
def test_swapped_records_are_named(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    at = data.draw(st.integers(0, size - 2))
    one, two = log[at], log[at + 1]
    log[at], log[at + 1] = two._replace(sequence=one.sequence), one._replace(sequence=two.sequence)
    assert first(log, []) == here(log, []) == (at + 1, "CHAIN_BROKEN")


@given(SIZES, st.data())
def test_a_log_that_was_cut_off_is_shown_by_its_newest_head(size: int, data: st.DataObject) -> None:
    log = log_of(size)
    kept = data.draw(st.integers(0, size - 1))
    head = head_of(log[-1])
    assert first(log[:kept], []) is None
    assert first(log[:kept], [head]) == here(log[:kept], [head]) == (kept + 1, "RECORD_MISSING")
    assert [each.sequence for each in faults_of(log[:kept], last=size)] == [kept + 1]


@given(SIZES, st.integers(0, 63))
def test_heads_that_are_forged_or_of_a_strange_key_are_named(size: int, byte: int) -> None:
    log = log_of(size)
    right = head_of(log[-1])
    assert first(log, [head_of(log[-1], OTHER)]) == here(log, [head_of(log[-1], OTHER)]) == (size, "HEAD_UNTRUSTED")
    signature = bytearray(right.signature)
    signature[byte] ^= 1
    for forged in (right._replace(signature=bytes(signature)), right._replace(time_ms=5), right._replace(hash=b"x")):
        assert first(log, [forged]) == here(log, [forged]) == (size, "HEAD_FORGED")
