"""Committed events, handed to whoever watches: the newest from memory, older ones from the store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from scheduler.domain.records import EventRecord
from scheduler.service.ports import EventQuery

KEEP_EVENTS = 20_000
PAGE = 1_000
IDLE_S = 15.0


def matches(query: EventQuery, event: EventRecord) -> bool:
    """Whether the watcher asked for this event."""
    if query.institution and event.institution != query.institution:
        return False
    if query.project and event.project != query.project:
        return False
    return not query.job_ids or event.job_id in query.job_ids or event.array_id in query.job_ids


class EventHub:
    """Publishes committed events. ``read`` fetches a page from the store."""

    def __init__(self, read: Callable[[EventQuery], Awaitable[list[EventRecord]]], last_sequence: int) -> None:
        self._read = read
        self._recent: deque[EventRecord] = deque(maxlen=KEEP_EVENTS)
        self._complete_from = last_sequence
        """Every committed event after this one is in ``_recent``."""
        self.last_sequence = last_sequence
        self._news = asyncio.Event()
        self._closed = False

    def publish(self, events: Sequence[EventRecord]) -> None:
        """Events that have just become durable, in order."""
        for event in events:
            if len(self._recent) == KEEP_EVENTS:
                self._complete_from = self._recent[0].sequence
            self._recent.append(event)
        if events:
            self.last_sequence = events[-1].sequence
            self._wake()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def watch(self, query: EventQuery) -> AsyncIterator[tuple[list[EventRecord], int]]:
        """See ``Service.watch``."""
        after = self.last_sequence if query.after < 0 else query.after
        while not self._closed:
            news = self._news
            page, after = await self._page(query, after)
            yield page, after
            if after < self.last_sequence or self._closed:
                continue
            try:
                await asyncio.wait_for(news.wait(), IDLE_S)
            except TimeoutError:
                continue

    async def _page(self, query: EventQuery, after: int) -> tuple[list[EventRecord], int]:
        if after >= self._complete_from:
            upto = self.last_sequence
            fresh = list(_after(self._recent, after))
            page = [event for event in fresh if matches(query, event)][:PAGE]
            # The store may have shown events that are not published yet: never go back behind them.
            return page, (page[-1].sequence if len(page) == PAGE else max(after, upto))
        upto = self.last_sequence
        page = await self._read(
            EventQuery(
                after=after, limit=PAGE, job_ids=query.job_ids, institution=query.institution, project=query.project
            )
        )
        return page, (page[-1].sequence if len(page) == PAGE else max(upto, page[-1].sequence if page else 0))


def _after(events: deque[EventRecord], after: int) -> Iterable[EventRecord]:
    """The events with a greater number, found from the end: a watcher is rarely far behind."""
    fresh = []
    for event in reversed(events):
        if event.sequence <= after:
            break
        fresh.append(event)
    return reversed(fresh)
