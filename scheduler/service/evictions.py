"""How many attempts each institution lost to others' jobs in the last hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_MS = 3_600_000


class EvictionCount:
    """A sliding count. It begins at nothing with each leader: a restart forgives, it never blocks."""

    def __init__(self) -> None:
        self._newest: deque[tuple[int, str]] = deque()
        self._by_institution: dict[str, int] = {}

    def add(self, institution: str, now_ms: int) -> None:
        """The institution has lost one."""
        self._newest.append((now_ms, institution))
        self._by_institution[institution] = self._by_institution.get(institution, 0) + 1

    def at(self, now_ms: int) -> Mapping[str, int]:
        """The counts by institution at this time; absent where it is 0. Valid until the next call."""
        while self._newest and self._newest[0][0] <= now_ms - WINDOW_MS:
            _, institution = self._newest.popleft()
            left = self._by_institution[institution] - 1
            if left:
                self._by_institution[institution] = left
            else:
                del self._by_institution[institution]
        return self._by_institution
