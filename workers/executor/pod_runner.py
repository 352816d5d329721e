"""What the warden starts in place of a job that runs in a pod: it stands for the job, and asks the keeper for the pod.

    python -I -S pod_runner.py SOCKET SPEC

It hands its output streams to a keeper (``pod_keeper``), passes signals on, and ends as the pod's container did. SIGTERM asks
the job to end, SIGUSR1 kills it. The keeper is no child of the warden's and outlives both: when this process is gone, however
it went, the keeper deletes the pod.

The standard library alone, so that it starts in milliseconds and is small: there is one for each pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

EXIT_WITHOUT_KEEPER = 125
_PATIENCE_S = 20.0
_RETRY_S = 0.05


def _connect(path: str) -> socket.socket:
    """Connect to a socket in the file system, however long its path."""
    folder = os.open(os.path.dirname(path), os.O_PATH)
    until = time.monotonic() + _PATIENCE_S
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        except OSError:
            # The keepers' process may have been started this very moment.
            link.close()
            if time.monotonic() > until:
                raise
            time.sleep(_RETRY_S)
        else:
            os.close(folder)
            return link


def main(path: str, spec: str) -> int:
    """Return the exit code of the pod's container."""
    # The warden offers jobs to the kernel first when memory runs out; this is none, and what it stands for is elsewhere.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")
    try:
        link = _connect(path)
    except OSError as error:
        print(f"suanli: the keeper of pods does not answer: {error}", file=sys.stderr)
        return EXIT_WITHOUT_KEEPER
    socket.send_fds(link, [json.dumps({"spec": spec}).encode() + b"\n"], [1, 2])
    for number, word in ((signal.SIGTERM, b"stop\n"), (signal.SIGUSR1, b"kill\n")):
        signal.signal(number, lambda *_, word=word: link.send(word))
    said = b""
    while not said.endswith(b"\n"):
        piece = link.recv(64)
        if not piece:
            return EXIT_WITHOUT_KEEPER
        said += piece
    return int(said)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
