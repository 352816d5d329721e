"""Amounts of resources in a policy document, and back; single values are ``scheduler.domain.document_values``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scheduler.domain.document_values import (
    MAX_MEMORY_MIB,
    Reader,
    Section,
    milli,
    number,
    refuse,
    shown,
    size,
    size_text,
)
from scheduler.domain.resources import Resources
from scheduler.planning.types import UNLIMITED

MAX_CPU_MILLI = MAX_GPU_MILLI = 10**12
BOUNDS = (MAX_CPU_MILLI, MAX_MEMORY_MIB, MAX_GPU_MILLI)
NO_LIMIT = "unlimited"
NOTHING = "none"
_RESOURCES: Mapping[str, Reader[int]] = {
    "cpu": milli(0, MAX_CPU_MILLI, suffix=True),
    "memory": size,
    "gpus": milli(0, MAX_GPU_MILLI, suffix=True),
}


def resources(value: Any, path: str) -> Resources:
    """Amounts by resource ({cpu: 64, memory: 512GiB, gpus: 8}); what is not named is none."""
    section = Section(value, path, _RESOURCES)
    return Resources(*(section.take(name, read, 0) for name, read in _RESOURCES.items()))


def limits(value: Any, path: str, unnamed: Resources) -> Resources:
    """Limits by resource; "none" is nothing of any, and what is not named (or "unlimited") is that of ``unnamed``."""
    if value == NOTHING:
        return Resources()
    if not isinstance(value, Mapping):
        refuse(path, f"{shown(value)} is no limit; write none, unlimited, or amounts as in {{gpus: 8}}.")
    section = Section(value, path, _RESOURCES)
    return Resources(
        *(
            section.take(name, _or_no_limit(read, whole), whole)
            for (name, read), whole in zip(_RESOURCES.items(), unnamed, strict=True)
        )
    )


def _or_no_limit(read: Reader[int], whole: int) -> Reader[int]:
    return lambda value, path: whole if value == NO_LIMIT else read(value, path)


def resources_data(amount: Resources) -> dict[str, Any]:
    """All three resources, "unlimited" where there is no limit."""
    return dict(_resource_texts(amount))


def _resource_texts(amount: Resources) -> Iterator[tuple[str, Any]]:
    writers: tuple[Callable[[int], Any], ...] = (number, size_text, number)
    for name, write, value, none in zip(_RESOURCES, writers, amount, UNLIMITED, strict=True):
        yield name, NO_LIMIT if value == none else write(value)
