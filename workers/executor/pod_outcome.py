"""How a pod ended, as its keeper tells the executor: a file, since the keeper is no child of the executor's."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.executor.attempt import judge
from workers.executor.types import ExitReason

_EVICTED = "Evicted"
_OOM_KILLED = "OOMKilled"
_FIRST_SIGNAL = 128
_LAST_SIGNAL = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """``status`` is as of waitpid, None when the container told none; ``ran``: the job's command was started."""

    reason: ExitReason
    message: str
    ran: bool
    started_ms: int = 0
    status: int | None = None
    cpu_ms: int = 0
    peak_kib: int = 0

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        os.rename(new, path)

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """Return what a file tells; None when there is none."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(**{**fields, "reason": ExitReason(fields["reason"])})


def container_status(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the pod's one container; empty as long as there is none."""
    found: list[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses") or [{}]
    state: Mapping[str, Any] = found[0].get("state", {})
    return state


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether nothing of the pod runs or ever will."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"} or "terminated" in container_status(pod)


def judge_pod(pod: Mapping[str, Any], *, ran: bool, failure: str, memory_mib: int) -> Outcome:
    """Return why a pod that is over has ended. ``failure``: why its first process could not start the command."""
    status = pod.get("status", {})
    terminated = container_status(pod).get("terminated") or {}
    said = _sentence(status.get("message") or terminated.get("message") or "")
    if status.get("reason") == _EVICTED:
        # Kubernetes took it away, as a lost node does: no fault of the job's.
        return Outcome(ExitReason.LOST, f"the node evicted the pod: {said or 'it gave no reason'}", ran)
    if terminated.get("reason") == _OOM_KILLED:
        limit = f" of {memory_mib} MiB" if memory_mib else ""
        message = f"the pod used more than its memory{limit} and was killed"
        return Outcome(ExitReason.OUT_OF_MEMORY, message, ran, status=_wait_status(terminated))
    if not terminated:
        reason = status.get("reason") or "it gave no reason"
        return Outcome(
            ExitReason.LOST if ran else ExitReason.SPAWN_FAILED, f"the node refused the pod: {reason} {said}", ran
        )
    if failure or not ran:
        why = failure or f"the container could not be started: {terminated.get('reason', '')} {said}".strip()
        return Outcome(ExitReason.SPAWN_FAILED, why, False)
    wait_status = _wait_status(terminated)
    return Outcome(*judge(wait_status, kernel_was_short=False), ran, status=wait_status)


def _wait_status(terminated: Mapping[str, Any]) -> int:
    """As of waitpid: a container has exit codes only, 128 and its number for a deadly signal, as a shell has."""
    code = int(terminated.get("exitCode", 0)) & 0xFF
    number = code - _FIRST_SIGNAL
    return number if 0 < number <= _LAST_SIGNAL else code << 8


def _sentence(text: str) -> str:
    return " ".join(text.split())[:1000]
