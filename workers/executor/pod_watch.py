"""Watching one pod to its end, however often the connection or the server's memory of changes ends before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workers.executor.pod_api import GONE, PodApi, PodApiError

WATCH_S = 60
"""After so long the server ends a watch, and the next one goes on from the version it had come to. A dead connection is found
a little later."""
_PAUSE_S = (0.2, 5.0)

Tell = Callable[[tuple[str, Any]], None]


def watch_pod(api: PodApi, namespace: str, name: str, uid: str, tell: Tell) -> None:
    """Tell each state of the pod as ``("pod", pod)``, and ``("pod", None)`` once it is gone; returns then."""
    version = ""
    pause_s = _PAUSE_S[0]
    while True:
        try:
            if not version:
                found, version = api.list(namespace, field_selector=f"metadata.name={name}")
                mine = [pod for pod in found if pod["metadata"]["uid"] == uid]
                tell(("pod", mine[0] if mine else None))
                if not mine:
                    return
            pause_s = _PAUSE_S[0]
            for kind, pod in api.watch(namespace, name, version, WATCH_S):
                version = pod["metadata"]["resourceVersion"]
                if kind == "BOOKMARK" or pod["metadata"]["uid"] != uid:
                    continue
                tell(("pod", pod))
                if kind == "DELETED":
                    tell(("pod", None))
                    return
        except PodApiError as error:
            # Too old or not: what has happened meanwhile is seen in a new list only.
            version = ""
            if error.status != GONE:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_S[1])
