"""Pieces of generated Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

NOTE = "<!-- Written by `python -m tools.reference`; change the sources, not this page. -->\n"
_LINK = re.compile(r"\[(?=[^\]]*\]\()")


def cell(text: str) -> str:
    """Text for a cell of a table: one line, with what Markdown would take for the cell's end or a link escaped."""
    line = " ".join(text.replace("``", "`").split()).replace("|", "\\|")
    return _LINK.sub(r"\\[", line)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; cells are taken as they are."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
