"""Budgets: what an institution's or its projects' jobs may cost or hold, and how that stands."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import click

from protos.suanli.v1 import budgets_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Failure, Link, connected, listed, own_institution, pages
from suanli.cli.values import Instant

Status = budgets_pb2.BudgetStatus
UNITS = {
    "money": budgets_pb2.BUDGET_UNIT_MONEY,
    "service-units": budgets_pb2.BUDGET_UNIT_SERVICE_UNITS,
    "core-hours": budgets_pb2.BUDGET_UNIT_CPU_CORE_HOURS,
    "gpu-hours": budgets_pb2.BUDGET_UNIT_GPU_HOURS,
}
_NAMES: dict[int, str] = {number: name for name, number in UNITS.items()}
_BAR = 20
_MAX_DIGITS = 24


class Amount(click.ParamType[Any]):
    """A decimal number, kept exactly."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Read ``value``; commas between thousands may stand."""
        text = str(value).replace(",", "")
        try:
            amount = Decimal(text)
        except InvalidOperation:
            self._refuse(value, param, ctx)
        if len(text) > _MAX_DIGITS or not amount.is_finite() or amount <= 0 or "e" in text.lower():
            self._refuse(value, param, ctx)
        return amount

    def _refuse(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
        self.fail(f"{value!r} is no amount; write a number above 0, as in 10000 or 1250.50.", param, ctx)


class Thresholds(click.ParamType[Any]):
    """Per cent with commas between them."""

    name = "per cent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Read ``value``."""
        if isinstance(value, list):
            return value
        parts = [part.strip().removesuffix("%") for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            self.fail(f"{value!r} is no list of per cent; write it as in 50,80,100.", param, ctx)
        return [int(part) for part in parts]


def amount_text(amount: int, status: Status) -> str:
    """An amount of a budget's unit: "1,250.50 CNY", "12.5 core-hours"."""
    if status.budget.unit == budgets_pb2.BUDGET_UNIT_MONEY:
        return f"{number_text(amount, status)} {status.currency}".rstrip()
    return f"{number_text(amount, status)} {unit_name(status.budget.unit)}"


def number_text(amount: int, status: Status) -> str:
    """The same without the unit; of money with all digits, of hours and service units with those that count."""
    text = f"{Decimal(amount).scaleb(-status.currency_digits):,f}"
    if status.budget.unit == budgets_pb2.BUDGET_UNIT_MONEY or "." not in text:
        return text
    return text.rstrip("0").rstrip(".")


def unit_name(unit: int) -> str:
    """ "core-hours"."""
    return _NAMES.get(unit, str(unit))


def used_per_cent(status: Status) -> int:
    """What is spent and running, of the amount; rounded down, so that 100 is all of it."""
    return (status.spent + status.running) * 100 // max(1, status.budget.amount)


def bar(status: Status, width: int = _BAR) -> str:
    """Spent █, running ▓, committed ▒, available ░."""
    amount = max(1, status.budget.amount)
    text, upto = "", 0
    for mark, part in (("█", status.spent), ("▓", status.running), ("▒", status.committed)):
        upto = min(amount, upto + part)
        text += mark * (upto * width // amount - len(text))
    return text + "░" * (width - len(text))


def _owner(status: Status) -> str:
    budget = status.budget
    return f"{budget.institution}/{'+'.join(budget.projects)}" if budget.projects else budget.institution


def _end(status: Status) -> str:
    """What comes first: nothing left, or its end."""
    if status.budget.closed:
        return "closed"
    if status.exhausted_time_ms:
        return f"used up {human.instant(status.exhausted_time_ms)[:10]}"
    return f"ends {human.instant(status.budget.to_ms)[:10]}"


_COLUMNS: list[Column[Status]] = [
    Column("BUDGET", lambda s: s.budget.id, whole=True),
    Column("OF", _owner),
    Column("LIMIT", lambda s: "hard" if s.budget.hard else "soft"),
    Column("AMOUNT", lambda s: amount_text(s.budget.amount, s), right=True, whole=True),
    Column("SPENT", lambda s: number_text(s.spent, s), right=True, whole=True),
    Column("RUNNING", lambda s: number_text(s.running, s), right=True),
    Column("COMMITTED", lambda s: number_text(s.committed, s), right=True),
    Column("AVAILABLE", lambda s: number_text(s.available, s), right=True, whole=True),
    Column("", bar, whole=True),
    Column("USED", lambda s: f"{used_per_cent(s)} %", right=True, whole=True),
    Column("WAITING", lambda s: f"{s.held_jobs:,}" if s.held_jobs else "", right=True),
    Column("WHEN", _end, whole=True),
]


@click.group()
def budget() -> None:
    """What an institution's or its projects' jobs may cost or hold in a time.

    docs/howto/budgets.md tells how they are counted.
    """


@budget.command("list")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--project", default="", help="Those that this project's jobs are charged to.")
@click.option("--all", "everything", is_flag=True, help="Also those that are closed or over.")
@output_option
@connected
async def list_budgets(link: Link, institution: str, project: str, everything: bool, out: Output) -> None:
    """List budgets with what of them is spent (█), running (▓), committed (▒) and available (░).

    Spent is what the ledger says, running what jobs hold that have not been posted yet, committed the most that they may yet take.

    \b
    suanli budget list
    suanli budget list --all -o json
    """
    request = budgets_pb2.ListBudgetsRequest(institution=institution, project=project, include_past=everything)
    found = await listed(link, "UsageService/ListBudgets", request, "budgets")
    out.listing(found, _COLUMNS, "There is no budget.")


@budget.command()
@click.argument("name", metavar="ID")
@output_option
@connected
async def show(link: Link, name: str, out: Output) -> None:
    """Show one budget.

    \b
    suanli budget show term-1
    """
    _sheet(await _found(link, name), out)


def _sheet(status: Status, out: Output) -> None:
    budget = status.budget
    lines = [
        ("Budget", budget.id),
        ("Title", budget.title),
        ("Institution", budget.institution),
        ("Projects", ", ".join(budget.projects) or "all of the institution"),
        ("Limit", "hard: what it does not cover does not run" if budget.hard else "soft: it only gives notice"),
        ("Amount", amount_text(budget.amount, status)),
        ("Spent", amount_text(status.spent, status)),
        ("Running", amount_text(status.running, status)),
        ("Committed", amount_text(status.committed, status)),
        ("Available", amount_text(status.available, status)),
        ("Used", f"{bar(status)} {used_per_cent(status)} %"),
        ("Notices", f"at {', '.join(f'{each} %' for each in budget.thresholds)}"),
        ("Passed", f"{status.threshold} %" if status.threshold else ""),
        ("Jobs waiting", f"{status.held_jobs:,}" if status.held_jobs else ""),
        ("From", human.instant(budget.from_ms)),
        ("To", human.instant(budget.to_ms)),
        ("Used up", human.instant(status.exhausted_time_ms)),
        ("State", "closed" if budget.closed else ""),
        ("By", f"{budget.author}, {human.instant(budget.create_time_ms)}"),
    ]
    out.sheet(status, lines)


@budget.command("set")
@click.argument("name", metavar="ID")
@click.option("--institution", default="", help="Whose. Default: yours.")
@click.option(
    "--project", "projects", multiple=True, help="A project that shares it; give it again for more. Default: all."
)
@click.option("--amount", type=Amount(), default=None, help="In the unit: of money in the currency, as in 1250.50.")
@click.option("--unit", type=click.Choice(list(UNITS)), default=None, help="What it is counted in. Cannot be changed.")
@click.option(
    "--from", "from_ms", type=Instant(), default=None, metavar="TIME", help="Default: now. Cannot be changed."
)
@click.option("--to", "to_ms", type=Instant(), default=None, metavar="TIME", help="It ends before this time.")
@click.option("--hard/--soft", "hard", default=None, help="Whether it limits or only gives notice. Default: --hard.")
@click.option("--thresholds", type=Thresholds(), default=None, help="When to give notice. Default: 50,80,100.")
@click.option("--title", default=None, help="At most 256 characters.")
@output_option
@connected
async def set_budget(link: Link, /, name: str, out: Output, **given: Any) -> None:
    """Make a budget, or change one; what is not given stays as it is.

    \b
    suanli budget set term-1 --institution beishan --unit money --amount 10000 --to 2027-02-01
    suanli budget set thesis --project thesis --unit gpu-hours --amount 500 --to 2027-02-01 --soft
    suanli budget set term-1 --amount 12500.50
    """
    before = await _known(link, name)
    wanted = budgets_pb2.Budget()
    if before is not None:
        wanted.CopyFrom(before.budget)
    else:
        for option in ("amount", "unit", "to_ms"):
            if given[option] is None:
                raise click.UsageError(f"There is no budget {name!r} yet; give --{option.removesuffix('_ms')}, too.")
        wanted.id, wanted.hard = name, True
    if before is None or given["institution"]:
        wanted.institution = await own_institution(link, given["institution"])
    if given["unit"] is not None:
        wanted.unit = UNITS[given["unit"]]
    for field in ("from_ms", "to_ms", "hard", "title"):
        if given[field] is not None:
            setattr(wanted, field, given[field])
    for field in ("projects", "thresholds"):
        if given[field]:
            getattr(wanted, field)[:] = given[field]
    if given["amount"] is not None:
        wanted.amount = await _whole_amount(link, wanted, given["amount"])
    await _put(link, wanted, out)


async def _whole_amount(link: Link, wanted: budgets_pb2.Budget, amount: Decimal) -> int:
    """The amount in the budget's unit: minor units of the currency, or thousandths. Exact, or a ``Failure``."""
    asked = budgets_pb2.PutBudgetRequest(budget=wanted, validate_only=True)
    asked.budget.amount = 1
    status = (await link.call("UsageService/PutBudget", asked)).status
    scaled = amount.scaleb(status.currency_digits)
    if scaled != scaled.to_integral_value():
        raise click.UsageError(
            f"--amount: {amount} is finer than {Decimal(1).scaleb(-status.currency_digits):f} "
            f"{status.currency or unit_name(wanted.unit)}."
        )
    if scaled >= 1 << 63:
        raise click.UsageError(f"--amount: {amount} is out of range.")
    return int(scaled)


@budget.command("close")
@click.argument("name", metavar="ID")
@output_option
@connected
async def close_budget(link: Link, name: str, out: Output) -> None:
    """Close a budget: it counts and limits no more, and jobs that wait for it go on. It stays in the list with --all.

    \b
    suanli budget close term-1
    """
    wanted = (await _found(link, name)).budget
    wanted.closed = True
    await _put(link, wanted, out)


@budget.command("reopen")
@click.argument("name", metavar="ID")
@output_option
@connected
async def reopen_budget(link: Link, name: str, out: Output) -> None:
    """Open a closed budget again; what was held meanwhile counts.

    \b
    suanli budget reopen term-1
    """
    wanted = (await _found(link, name)).budget
    wanted.closed = False
    await _put(link, wanted, out)


async def _put(link: Link, wanted: budgets_pb2.Budget, out: Output) -> None:
    response = await link.call("UsageService/PutBudget", budgets_pb2.PutBudgetRequest(budget=wanted))
    _sheet(response.status, out)


async def _known(link: Link, name: str) -> Status | None:
    request = budgets_pb2.ListBudgetsRequest(include_past=True)
    async for status in pages(link, "UsageService/ListBudgets", request, "budgets"):
        if status.budget.id == name:
            return status  # type: ignore[no-any-return]
    return None


async def _found(link: Link, name: str) -> Status:
    status = await _known(link, name)
    if status is None:
        raise Failure(f"There is no budget {name!r}; 'suanli budget list --all' lists those you may see.", NOT_FOUND)
    return status


@budget.command()
@click.argument("name", metavar="[ID]", default="")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@output_option
@connected
async def notices(link: Link, name: str, institution: str, limit: int, out: Output) -> None:
    """List the thresholds that budgets have passed, newest first.

    \b
    suanli budget notices
    suanli budget notices term-1 -o json
    """
    request = budgets_pb2.ListBudgetNoticesRequest(institution=institution, budget=name)
    found = await listed(link, "UsageService/ListBudgetNotices", request, "notices", limit)
    columns: list[Column[budgets_pb2.BudgetNotice]] = [
        Column("AT", lambda n: human.instant(n.time_ms), whole=True),
        Column("BUDGET", lambda n: n.budget, whole=True),
        Column("INSTITUTION", lambda n: n.institution),
        Column("PASSED", lambda n: f"{n.threshold} %", right=True, whole=True),
        Column("USED", lambda n: f"{n.spent * 100 // max(1, n.amount)} %", right=True, whole=True),
    ]
    out.listing(found, columns, "No budget has passed a threshold.")
