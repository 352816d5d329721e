"""How the ranks of a gang find each other: rank 0 listens at the gang's port, the others call.

Both sides prove that they hold the attempt's token (HMAC-SHA256 over fresh numbers of both) without sending it. Then rank 0 tells where the
head of the cluster is, each rank says when its node has joined, and rank 0 says at the end that all is well. The connection stays open
meanwhile: when one side is gone, the other knows at once. Lines of text, at most 512 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket

from suanli.ray_job.plan import RayJobError

MAX_LINE = 512
MAX_SAID = 300
"""Characters of a rank's own words on why it fails."""
_PROOF_S = 10.0
_MAX_STRANGERS = 64
"""Callers that have not proved anything yet; more are turned away."""
_AGAIN_S = 0.2
_FAREWELL_S = 2.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A machine that went without a word is noticed after 25 s."""


class Host:
    """Rank 0's side."""

    def __init__(self, token: bytes, world_size: int) -> None:
        self._token = token
        self._ranks = range(1, world_size)
        self._guests: dict[int, asyncio.StreamWriter] = {}
        self._strangers = 0
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._up: set[int] = set()
        self._all_up = asyncio.Event()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._start = ""
        self._over = False
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen; raises RayJobError."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_LINE)
        except OSError as error:
            raise RayJobError(f"rank 0 cannot listen for the others at {host}:{port}: {error.strerror}") from error

    def announce(self, address: str) -> None:
        """Let the others start their nodes, now and when they call."""
        self._start = f"start {address}\n"
        for writer in self._guests.values():
            writer.write(self._start.encode())

    async def all_up(self, timeout_s: float) -> None:
        """Wait until every other rank's node has joined; raises RayJobError naming who is missing."""
        if not self._ranks:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_up.wait()
        except TimeoutError:
            missing = ", ".join(map(str, sorted(set(self._ranks) - self._up)))
            raise RayJobError(f"the Ray nodes of these ranks did not join within {timeout_s:g} s: {missing}") from None

    async def lost(self) -> str:
        """Wait until a rank that had called is gone before its time; a sentence."""
        return await asyncio.shield(self._lost)

    async def close(self, orderly: bool) -> None:
        """Tell the others that it is over, if it is ``orderly``, and hang up."""
        self._over = True
        if self._server is not None:
            self._server.close()
        for writer in self._guests.values() if orderly else ():
            writer.write(b"end\n")
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await writer.drain()
        for writer in self._serving.values():
            writer.close()
        if self._serving:
            await asyncio.wait(list(self._serving), timeout=_FAREWELL_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = 0
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)
        try:
            if self._strangers >= _MAX_STRANGERS:
                return
            self._strangers += 1
            try:
                async with asyncio.timeout(_PROOF_S):
                    rank = await self._admit(reader, writer)
            finally:
                self._strangers -= 1
            if rank:
                await self._listen(rank, reader)
        except (OSError, ValueError, TimeoutError):
            # A stranger, or a line that is none; what that means for a rank is told below.
            pass
        finally:
            if rank and self._guests.get(rank) is writer and not self._over:
                del self._guests[rank]
                self._lose(f"the Ray node of rank {rank} is gone")
            writer.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Return the rank that has called, or 0."""
        ours = secrets.token_hex(16)
        writer.write(f"{ours}\n".encode())
        rank, theirs, proof = (await _line(reader)).split(" ")
        good = hmac.compare_digest(proof, _proof(self._token, "guest", ours, theirs, rank))
        if not good or int(rank) not in self._ranks or int(rank) in self._guests:
            return 0
        _keep_alive(writer)
        writer.write(f"{_proof(self._token, 'host', theirs, ours, rank)}\n{self._start}".encode())
        self._guests[int(rank)] = writer
        return int(rank)

    async def _listen(self, rank: int, reader: asyncio.StreamReader) -> None:
        while True:
            line = await _line(reader)
            if line == "up":
                self._up.add(rank)
                if len(self._up) == len(self._ranks):
                    self._all_up.set()
            elif line.startswith("failed "):
                self._lose(f"rank {rank}: {line.removeprefix('failed ')}")

    def _lose(self, sentence: str) -> None:
        if not self._lost.done():
            self._lost.set_result(sentence)


class Guest:
    """The side of any other rank. Made by ``call``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def address(self) -> str:
        """Wait until the head is up: where it is. Raises RayJobError when rank 0 is gone instead."""
        line = await _line_or_end(self._reader)
        if not line.startswith("start "):
            raise RayJobError("the Ray head on rank 0 is gone before it was up")
        return line.removeprefix("start ")

    def up(self) -> None:
        """Say that the node has joined."""
        self._writer.write(b"up\n")

    async def failed(self, sentence: str) -> None:
        """Say why this rank fails."""
        with contextlib.suppress(OSError):
            self._writer.write(f"failed {' '.join(sentence.split())[:MAX_SAID]}\n".encode())
            await self._writer.drain()

    async def over(self) -> bool:
        """Wait until rank 0 hangs up; whether that is the end in good order."""
        return await _line_or_end(self._reader) == "end"

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def call(host: str, port: int, rank: int, token: bytes, timeout_s: float) -> Guest:
    """Find rank 0; raises RayJobError when it is not there in time, or whoever answers does not hold the token."""
    why = "it did not answer"
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while loop.time() < until:
        try:
            async with asyncio.timeout_at(min(until, loop.time() + _PROOF_S)):
                reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE)
                try:
                    _keep_alive(writer)
                    theirs, ours = await _line(reader), secrets.token_hex(16)
                    writer.write(f"{rank} {ours} {_proof(token, 'guest', theirs, ours, str(rank))}\n".encode())
                    if hmac.compare_digest(await _line(reader), _proof(token, "host", ours, theirs, str(rank))):
                        return Guest(reader, writer)
                except BaseException:
                    writer.close()
                    raise
            writer.close()
            why = "whoever answers there is not of this job"
        except (OSError, ValueError, TimeoutError) as error:
            why = str(error) or why
        await asyncio.sleep(_AGAIN_S)
    raise RayJobError(f"rank {rank} did not find rank 0 at {host}:{port} within {timeout_s:g} s: {why}")


def _proof(token: bytes, side: str, first: str, second: str, rank: str) -> str:
    return hmac.digest(token, f"suanli ray job {side} {first} {second} {rank}".encode(), "sha256").hex()


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the other side hung up")
    return line.decode("utf-8", "replace").removesuffix("\n")


async def _line_or_end(reader: asyncio.StreamReader) -> str:
    try:
        return await _line(reader)
    except (OSError, ValueError):
        return ""


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
