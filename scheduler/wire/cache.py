"""A mapping that forgets what was not used for longest, bounded by its weight."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Least-recently-used entries go when the sum of the weights passes ``limit``. One heavier than that is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._entries: dict[K, tuple[V, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weight(self) -> int:
        """The sum of the weights of what is kept."""
        return self._weight

    def get(self, key: K) -> V | None:
        """The value kept under ``key``, which counts as its use."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep ``value``, at the cost of older entries when there is no room."""
        previous = self._entries.pop(key, None)
        if previous is not None:
            self._weight -= previous[1]
        if weight > self._limit:
            return
        self._entries[key] = (value, weight)
        self._weight += weight
        while self._weight > self._limit:
            oldest = next(iter(self._entries))
            self._weight -= self._entries.pop(oldest)[1]
