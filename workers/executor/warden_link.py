"""The executor's end of the warden: start it, talk to it, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

_CODE_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = "import sys; sys.path.insert(0, sys.argv[2]); from workers.executor.warden import main; main(int(sys.argv[1]), sys.argv[3:])"
_MAX_LINE = 1 << 20


class WardenEvents(Protocol):
    """What the warden reports; ``number`` is the one given to ``spawn``."""

    def on_started(self, number: int, pid: int, at_ms: int) -> None:
        """The command runs."""

    def on_failed(self, number: int, text: str) -> None:
        """The command could not be run."""

    def on_hole(self, number: int, stream: int, start: int, end: int) -> None:
        """Bytes of a log were left out; ``stream`` is 0 for stdout and 1 for stderr."""

    def on_exited(self, number: int, status: int, started_ms: int, ended_ms: int, cpu_ms: int, peak_kib: int) -> None:
        """The process and all that it started are dead; ``status`` as of waitpid."""


class WardenLink:
    """One running warden. ``on_lost`` is called once if it dies without having been closed."""

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self._outbox: list[str] = []
        self._flush_due = False
        self._closing = False
        self._reader_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, events: WardenEvents, on_lost: Callable[[], None], groups: Sequence[str] = ()) -> WardenLink:
        """Start a warden; it serves until ``close`` or until this process is gone, and then removes the control groups."""
        ours, theirs = socket.socketpair()
        with theirs:
            # No per-user site, no PYTHON* variables, no site-packages: it needs the standard library alone.
            argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), _CODE_ROOT, *groups]
            process = subprocess.Popen(  # noqa: ASYNC220 - forks once per executor and returns at once
                argv, pass_fds=[theirs.fileno()], env={"LANG": "C.UTF-8"}, cwd="/", start_new_session=True
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE)
        link = cls(process, writer)
        link._reader_task = asyncio.create_task(link._read(reader, events, on_lost))
        return link

    @property
    def pid(self) -> int:
        """Id of the warden's process."""
        return self._process.pid

    def spawn(self, number: int, spec: dict[str, Any]) -> None:
        """Ask for a process; ``on_started`` or ``on_failed`` follows."""
        self._send("spawn", number, spec)

    def signal(self, number: int, signum: int) -> None:
        """Send a signal to the whole tree of a process; nothing happens when it has ended."""
        self._send("signal", number, int(signum))

    def _send(self, *message: Any) -> None:
        self._outbox.append(json.dumps(message, separators=(",", ":")))
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        lines, self._outbox = self._outbox, []
        if not self._writer.is_closing():
            self._writer.write(("\n".join(lines) + "\n").encode())

    async def _read(self, reader: asyncio.StreamReader, events: WardenEvents, on_lost: Callable[[], None]) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                kind, *rest = json.loads(line)
                getattr(events, f"on_{kind}")(*rest)
        if not self._closing:
            self._writer.close()
            await asyncio.to_thread(self._process.wait)
            on_lost()

    async def close(self) -> None:
        """Kill every process and end the warden; returns when all are dead."""
        self._closing = True
        self._writer.close()
        await asyncio.to_thread(self._process.wait)
        if self._reader_task is not None:
            self._reader_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader_task
