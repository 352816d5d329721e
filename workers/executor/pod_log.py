"""Following the log of a pod: every byte of both streams once, whatever happens to the connection."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from workers.executor import pod_frames
from workers.executor.pod_api import NOT_FOUND, PodApi, PodApiError

_PAUSE_S = 0.2
_MARGIN_S = 2
_STREAMS = {
    pod_frames.STDOUT: (0, b"\n"),
    pod_frames.STDOUT_PART: (0, b""),
    pod_frames.STDERR: (1, b"\n"),
    pod_frames.STDERR_PART: (1, b""),
}


class LogFollower:
    """Writes the job's output to two descriptors and tells what else the pod's first process says.

    ``ended`` is set by the keeper once the container is over: then what is left is read, and ``run`` returns.
    """

    def __init__(
        self,
        api: PodApi,
        namespace: str,
        name: str,
        container: str,
        outputs: tuple[int, int],
        tell: Callable[[tuple[str, Any]], None],
    ) -> None:
        self._api = api
        self._where = (namespace, name, container)
        self._outputs = outputs
        self._tell = tell
        self._reader = pod_frames.Reader()
        self._newest = ""
        self._whole = True
        """The next reading begins at the log's first line."""
        self._complete = False
        self.ended = threading.Event()

    def run(self) -> None:
        """Follow until the log is complete, or the container is over and gives no more."""
        while not self._complete:
            last = self.ended.is_set()
            try:
                again = self._read(follow=not last)
            except PodApiError as error:
                if error.status == NOT_FOUND or (last and not error.passes):
                    return
                again = True
            else:
                if last and not again:
                    return
            time.sleep(_PAUSE_S)

    def _read(self, *, follow: bool) -> bool:
        """Take lines until the connection or the log ends; return whether the same is to be read again from its first line."""
        whole, self._whole = self._whole, False
        for line in self._api.log(*self._where, since_s=None if whole else self._since_s(), follow=follow):
            frame, missing = self._reader.take(line)
            stamp = line.partition(b" ")[0].decode("ascii", "replace")
            if frame is None or (not frame.number and stamp <= self._newest):
                continue
            if missing and not whole:
                # Rather than trust two clocks: look whether the node still has them.
                self._whole = True
                return True
            if missing:
                self._write(1, b"[... %d lines left out ...]\n" % missing)
            self._deliver(frame)
            self._reader.accept(frame)
            self._newest = stamp
        return False

    def _since_s(self) -> int:
        """How old the newest line is, and a little more: what comes twice is known by its number."""
        try:
            at = datetime.datetime.fromisoformat(self._newest)
            age_s = time.time() - at.timestamp()
        except ValueError:
            age_s = 0.0
        return max(1, int(age_s) + _MARGIN_S)

    def _deliver(self, frame: pod_frames.Frame) -> None:
        if frame.kind in _STREAMS:
            stream, end = _STREAMS[frame.kind]
            self._write(stream, frame.data + end)
            if not frame.number:
                self._tell(("raw", frame.data.decode("utf-8", "replace")))
        elif frame.kind == pod_frames.STARTED:
            self._tell(("started", None))
        elif frame.kind == pod_frames.FAILED:
            self._tell(("failed", frame.data.decode("utf-8", "replace")))
        elif frame.kind == pod_frames.TOLD:
            self._tell(("told", None))
        elif frame.kind == pod_frames.USED:
            cpu_ms, _, peak_kib = frame.data.partition(b" ")
            self._tell(("used", (int(cpu_ms), int(peak_kib))))
            self._complete = True

    def _write(self, stream: int, data: bytes) -> None:
        # The runner may be gone: then nobody wants it any more.
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._outputs[stream], data) :]
