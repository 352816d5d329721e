"""How amounts and times are written for people, and how people write them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from protos.suanli.v1 import common_pb2

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000))
_HOUR_MS = 3_600_000
_AGO = re.compile(r"(\d{1,6})([mhdw])")
_AGO_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def safe(text: str) -> str:
    """Text from elsewhere, without anything that would steer a terminal."""
    return _CONTROL.sub("�", text)


def one_line(text: str) -> str:
    """``safe`` text on one line."""
    return safe(" ".join(text.split()))


def duration(ms: int) -> str:
    """The two largest units: ``2h 30m``, ``45s``, ``120ms``."""
    if ms < 1_000:
        return f"{max(ms, 0)}ms"
    parts: list[str] = []
    for unit, size in _UNITS:
        if ms >= size or parts:
            amount, ms = divmod(ms, size)
            parts.append(f"{amount}{unit}" if amount else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)


def age(then_ms: int, now: int) -> str:
    """How long ago, in one unit: ``3m ago``; empty for never."""
    if not then_ms:
        return ""
    passed = now - then_ms
    for unit, size in _UNITS:
        if passed >= size:
            return f"{passed // size}{unit} ago"
    return "now" if passed >= 0 else f"in {duration(-passed)}"


def clock(ms: int, now: int) -> str:
    """An instant in the time zone of this machine, to the minute: ``14:30`` today, else ``Tue 14:30`` or ``2026-10-01 14:30``."""
    then, today = (datetime.fromtimestamp(each / 1000).astimezone() for each in (ms, now))
    if then.date() == today.date():
        return then.strftime("%H:%M")
    soon = 0 < (then.date() - today.date()).days < 7
    return then.strftime("%a %H:%M" if soon else "%Y-%m-%d %H:%M")


def instant(ms: int) -> str:
    """UTC to the second, ``2026-10-01T08:30:00Z``; empty for never."""
    if not ms:
        return ""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%SZ")


def cpus(milli: int) -> str:
    """Cores: ``1.5``."""
    return _plain(Decimal(milli) / 1000)


def memory(mib: int) -> str:
    """``512 MiB``, ``1.5 GiB``, ``2 TiB``."""
    for unit, size in (("TiB", 1 << 20), ("GiB", 1 << 10)):
        if mib >= size:
            return f"{_plain((Decimal(mib) / size).quantize(Decimal('0.1'), ROUND_HALF_EVEN))} {unit}"
    return f"{mib} MiB"


def size(count: int) -> str:
    """Bytes of a file."""
    if count < 1024:
        return f"{count} B"
    value = Decimal(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{_plain(value.quantize(Decimal('0.1'), ROUND_HALF_EVEN))} {unit}"


def resources(amounts: common_pb2.Resources) -> str:
    """``2 CPU, 4 GiB, 1 GPU``."""
    text = f"{cpus(amounts.cpu_milli)} CPU, {memory(amounts.memory_mib)}"
    return f"{text}, {cpus(amounts.gpu_milli)} GPU" if amounts.gpu_milli else text


def share(held: int, whole: int, write: Callable[[int], str] = str) -> str:
    """``3 / 8``: what is held of what there is, each as ``write`` writes it."""
    return f"{write(held)} / {write(whole)}"


def unit_hours(unit_ms: str, units: int = 1000) -> str:
    """Milli-units × ms (a decimal string of any length) as unit-hours, rounded half to even for the eye.

    To three places; an amount below one unit-hour to six, so that short jobs show.
    """
    with localcontext() as context:
        context.prec = len(unit_ms) + 20
        hours = Decimal(unit_ms or "0") / (units * _HOUR_MS)
        places = Decimal("0.000001") if 0 < hours < 1 else Decimal("0.001")
        return f"{hours.quantize(places, ROUND_HALF_EVEN):,}"


def ratio(part: str, whole: str) -> Decimal | None:
    """The quotient of two exact numbers in decimal strings, to four places; None when the whole is nothing."""
    if not int(whole or 0):
        return None
    return (Decimal(part or "0") / Decimal(whole)).quantize(Decimal("0.0001"), ROUND_HALF_EVEN)


def per_cent(part: str, whole: str) -> str:
    """``61.5 %``; empty when the whole is nothing."""
    found = ratio(part, whole)
    return "" if found is None else f"{(found * 100).quantize(Decimal('0.1'), ROUND_HALF_EVEN)} %"


def quotient(number: str, divisor: int, places: int) -> Decimal:
    """A decimal string of any length by a divisor, rounded half to even once."""
    with localcontext() as context:
        context.prec = len(number) + len(str(divisor)) + places + 20
        return (Decimal(number or "0") / divisor).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


def parse_instant(text: str, now: int) -> int:
    """Milliseconds of ``2026-10``, ``2026-10-01``, ``2026-10-01T08:30Z`` or ``7d`` (ago); UTC unless it says.

    Raises ``ValueError`` with a sentence that says what to write.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return max(1, now - int(ago[1]) * _AGO_MS[ago[2]])
    stripped = text.strip()
    try:
        when = datetime.fromisoformat(f"{stripped}-01" if re.fullmatch(r"\d{4}-\d{2}", stripped) else stripped)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time; write 2026-10, 2026-10-01, 2026-10-01T08:30Z, or 7d for seven days ago."
        ) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    ms = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if ms <= 0:
        raise ValueError(f"{text!r} lies before 1970.")
    return ms


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
