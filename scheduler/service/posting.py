"""Posting what allocations held to the ledger: at their release, and what they held in a UTC day when it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import AttemptOutcome, EntryKind
from scheduler.metering.chain import FIRST, chained
from scheduler.metering.prices import NO_RATE, Place, PriceList
from scheduler.metering.segments import DAY_MS, priced_segments
from scheduler.service.model import Attempt
from scheduler.service.state import State

POSTED_AT_ONCE = 1_000
"""So many attempts' past days are posted in a tick: midnight comes for all of them at once."""


def open_segments(state: State, attempt: Attempt, until_ms: int) -> list[LedgerRecord]:
    """What the attempt has held up to then and is not in the ledger: records without number, period and hash."""
    start_ms = attempt.metered_ms or attempt.grant_ms
    pieces = list(priced_segments(start_ms, until_ms, state.metering.prices))
    records = [
        _segment(attempt, attempt.metered_segments + number, from_ms, to_ms, prices)
        for number, (from_ms, to_ms, prices) in enumerate(pieces)
    ]
    if records:
        # What was used is known as a total only: it is counted where it is heard of.
        records[-1] = records[-1]._replace(
            cpu_used_ms=attempt.cpu_used_ms - attempt.metered_cpu_used_ms,
            gpu_used_milli_ms=attempt.gpu_used_milli_ms - attempt.metered_gpu_used_milli_ms,
        )
    return records


def post_release(state: State, attempt: Attempt) -> None:
    """Post the rest of what an ended attempt held, take back what was posted beyond its end, and credit it if that is to be."""
    if attempt.end_ms < attempt.metered_ms:
        _take_back_excess(state, attempt)
    else:
        post_until(state, attempt, attempt.end_ms)
    if attempt.outcome is not None and attempt.outcome in state.metering.prices.credited:
        _credit(state, attempt, attempt.outcome)


def post_until(state: State, attempt: Attempt, until_ms: int) -> None:
    """Post what the attempt has held up to then."""
    records = open_segments(state, attempt, until_ms)
    if not records:
        return
    attempt.metered_ms = until_ms
    attempt.metered_segments += len(records)
    attempt.metered_cpu_used_ms, attempt.metered_gpu_used_milli_ms = attempt.cpu_used_ms, attempt.gpu_used_milli_ms
    state.touch_attempt(attempt)
    post(state, records)
    if attempt.launch_seq in state.attempts:
        state.metering.budgets.keep(attempt, state.now())


def post_days(state: State) -> None:
    """When a UTC day is over, post what every allocation held until its end; a bounded number at a time.

    Not those in a region that cannot be heard: how far theirs went is not known yet.
    """
    metering = state.metering
    day_ms = state.now() // DAY_MS * DAY_MS
    if day_ms != metering.day_ms:
        metering.day_ms = day_ms
        metering.unposted = deque(state.attempts)
    for _ in range(min(POSTED_AT_ONCE, len(metering.unposted))):
        attempt = state.attempts.get(metering.unposted.popleft())
        if attempt is not None and attempt.grant_ms < day_ms and state.regions[attempt.region].online:
            post_until(state, attempt, day_ms)


def post(state: State, records: Iterable[LedgerRecord]) -> list[LedgerRecord]:
    """Number records, put each in its accounting month and in the chain, and charge the budgets; returns them as they are kept."""
    metering, now = state.metering, state.now()
    posted = []
    for draft in records:
        state.counters.ledger_seq += 1
        period = metering.period_of(draft.start_ms)
        sequence = state.counters.ledger_seq
        record = chained(metering.head, draft._replace(sequence=sequence, period=period, posted_ms=now))
        metering.head = record.hash
        metering.recent.append(record)
        metering.last_posted[period] = sequence
        metering.budgets.charge(record)
        state.record.ledger.append(record)
        posted.append(record)
    return posted


def reversal(record: LedgerRecord, kind: EntryKind, revision: int, reason: str, author: str) -> LedgerRecord:
    """What takes a record back, for its whole time, or credits it."""
    return record._replace(
        cpu_milli=-record.cpu_milli,
        memory_mib=-record.memory_mib,
        gpu_milli=-record.gpu_milli,
        kind=int(kind),
        revision=revision,
        cpu_used_ms=-record.cpu_used_ms,
        peak_memory_mib=-record.peak_memory_mib,
        gpu_used_milli_ms=-record.gpu_used_milli_ms,
        gpu_peak_memory_mib=-record.gpu_peak_memory_mib,
        reference=record.sequence,
        reason=reason,
        author=author,
    )


def _segment(attempt: Attempt, number: int, start_ms: int, end_ms: int, prices: PriceList | None) -> LedgerRecord:
    spec = attempt.job.spec
    total = spec.shape.total
    rate, discount_bp = NO_RATE, 0
    if prices is not None:
        place = Place(attempt.region, attempt.pool, attempt.accelerator, spec.priority, spec.preemptible)
        rate, discount_bp = prices.rate_of(place), prices.discount_bp(spec.institution, spec.project)
    return LedgerRecord(
        sequence=0,
        institution=spec.institution,
        project=spec.project,
        user=attempt.job.user,
        job_id=attempt.job.job_id,
        attempt=attempt.number,
        segment=number,
        region=attempt.region,
        pool=attempt.pool,
        accelerator=attempt.accelerator,
        start_ms=start_ms,
        end_ms=end_ms,
        cpu_milli=total.cpu_milli,
        memory_mib=total.memory_mib,
        gpu_milli=total.gpu_milli,
        outcome=int(attempt.outcome or 0),
        kind=int(EntryKind.USAGE),
        revision=0,
        priority=int(spec.priority),
        preemptible=int(spec.preemptible),
        purpose=spec.purpose,
        price_list=prices.version if prices is not None else 0,
        rate=rate,
        discount_bp=discount_bp,
        period="",
        posted_ms=0,
        cpu_used_ms=0,
        peak_memory_mib=attempt.peak_memory_mib,
        gpu_used_milli_ms=0,
        gpu_peak_memory_mib=attempt.gpu_peak_memory_mib,
        reference=0,
        reason="",
        author="",
        hash=FIRST,
    )


def _take_back_excess(state: State, attempt: Attempt) -> None:
    """It had ended before a day that was posted was over, and that was not known then."""
    reason = "The allocation had ended before."
    records = [
        reversal(record._replace(start_ms=max(record.start_ms, attempt.end_ms)), EntryKind.REVERSAL, 1, reason, "")
        for record in _posted_segments(state, attempt)
        if record.end_ms > attempt.end_ms
    ]
    post(state, records)


def _posted_segments(state: State, attempt: Attempt) -> list[LedgerRecord]:
    """The segments that were posted, as far as they can be told without the ledger: prices of the past do not change."""
    pieces = priced_segments(attempt.grant_ms, attempt.metered_ms, state.metering.prices)
    # What was used stays where it is.
    return [
        _segment(attempt, number, from_ms, to_ms, prices)._replace(peak_memory_mib=0, gpu_peak_memory_mib=0)
        for number, (from_ms, to_ms, prices) in enumerate(pieces)
    ]


def _credit(state: State, attempt: Attempt, outcome: AttemptOutcome) -> None:
    """Give back what each segment costs whose price list says so of attempts that end this way."""
    prices = state.metering.prices
    records = []
    for record in _posted_segments(state, attempt):
        price_list = prices.get(record.price_list)
        if price_list is not None and outcome in price_list.credited and record.start_ms < attempt.end_ms:
            part = record._replace(end_ms=min(record.end_ms, attempt.end_ms))
            reason = f"{outcome.name}, which price list {price_list.version} credits."
            records.append(reversal(part, EntryKind.CREDIT, 0, reason, ""))
    post(state, records)
