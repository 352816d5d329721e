"""Checks of single values. Each raises ``InvalidArgument`` naming the field, with a sentence that says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from scheduler.domain.errors import InvalidArgument

SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
JOB_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")
# Labels of nodes come from Ray and Kubernetes, which allow capitals.
NODE_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
REQUEST_ID = re.compile(r"[\x21-\x7e]{0,128}")


def invalid(field: str, sentence: str) -> NoReturn:
    """Refuse the value of ``field``; the message is the field's path and the sentence."""
    raise InvalidArgument(f"{field}: {sentence}", field=field)


def shown(value: str, limit: int = 64) -> str:
    """A caller's string as it may be repeated in a message: quoted, escaped and short."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def integer(value: int, low: int, high: int, field: str, unit: str = "") -> int:
    """An integer within [low, high]."""
    if not low <= value <= high:
        invalid(field, f"{value} is out of range; give {low:,} to {high:,}{unit and ' ' + unit}.")
    return value


def slug(value: str, field: str, what: str) -> str:
    """An identifier of an institution, project, user, region or pool."""
    if SLUG.fullmatch(value) is None:
        invalid(
            field,
            f"{shown(value)} is not {what}; use 1 to 63 lower-case letters, digits and hyphens, beginning with a letter.",
        )
    return value


def optional_slug(value: str, field: str, what: str) -> str:
    """An identifier, or nothing."""
    return slug(value, field, what) if value else value


def digest(value: str, field: str) -> str:
    """A content hash as the artifact store names it."""
    if DIGEST.fullmatch(value) is None:
        invalid(field, f'{shown(value)} is not a digest; give "sha256:" and 64 hexadecimal digits in lower case.')
    return value


def job_id(value: str, field: str) -> str:
    """A job's id as SubmitJobs returned it (whether there is such a job is not checked)."""
    if JOB_ID.fullmatch(value) is None:
        invalid(field, f"{shown(value)} is not a job id; give one that SubmitJobs returned.")
    return value


def text(value: str, limit: int, field: str) -> str:
    """At most ``limit`` characters without control characters."""
    if len(value) > limit:
        invalid(field, f"{len(value):,} characters are too many; give at most {limit:,}.")
    if CONTROL.search(value) is not None:
        invalid(field, "it holds a control character; leave out line breaks, tabs and the like.")
    return value


def count(number: int, limit: int, field: str, what: str) -> None:
    """A list or map of at most ``limit`` entries."""
    if number > limit:
        invalid(field, f"{number:,} {what} are too many; give at most {limit:,}.")


def program_text(values: Iterable[str], limit_bytes: int, field: str) -> None:
    """Strings handed to a process: no NUL in them, together at most ``limit_bytes`` of UTF-8."""
    size = 0
    for value in values:
        size += len(value) if value.isascii() else len(value.encode())
        if "\0" in value:
            invalid(field, "it holds a NUL character, which no program can be given.")
    if size > limit_bytes:
        invalid(field, f"{size:,} bytes are too many; give at most {limit_bytes:,} in all, the rest in a file.")
