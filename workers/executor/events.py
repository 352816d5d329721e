"""The executor's events, kept until they are acknowledged."""

from __future__ import annotations

import asyncio
import collections
import itertools

from workers.executor.types import Cursor, Event, Polled

MAX_PER_POLL = 5000


class EventLog:
    """A queue that is read by cursor: what has been handed out stays until the next poll acknowledges it."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._events: collections.deque[tuple[int, Event]] = collections.deque()
        self._last = 0
        self._acknowledged = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Append an event."""
        self._last += 1
        self._events.append((self._last, event))
        self._news.set()

    async def poll(self, cursor: Cursor | None, timeout_s: float) -> Polled:
        """Return the events after ``cursor``, waiting up to ``timeout_s`` for the first; none is no error.

        Without a cursor, or with one of another boot, all that is not acknowledged comes.
        """
        if cursor is not None and cursor.boot_id == self._boot_id:
            self._acknowledged = max(self._acknowledged, min(cursor.sequence, self._last))
            while self._events and self._events[0][0] <= self._acknowledged:
                self._events.popleft()
        if not self._events:
            self._news.clear()
            try:
                async with asyncio.timeout(max(0.0, timeout_s)):
                    await self._news.wait()
            except TimeoutError:
                pass
        found = list(itertools.islice(self._events, MAX_PER_POLL))
        last = found[-1][0] if found else self._acknowledged
        return Polled(Cursor(self._boot_id, last), tuple(event for _, event in found))
