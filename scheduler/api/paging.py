"""Page tokens: where a list goes on. Opaque to callers, and good for the same question only.

A token is no secret and grants nothing: whoever forges one sees no more than the own scope. Its hash is there so that a token
of another question, or a damaged one, is refused instead of giving a page that makes no sense.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from scheduler.domain.errors import InvalidArgument
from scheduler.wire.check import integer

T = TypeVar("T")
DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_TOKEN = 2048
_HASH_BYTES = 12


def page_size(asked: int, default: int = DEFAULT_PAGE, limit: int = MAX_PAGE) -> int:
    """The asked size, or the default for 0."""
    return integer(asked or default, 1, limit, "page_size", "entries")


def question(method: str, *parts: object) -> bytes:
    """What a token is bound to: the method, the filter and whatever else decides on the list."""
    return repr((method, *parts)).encode("utf-8", "backslashreplace")


def encode_token(cursor: str, asked: bytes) -> str:
    """The token of a position in the answer to a question."""
    raw = cursor.encode()
    return base64.urlsafe_b64encode(_seal(raw, asked) + raw).decode().rstrip("=")


def decode_token(token: str, asked: bytes) -> str:
    """The position, or "" for no token. ``InvalidArgument`` for a token of another question, or none at all."""
    if not token:
        return ""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        sealed, cursor = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
        if len(token) <= MAX_TOKEN and sealed == _seal(cursor, asked):
            return cursor.decode()
    except (binascii.Error, ValueError):
        pass
    raise _refused()


def decode_number(token: str, asked: bytes) -> int:
    """The position as a number, or 0 for no token."""
    cursor = decode_token(token, asked)
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
        raise _refused()
    return int(cursor or 0)


def _refused() -> InvalidArgument:
    return InvalidArgument(
        "page_token: it is not one that this list returned; pass next_page_token unchanged, with the same filter, or leave "
        "it empty to begin anew.",
        reason="PAGE_TOKEN",
        field="page_token",
    )


def _seal(cursor: bytes, asked: bytes) -> bytes:
    return hashlib.sha256(len(asked).to_bytes(8, "big") + asked + cursor).digest()[:_HASH_BYTES]


def page_of(
    items: Sequence[T], key: Callable[[T], Sequence[str]], size: int, token: str, asked: bytes
) -> tuple[list[T], str]:
    """A page of a list that is in memory, by key, and the token of the next one ("" after the last)."""
    after = decode_token(token, asked)
    keyed = sorted((("\x1f".join(key(item)), item) for item in items), key=lambda pair: pair[0])
    rest = [pair for pair in keyed if pair[0] > after] if after else keyed
    following = encode_token(rest[size - 1][0], asked) if len(rest) > size else ""
    return [item for _, item in rest[:size]], following
