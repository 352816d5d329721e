"""Requests made from the descriptors alone: well formed and senseless, or damaged on the wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_INTS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
ODD = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "x" * 64,
    "x" * 10_000,
    "算力" * 200,
    "\u202eabc\u200b",
    "\U0001f4a5",
    "\ud7ff\ue000\ufffe",
    "../../etc/passwd",
    "/",
    "..",
    "'; DROP TABLE jobs; --",
    "%s%n{0}{}",
    "nan",
    "-1",
    "1e999",
    "0x10",
    "٣",
    "&a [*a, *a]",
    "{" * 2_000,
    "[" * 2_000,
    "!!python/object/apply:os.system [id]",
    "default",
    "preset: fair",
    "2026-10",
    "0000-00",
    "9999-12",
    "sha256:" + "0" * 64,
)
_MAX_DEPTH = 5


def messages(descriptor: Descriptor, known: Sequence[str], depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type: any of its fields, with extreme, odd or (``known``) right values."""

    @st.composite
    def build(draw: Callable[[Any], Any]) -> Message:
        message: Message = message_factory.GetMessageClass(descriptor)()
        fields = [one for one in descriptor.fields if depth < _MAX_DEPTH or one.message_type is None]
        chosen = draw(st.lists(st.sampled_from(fields), unique_by=lambda one: one.number)) if fields else []
        for one in chosen:
            _fill(draw, message, one, known, depth)
        return message

    return build()


def _fill(draw: Any, message: Message, one: FieldDescriptor, known: Sequence[str], depth: int) -> None:
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        key, value = (one.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(draw(_counts())):
            if value.message_type is not None:
                getattr(message, one.name)[draw(_scalar(key, known))].CopyFrom(
                    draw(messages(value.message_type, known, depth + 1))
                )
            else:
                getattr(message, one.name)[draw(_scalar(key, known))] = draw(_scalar(value, known))
    elif one.is_repeated:
        count = draw(_counts())
        value = messages(one.message_type, known, depth + 1) if one.message_type else _scalar(one, known)
        # One value many times is as long a list as many values.
        few = draw(st.lists(value, min_size=min(count, 1), max_size=3))
        getattr(message, one.name).extend((few * (count // max(1, len(few)) + 1))[:count])
    elif one.message_type is not None:
        getattr(message, one.name).CopyFrom(draw(messages(one.message_type, known, depth + 1)))
    else:
        setattr(message, one.name, draw(_scalar(one, known)))


def _counts() -> st.SearchStrategy[int]:
    return st.sampled_from([0, 1, 1, 1, 2, 3, 70, 1_100])


def _scalar(one: FieldDescriptor, known: Sequence[str]) -> st.SearchStrategy[Any]:
    if one.enum_type is not None:
        right = st.sampled_from([value.number for value in one.enum_type.values])
        return st.one_of(right, right, st.sampled_from([-(1 << 31), -1, 99, (1 << 31) - 1]))
    if one.type == FieldDescriptor.TYPE_STRING:
        right, odd = st.sampled_from(tuple(known)), st.sampled_from(ODD)
        return st.one_of(right, right, odd, st.text(st.characters(codec="utf-8"), max_size=30))
    if one.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.binary(max_size=40), st.sampled_from([b"\0" * 100_000, b"\xff" * 33]))
    if one.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if one.cpp_type in _INTS:
        low, high = _INTS[one.cpp_type]
        edges = [n for n in (low, low + 1, -1, 0, 1, 2, 1000, 1 << 31, 1 << 53, high - 1, high) if low <= n <= high]
        return st.one_of(st.sampled_from(edges), st.integers(0, 100), st.integers(low, high))
    return st.one_of(st.sampled_from(_FLOATS), st.floats(width=32))


def damaged(body: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a message after an accident."""
    cut = st.integers(0, len(body)).map(lambda at: body[:at])
    flipped = st.builds(
        lambda at, with_: body[:at] + bytes([with_]) + body[at + 1 :],
        st.integers(0, max(0, len(body) - 1)),
        st.integers(0, 255),
    )
    added = st.builds(lambda at, more: body[:at] + more + body[at:], st.integers(0, len(body)), st.binary(max_size=20))
    # Groups within groups, deeper than any parser follows.
    deep = st.sampled_from([b"\x0b" * 5_000, b"\x0a\x7f" * 2_000, b"\x0a\xff\xff\xff\xff\x0f"])
    return st.one_of(cut, flipped, added, deep, st.binary(max_size=60))
