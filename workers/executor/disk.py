"""Watching what attempts keep on the node's disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.executor.attempt import Attempt

_PAUSE_S = 1.0
_PAUSE_FACTOR = 20
"""Looking takes at most this part of the time, however many files there are."""


class DiskWatch:
    """Walks the folders of running attempts in a thread, one walk at a time; ``over`` hears of those above their limit.

    A file that has been deleted and is still held open is not seen; the sandbox's limit on the size of a file bounds it.
    """

    def __init__(self, over: Callable[[Attempt, int], None]) -> None:
        self._over = over
        self._walking: asyncio.Task[None] | None = None
        self._next_s = 0.0

    def look(self, running: Sequence[Attempt]) -> None:
        """Begin to look at them, if it is time to and nobody is at it."""
        if time.monotonic() >= self._next_s and (self._walking is None or self._walking.done()):
            self._walking = asyncio.create_task(self._walk([one for one in running if one.launch.isolation.disk_mib]))

    def close(self) -> None:
        """Look no more."""
        if self._walking is not None:
            self._walking.cancel()

    async def _walk(self, attempts: Sequence[Attempt]) -> None:
        begin = time.monotonic()
        for one in attempts:
            limit_mib = one.launch.isolation.disk_mib
            used_mib = await asyncio.to_thread(used_by, one.folder, limit_mib << 20) >> 20
            if used_mib >= limit_mib and one.exited is None:
                self._over(one, used_mib)
        now = time.monotonic()
        self._next_s = now + max(_PAUSE_S, _PAUSE_FACTOR * (now - begin))


def used_by(folder: Path, enough: int) -> int:
    """Return the bytes on disk of all below a folder, without following links; stops counting above ``enough``."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            # The job goes on while it is looked at: a file may be gone by now.
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
        if total > enough:
            break
    return total
