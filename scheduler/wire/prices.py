"""Price lists and estimates: records and protocol messages."""

from __future__ import annotations

from protos.suanli.v1 import prices_pb2
from scheduler.domain.records import PriceListRecord
from scheduler.metering.estimate import PlaceCost
from scheduler.metering.money import COST_UNITS_PER_MINOR
from scheduler.metering.price_text import read_prices
from scheduler.service.contract import CostEstimates, PriceListDraft
from scheduler.wire import check

MAX_COMMENT = 1000
MAX_VERSION = (1 << 63) - 1


def draft_from_proto(request: prices_pb2.PutPriceListRequest) -> PriceListDraft:
    """A checked price list. Reading a large document takes a while: call it in a thread."""
    return PriceListDraft(
        request.document,
        read_prices(request.document),
        check.text(request.comment, MAX_COMMENT, "comment"),
        request.validate_only,
    )


def price_list_to_proto(record: PriceListRecord) -> prices_pb2.PriceList:
    """A version, with its texts where the record has them."""
    return prices_pb2.PriceList(
        version=record.version,
        document=record.document,
        effective=record.effective,
        name=record.name,
        currency=record.currency,
        from_ms=record.from_ms,
        to_ms=record.to_ms,
        comment=record.comment,
        author=record.author,
        create_time_ms=record.create_ms,
    )


def estimates_to_proto(found: CostEstimates) -> prices_pb2.EstimateCostResponse:
    """Exact costs, as decimal strings."""
    return prices_pb2.EstimateCostResponse(
        estimates=[_estimate(one) for one in found.places],
        currency=found.currency,
        currency_digits=found.digits,
        cost_units_per_minor=str(COST_UNITS_PER_MINOR),
        covered=not found.not_covered,
        message=found.not_covered,
    )


def _estimate(one: PlaceCost) -> prices_pb2.CostEstimate:
    return prices_pb2.CostEstimate(
        pool=f"{one.place.region}/{one.place.pool}",
        accelerator=one.place.accelerator,
        max_cost_units=str(one.max_cost_units),
        expected_cost_units=str(one.expected_cost_units),
        max_service_units=str(one.max_service_units),
        expected_service_units=str(one.expected_service_units),
        max_runtime_ms=one.max_ms,
        expected_runtime_ms=one.expected_ms,
        unpriced=one.unpriced,
    )
