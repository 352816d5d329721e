"""Agent sessions: between the API's streams and the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from scheduler.domain.agent import AgentCommand, AgentMessage
from scheduler.domain.errors import ResourceExhausted
from scheduler.service.engine import Engine
from scheduler.service.state import Turn

MAX_PENDING_COMMANDS = 200_000
"""An agent that reads so slowly is cut off; it reconciles when it connects again."""


class LiveSession:
    """Implements ``AgentSession``."""

    def __init__(self, engine: Engine, region: str, number: int, changed: Callable[[], None]) -> None:
        self.region = region
        self.number = number
        self._engine = engine
        self._changed = changed
        self._pending: deque[AgentCommand] = deque()
        self._news = asyncio.Event()
        self._ended = False

    async def receive(self, message: AgentMessage) -> None:
        """One message of the agent."""
        if self._ended:
            return
        self._engine.receive(self.region, self.number, message)
        if not self._engine.is_listened_to(self.region, self.number):
            # The agent was silent for longer than its lease: only a new session brings its region back.
            self.end()
        self._changed()

    async def commands(self) -> AsyncIterator[AgentCommand]:
        """What to send, in order."""
        while True:
            while self._pending:
                yield self._pending.popleft()
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()

    async def close(self) -> None:
        """The stream has ended."""
        self.end()
        self._engine.close_session(self.region, self.number)
        self._changed()

    def push(self, command: AgentCommand) -> None:
        """Queue a command that has become durable."""
        if self._ended:
            return
        if len(self._pending) >= MAX_PENDING_COMMANDS:
            raise ResourceExhausted(f"The agent of region {self.region} does not read its commands.")
        self._pending.append(command)
        self._news.set()

    def end(self) -> None:
        """Send what is queued, then nothing more."""
        self._ended = True
        self._news.set()


class Sessions:
    """The open sessions; the newest of a region is the one that is spoken to."""

    def __init__(self, engine: Engine, changed: Callable[[], None]) -> None:
        self._engine = engine
        self._changed = changed
        self._by_region: dict[str, LiveSession] = {}

    def open(self, region: str) -> LiveSession:
        """A new session; an older one of the region ends."""
        older = self._by_region.get(region)
        if older is not None:
            older.end()
        session = LiveSession(self._engine, region, self._engine.open_session(), self._changed)
        self._by_region[region] = session
        return session

    def deliver(self, turn: Turn) -> None:
        """Hand the commands of a durable turn to their sessions."""
        for region, number, command in turn.commands:
            session = self._by_region.get(region)
            if session is not None and session.number == number:
                try:
                    session.push(command)
                except ResourceExhausted:
                    session.end()
                    self._engine.close_session(region, number)

    def end_all(self) -> None:
        """The leader steps down."""
        for session in self._by_region.values():
            session.end()
