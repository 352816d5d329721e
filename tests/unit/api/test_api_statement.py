"""GetStatement: who may ask for which, what is refused, and that the message says what the statement says."""

from __future__ import annotations

import hashlib
import json
from typing import cast

import pytest

from protos.suanli.v1 import statements_pb2
from scheduler.api.permissions import Role, Scope, scope_of
from scheduler.api.statements import StatementApi
from scheduler.api.visibility import Caller
from scheduler.domain.errors import InvalidArgument, PermissionDenied
from scheduler.metering.money import COST_UNITS_PER_MINOR, Amounts, HourlyPrice
from scheduler.metering.prices import Allowance, EnergyFactors, PriceBook, PriceList, Rate
from scheduler.metering.statement import Head, Heading
from scheduler.service.contract import Service
from scheduler.service.ports import DaySum, UsageKey, UsageSum
from scheduler.service.statements import StatementFacts

HOUR = 3_600_000
METHOD = "suanli.v1.UsageService/GetStatement"
PRICES = PriceBook(
    [
        PriceList(
            3,
            "2026",
            "CNY",
            2,
            0,
            rates=(Rate(HourlyPrice(12_345_678, 0, 0), HourlyPrice(1_000_000, 0, 0)),),
            allowances=(Allowance("", Amounts(500 * HOUR)),),
            energy=EnergyFactors(cpu_core_mw=10_000, pue_milli=1500, grid_mg_per_kwh={"": 500_000}),
        )
    ]
)


class Fake:
    """Has one month of one institution."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def statement(self, institution: str, month: str) -> StatementFacts:
        self.asked.append((institution, month))
        key = UsageKey(institution, "p", "", "east", "cpu", "", month, month, 1, 2, 1, "", 3, 0, 1000)
        sums = [UsageSum(key, 2000 * HOUR, 0, 0, 500 * HOUR, 0, 0, 4, 2)]
        days = [DaySum(f"{month}-02", institution, "east", "cpu", 2000 * HOUR, 0, 0)]
        heading = Heading(institution, month, "The Uni", {"p": "Project P"}, True, Head(12, b"\xff" * 32), 1234)
        return StatementFacts(heading, sums, [], days, PRICES)


async def ask(institution: str, month: str, caller: Caller, **more: bool) -> statements_pb2.GetStatementResponse:
    api = StatementApi(cast(Service, Fake()))
    request = statements_pb2.GetStatementRequest(institution=institution, month=month, **more)
    return await api.get_statement(request, caller)


def caller(institution: str, scope: Scope) -> Caller:
    return Caller("fay", institution, Role.FINANCE, "", scope)


PLATFORM = caller("", Scope.ANY)
OWN = caller("uni-a", Scope.INSTITUTION)


def test_who_may_ask() -> None:
    scopes = {role: scope_of(METHOD, role, "uni-a") for role in Role}
    assert scopes == {
        Role.RESEARCHER: None,
        Role.INSTITUTION_ADMIN: Scope.INSTITUTION,
        Role.FINANCE: Scope.INSTITUTION,
        Role.OPERATOR: Scope.ANY,
        Role.AGENT: None,
        Role.PROJECT_LEAD: None,
        Role.AUDITOR: Scope.INSTITUTION,
        Role.STEWARD: None,
    }
    assert scope_of(METHOD, Role.FINANCE, "") is Scope.ANY


async def test_the_message_is_the_statement() -> None:
    answer = await ask("", "2026-10", OWN, include_energy=True)

    usage, free = sorted(answer.lines, key=lambda line: line.charge != "usage")
    # 2 core-hours at 12.345678 fen less 10 %; a quarter of it is free.
    assert (usage.quantity, usage.quantity_ms, usage.unit_price_micro) == ("2.000000", str(2000 * HOUR), 12_345_678)
    assert int(usage.exact_cost_units) * 10**7 == 222_222_204 * COST_UNITS_PER_MINOR
    assert (usage.amount_minor, usage.service_units, usage.priority, usage.preemptible) == (
        22,
        "2.000000",
        "normal",
        True,
    )
    assert (free.charge, free.quantity, free.amount_minor, free.priority, free.rate) == (
        "free",
        "-0.500000",
        -6,
        "",
        -1,
    )
    assert (answer.total_minor, answer.list_total_minor) == (16, 25)
    assert (answer.number, answer.institution_title, answer.final) == ("uni-a-2026-10", "The Uni", True)
    assert (answer.currency, answer.currency_digits, answer.ledger_sequence) == ("CNY", 2, 12)
    assert answer.cpu_milli_ms_by_day[:3] == ["0", str(2000 * HOUR), "0"]
    (project,) = answer.projects
    assert (project.title, project.cpu_used_milli_ms, project.attempts) == ("Project P", str(500 * HOUR), 2)
    # 2 h × 10 W × 1.5; 500 g/kWh.
    assert (answer.energy_wh, answer.carbon_g) == ("30.000", "15.000")


async def test_the_digest_can_be_reckoned_from_the_message() -> None:
    answer = await ask("uni-a", "2026-10", PLATFORM)

    lines = [{field.name: getattr(line, field.name) for field in line.DESCRIPTOR.fields} for line in answer.lines]
    content = {
        "number": answer.number,
        "institution": answer.institution,
        "month": answer.month,
        "currency": answer.currency,
        "lines": lines,
        "total_minor": answer.total_minor,
        "ledger_sequence": answer.ledger_sequence,
        "head_hash": answer.head_hash.hex(),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert answer.digest == hashlib.sha256(text.encode("ascii")).digest()


@pytest.mark.parametrize("month", ["", "2026-13", "2026-1", "2026-10-01", "1969-12", "٢٠٢٦-10", "2026-10\n"])
async def test_bad_months_are_refused(month: str) -> None:
    with pytest.raises(InvalidArgument) as bad:
        await ask("uni-a", month, PLATFORM)
    assert bad.value.field == "month"


async def test_institutions_that_cannot_be_asked_for() -> None:
    with pytest.raises(PermissionDenied) as other:
        await ask("uni-b", "2026-10", OWN)
    assert other.value.reason == "OTHER_INSTITUTION"
    with pytest.raises(InvalidArgument) as none:
        await ask("", "2026-10", PLATFORM)
    assert none.value.field == "institution"
