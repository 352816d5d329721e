"""Corrections by people: a record is taken back, another may stand in its place, and the record itself stays as it was."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound
from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.service.auditing import tell
from scheduler.service.contract import Correction, Replacement
from scheduler.service.posting import post, reversal
from scheduler.service.state import State

_CORRECTABLE = (EntryKind.USAGE, EntryKind.CORRECTION)


def correct(
    state: State, asked: Correction, record: LedgerRecord, known: Sequence[LedgerRecord], author: str
) -> list[LedgerRecord]:
    """Post what corrects ``record``; ``known`` are all records of its job that the store has.

    ``FailedPrecondition``: NOT_CORRECTABLE (it is itself a correction's reversal or a credit), ALREADY_CORRECTED, STILL_RUNNING.
    """
    metering = state.metering
    segment = _segment_of(record)
    # Its attempt may have ended after the store was read.
    of_segment = [each for each in (*known, *metering.recent) if _segment_of(each) == segment]
    _check(state, asked, record, of_segment)
    record = _standing(record, of_segment)
    revision = 1 + max(metering.corrected.get(segment, 0), *(each.revision for each in of_segment))
    kind = EntryKind.CREDIT if asked.credit else EntryKind.REVERSAL
    records = [reversal(record, kind, revision, asked.reason, author)]
    if asked.replacement is not None:
        records.append(_replaced(state, asked, record, asked.replacement, revision, author))
    metering.corrected[segment] = revision
    metering.taken_back.add(record.sequence)
    posted = post(state, records)
    made = {"records": posted}
    tell(state, "CorrectLedger", str(asked.sequence), record.institution, record, made, asked.reason)
    return posted


def _segment_of(record: LedgerRecord) -> tuple[str, int, int]:
    return record.job_id, record.attempt, record.segment


def _standing(record: LedgerRecord, known: Sequence[LedgerRecord]) -> LedgerRecord:
    """The part of a metered record that still counts: it may have been posted beyond what turned out to be its end."""
    if record.kind != EntryKind.USAGE:
        return record
    taken_ms = [each.start_ms for each in known if each.kind == EntryKind.REVERSAL and not each.reference]
    return record._replace(end_ms=min(record.end_ms, *taken_ms)) if taken_ms else record


def _check(state: State, asked: Correction, record: LedgerRecord, known: Sequence[LedgerRecord]) -> None:
    if record.kind not in _CORRECTABLE:
        raise FailedPrecondition(
            f"Record {record.sequence} is a {EntryKind(record.kind).name.lower()}; correct the record that it is about "
            f"({record.reference or 'see the job'}).",
            reason="NOT_CORRECTABLE",
            field="sequence",
        )
    job = state.jobs.get(record.job_id)
    if job is not None and job.live is not None and job.live.number == record.attempt:
        raise FailedPrecondition(
            f"Attempt {record.attempt} of job {record.job_id} still runs; correct its records when it has ended.",
            reason="STILL_RUNNING",
            field="sequence",
        )
    if record.sequence in state.metering.taken_back or any(each.reference == record.sequence for each in known):
        raise FailedPrecondition(
            f"Record {record.sequence} has been corrected before; `suanli ledger --job {record.job_id}` shows what stands in its place.",
            reason="ALREADY_CORRECTED",
            field="sequence",
        )
    standing = _standing(record, known)
    if standing.start_ms >= standing.end_ms or any(
        each.kind == EntryKind.CREDIT and not each.reference for each in known if record.kind == EntryKind.USAGE
    ):
        raise FailedPrecondition(
            f"Record {record.sequence} counts for nothing: it was taken back or credited when its attempt ended; "
            f"see `suanli ledger --job {record.job_id}`.",
            reason="ALREADY_CORRECTED",
            field="sequence",
        )
    if asked.credit and asked.replacement is not None:
        raise InvalidArgument(
            "A credit leaves the record as it is; give a replacement or a credit, not both.", field="credit"
        )


def _replaced(
    state: State, asked: Correction, record: LedgerRecord, by: Replacement, revision: int, author: str
) -> LedgerRecord:
    start_ms = record.start_ms if by.start_ms is None else by.start_ms
    end_ms = record.end_ms if by.end_ms is None else by.end_ms
    if not record.start_ms <= start_ms < end_ms <= record.end_ms:
        # Beyond it stands the next segment, or nothing was held.
        raise InvalidArgument(
            f"What stands in its place must lie within [{record.start_ms}, {record.end_ms}) and not be empty.",
            field="replacement.start_ms" if start_ms < record.start_ms else "replacement.end_ms",
        )
    project = record.project if by.project is None else by.project
    if (record.institution, project) not in state.projects:
        raise NotFound(
            f'Institution "{record.institution}" has no project "{project}".',
            reason="PROJECT_NOT_FOUND",
            field="replacement.project",
        )
    prices = state.metering.prices.get(record.price_list)
    return record._replace(
        project=project,
        start_ms=start_ms,
        end_ms=end_ms,
        cpu_milli=record.cpu_milli if by.cpu_milli is None else by.cpu_milli,
        memory_mib=record.memory_mib if by.memory_mib is None else by.memory_mib,
        gpu_milli=record.gpu_milli if by.gpu_milli is None else by.gpu_milli,
        kind=int(EntryKind.CORRECTION),
        revision=revision,
        discount_bp=prices.discount_bp(record.institution, project) if prices else 0,
        reference=record.sequence,
        reason=asked.reason,
        author=author,
    )
