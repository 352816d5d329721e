"""What is on every printed statement, and the forms made of text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from decimal import Decimal
from fractions import Fraction

import pytest
from rich.cells import cell_len

from suanli.reports import chart, figures, page, plain
from suanli.reports.sheet import Sheet, period
from suanli.reports.words import LANGUAGES, TABLE, Language
from tests.unit.reports.samples import statement


@pytest.mark.parametrize("name", TABLE)
def test_both_languages_have_the_same_blanks(name: str) -> None:
    english, chinese = TABLE[name]
    assert english.count("{}") == chinese.count("{}")
    assert english
    assert chinese


@pytest.mark.parametrize(
    ("micro", "digits", "text"),
    [(5_000_000, 2, "0.05"), (260_000_000, 2, "2.60"), (1_234_567, 2, "0.01234567"), (0, 2, "0.00"),
     (150_000_000, 0, "150"), (1_500_000, 0, "1.5"), (123_456_000_000, 3, "123.456"), (999_900_000_000, 2, "9,999.00")],
)  # fmt: skip
def test_prices_have_the_digits_they_need(micro: int, digits: int, text: str) -> None:
    assert figures.unit_price(micro, digits) == text


def test_money_and_quantities() -> None:
    assert [figures.money(-123456, digits) for digits in (0, 2, 3)] == ["-123,456", "-1,234.56", "-123.456"]
    assert figures.quantity(Decimal("0.000002")) == "0.000002"
    assert figures.quantity(Decimal("-1234.5675")) == "-1,234.568"
    assert figures.quantity(Decimal("0")) == "0.000"
    assert figures.percent(1250) == "12.5 %"
    assert figures.percent(1000) == "10 %"
    assert figures.share_text(figures.share("1", "3")) == "33 %"
    assert figures.share("1", "0") is None


@pytest.mark.parametrize(
    ("most", "step", "top"),
    [(0, 1, 1), (1, 0.5, 1), (452, 200, 600), (23, 10, 30), (4.1e-5, 2e-5, 6e-5), (400, 100, 400)],
)
def test_scales_are_round(most: float, step: float, top: float) -> None:
    assert chart.scale(most) == pytest.approx((step, top))


def test_ticks_have_the_digits_of_their_step() -> None:
    assert [chart.tick_text(tick * 0.05, 0.05) for tick in (1, 3)] == ["0.05", "0.15"]
    assert chart.tick_text(50_000, 50_000) == "50,000"


def test_totals_add_up() -> None:
    one = statement()
    sheet = Sheet(one)
    rows = {total.name: Decimal(total.amount.replace(",", "")) for total in sheet.totals}

    total = rows["Total CNY"]
    assert total == Decimal(one.total_minor) / 100
    parts = ("Usage", "Corrections of closed months", "Credits", "Free allowance")
    assert sum(rows[name] for name in parts) == total
    listed = rows["At list price, before discounts and free allowance"]
    assert listed + rows["Discounts included"] + rows["Free allowance"] == total
    assert sum(Decimal(group.subtotal.replace(",", "")) for group in sheet.groups) == total
    assert sum(Decimal(row.amount.replace(",", "")) for row in sheet.resources) == total
    assert [int(line.number) for group in sheet.groups for line in group.lines] == list(range(1, len(one.lines) + 1))


def test_efficiency_is_what_was_used_of_what_was_held() -> None:
    row = Sheet(statement()).projects[0]
    # The correction takes hours back and none that were used.
    assert row.uses[1].used == Fraction(1, 2)
    assert row.uses[2].used == pytest.approx(Fraction(1, 2), abs=1e-9)
    assert Sheet(statement(pools=1)).projects[0].uses[2] == (figures.NONE, None)


def test_a_period_ends_with_its_year() -> None:
    assert period("2026-12") == "2026-12-01 00:00 – 2027-01-01 00:00"


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_has_every_figure(language: Language) -> None:
    one = statement(energy=True)
    text = plain.text(one, language)

    sheet = Sheet(one, language)
    for fact in (*sheet.facts, *sheet.evidence):
        assert fact.value in text
    for line in (line for group in sheet.groups for line in group.lines):
        row = [line.number, line.month, line.pool, *filter(None, (line.accelerator, line.priority, line.resource))]
        row += filter(None, (line.quantity, line.rate, line.price, line.discount, line.amount))
        assert re.search(r"\s+".join(map(re.escape, row)) + "\n", text), row
    assert ("final" if language == "en" else "正式") in text
    lines = text.split("\n\n")[-3].splitlines()
    assert len({cell_len(line) for line in lines}) == 1, "columns stand below one another, also in Chinese"


def test_an_open_month_is_marked() -> None:
    one = statement(final=False)
    for language, word, note in (("en", "provisional", "not closed"), ("zh", "暂定", "尚未结账")):
        for text in (plain.text(one, language), page.html(one, language)):  # type: ignore[arg-type]
            assert word in text
            assert note in text


def test_an_empty_statement_is_one() -> None:
    one = statement(0)
    del one.cpu_milli_ms_by_day[:]
    assert "Nothing was used." in plain.text(one)
    assert "Nothing was used." in page.html(one)
    assert "<svg" not in page.html(one)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_whole_and_escapes_what_people_wrote(language: Language) -> None:
    one = statement(title="<script>alert(1)</script> & Sons")
    text = page.html(one, language)

    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; Sons" in text
    assert not re.search(r"(src|href)=|url\(|@import", text), "it needs nothing beside it"
    assert "@page { size: A4" in text
    assert "table-header-group" in text
    for row in (*Sheet(one, language).totals, *Sheet(one, language).projects):
        assert f">{row.amount}<" in text
    for line in (line for group in Sheet(one, language).groups for line in group.lines):
        assert f'<td class="num">{line.quantity}</td>' in text
    (drawing,) = re.findall(r"<svg.*?</svg>", text, re.S)
    bars = ET.fromstring(drawing).findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 28
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[-1] == pytest.approx(28 * heights[0], rel=0.02)
