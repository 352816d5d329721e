"""The FOCUS export: in the form of the specification, and to the last minor unit what the statements say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings

from protos.suanli.v1 import usage_pb2
from scheduler.api import exports
from scheduler.api.exports import ExportApi
from scheduler.api.permissions import Role, Scope
from scheduler.api.visibility import Caller
from scheduler.domain.errors import Internal, InvalidArgument, NotFound, PermissionDenied
from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.metering.focus import COLUMNS, PLACES, ROUNDING, csv_text, decimal_text, instant
from scheduler.metering.lines import FREE, RESOURCES, amounts_of, line_key, only
from scheduler.metering.money import COST_UNITS_PER_MINOR, decimal_of
from scheduler.metering.statement import Statement, build_statement
from scheduler.service.contract import Service
from scheduler.service.ports import LedgerQuery
from tests.support.focus import amounts, lint, rows_of
from tests.support.ledger import PRICES, START_MS, LedgerService, ledgers, record, taken_back

FIN = Caller("fin", "", int(Role.FINANCE), "", Scope.ANY)
FAY = Caller("fay", "uni-a", int(Role.FINANCE), "", Scope.INSTITUTION)
HOUR_MS = 3_600_000
CSV = usage_pb2.EXPORT_FORMAT_FOCUS_CSV
MONTHS = {"from_month": "2026-01", "to_month": "2026-12"}


def chunks(service: LedgerService, caller: Caller = FIN, **fields: Any) -> list[bytes]:
    async def read() -> list[bytes]:
        request = usage_pb2.ExportUsageRequest(**{"format": CSV, **fields})
        return [each.data async for each in ExportApi(cast(Service, service)).export_usage(request, caller)]

    return asyncio.run(read())


def exported(service: LedgerService, caller: Caller = FIN, **fields: Any) -> list[dict[str, str]]:
    return rows_of(b"".join(chunks(service, caller, **fields)).decode())


def statements(service: LedgerService) -> list[Statement]:
    pairs = sorted({(one.institution, one.period) for one in service.records})
    made = []
    for pair in pairs:
        facts = asyncio.run(service.statement(*pair))
        made.append(build_statement(facts.heading, facts.sums, (), facts.prices, earlier=facts.earlier))
    return made


def charged(made: Sequence[Statement]) -> dict[str, Decimal]:
    """What each line of the statements charges."""
    return {
        f"{one.heading.number}-{line.number}": Decimal(line.amount_minor).scaleb(-one.digits)
        for one in made
        for line in one.lines
    }


@given(ledgers(14))
@settings(max_examples=120, deadline=None)
def test_the_rows_of_each_line_add_up_to_what_the_statement_charges(records: list[LedgerRecord]) -> None:
    service = LedgerService(records)
    rows = exported(service, **MONTHS)
    made = statements(service)

    if rows:
        assert lint(rows) == []
    expected = charged(made)
    found = amounts(rows)
    assert {name: found.get(name, Decimal()) for name in expected} == expected
    assert all(not amount for name, amount in found.items() if name not in expected)
    total = sum(one.total_minor for one in made)
    assert sum((Decimal(row["BilledCost"]) for row in rows), Decimal()) == Decimal(total).scaleb(-2)


@given(ledgers(14))
@settings(max_examples=60, deadline=None)
def test_each_row_is_its_resource_of_a_record_exactly_to_ten_digits(records: list[LedgerRecord]) -> None:
    service = LedgerService(records)
    rows = [row for row in exported(service, **MONTHS) if row["x_LedgerSeq"]]
    wanted = [
        (one, resource)
        for one in sorted(records, key=lambda one: (one.institution, one.period, one.sequence))
        for resource, amount in zip(RESOURCES, amounts_of(one), strict=True)
        if amount
    ]
    assert [(int(row["x_LedgerSeq"]), row["SkuPriceId"].rpartition("/")[2]) for row in rows] == [
        (one.sequence, resource) for one, resource in wanted
    ]
    tenth = Decimal(1).scaleb(-PLACES)
    for row, (one, resource) in zip(rows, wanted, strict=True):
        price_list = PRICES.get(one.price_list)
        listed = price_list.price(one.rate).cost_units(only(amounts_of(one), resource)) if price_list else 0
        discounted = listed * (10_000 - one.discount_bp) // 10_000
        assert abs(Decimal(row["ListCost"]) - _major(listed)) <= tenth
        assert abs(Decimal(row["BilledCost"]) - _major(discounted)) <= tenth
        assert row["BilledCost"] == row["EffectiveCost"] == row["ContractedCost"]
        assert row["ChargeClass"] == ("Correction" if row["x_UsageMonth"] != one.period else "")
        assert row["ChargeCategory"] == ("Credit" if one.kind == EntryKind.CREDIT else "Usage")
    exact = {
        f"{one.heading.number}-{line.number}": _major(line.cost_units)
        for one in statements(service)
        for line in one.lines
        if line.key.charge != FREE
    }
    found = amounts(rows)
    assert {name: found.get(name, Decimal()) for name in exact} == exact


def _major(cost_units: int) -> Decimal:
    return decimal_of(cost_units, COST_UNITS_PER_MINOR * 100, PLACES)


def an_hour(sequence: int = 1, **changes: Any) -> LedgerRecord:
    """A GPU and two cores at the dearer rate of the first list."""
    held = {"cpu_milli": 2000, "memory_mib": 1024, "gpu_milli": 1000, "accelerator": "a100", "pool": "gpu"}
    start_ms = START_MS + sequence * HOUR_MS
    priced = {"price_list": 1, "rate": 1, "discount_bp": 1250}
    return record(sequence, start_ms, start_ms + HOUR_MS, **{**held, **priced, **changes})


def test_a_row_tells_all_of_its_charge() -> None:
    service = LedgerService([an_hour(purpose="=1+1")])
    rows = exported(service, **MONTHS)
    (gpu,) = (row for row in rows if row["SkuMeter"] == "GPU time")
    assert {name: value for name, value in gpu.items() if value} == {
        "BilledCost": "1.0802469038",
        "BillingAccountId": "uni-a",
        "BillingAccountName": "University A",
        "BillingAccountType": "Institution",
        "BillingCurrency": "CNY",
        "BillingPeriodEnd": "2026-02-01T00:00:00Z",
        "BillingPeriodStart": "2026-01-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "GPU time in east/gpu (a100)",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-01-20T02:00:00Z",
        "ChargePeriodStart": "2026-01-20T01:00:00Z",
        "ConsumedQuantity": "1",
        "ConsumedUnit": "GPU-Hours",
        "ContractedCost": "1.0802469038",
        "ContractedUnitPrice": "1.08024690375",
        "EffectiveCost": "1.0802469038",
        "HostProviderName": "Suanli",
        "InvoiceDetailId": "uni-a-2026-01-2",
        "InvoiceId": "uni-a-2026-01",
        "InvoiceIssuerName": "Suanli",
        "ListCost": "1.23456789",
        "ListUnitPrice": "1.23456789",
        "PricingCategory": "Standard",
        "PricingCurrency": "CNY",
        "PricingQuantity": "1",
        "PricingUnit": "GPU-Hours",
        "RegionId": "east",
        "RegionName": "east",
        "ResourceId": "j1/1",
        "ResourceName": "j1",
        "ResourceType": "Allocation",
        "ServiceCategory": "Compute",
        "ServiceName": "Shared compute",
        "ServiceProviderName": "Suanli",
        "ServiceSubcategory": "Other (Compute)",
        "SkuId": "gpu/east/gpu/a100",
        "SkuMeter": "GPU time",
        "SkuPriceDetails": '{"x_Priority": "normal", "x_Preemptible": false, "x_DiscountBasisPoints": 1250}',
        "SkuPriceId": "1/1/gpu",
        "SubAccountId": "uni-a/p",
        "SubAccountName": "Project p",
        "SubAccountType": "Project",
        "Tags": '{"suanli/user": "u", "suanli/priority": "normal", "suanli/purpose": "=1+1"}',
        "x_Accelerator": "a100",
        "x_AttemptId": "1",
        "x_JobId": "j1",
        "x_LedgerKind": "USAGE",
        "x_LedgerSeq": "1",
        "x_Pool": "east/gpu",
        "x_Preemptible": "false",
        "x_Priority": "normal",
        "x_Purpose": "'=1+1",
        "x_UsageMonth": "2026-01",
        "x_User": "u",
    }
    adjusted = {row["InvoiceDetailId"]: row["BilledCost"] for row in rows if row["ChargeDescription"] == ROUNDING}
    assert adjusted["uni-a-2026-01-2"] == "-0.0002469038"
    free = [row for row in rows if row["ChargeDescription"].startswith("Free")]
    assert [(row["ChargeCategory"], row["ChargeDescription"], row["SubAccountId"]) for row in free] == [
        ("Credit", "Free allowance: cpu", ""),
        ("Credit", "Free allowance: gpu", ""),
    ]


def test_planted_errors_are_found(tmp_path: Path) -> None:
    service = LedgerService([an_hour(1), an_hour(2)])
    rows = exported(service, **MONTHS)
    assert lint(rows) == []
    expected = charged(statements(service))
    assert {name: amount for name, amount in amounts(rows).items() if name in expected} == expected

    def changed(column: str, value: str) -> list[dict[str, str]]:
        return [{**rows[0], column: value}, *rows[1:]]

    assert amounts(changed("BilledCost", "0.0599999999")) != expected
    for column, value in (
        ("BilledCost", "1,5"), ("ListCost", "7"), ("BillingCurrency", "RMB"), ("ChargeCategory", "Rounding"),
        ("ChargePeriodStart", "2026-01-20"), ("ListUnitPrice", ""), ("PricingUnit", ""), ("ServiceName", ""),
    ):  # fmt: skip
        assert lint(changed(column, value)), column
    assert lint([{name: value for name, value in row.items() if name != "BilledCost"} for row in rows])
    file = tmp_path / "export.csv"
    for text, code in ((csv_text(rows, header=True), 0), (csv_text(changed("ListCost", "7"), header=True), 1)):
        file.write_text(text)
        command = [sys.executable, "-m", "focus_data_toolkit", "validate", str(file)]
        result = subprocess.run([*command, "--dataset", "cost-and-usage"], check=False, capture_output=True, text=True)
        assert result.returncode == code, result.stdout + result.stderr


def test_records_that_are_not_what_the_sums_are_of_end_the_export() -> None:
    class Tampered(LedgerService):
        async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
            return [one._replace(gpu_milli=one.gpu_milli + 1) for one in await super().ledger(query)]

    class Short(LedgerService):
        async def ledger(self, query: LedgerQuery) -> list[LedgerRecord]:
            return []

    for kind in (Tampered, Short):
        with pytest.raises(Internal, match=r"sums differ|no records for a line"):
            exported(kind([an_hour()]), **MONTHS)


def test_it_comes_in_pieces_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PAGE", 7)
    service = LedgerService([an_hour(number) for number in range(1, 101)])
    pieces = chunks(service, from_month="2026-01")
    assert len(pieces) > 3
    assert {len(piece) for piece in pieces[:-1]} == {exports.CHUNK_BYTES}
    assert len(pieces[-1]) <= exports.CHUNK_BYTES
    assert max(query.limit for query in service.asked if isinstance(query, LedgerQuery)) == 7
    assert b"".join(pieces).decode().splitlines()[0] == ",".join(COLUMNS)
    rows = rows_of(b"".join(pieces).decode())
    assert [int(row["x_LedgerSeq"]) for row in rows if row["SkuMeter"] == "CPU time"] == list(range(1, 101))


def test_whose_and_which_months() -> None:
    late = an_hour(2, institution="uni-b", discount_bp=0, period="2026-02")
    service = LedgerService([an_hour(1), late, taken_back(late, 3, EntryKind.CREDIT)])

    def seen(caller: Caller, **fields: Any) -> set[tuple[str, str]]:
        return {(row["BillingAccountId"], row["BillingPeriodStart"][:7]) for row in exported(service, caller, **fields)}

    assert seen(FIN) == {("uni-b", "2026-02")}
    assert seen(FIN, from_month="2026-01") == {("uni-a", "2026-01")}
    assert seen(FIN, from_month="2026-01", to_month="2026-02") == {("uni-a", "2026-01"), ("uni-b", "2026-02")}
    assert seen(FIN, institution="uni-b", **MONTHS) == {("uni-b", "2026-02")}
    assert seen(FAY, **MONTHS) == {("uni-a", "2026-01")}
    assert seen(FAY, from_month="2030-01") == set()
    (correction, *_) = exported(service, institution="uni-b")
    assert (correction["ChargeClass"], correction["BillingAccountName"]) == ("Correction", "'=B()")
    with pytest.raises(PermissionDenied):
        exported(service, FAY, institution="uni-b")
    with pytest.raises(NotFound):
        exported(service, institution="uni-c")
    for fields, field in (
        ({"format": 0}, "format"),
        ({"from_month": "2026-13"}, "from_month"),
        ({"to_month": "2026-01"}, "from_month"),
        ({"from_month": "2026-02", "to_month": "2026-01"}, "to_month"),
        ({"institution": "A B"}, "institution"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            exported(service, **fields)
        assert caught.value.field == field


def test_without_a_price_list_there_is_no_currency_and_all_is_free() -> None:
    rows = exported(LedgerService([record(1, START_MS, START_MS + 1)], prices=type(PRICES)()), **MONTHS)
    assert lint(rows) == []
    assert {(row["BillingCurrency"], row["BilledCost"], row["SkuPriceId"][:6]) for row in rows} == {
        ("XXX", "0", "0/none")
    }


def test_numbers_and_instants_are_written_exactly() -> None:
    assert [decimal_text(*each) for each in ((0, 10), (-1, 10), (12345, 2), (-120, 2), (100, 2), (7, 0))] == [
        "0", "-0.0000000001", "123.45", "-1.2", "1", "7",
    ]  # fmt: skip
    assert instant(START_MS) == "2026-01-20T00:00:00Z"
    assert instant(START_MS + 86_399_007) == "2026-01-20T23:59:59.007Z"
    assert line_key(an_hour(), "gpu").charge == "usage"
