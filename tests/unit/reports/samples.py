"""Statements made by the core itself, as messages."""

from __future__ import annotations

from protos.suanli.v1 import statements_pb2
from scheduler.domain.states import EntryKind
from scheduler.metering.money import Amounts, HourlyPrice
from scheduler.metering.prices import Allowance, EnergyFactors, PriceBook, PriceList, Rate
from scheduler.metering.segments import month_start_ms
from scheduler.metering.statement import Head, Heading, build_statement
from scheduler.service.ports import DaySum, UsageKey, UsageSum
from scheduler.wire.statements import statement_to_proto

HOUR = 3_600_000
CHINESE = {"exam-lab": "考试与测评实验室", "thesis": "=HYPERLINK(1)"}
PRICES = PriceBook(
    [
        PriceList(
            3,
            "2026",
            "CNY",
            2,
            0,
            rates=(Rate(HourlyPrice(5_000_000, 500_000, 260_000_000)), Rate(HourlyPrice(1_234_567, 0, 0))),
            allowances=(Allowance("", Amounts(1000 * 1000 * HOUR)),),
            energy=EnergyFactors(10_000, 0, {"": 300_000}, 1200, {"": 500_000}),
        )
    ]
)


def statement(
    projects: int = 2, *, final: bool = True, title: str = "Hua University", pools: int = 2, energy: bool = False
) -> statements_pb2.GetStatementResponse:
    """Of some projects, each in some pools, with a correction, a credit and an allowance."""
    names = ["exam-lab", "thesis", *(f"project-{number}" for number in range(projects))][:projects]
    sums: list[UsageSum] = []
    for at, project in enumerate(names):
        for pool in range(pools):
            key = UsageKey(
                "hua-uni", project, "", "east", f"pool-{pool}", "A100" if pool else "", "2026-10", "2026-10", 1, 2, at % 2, "", 3, 0, 250
            )  # fmt: skip
            cpu = (7_001 + 13 * at + pool) * 1000 * HOUR // 3
            gpu = cpu // 100 if pool else 0
            sums.append(UsageSum(key, cpu, 2 * cpu, gpu, cpu // 4, cpu, gpu // 2, 5, 3))
        sums.append(UsageSum(key._replace(kind=EntryKind.CREDIT), -1000 * HOUR, 0, 0, 0, 0, 0, 0, 0))
        late = key._replace(month="2026-09", rate=1, kind=EntryKind.REVERSAL)
        sums.append(UsageSum(late, -777_777 * HOUR, 0, 0, 0, 0, 0, 0, 0))
    earlier = [one._replace(key=one.key._replace(kind=1, period="2026-09"), cpu_milli_ms=10**6 * HOUR) for one in sums if one.key.month == "2026-09"]  # fmt: skip
    days = [DaySum(f"2026-10-{day:02d}", "hua-uni", "east", "p", day * HOUR * 10**5, 0, 0) for day in range(1, 29)]
    heading = Heading(
        "hua-uni", "2026-10", title, CHINESE, final, Head(4711, bytes(range(32))), month_start_ms("2026-11") + HOUR
    )
    return statement_to_proto(build_statement(heading, sums, days, PRICES, earlier=earlier, with_energy=energy))
