"""Statements: exact, rounded once, the same in whatever order and pieces their sums come."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.states import EntryKind
from scheduler.metering.allowances import rounded_to_odd
from scheduler.metering.digest import canonical, digest_of
from scheduler.metering.lines import CREDIT, FREE, RESOURCES, LineKey, charge_of
from scheduler.metering.money import COST_UNITS_PER_MINOR, Amounts, HourlyPrice, minor_of, round_half_even
from scheduler.metering.prices import Allowance, Discount, PriceBook, PriceList, Rate
from scheduler.metering.segments import month_start_ms
from scheduler.metering.statement import Head, Heading, Line, Statement, build_statement
from scheduler.service.ports import DaySum, UsageKey, UsageSum

MONTH = "2026-10"
MONTHS = ("2026-08", "2026-09", MONTH)
HEADING = Heading("uni", MONTH, "Uni", {"p": "P"}, head=Head(9, b"\1" * 32))
HOUR = 3_600_000
AMOUNTS = st.integers(0, 10**13)
PRICES = st.builds(HourlyPrice, *[st.integers(0, 10**9)] * 3)


def price_lists(digits: int, allowance: Amounts) -> st.SearchStrategy[PriceBook]:
    """Two lists, the second in force from the middle of October on; every third key has no list at all."""
    rates = st.lists(st.builds(Rate, PRICES, PRICES), min_size=2, max_size=2).map(tuple)

    def book(first: tuple[Rate, ...], second: tuple[Rate, ...]) -> PriceBook:
        middle = month_start_ms(MONTH) + 15 * 24 * HOUR
        one = PriceList(1, "a", "X", digits, 0, middle, first, (), (Allowance("", allowance),))
        return PriceBook((one, replace(one, version=2, from_ms=middle, to_ms=1 << 62, rates=second)))

    return st.builds(book, rates, rates)


BOOKS = st.tuples(st.sampled_from((0, 2, 3)), st.builds(Amounts, AMOUNTS, AMOUNTS, AMOUNTS)).flatmap(
    lambda pair: price_lists(*pair)
)


@st.composite
def sums(draw: st.DrawFn, months: tuple[str, ...] = MONTHS, period: str = MONTH) -> UsageSum:
    """Held, and in part taken back or credited: never more than there was."""
    priced = draw(st.sampled_from(((0, -1), (1, 0), (1, 1), (2, 0), (2, 1))))
    key = UsageKey(
        "uni",
        draw(st.sampled_from("pq")),
        draw(st.sampled_from(("ada", ""))),
        "east",
        draw(st.sampled_from(("cpu", "gpu"))),
        "",
        draw(st.sampled_from(months)),
        period,
        EntryKind.USAGE,
        draw(st.sampled_from((1, 2))),
        0,
        "",
        *priced,
        draw(st.sampled_from((0, 3333))),
    )
    return UsageSum(key, *draw(st.tuples(*[AMOUNTS] * 6)), 1, 1)


@st.composite
def ledgers(draw: st.DrawFn, months: tuple[str, ...] = MONTHS, period: str = MONTH) -> list[UsageSum]:
    """Usage, and reversals and credits of parts of it."""
    found = draw(st.lists(sums(months, period), max_size=6))
    for one in tuple(found):
        kind = draw(st.sampled_from((EntryKind.USAGE, EntryKind.REVERSAL, EntryKind.CREDIT)))
        if kind is not EntryKind.USAGE:
            part = draw(st.integers(0, 100))
            key = one.key._replace(kind=int(kind))
            found.append(UsageSum(key, *(-value * part // 100 for value in one[1:7]), 0, 0))
    return found


def exact_cost(book: PriceBook, one: UsageSum) -> int:
    found = book.get(one.key.price_list)
    return found.price(one.key.rate).cost_units(Amounts(*one[1:4]), one.key.discount_bp) if found else 0


def charged(statement: Statement) -> list[Line]:
    return [line for line in statement.lines if line.key.charge != FREE]


@given(ledgers(), BOOKS)
def test_lines_cost_what_the_sums_cost_and_the_total_is_theirs(ledger: list[UsageSum], book: PriceBook) -> None:
    statement = build_statement(HEADING, ledger, (), book)

    exact = sum(line.cost_units for line in charged(statement))
    assert exact == sum(exact_cost(book, one) for one in ledger)
    assert statement.total_minor == sum(line.amount_minor for line in statement.lines)
    assert [line.number for line in statement.lines] == list(range(1, len(statement.lines) + 1))
    assert all(line.amount_minor == round_half_even(line.cost_units, COST_UNITS_PER_MINOR) for line in statement.lines)
    free = sum(line.amount_minor for line in statement.lines if line.key.charge == FREE)
    assert sum(project.amount_minor for project in statement.projects) + free == statement.total_minor


@given(ledgers(), BOOKS)
def test_quantities_are_those_of_the_ledger(ledger: list[UsageSum], book: PriceBook) -> None:
    statement = build_statement(HEADING, ledger, (), book)

    wanted: dict[tuple[str, str, str], int] = {}
    for one in ledger:
        for resource, amount in zip(RESOURCES, one[1:4], strict=True):
            key = charge_of(one.key.kind, one.key.month, MONTH), one.key.project, resource
            wanted[key] = wanted.get(key, 0) + amount
    got: dict[tuple[str, str, str], int] = {}
    for line in charged(statement):
        key = line.key.charge, line.key.project, line.key.resource
        got[key] = got.get(key, 0) + line.quantity_ms
    assert got == {key: amount for key, amount in wanted.items() if amount or key in got}
    for project in statement.projects:
        rows = [one for one in ledger if one.key.project == project.project and one.key.kind != EntryKind.CREDIT]
        assert project.held == Amounts(*(sum(row[at] for row in rows) for at in (1, 2, 3)))
        assert project.used == Amounts(*(sum(row[at] for row in rows) for at in (4, 5, 6)))


@given(ledgers(), ledgers(period="2026-09", months=MONTHS[:2]), BOOKS, st.data())
def test_order_and_pieces_do_not_matter(
    ledger: list[UsageSum], earlier: list[UsageSum], book: PriceBook, data: st.DataObject
) -> None:
    whole = build_statement(HEADING, ledger, (), book, earlier=earlier)

    pieces = []
    for one in ledger:
        part = [value * data.draw(st.integers(0, 7)) // 7 for value in one[1:9]]
        pieces += [
            UsageSum(one.key._replace(user="x"), *part),
            UsageSum(one.key, *(value - taken for value, taken in zip(one[1:9], part, strict=True))),
        ]
    again = build_statement(HEADING, data.draw(st.permutations(pieces)), (), book, earlier=earlier[::-1])

    assert again == whole
    assert canonical(again) == canonical(whole)
    assert digest_of(again) == digest_of(whole)


def costs_by_resource(statement: Statement) -> dict[tuple[str, str], list[int]]:
    """By month of use and resource: the net cost, and what is taken off it."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in statement.lines:
        pair = found.setdefault((line.key.month, line.key.resource), [0, 0])
        pair[line.key.charge == FREE] += line.cost_units
    return found


@given(ledgers(months=(MONTH,)), BOOKS)
def test_an_allowance_is_its_part_of_the_cost_and_never_more_than_it(ledger: list[UsageSum], book: PriceBook) -> None:
    statement = build_statement(HEADING, ledger, (), book)

    allowance = book.at(month_start_ms(MONTH)).allowance("uni")  # type: ignore[union-attr]
    for (_, resource), (cost, free) in costs_by_resource(statement).items():
        at = RESOURCES.index(resource)  # type: ignore[arg-type]
        used = sum(one[1 + at] for one in ledger if one.key.kind != EntryKind.CREDIT)
        if used <= 0 or cost <= 0:
            assert free == 0
            continue
        wanted = Fraction(-cost * min(allowance[at], used), used)
        assert abs(free - wanted) < 2, "one line for each of two price lists, each within one cost unit"
        assert cost + free >= 0


@given(ledgers(("2026-09",), "2026-09"), ledgers(("2026-09",), MONTH), BOOKS)
def test_a_late_fact_has_what_it_would_have_had_in_time(
    first: list[UsageSum], late: list[UsageSum], book: PriceBook
) -> None:
    before = build_statement(replace(HEADING, month="2026-09"), first, (), book)
    after = build_statement(HEADING, late, (), book, earlier=first)
    in_time = [one._replace(key=one.key._replace(period="2026-09")) for one in late]
    at_once = build_statement(replace(HEADING, month="2026-09"), first + in_time, (), book)

    if not late:
        assert after.lines == ()
        return
    two = [costs_by_resource(each) for each in (before, after)]
    for key, (cost, free) in costs_by_resource(at_once).items():
        assert sum(each.get(key, (0, 0))[0] for each in two) == cost
        assert abs(sum(each.get(key, (0, 0))[1] for each in two) - free) <= 6


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4), st.integers(1, 50))
def test_rounding_to_odd_first_does_not_change_the_second_rounding(top: int, bottom: int, half: int) -> None:
    value = Fraction(top, bottom)
    wanted = round_half_even(top, bottom * 4 * half)
    assert round_half_even(rounded_to_odd(value), 4 * half) == wanted
    assert abs(rounded_to_odd(value) - value) < 1


@given(st.sampled_from((("JPY", 0, "150"), ("CNY", 2, "1.50"), ("KWD", 3, "0.150"))), st.integers(1, 10**6))
def test_the_minor_unit_is_the_currencys(currency: tuple[str, int, str], hours: int) -> None:
    name, digits, _ = currency
    price = HourlyPrice(150_000_000, 0, 0)
    book = PriceBook((PriceList(1, "a", name, digits, 0, rates=(Rate(price),), discounts=(Discount("uni", "", 0),)),))
    key = UsageKey("uni", "p", "", "east", "cpu", "", MONTH, MONTH, 1, 2, 0, "", 1, 0, 0)
    one = UsageSum(key, hours * 1000 * HOUR, 0, 0, 0, 0, 0, 1, 1)

    statement = build_statement(HEADING, [one], (), book)

    assert (statement.currency, statement.digits, statement.total_minor) == (name, digits, 150 * hours)


@given(st.lists(st.tuples(st.integers(1, 31), AMOUNTS), max_size=9))
def test_days_are_those_of_the_month(days: list[tuple[int, int]]) -> None:
    rows = [DaySum(f"2026-10-{day:02d}", "uni", "east", "cpu", amount, 0, 2 * amount) for day, amount in days]
    rows += [DaySum("2026-11-01", "uni", "east", "cpu", 5, 5, 5)]

    statement = build_statement(HEADING, (), rows, PriceBook())

    assert len(statement.cpu_by_day) == 31
    assert sum(statement.cpu_by_day) == sum(amount for _, amount in days)
    assert statement.gpu_by_day == tuple(2 * value for value in statement.cpu_by_day)


def test_credits_keep_the_hours_and_count_as_money() -> None:
    book = PriceBook((PriceList(1, "a", "CNY", 2, 0, rates=(Rate(HourlyPrice(5_000_000)),)),))
    key = UsageKey("uni", "p", "", "east", "cpu", "", MONTH, MONTH, 1, 2, 0, "", 1, 0, 0)
    use = UsageSum(key, 10_000 * HOUR, 0, 0, 4_000 * HOUR, 0, 0, 1, 1)
    credit = UsageSum(key._replace(kind=4), -2_000 * HOUR, 0, 0, -1_000 * HOUR, 0, 0, 0, 0)

    statement = build_statement(HEADING, [use, credit], (), book)

    assert [(line.key.charge, line.amount_minor) for line in statement.lines] == [("usage", 50), (CREDIT, -10)]
    (project,) = statement.projects
    assert (project.held.cpu_milli_ms, project.used.cpu_milli_ms, project.amount_minor) == (
        10_000 * HOUR,
        4_000 * HOUR,
        40,
    )
    assert isinstance(statement.lines[1].key, LineKey)
    assert minor_of(statement.lines[1].cost_units) == -10
