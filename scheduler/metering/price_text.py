"""A price list as YAML text, with errors that say line and column."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from scheduler.domain.document_text import DocumentForm
from scheduler.domain.errors import InvalidArgument
from scheduler.metering.price_document import ROOT, dump, parse
from scheduler.metering.prices import PriceList


def _unreadable(place: str, sentence: str) -> InvalidArgument:
    return InvalidArgument(f"{ROOT}{place}: {sentence}", reason="PRICES_UNREADABLE", field=ROOT)


_FORM = DocumentForm(ROOT, "a price list is written as names and values, as in 'currency: CNY'.", _unreadable)


class PriceText(NamedTuple):
    """A good document: the list it says, with version 0, and the list's canonical data as JSON, from which it is rebuilt."""

    price_list: PriceList
    effective: str


def read_prices(text: str) -> PriceText:
    """Read and check a document. ``InvalidArgument`` says where it is wrong: path, line and column."""
    _, price_list = _FORM.read(text, parse)
    return PriceText(price_list, effective_of(price_list))


def read_effective(effective: str, version: int) -> PriceList:
    """The list of ``effective_of``, as this version."""
    return replace(parse(json.loads(effective, parse_float=Decimal)), version=version)


def effective_of(price_list: PriceList) -> str:
    """All that a list says but its version."""
    return _FORM.effective(dump(price_list))
