"""The PDF of a statement, read back."""

from __future__ import annotations

import io
import re

import pytest
from pypdf import PdfReader

from suanli.reports import document
from suanli.reports.document_text import PLAIN, SIZE, cell, shortened, width_of
from suanli.reports.sheet import Sheet
from suanli.reports.words import LANGUAGES, Language
from tests.unit.reports.samples import statement


def pages(content: bytes) -> list[str]:
    return [page.extract_text() for page in PdfReader(io.BytesIO(content)).pages]


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_text_is_what_the_statement_says(language: Language) -> None:
    one = statement(energy=True, title="华清师范大学")
    text = squeezed("".join(pages(document.pdf(one, language))))

    sheet = Sheet(one, language)
    for fact in (*sheet.facts, *sheet.evidence):
        assert squeezed(fact.value) in text, fact
    for total in sheet.totals:
        assert squeezed(total.name) + total.amount in text, total
    for row in sheet.projects:
        assert squeezed(row.title + row.project) in text
        assert row.attempts + row.amount in text
    for group in sheet.groups:
        assert group.subtotal in text
        for line in group.lines:
            assert squeezed("".join(line)) in text, line
    for note in sheet.notes:
        assert squeezed(note) in text
    assert f"suanliledgerverify--head4711:{bytes(range(32)).hex()}" in text


def test_pages_are_numbered_and_repeat_their_heads() -> None:
    found = pages(document.pdf(statement(40, pools=3)))

    assert len(found) > 3
    for number, text in enumerate(found, 1):
        assert f"Page {number} of {len(found)}" in text
    with_lines = [text for text in found[1:] if re.search(r"east/pool-\d", text)]
    assert len(with_lines) >= 3
    for text in with_lines:
        assert "Region / pool" in text
        assert "Statement of usage hua-uni-2026-10" in text


def test_very_many_lines_are_on_several_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    one = statement(9)
    as_one = pages(document.pdf(one))
    monkeypatch.setattr(document, "_ROWS_OF_A_TABLE", 12)
    as_many = pages(document.pdf(one))

    assert len(as_many) > len(as_one)
    for line in (line for group in Sheet(one).groups for line in group.lines):
        assert any(squeezed("".join(line)) in squeezed(text) for text in as_many), line
    assert sum(text.count("Total\n") for text in as_many) == sum(text.count("Total\n") for text in as_one)


def test_one_page_is_enough_where_nothing_was_used() -> None:
    (text,) = pages(document.pdf(statement(0)))
    assert "Page 1 of 1" in text


def test_it_is_the_same_each_time_and_embeds_nothing() -> None:
    one = statement(title="华清师范大学")
    content = document.pdf(one, "zh")

    assert document.pdf(one, "zh") == content
    assert b"/FontFile" not in content
    assert b"STSong-Light" in content
    info = PdfReader(io.BytesIO(content)).metadata
    assert info is not None
    assert (info.title, info.subject) == ("算力用量结算单 hua-uni-2026-10", f"SHA-256 {one.digest.hex()}")


def test_long_names_stay_on_the_page() -> None:
    one = statement(2, title="The University of Very Long Names " * 7)
    for project in one.projects:
        project.title = "w" * 200
    for line in one.lines:
        line.pool = "pool-" + "x" * 58
        line.accelerator = "NVIDIA-" + "Y" * 40
    text = squeezed("".join(pages(document.pdf(one))))

    assert squeezed(one.lines[0].pool) in text, "it is broken, not cut off"
    assert one.lines[1].accelerator in text
    assert squeezed("w" * 200) in text


@pytest.mark.parametrize("text", ["w" * 200, "a word and another " * 9, "考试与测评" * 20, "Thesis 毕业论文 " * 9])
def test_text_keeps_to_its_room(text: str) -> None:
    found = cell(text, 80)
    assert not isinstance(found, str)
    found.wrap(80, 1000)
    assert len(found.blPara.lines) > 1
    assert all(getattr(line, "extraSpace", None) is None or line.extraSpace >= -1e-6 for line in found.blPara.lines)
    assert cell(text[:3], 80) == text[:3] or not text.isascii()
    short = shortened(text, 80, PLAIN, SIZE)
    assert width_of(short, PLAIN, SIZE) <= 80
    assert short.endswith("…")
    assert text.startswith(short[:-1])
