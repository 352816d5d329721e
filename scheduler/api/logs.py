"""Logs, fetched from the region's agent over its session, or from the artifact store once they are there, and handed to
whoever reads them.

The agent sends chunks on the stream that carries its events too, so a slow reader must not hold that stream up: when a
reader's buffer is full the agent is told to stop, and asked again, from the next byte, once the reader has caught up.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from protos.suanli.v1 import jobs_pb2, regions_pb2
from scheduler.api.blobs import Artifacts
from scheduler.catalog.artifacts import FileEntry
from scheduler.domain.errors import NotFound, ResourceExhausted, SuanliError, Unavailable

BUFFER_BYTES = 4 * 1024 * 1024
MAX_PULLS = 1000
BOTH = (jobs_pb2.LOG_STREAM_STDOUT, jobs_pb2.LOG_STREAM_STDERR)
STORED_NAMES = {jobs_pb2.LOG_STREAM_STDOUT: "stdout.log", jobs_pb2.LOG_STREAM_STDERR: "stderr.log"}
LogPart = tuple[jobs_pb2.LogStream.ValueType, int, bytes]
"""Stream, offset of the first byte, bytes."""
StoredLog = Mapping[jobs_pb2.LogStream.ValueType, FileEntry]
"""The files of one replica's log, by stream; an empty stream has none."""


class LogTarget(NamedTuple):
    """Whose log."""

    job_id: str
    attempt: int
    rank: int


@dataclass(slots=True)
class _Part:
    """One stream of a pull. ``request_id`` is 0 while the agent is not asked."""

    stream: jobs_pb2.LogStream.ValueType
    offset: int
    request_id: int = 0
    ended: bool = False


class RegionLink:
    """The way to one connected agent: requests out, chunks in."""

    def __init__(self, region: str, ids: itertools.count[int]) -> None:
        self.region = region
        self._ids = ids
        self._outbox: asyncio.Queue[regions_pb2.ConnectResponse] = asyncio.Queue()
        self._waiting: dict[int, tuple[LogPull, _Part]] = {}
        self._pulls: set[LogPull] = set()
        self._closed = False

    async def outgoing(self) -> AsyncIterator[regions_pb2.ConnectResponse]:
        """What to send to the agent, without end."""
        while True:
            yield await self._outbox.get()

    def deliver(self, chunk: regions_pb2.LogChunk) -> None:
        """A chunk has come. One that nobody waits for any more is dropped."""
        found = self._waiting.get(chunk.request_id)
        if found is not None:
            found[0].deliver(found[1], chunk)

    def close(self) -> None:
        """The agent is gone: every reader is told, and none can begin."""
        self._closed = True
        for pull in list(self._pulls):
            pull.fail(_offline(self.region))

    def join(self, pull: LogPull) -> None:
        """A reader begins. ``Unavailable`` when the agent has gone meanwhile."""
        if self._closed:
            raise _offline(self.region)
        if len(self._pulls) >= MAX_PULLS:
            raise ResourceExhausted(
                f"{MAX_PULLS:,} readers follow logs of region {self.region} already; try again later.",
                reason="LOG_READERS",
            )
        self._pulls.add(pull)

    def leave(self, pull: LogPull) -> None:
        """A reader ends."""
        self._pulls.discard(pull)

    def ask(self, pull: LogPull, part: _Part, target: LogTarget, follow: bool) -> None:
        """Have the agent send a stream from ``part.offset`` on."""
        part.request_id = next(self._ids)
        self._waiting[part.request_id] = (pull, part)
        request = regions_pb2.LogRequest(
            request_id=part.request_id,
            job_id=target.job_id,
            attempt=target.attempt,
            rank=target.rank,
            stream=part.stream,
            offset=part.offset,
            follow=follow,
        )
        self._outbox.put_nowait(regions_pb2.ConnectResponse(log_request=request))

    def forget(self, part: _Part, tell: bool) -> None:
        """Nobody waits for this part any more; ``tell`` the agent unless it has ended the stream itself."""
        if self._waiting.pop(part.request_id, None) is not None and tell:
            cancel = regions_pb2.LogCancel(request_id=part.request_id)
            self._outbox.put_nowait(regions_pb2.ConnectResponse(log_cancel=cancel))
        part.request_id = 0


class LogPull:
    """One reader of one replica's log."""

    def __init__(
        self,
        link: RegionLink,
        target: LogTarget,
        streams: tuple[jobs_pb2.LogStream.ValueType, ...],
        offset: int,
        follow: bool,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._link = link
        self._target = target
        self._follow = follow
        self._limit = buffer_bytes
        self._parts = [_Part(stream, offset) for stream in streams]
        self._buffer: deque[LogPart] = deque()
        self._buffered = 0
        self._news = asyncio.Event()
        self._error: SuanliError | None = None

    async def chunks(self) -> AsyncGenerator[LogPart]:
        """(stream, offset, data) until the log has ended. Raises ``Unavailable`` when the agent goes, ``NotFound`` when it
        has no such log."""
        self._link.join(self)
        try:
            while True:
                self._news.clear()
                while self._buffer:
                    stream, offset, data = self._buffer.popleft()
                    self._buffered -= len(data)
                    yield stream, offset, data
                if self._error is not None:
                    raise self._error
                for part in self._parts:
                    if not part.ended and not part.request_id:
                        self._link.ask(self, part, self._target, self._follow)
                if all(part.ended for part in self._parts) and not self._buffer:
                    return
                if not self._buffer:
                    await self._news.wait()
        finally:
            for part in self._parts:
                self._link.forget(part, tell=not part.ended)
            self._link.leave(self)

    def deliver(self, part: _Part, chunk: regions_pb2.LogChunk) -> None:
        """A chunk of one part, in order."""
        if chunk.data and self._buffered and self._buffered + len(chunk.data) > self._limit:
            self._link.forget(part, tell=True)
            return
        if chunk.data:
            self._buffer.append((part.stream, chunk.offset, chunk.data))
            self._buffered += len(chunk.data)
            part.offset = chunk.offset + len(chunk.data)
        if chunk.error:
            self._error = NotFound(f"The agent of region {self._link.region}: {chunk.error[:500]}", reason="NO_LOG")
        if chunk.end or chunk.error:
            part.ended = True
            self._link.forget(part, tell=False)
        self._news.set()

    def fail(self, error: SuanliError) -> None:
        """No more will come."""
        self._error = error
        self._news.set()


class LogBroker:
    """The links to all connected agents."""

    def __init__(self) -> None:
        self._links: dict[str, RegionLink] = {}
        self._ids = itertools.count(1)

    def attach(self, region: str) -> RegionLink:
        """An agent has connected; its region's older link, if any, ends."""
        older = self._links.get(region)
        if older is not None:
            older.close()
        link = self._links[region] = RegionLink(region, self._ids)
        return link

    def detach(self, link: RegionLink) -> None:
        """An agent's stream has ended."""
        link.close()
        if self._links.get(link.region) is link:
            del self._links[link.region]

    def pull(
        self, region: str, target: LogTarget, stream: jobs_pb2.LogStream.ValueType, offset: int, follow: bool
    ) -> LogPull:
        """A reader of a log in ``region``. ``Unavailable`` when its agent is not connected."""
        link = self._links.get(region)
        if link is None:
            raise _offline(region)
        streams = (stream,) if stream else BOTH
        return LogPull(link, target, streams, offset, follow)


async def stored_log(artifacts: Artifacts, manifest: str, rank: int) -> StoredLog:
    """What the artifact store has of a replica's log; nothing where ``manifest`` is empty, not there, or lacks the replica.

    ``Unavailable`` when the storage is away.
    """
    if not manifest:
        return {}
    try:
        files = {file.path: file for file in await artifacts.folder(manifest)}
    except NotFound:
        return {}
    folder = f"rank-{rank}/" if rank else ""
    paths = {stream: folder + name for stream, name in STORED_NAMES.items()}
    return {stream: files[path] for stream, path in paths.items() if path in files}


async def stored_chunks(
    artifacts: Artifacts, log: StoredLog, stream: jobs_pb2.LogStream.ValueType, offset: int
) -> AsyncGenerator[LogPart]:
    """One stream, or one after the other, from ``offset`` on (negative: so many bytes before the end of each)."""
    for one in (stream,) if stream else BOTH:
        file = log.get(one)
        if file is None:
            continue
        at = offset if offset >= 0 else max(0, file.size_bytes + offset)
        if at >= file.size_bytes:
            continue
        async with aclosing(artifacts.read(file.digest, at)) as parts:
            async for data in parts:
                yield one, at, data
                at += len(data)


def _offline(region: str) -> Unavailable:
    return Unavailable(
        f"The agent of region {region!r} is not connected, and the log lies there; try again when `suanli regions` shows it "
        "online.",
        reason="REGION_OFFLINE",
        metadata={"region": region},
    )
