"""The process that makes keepers: it has the Kubernetes client loaded, which takes a second, and forks for each pod.

    pod_keepers SOCKET NEWS_FD LIFE_FD

Runners come over SOCKET. What begins to run is written to NEWS_FD, a line of JSON each. When LIFE_FD closes, the executor is
gone: no more runners come, and the keepers end when theirs have.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

from workers.executor.pod_api import PodApi
from workers.executor.pod_keeper import Keeper, PodSpec

LOCK = "lock"
_HEADER_S = 5.0
_MAX_HEADER = 8192
_BACKLOG = 1024


def listen(path: str) -> socket.socket:
    """Listen on a socket in the file system, however long its path, for ourselves alone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(os.path.dirname(path), os.O_PATH)
    try:
        mask = os.umask(0o177)
        try:
            server.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.umask(mask)
    finally:
        os.close(folder)
    server.listen(_BACKLOG)
    return server


def keep(link: socket.socket, news_fd: int) -> None:
    """In the child: take the runner's streams and be its keeper."""
    link.settimeout(_HEADER_S)
    header, fds, _, _ = socket.recv_fds(link, _MAX_HEADER, 2)
    if len(fds) != 2 or not header.endswith(b"\n"):
        raise ValueError("this is no runner")
    link.settimeout(None)
    path = Path(json.loads(header)["spec"])
    # Says to the executor, which may want to know that the pod is gone for good, that there is still somebody to make one.
    lock = os.open(path.with_name(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fields = json.loads(path.read_text(encoding="utf-8"))

    def started(number: int, at_ms: int) -> None:
        # Shorter than a pipe's unit: lines of several keepers do not mix.
        with contextlib.suppress(BrokenPipeError):
            os.write(news_fd, json.dumps({"number": number, "at_ms": at_ms}).encode() + b"\n")

    Keeper(PodApi(), PodSpec(**fields), link, (fds[0], fds[1]), started).run()


def main(path: str, news_fd: int, life_fd: int) -> None:
    """Make keepers until the executor is gone."""
    # Those who come while the rest is loaded wait in line.
    server = listen(path)
    PodApi.warm_up()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([server.fileno(), life_fd], [], [])
        if life_fd in ready:
            return
        link, _ = server.accept()
        if os.fork() == 0:
            code = 1
            try:
                os.setsid()
                server.close()
                os.close(life_fd)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                keep(link, news_fd)
                code = 0
            except BaseException:  # nothing may return into the parent's loop in a second process
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        link.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
