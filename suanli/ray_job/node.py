"""One Ray node as a child process: started, watched and ended."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from suanli.ray_job.plan import SAYS, RayJobError
from suanli.ray_nodes import STARTED

_KEPT_LINES = 40
_LAST_WORDS = 600
"""Characters of what Ray said last that are repeated."""
_TRIES = 2
"""On a busy machine Ray's own helpers now and then give up on one another at the start; a second try is then enough."""


class RayNode:
    """A node that has started. ``start`` makes one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._started = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, argv: Sequence[str], environ: Mapping[str, str], timeout_s: float, tries: int = _TRIES
    ) -> RayNode:
        """Start a node and wait until it is there; raises RayJobError with Ray's last words."""
        while True:
            node = cls(
                await asyncio.create_subprocess_exec(
                    *argv,
                    env=dict(environ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    # Whom the platform asks to end is the supervisor: the cluster is to outlast the command's own end.
                    start_new_session=True,
                )
            )
            try:
                problem = await node._until_started(timeout_s)
            except BaseException:
                await node.end()
                raise
            if not problem:
                return node
            await node.end()
            tries -= 1
            if not tries:
                raise RayJobError(f"{problem}; Ray's last words: {node.last_words() or 'none'}")
            print(f"{SAYS}{problem}, and is tried once more; {node.last_words()}", file=sys.stderr, flush=True)

    async def _until_started(self, timeout_s: float) -> str:
        started = asyncio.create_task(self._started.wait())
        try:
            done, _ = await asyncio.wait(
                {started, self._reading}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            started.cancel()
        if started in done:
            return ""
        return "Ray did not start" if done else f"Ray did not start within {timeout_s:g} s"

    async def gone(self) -> str:
        """Wait until the node ends by itself; a sentence."""
        await self._process.wait()
        with contextlib.suppress(TimeoutError):
            # What its children hold open does not end with it.
            async with asyncio.timeout(1):
                await asyncio.shield(self._reading)
        return f"it ended by itself; its last words: {self.last_words() or 'none'}"

    async def end(self) -> None:
        """Kill it. At once: asked kindly, Ray drains for half a minute. What its processes leave, the platform ends."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    def last_words(self) -> str:
        """The end of what Ray has said, in a line."""
        return " ".join(" ".join(self._said).split())[-_LAST_WORDS:]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                # A line longer than the reader keeps is dropped.
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace")
            self._said.append(text)
            if STARTED in text:
                self._said.clear()
                self._started.set()
