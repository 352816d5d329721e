"""Single values of the documents that people write (policy, price lists): how they are written, as integers, and back.

Every reader takes a plain YAML value and the path of its setting; it returns the value, or raises ``InvalidArgument`` that names the
path and says what may stand there. Every writer is the inverse of its reader.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

from scheduler.domain.errors import InvalidArgument

T = TypeVar("T")
Reader = Callable[[Any, str], T]

MAX_MEMORY_MIB = 1 << 40
MAX_WARNINGS = 50
_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:d|h|ms|m|s))+")
_DURATION_PART = re.compile(r"([0-9]+)(d|h|ms|m|s)")
_SIZE_UNITS = {"PiB": 1 << 30, "TiB": 1 << 20, "GiB": 1 << 10, "MiB": 1}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15} | {u: mib << 20 for u, mib in _SIZE_UNITS.items()}
_BITS = {"Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)(/s)?")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_EXACT_DIGITS = 28
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_AT_MOST = ["no decimals", "at most one decimal", *(f"at most {count} decimals" for count in _COUNTS[2:])]
_MAX_SHOWN = 64


def refuse(path: str, sentence: str) -> NoReturn:
    """Refuse the value at ``path``."""
    raise InvalidArgument(f"{path}: {sentence}", field=path)


def first_warnings(found: Sequence[str]) -> list[str]:
    """At most ``MAX_WARNINGS`` of them, the last saying how many are left out."""
    if len(found) <= MAX_WARNINGS:
        return list(found)
    return [*found[: MAX_WARNINGS - 1], f"There are {len(found) - MAX_WARNINGS + 1:,} more warnings."]


def shown(value: object) -> str:
    """A value of the document as a message may repeat it: short, and without anything that could steer a terminal."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    # No number is written out whole: one of 4,000 digits is refused by the interpreter itself.
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return "a number this large"
    text = ascii(value) if isinstance(value, str) else f"{value:f}" if isinstance(value, Decimal) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


# --- readers ------------------------------------------------------------------------------------------------------------


def flag(value: Any, path: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        refuse(path, f"{shown(value)} is neither true nor false.")
    return value


def integer(low: int, high: int) -> Reader[int]:
    """A reader of whole numbers in [low, high]."""

    def read(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            refuse(path, f"{shown(value)} is not a whole number from {low:,} to {high:,}.")
        return value

    return read


def scaled(places: int, low: int, high: int, *, suffix: bool = False) -> Reader[int]:
    """A reader of numbers with up to so many decimals, exactly, as integers of 10^-``places`` in [low, high].

    ``suffix`` allows thousandths such as "500m" for 0.5.
    """

    def read(value: Any, path: str) -> int:
        found = _scaled(value, places, suffix)
        if found is None or found != int(found) or not low <= found <= high:
            lowest, highest = number_text(low, places), Decimal(number_text(high, places))
            refuse(path, f"{shown(value)} is not a number from {lowest} to {highest:,f} with {_AT_MOST[places]}.")
        return int(found)

    return read


def milli(low: int, high: int, *, suffix: bool = False) -> Reader[int]:
    """A reader of numbers with up to three decimals, as thousandths in [low, high]; ``suffix`` allows "500m" for 0.5."""
    return scaled(3, low, high, suffix=suffix)


def _scaled(value: Any, places: int, suffix: bool) -> Decimal | None:
    if isinstance(value, str):
        if suffix and re.fullmatch(r"[0-9]{1,15}m", value):
            return Decimal(value[:-1]).scaleb(places - 3)
        return Decimal(value).scaleb(places) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    # Neither NaN nor the infinities lie between; and no number so long that the interpreter would refuse to write it out.
    if not -(10**18) < value < 10**18:
        return None
    found = Decimal(str(value))
    # So many digits are kept exactly; more are more than any range and any number of decimals.
    return found.scaleb(places) if len(found.as_tuple().digits) <= _EXACT_DIGITS else None


def duration(low_ms: int, high_ms: int) -> Reader[int]:
    """A reader of lengths of time ("90s", "1h30m", "7d"), as milliseconds in [low, high]. Only 0 needs no unit."""

    def read(value: Any, path: str) -> int:
        text = "0s" if value == 0 and not isinstance(value, bool) else value
        if not isinstance(text, str) or len(text) > _MAX_SHOWN or not _DURATION.fullmatch(text):
            refuse(path, f"{shown(value)} is not a length of time; write it with its unit, as in 90s, 1h30m or 7d.")
        total = sum(int(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))
        if not low_ms <= total <= high_ms:
            refuse(path, f"{shown(value)} is out of range; give {duration_text(low_ms)} to {duration_text(high_ms)}.")
        return total

    return read


def size(value: Any, path: str) -> int:
    """A size ("64GiB", "500GB") as MiB, rounded up. Only 0 needs no unit."""
    if value == 0 and not isinstance(value, bool):
        return 0
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _BYTES or match[3]:
        refuse(path, f"{shown(value)} is not a size; write it with its unit, as in 512MiB, 64GiB, 1.5TiB or 500GB.")
    mib = math.ceil(Decimal(match[1]) * _BYTES[match[2]] / (1 << 20))
    if mib > MAX_MEMORY_MIB:
        refuse(path, f"{shown(value)} is out of range; give at most {size_text(MAX_MEMORY_MIB)}.")
    return mib


def rate(low: int, high: int) -> Reader[int]:
    """A reader of bandwidths ("800MiB/s", "10Gbit/s"), as MiB/s, rounded down, in [low, high]."""

    def read(value: Any, path: str) -> int:
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        if match is None or not match[3] or (match[2] not in _BYTES and match[2] not in _BITS):
            refuse(path, f"{shown(value)} is not a bandwidth; write it as in 800MiB/s, 1.2GB/s or 10Gbit/s.")
        bytes_s = Decimal(match[1]) * (_BYTES[match[2]] if match[2] in _BYTES else Decimal(_BITS[match[2]]) / 8)
        mib_s = int(bytes_s / (1 << 20))
        if not low <= mib_s <= high:
            refuse(path, f"{shown(value)} is out of range; give {rate_text(low)} to {rate_text(high)}.")
        return mib_s

    return read


def slug(what: str) -> Reader[str]:
    """A reader of identifiers of institutions, regions and the like; ``what`` as in "an institution's id"."""

    def read(value: Any, path: str) -> str:
        if not isinstance(value, str) or not _SLUG.fullmatch(value):
            refuse(
                path,
                f"{shown(value)} is not {what}; use 1 to 63 lower-case letters, digits and hyphens, beginning with a "
                f"letter{_quoting(value)}.",
            )
        return value

    return read


def _quoting(value: object) -> str:
    """YAML reads some words as something else than text, among them names of countries."""
    return ", in quotes if YAML takes it for something else" if isinstance(value, bool | int | float | Decimal) else ""


def matching(pattern: re.Pattern[str], sentence: str) -> Reader[str]:
    """A reader of texts of one form; ``sentence`` says which."""

    def read(value: Any, path: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            refuse(path, f"{shown(value)} {sentence}{_quoting(value)}.")
        return value

    return read


def pair(first: str, second: str) -> Reader[str]:
    """A reader of two identifiers with a slash between them, as in "region/pool"."""

    def read(value: Any, path: str) -> str:
        left, slash, right = value.partition("/") if isinstance(value, str) else ("", "", "")
        if not slash or not _SLUG.fullmatch(left) or not _SLUG.fullmatch(right):
            refuse(path, f'{shown(value)} is not of the form "{first}/{second}", as in {_EXAMPLES[second]}.')
        return f"{left}/{right}"

    return read


_EXAMPLES = {"pool": "east/gpu", "to": "east/west"}
read_region = slug("a region's id")
read_pool = pair("region", "pool")


def listing(read: Reader[T], limit: int, what: str) -> Reader[tuple[T, ...]]:
    """A reader of lists of different values, at most ``limit`` of them."""

    def read_list(value: Any, path: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            refuse(path, f"{shown(value)} is not a list of {what}.")
        if len(value) > limit:
            refuse(path, f"{len(value):,} {what} are too many; give at most {limit:,}.")
        found: dict[T, int] = {}
        for index, item in enumerate(value):
            one = read(item, f"{path}[{index}]")
            if one in found:
                refuse(f"{path}[{index}]", f"{shown(item)} stands there already, as {path}[{found[one]}].")
            found[one] = index
        return tuple(found)

    return read_list


def table(read_key: Reader[str], read: Reader[T], limit: int, what: str) -> Reader[dict[str, T]]:
    """A reader of mappings from names to values of one kind, at most ``limit`` of them; the result is sorted by name."""

    def read_table(value: Any, path: str) -> dict[str, T]:
        if not isinstance(value, Mapping):
            refuse(path, f"{shown(value)} is not a mapping from {what} to their values.")
        if len(value) > limit:
            refuse(path, f"{len(value):,} {what} are too many; give at most {limit:,}.")
        found: dict[str, T] = {}
        for key, item in value.items():
            name = read_key(key, path)
            found[name] = read(item, f"{path}.{key}")
        return {name: found[name] for name in sorted(found)}

    return read_table


class Section:
    """A mapping with a fixed set of keys. Raises for a value that is none, and for a key outside the set."""

    def __init__(self, value: Any, path: str, known: Collection[str]) -> None:
        if not isinstance(value, Mapping):
            refuse(path, f"{shown(value)} is not a mapping; its settings are {', '.join(known)}.")
        for key in value:
            if key not in known or not isinstance(key, str):
                near = difflib.get_close_matches(str(key)[:_MAX_SHOWN], list(known), 1, 0.6)
                hint = f"did you mean {near[0]}? " if near else ""
                where = f"{path}.{key}" if isinstance(key, str) and len(key) <= _MAX_SHOWN else path
                refuse(where, f"there is no setting {shown(key)} here; {hint}There are: {', '.join(known)}.")
        self._value = value
        self.path = path

    def has(self, key: str) -> bool:
        """Whether the setting is given."""
        return key in self._value

    def take(self, key: str, read: Reader[T], default: T) -> T:
        """The setting, or ``default`` where it is not given."""
        return read(self._value[key], f"{self.path}.{key}") if key in self._value else default

    def need(self, key: str, read: Reader[T]) -> T:
        """A setting that must be given."""
        if key not in self._value:
            refuse(f"{self.path}.{key}", "it is missing; it must be given.")
        return read(self._value[key], f"{self.path}.{key}")

    def part(self, key: str, known: Collection[str]) -> Section:
        """A section within this one; an empty one where it is not given."""
        return Section(self._value.get(key, {}), f"{self.path}.{key}", known)


# --- writers ------------------------------------------------------------------------------------------------------------


def duration_text(ms: int) -> str:
    """The shortest exact text: "7d", "1h30m", "1s500ms"; "0s" for none."""
    parts = []
    for unit, unit_ms in _DURATION_UNITS.items():
        count, ms = divmod(ms, unit_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size_text(mib: int) -> str:
    """The largest binary unit that is exact: "512GiB"."""
    unit, count = next((unit, mib // unit_mib) for unit, unit_mib in _SIZE_UNITS.items() if not mib % unit_mib)
    return f"{count}{unit}" if mib else "0MiB"


def rate_text(mib_s: int) -> str:
    """As ``size_text``, a second."""
    return f"{size_text(mib_s)}/s"


def number(thousandths: int) -> int | float:
    """A number for YAML. Exact: below 10^15 thousandths a float has all digits of three decimals."""
    return thousandths // 1000 if thousandths % 1000 == 0 else thousandths / 1000


def number_text(value: int, places: int) -> str:
    """An integer of 10^-``places`` as a plain decimal number, without zeros at its end: the inverse of ``scaled``."""
    whole, part = divmod(value, 10**places)
    return f"{whole}.{part:0{places}}".rstrip("0") if part else str(whole)
