"""The keeper of one pod: creates it, follows its log, watches it to its end, and leaves none behind.

It is a process of its own, forked by ``pod_keepers`` and no child of the warden's: when the pod's runner is gone, and be it by
kill -9 of runner, warden and executor together, the keeper deletes the pod. As long as it keeps the pod it touches a file there;
a pod whose keeper is gone too (the machine's container died) sees that and ends itself. So it takes no API to be sure that
no job goes on unseen.

Threads do the waiting (the runner's wishes, the watch, the log, the signs of life); one loop decides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.executor.attempt import now_ms
from workers.executor.pod_api import CONFLICT, NOT_FOUND, PodApi, PodApiError
from workers.executor.pod_log import LogFollower
from workers.executor.pod_manifest import CONTAINER, START_LABEL
from workers.executor.pod_outcome import Outcome, container_status, is_over, judge_pod
from workers.executor.pod_watch import watch_pod
from workers.executor.types import ExitReason

BEAT_S = 2.0
_FIRST_BEATS_S = 0.2
_RETRY_S = 1.0
_TOLD_PATIENCE_S = 3.0
"""So long a pod may take to see that it is to end, before Kubernetes tells it."""
_IMAGE_PATIENCE_S = 60.0
_LAST_LOG_S = 30.0
_LOG_OF_NONE_S = 2.0
"""What still comes of the log of a pod that is gone comes at once."""
_CLEAN_UP_S = 10.0
"""So long an end is held back until the pod is deleted, too."""
ABANDONED_S = 600.0
"""How long a pod without a runner is tried to be deleted; the executor's sweeps go on after that."""
UNCONFIRMED_S = 5.0
"""After the time in which a pod left alone ends itself, how much longer it is waited to hear that it has."""
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_SLOW_TO_FAIL = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_WISHES = ("", "stop", "kill", "gone")
_NO_CODE = 1
_MAX_SAID = 500


@dataclasses.dataclass(frozen=True, slots=True)
class PodSpec:
    """What the executor wants, as it stands in a file."""

    number: int
    manifest: Mapping[str, Any]
    job: Mapping[str, Any]
    """What the pod's first process is to run: see ``pod_init``."""
    control: str
    outcome: str
    start_timeout_ms: int
    switch_ms: int
    memory_mib: int
    await_pod: str = ""
    """Name of the pod of rank 0, whose address must be known first."""

    @property
    def name(self) -> str:
        """The pod's."""
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """The pod's."""
        return str(self.manifest["metadata"]["namespace"])


class _OverError(Exception):
    """There is nothing more to do but to tell the outcome and to clean up."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class Keeper:
    """One pod from before its creation to after its end. ``started`` is told when the job's command runs."""

    def __init__(
        self,
        api: PodApi,
        spec: PodSpec,
        link: socket.socket,
        outputs: tuple[int, int],
        started: Callable[[int, int], None],
    ) -> None:
        self._api = api
        self._spec = spec
        self._link = link
        self._started = started
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._beating = threading.Event()
        self._wish = ""
        self._tried = False
        self._uid = ""
        self._pod: dict[str, Any] | None = None
        self._log = LogFollower(api, spec.namespace, spec.name, CONTAINER, outputs, self._news.put)
        self._log_thread: threading.Thread | None = None
        self._ran = False
        self._started_ms = 0
        self._failure = ""
        self._said = ""
        self._used = (0, 0)
        self._start_by = time.monotonic() + spec.start_timeout_ms / 1000
        self._failing_since: float | None = None
        self._act_at = float("inf")
        self._give_up_at = float("inf")

    def run(self) -> None:
        """Keep the pod until it is over or cannot be."""
        self._thread(self._hear)
        self._thread(self._beat)
        try:
            self._meet()
            self._create()
            while True:
                self._wait(self._next_due())
                self._decide()
        except _OverError as over:
            outcome = dataclasses.replace(
                over.outcome, started_ms=self._started_ms, cpu_ms=self._used[0], peak_kib=self._used[1]
            )
        self._beating.set()
        if self._wish != "gone":
            outcome.write(Path(self._spec.outcome))
        gave_up = time.monotonic() >= self._give_up_at
        left = self._clean_up(0.0 if gave_up else _CLEAN_UP_S)
        with contextlib.suppress(OSError):
            code = os.waitstatus_to_exitcode(outcome.status) if outcome.status is not None else _NO_CODE
            self._link.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
        if left:
            self._clean_up(ABANDONED_S)

    # --- what goes on beside it -----------------------------------------------------------------------------------

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _hear(self) -> None:
        """Take the runner's wishes until it is gone."""
        with contextlib.suppress(OSError):
            while words := self._link.recv(64).split():
                for word in words:
                    self._news.put(("wish", word.decode()))
        self._news.put(("wish", "gone"))

    def _beat(self) -> None:
        alive = f"{self._spec.control}/alive"
        while not self._beating.is_set():
            # A full disk is no reason to stop: the time of an empty file takes no room.
            with contextlib.suppress(OSError):
                os.utime(alive)
            # Its first process begins nothing before it has seen a sign of life.
            self._beating.wait(BEAT_S if self._ran else _FIRST_BEATS_S)

    # --- making the pod -------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Wait until the address of rank 0 is known, and write down what the pod is to run."""
        job = dict(self._spec.job)
        while self._spec.await_pod:
            with contextlib.suppress(PodApiError):
                first = self._api.get(self._spec.namespace, self._spec.await_pod)
                address = first.get("status", {}).get("podIP")
                if address:
                    job["env"] = {**job["env"], "MASTER_ADDR": address}
                    break
            self._before_start("the pod of rank 0 has no address")
            self._wait(_RETRY_S)
        control = Path(self._spec.control)
        (control / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def _create(self) -> None:
        while True:
            self._before_start("the Kubernetes API takes no pods")
            try:
                self._tried = True
                pod = self._api.create(self._spec.namespace, self._spec.manifest)
            except PodApiError as error:
                if error.status == CONFLICT:
                    pod = self._adopt()
                elif error.passes:
                    self._wait(_RETRY_S)
                    continue
                else:
                    self._fail(f"Kubernetes refuses the pod: {error}")
            break
        self._uid, self._pod = pod["metadata"]["uid"], pod
        self._thread(lambda: watch_pod(self._api, self._spec.namespace, self._spec.name, self._uid, self._news.put))

    def _adopt(self) -> dict[str, Any]:
        """The pod that has the name already: ours when the answer to its creation was lost, else there is no second start."""
        while True:
            self._before_start("the Kubernetes API does not answer")
            try:
                pod = self._api.get(self._spec.namespace, self._spec.name)
            except PodApiError as error:
                if error.status == NOT_FOUND:
                    self._fail("a pod of this attempt was there a moment ago, from another start")
                self._wait(_RETRY_S)
                continue
            if self._is_ours(pod):
                return pod
            self._fail(f"there is a pod {self._spec.name} of this attempt already, from another start")

    def _is_ours(self, pod: Mapping[str, Any]) -> bool:
        wanted = self._spec.manifest["metadata"]["labels"][START_LABEL]
        return bool(pod["metadata"].get("labels", {}).get(START_LABEL) == wanted)

    def _before_start(self, doubt: str) -> None:
        """Go on unless that is not wanted any more, or has taken too long."""
        self._wait(0)
        if self._wish:
            raise _OverError(Outcome(ExitReason.STOPPED, "it was stopped before its pod was made", False))
        if time.monotonic() > self._start_by:
            self._fail(f"the pod could not be made within {self._spec.start_timeout_ms // 1000} s: {doubt}")

    def _fail(self, message: str) -> None:
        raise _OverError(Outcome(ExitReason.SPAWN_FAILED, message, self._ran))

    # --- the loop -------------------------------------------------------------------------------------------------

    def _next_due(self) -> float:
        due = min(self._act_at, self._give_up_at)
        if not self._ran:
            due = min(due, self._start_by)
        if self._failing_since is not None:
            due = min(due, self._failing_since + _IMAGE_PATIENCE_S)
        return max(0.0, min(due - time.monotonic(), 60.0))

    def _wait(self, seconds: float) -> None:
        """Take in all news there are, waiting for the first."""
        until = time.monotonic() + seconds
        while True:
            try:
                kind, value = self._news.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            getattr(self, f"_on_{kind}")(value)
            until = 0.0

    def _on_wish(self, wish: str) -> None:
        if _WISHES.index(wish) <= _WISHES.index(self._wish):
            return
        self._wish = wish
        now = time.monotonic()
        self._act_at = now
        if wish == "stop":
            self._tell_pod(15)
            if self._may_listen():
                self._act_at = now + _TOLD_PATIENCE_S
        else:
            self._beating.set()
            self._tell_pod(9)
            self._give_up_at = now + (ABANDONED_S if wish == "gone" else self._spec.switch_ms / 1000 + UNCONFIRMED_S)

    def _tell_pod(self, number: int) -> None:
        with contextlib.suppress(OSError):
            Path(self._spec.control, "stop").write_text(str(number), encoding="ascii")

    def _on_pod(self, pod: dict[str, Any] | None) -> None:
        # One that was deleted because it was over, or was over when it was deleted, has ended all the same.
        if pod is not None or self._pod is None or not is_over(self._pod):
            self._pod = pod

    def _on_started(self, _: object) -> None:
        self._ran, self._started_ms = True, now_ms()
        self._started(self._spec.number, self._started_ms)

    def _on_failed(self, text: str) -> None:
        self._failure = text

    def _on_raw(self, text: str) -> None:
        # Something else than our first process spoke: why that could not begin.
        self._said = f"{self._said} {text}"[-_MAX_SAID:]

    def _on_told(self, _: object) -> None:
        if self._wish == "stop":
            self._act_at = float("inf")

    def _on_used(self, used: tuple[int, int]) -> None:
        self._used = used

    def _decide(self) -> None:
        now = time.monotonic()
        pod = self._pod
        if pod is None:
            self._read_last_log()
            wished = self._wish != ""
            message = "the pod is gone" if wished else "somebody has deleted the pod"
            raise _OverError(Outcome(ExitReason.STOPPED if wished else ExitReason.LOST, message, self._ran))
        if "running" in container_status(pod) and self._log_thread is None:
            self._log_thread = self._thread(self._log.run)
        if is_over(pod):
            self._read_last_log()
            outcome = judge_pod(pod, ran=self._ran, failure=self._failure, memory_mib=self._spec.memory_mib)
            if not outcome.ran and not self._failure:
                outcome = dataclasses.replace(outcome, message=f"{outcome.message} {self._said}".strip())
            raise _OverError(outcome)
        if now >= self._give_up_at:
            # Its own switch has ended it, or the sweeps will.
            raise _OverError(
                Outcome(ExitReason.STOPPED, "Kubernetes does not say whether the pod has ended", self._ran)
            )
        if now >= self._act_at:
            self._act_at = now + _RETRY_S
            self._delete(self._grace_s() if self._wish == "stop" and self._may_listen() else 0)
            return
        if not self._ran and not self._wish:
            self._look_at_start(pod, now)

    def _may_listen(self) -> bool:
        """Whether there may be somebody in the pod to be told: its log can be late."""
        return self._ran or "running" in container_status(self._pod or {})

    def _grace_s(self) -> int:
        return int(self._spec.manifest["spec"]["terminationGracePeriodSeconds"])

    def _delete(self, grace_s: int) -> None:
        with contextlib.suppress(PodApiError):
            self._api.delete(self._spec.namespace, self._spec.name, self._uid, grace_s)

    def _look_at_start(self, pod: Mapping[str, Any], now: float) -> None:
        waiting = container_status(pod).get("waiting") or {}
        reason, said = waiting.get("reason", ""), " ".join(str(waiting.get("message", "")).split())[:800]
        if reason in _HOPELESS:
            self._fail(f"the container cannot be started ({reason}): {said}")
        if reason in _SLOW_TO_FAIL:
            self._failing_since = self._failing_since or now
            if now >= min(self._failing_since + _IMAGE_PATIENCE_S, self._start_by):
                image = self._spec.manifest["spec"]["containers"][0]["image"]
                self._fail(f"the container of image {image} cannot be started ({reason}): {said}")
        elif reason != "ContainerCreating":
            self._failing_since = None
        if now >= self._start_by:
            unscheduled = [
                one
                for one in pod.get("status", {}).get("conditions", ())
                if one.get("type") == "PodScheduled" and one.get("status") == "False"
            ]
            limit = f"within {self._spec.start_timeout_ms // 1000} s"
            if unscheduled:
                self._fail(
                    f"Kubernetes found no room for the pod on its node {limit}: {unscheduled[0].get('message', '')}"
                )
            said = said or self._api.warning(self._spec.namespace, self._spec.name)
            self._fail(f"the pod did not start {limit}: {' '.join(filter(None, (reason, said)))}")

    # --- the end --------------------------------------------------------------------------------------------------

    def _read_last_log(self) -> None:
        """Wait for what the log still holds, and take in what it says."""
        if self._pod is not None and self._log_thread is None:
            self._log_thread = self._thread(self._log.run)
        if self._log_thread is not None and self._wish != "gone":
            self._log.ended.set()
            self._log_thread.join(_LAST_LOG_S if self._pod is not None else _LOG_OF_NONE_S)
        self._wait(0)

    def _clean_up(self, patience_s: float) -> bool:
        """Delete the pod, if it was ever made; return whether there may be something left of it after so long."""
        until = time.monotonic() + patience_s
        while self._tried and self._pod_left():
            if time.monotonic() >= until:
                return True
            time.sleep(_RETRY_S / 4)
        return False

    def _pod_left(self) -> bool:
        """Ask for the pod's deletion; whether there is more to do. One that still runs is waited for."""
        try:
            pod = self._api.get(self._spec.namespace, self._spec.name)
            if not self._is_ours(pod):
                return False
            self._api.delete(self._spec.namespace, self._spec.name, pod["metadata"]["uid"], 0)
        except PodApiError as error:
            return error.status != NOT_FOUND
        return not is_over(pod)
