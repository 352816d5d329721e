"""Sends logs of jobs to the control plane as it asks for them, from wherever they lie."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from protos.suanli.v1 import jobs_pb2
from protos.suanli.v1 import regions_pb2 as pb
from workers.agent_nodes import NodeGateway
from workers.executor import types as ex

log = logging.getLogger("workers.agent")

CHUNK_BYTES = 256 * 1024
MAX_TAILS = 4_096
"""Twice what the control plane lets its readers open at once."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5


class LogTails:
    """The logs under way on one connection. ``send`` waits while the connection is full.

    ``where`` gives the node on which a rank is or was; ``is_live`` says whether its attempt goes on.
    """

    def __init__(
        self,
        gateway: NodeGateway,
        where: Callable[[ex.AttemptKey], str | None],
        is_live: Callable[[ex.AttemptKey], bool],
        send: Callable[[pb.ConnectRequest], Awaitable[None]],
    ) -> None:
        self._gateway = gateway
        self._where = where
        self._is_live = is_live
        self._send = send
        self._tails: dict[int, asyncio.Task[None]] = {}

    def start(self, request: pb.LogRequest) -> None:
        """Begin to send a log."""
        if len(self._tails) >= MAX_TAILS or request.request_id in self._tails:
            log.warning("a request for the log of job %s was passed over", request.job_id)
            return
        self._tails[request.request_id] = asyncio.create_task(self._tail(request))

    def cancel(self, request_id: int) -> None:
        """Nobody reads it any more."""
        task = self._tails.get(request_id)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """The connection is gone."""
        tasks = list(self._tails.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tail(self, request: pb.LogRequest) -> None:
        try:
            await self._copy(request)
        except ex.UnknownAttemptError as error:
            await self._send_chunk(request, request.offset, b"", True, str(error))
        except Exception as error:
            log.warning("log of job %s, attempt %d: %s", request.job_id, request.attempt, error)
            await self._send_chunk(request, request.offset, b"", True, f"the log cannot be read: {error}")
        finally:
            self._tails.pop(request.request_id, None)

    async def _copy(self, request: pb.LogRequest) -> None:
        key = ex.AttemptKey(request.job_id, request.attempt, request.rank)
        stream = ex.Stream.STDERR if request.stream == jobs_pb2.LOG_STREAM_STDERR else ex.Stream.STDOUT
        offset, wait_s = request.offset, FIRST_WAIT_S
        while True:
            chunk = await self._read(key, stream, offset)
            if chunk is not None:
                if chunk.data:
                    # A hole left by the bound of the log lies before the data, so their place is told from their end.
                    at = chunk.next_offset - len(chunk.data)
                    await self._send_chunk(request, at, chunk.data, False)
                    offset, wait_s = chunk.next_offset, FIRST_WAIT_S
                    continue
                offset = chunk.next_offset
                if chunk.end or not request.follow:
                    await self._send_chunk(request, offset, b"", True)
                    return
            elif not request.follow:
                raise ex.UnknownAttemptError("the attempt has not begun to write")
            await asyncio.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, wait_s * 1.5)

    async def _read(self, key: ex.AttemptKey, stream: ex.Stream, offset: int) -> ex.LogChunk | None:
        """A piece of the log; None while the rank lives and has no log yet."""
        node_id = self._where(key)
        try:
            if node_id is None:
                text = f"region has no log of job {key.job_id}, attempt {key.attempt}, rank {key.rank}"
                raise ex.UnknownAttemptError(text)
            return await self._gateway.read_log(node_id, key.job_id, key.attempt, key.rank, stream, offset, CHUNK_BYTES)
        except ex.UnknownAttemptError:
            if self._is_live(key):
                return None
            raise

    async def _send_chunk(self, request: pb.LogRequest, offset: int, data: bytes, end: bool, error: str = "") -> None:
        chunk = pb.LogChunk(
            request_id=request.request_id, stream=request.stream, offset=offset, data=data, end=end, error=error[:500]
        )
        await self._send(pb.ConnectRequest(log=chunk))
