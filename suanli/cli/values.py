"""Values of options: amounts, times and names as people write them."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import click

from protos.suanli.v1 import common_pb2, usage_pb2
from suanli.amounts import mebibytes, milli, milliseconds
from suanli.cli import human
from suanli.errors import InvalidArgument

MAX_AMOUNT = 1 << 53
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)


class _Amount(click.ParamType[Any]):
    """Text that ``read`` understands; a number that is already read is left alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read ``value``."""
        if isinstance(value, int):
            return value
        try:
            number = self.read(str(value))
        except InvalidArgument as error:
            _fail(self, error.message.removeprefix("value: "), param, ctx)
        if number > MAX_AMOUNT:
            _fail(self, f"{value!r} is out of range.", param, ctx)
        return number

    def read(self, text: str) -> int:
        """The number of ``text``; ``InvalidArgument`` when it is none."""
        raise NotImplementedError


class Duration(_Amount):
    """Milliseconds of ``90s``, ``1h30m`` or ``2d``."""

    name = "duration"

    def read(self, text: str) -> int:
        """See ``_Amount``."""
        return milliseconds(text, "value")


class Cpus(_Amount):
    """Milli-cores of ``2``, ``0.5`` or ``500m``."""

    name = "cores"

    def read(self, text: str) -> int:
        """See ``_Amount``."""
        return milli(text, "value")


class Gpus(Cpus):
    """Milli-GPUs of ``1`` or ``0.25``."""

    name = "gpus"


class Memory(_Amount):
    """MiB of ``512MiB`` or ``2GiB``."""

    name = "memory"

    def read(self, text: str) -> int:
        """See ``_Amount``."""
        return mebibytes(text, "value")


class Count(_Amount):
    """A whole number."""

    name = "number"

    def read(self, text: str) -> int:
        """See ``_Amount``."""
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidArgument(f"{text!r} is not a whole number.")
        return int(text)


class Limit(click.ParamType[Any]):
    """An amount, or ``none`` for no limit (-1)."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self._inner = inner
        self.name = f"{inner.name}|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read ``value``."""
        if isinstance(value, int):
            return value
        if str(value).lower() in ("none", "unlimited"):
            return -1
        amount: int = self._inner.convert(value, param, ctx)
        return amount


class Instant(click.ParamType[Any]):
    """Milliseconds since 1970 of a date or of how long ago. See ``human.parse_instant``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read ``value``."""
        if isinstance(value, int):
            return value
        try:
            return human.parse_instant(str(value), human.now_ms())
        except (ValueError, OverflowError) as error:
            _fail(self, str(error), param, ctx)


class Month(click.ParamType[Any]):
    """An accounting month, ``2026-10``; empty for none."""

    name = "month"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read ``value``."""
        if value and _MONTH.fullmatch(str(value)) is None:
            _fail(self, f"{value!r} is no month; write it as in 2026-10.", param, ctx)
        return str(value)


class Pair(click.ParamType[Any]):
    """``KEY=VALUE`` as a pair of texts."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Read ``value``."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            _fail(self, f"{value!r} is not of the form KEY=VALUE.", param, ctx)
        return key, text


class _EnumName(click.Choice[str]):
    """The number of an enum's value, by its short name in lower case."""

    def __init__(self, numbers: dict[str, int]) -> None:
        super().__init__(list(numbers), case_sensitive=False)
        self._numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read ``value``."""
        if isinstance(value, int):
            return value
        return self._numbers[super().convert(str(value).replace("_", "-"), param, ctx)]


def _numbers(enum: Any, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix).lower().replace("_", "-"): number for name, number in enum.items() if number}


class State(_EnumName):
    """A job's state."""

    def __init__(self) -> None:
        super().__init__(_numbers(common_pb2.JobState, "JOB_STATE_"))


class Role(_EnumName):
    """A role that a person may have."""

    def __init__(self) -> None:
        numbers = _numbers(common_pb2.Role, "ROLE_")
        del numbers["agent"]
        super().__init__(numbers)


class Dimensions(click.ParamType[Any]):
    """What usage is grouped by: names with commas between them, as numbers."""

    name = "dimensions"
    NUMBERS = _numbers(usage_pb2.UsageDimension, "USAGE_DIMENSION_")
    HELP = f"Group by these, with commas between them: {', '.join(NUMBERS)}."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Read ``value``."""
        if isinstance(value, list):
            return value
        names = [name.strip().lower() for name in str(value).split(",")]
        for name in names:
            if name not in self.NUMBERS:
                _fail(self, f"{name!r} is none of {', '.join(self.NUMBERS)}.", param, ctx)
        return [self.NUMBERS[name] for name in dict.fromkeys(names)]


def _fail(
    kind: click.ParamType[Any], message: str, param: click.Parameter | None, ctx: click.Context | None
) -> NoReturn:
    kind.fail(message, param, ctx)
