"""Putting price lists, and what jobs would cost by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scheduler.domain.errors import FailedPrecondition, Internal, SuanliError
from scheduler.domain.records import PriceListRecord
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import JobState
from scheduler.metering.estimate import Asked, estimate
from scheduler.metering.price_document import instant_text
from scheduler.metering.price_text import effective_of, read_effective
from scheduler.metering.price_warnings import Site, warnings
from scheduler.metering.prices import NO_END, Place, PriceList
from scheduler.planning.feasible import places_for
from scheduler.planning.policy import Policy
from scheduler.service.auditing import tell
from scheduler.service.contract import CostEstimates, PriceListDraft, PriceListPut
from scheduler.service.job import Job
from scheduler.service.predicting import expected_ms
from scheduler.service.state import State


def put_price_list(state: State, draft: PriceListDraft, author: str) -> PriceListPut:
    """The next version, with what in it is probably not meant; with ``validate_only``, what it would be, with version 0.

    ``FailedPrecondition``: PRICES_IN_THE_PAST when it would change the price of what has been metered, CURRENCY_CHANGED when
    the platform's prices are in another currency. The same document put again by the same author with the same comment is that
    version: the call may be repeated when its answer was lost.
    """
    now = state.now()
    newest = state.newest_price_list
    if newest is not None and not draft.validate_only and _is_repeated(newest, draft, author):
        return PriceListPut(newest, [])
    prices = _in_force_from(draft.text.price_list, now)
    _check_currency(state, prices)
    version = 1 if newest is None else newest.version + 1
    prices = replace(prices, version=version)
    found = warnings(prices, state.metering.prices, now, _sites(state), state.tenants)
    record = _record(prices, draft, author, now)
    if draft.validate_only:
        return PriceListPut(record._replace(version=0), found)
    state.record.price_lists.append(record)
    _keep(state, record)
    state.metering.use_price_list(prices)
    # What runs may now cost more than was kept for it.
    state.metering.budgets.keep_anew("", state.attempts.values(), now)
    tell(state, "PutPriceList", str(record.version), "", newest, record, draft.comment)
    return PriceListPut(record, found)


def _is_repeated(newest: PriceListRecord, draft: PriceListDraft, author: str) -> bool:
    return (newest.document, newest.comment, newest.author) == (draft.document, draft.comment, author)


def _in_force_from(prices: PriceList, now: int) -> PriceList:
    if prices.from_ms and prices.from_ms < now:
        raise FailedPrecondition(
            f"prices.from: {instant_text(prices.from_ms)} has passed, and what has been metered keeps its price; leave "
            '"from" out to put the list in force at once, or give a later time.',
            reason="PRICES_IN_THE_PAST",
            field="prices.from",
        )
    prices = replace(prices, from_ms=prices.from_ms or now)
    if prices.to_ms <= prices.from_ms:
        raise FailedPrecondition(
            f"prices.to: {instant_text(prices.to_ms)} has passed, so the list would never be in force; give a later time, "
            "or leave it out.",
            reason="PRICES_IN_THE_PAST",
            field="prices.to",
        )
    return prices


def _check_currency(state: State, prices: PriceList) -> None:
    newest = state.metering.prices.newest
    if newest is not None and newest.currency != prices.currency:
        raise FailedPrecondition(
            f"prices.currency: the platform's prices are in {newest.currency}, and its statements and budgets with them; "
            f"write the list in {newest.currency}.",
            reason="CURRENCY_CHANGED",
            field="prices.currency",
            metadata={"currency": newest.currency},
        )


def _record(prices: PriceList, draft: PriceListDraft, author: str, now: int) -> PriceListRecord:
    return PriceListRecord(
        prices.version,
        draft.document,
        effective_of(prices),
        prices.name,
        prices.currency,
        prices.from_ms,
        0 if prices.to_ms == NO_END else prices.to_ms,
        draft.comment,
        author,
        now,
    )


def _keep(state: State, record: PriceListRecord) -> None:
    state.newest_price_list = record
    state.price_lists[record.version] = record._replace(document="", effective="")


def use_stored(state: State, records: Iterable[PriceListRecord]) -> None:
    """Take over the stored lists. ``Internal`` when this release cannot read what an earlier one accepted."""
    for record in sorted(records, key=lambda each: each.version):
        try:
            prices = read_effective(record.effective, record.version)
        except (SuanliError, ValueError) as error:
            raise Internal(
                f"The stored price list, version {record.version}, cannot be read by this release: {error}",
                reason="PRICES_UNREADABLE",
            ) from error
        _keep(state, record)
        state.metering.use_price_list(prices)


def list_price_lists(state: State, before_version: int, limit: int) -> list[PriceListRecord]:
    """Versions below ``before_version`` (0: from the newest), newest first, without their texts."""
    versions = sorted((each for each in state.price_lists if not before_version or each < before_version), reverse=True)
    return [state.price_lists[version] for version in versions[:limit]]


def _sites(state: State) -> set[Site]:
    return {
        Site(key.region, key.pool, node.accelerator) for key, nodes in state.pools.items() for node in nodes.values()
    }


def estimate_job(state: State, policy: Policy, spec: JobSpec, user: str) -> CostEstimates:
    """What a job that could be submitted would cost, in each place where it could run; the dearest comes first."""
    job = Job(state.counters.job_no + 1, "", spec, user, JobState.QUEUED, state.now())
    asked = Asked(
        spec.institution,
        spec.project,
        spec.shape.total,
        max(1, spec.array_size),
        spec.max_runtime_ms + spec.grace_ms,
        expected_ms(state.predictor, job),
    )
    book = state.metering.prices
    found = [
        estimate(book, Place(*pool, accelerator, spec.priority, spec.preemptible), asked, state.now())
        for pool, accelerator in places_for(state.pools, spec.shape, policy, spec.preemptible)
    ]
    found.sort(key=lambda one: (-one.max_cost_units, one.place.region, one.place.pool, one.place.accelerator))
    newest = book.newest
    return CostEstimates(found, newest.currency if newest else "", newest.digits if newest else 0)
