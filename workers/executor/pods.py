"""Pods for jobs, as a node's executor sees them: whether they can be had here, how one is started, and what became of it.

The way of one pod: the warden starts a *runner* (``pod_runner``) in place of the job; it asks the *keepers*' process, which forks
a *keeper* (``pod_keeper``) that creates the pod; in the pod a *first process* (``pod_init``) starts the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workers.executor import pod_trial, procfs, ray_job
from workers.executor.attempt import Attempt
from workers.executor.folders import PARTS
from workers.executor.isolation import Network, PodSettings, Tier
from workers.executor.packages import Install, PackagesError, installer_environment, run_installer
from workers.executor.pod_api import NOT_FOUND, KubernetesUnavailableError, PodApi, PodApiError
from workers.executor.pod_host import HostError, WorkerPod
from workers.executor.pod_keeper import UNCONFIRMED_S
from workers.executor.pod_keepers import LOCK
from workers.executor.pod_manifest import COMPONENT, START_LABEL, WORKER_LABEL, PodPlan, name_of, render
from workers.executor.pod_outcome import Outcome
from workers.executor.sandbox import give
from workers.executor.types import ExitReason, Launch

POD_NAME = "SUANLI_POD_NAME"
"""Variable that names the executor's own pod (downward API). Without it there is no tier ``pod``."""
POD_NAMESPACE = "SUANLI_POD_NAMESPACE"
_CODE_ROOT = Path(__file__).resolve().parents[2]
_IN_POD = ("__init__.py", *(f"executor/{name}.py" for name in ("__init__", "pod_init", "pod_frames", "programs")))
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[4]); from workers.executor.pod_keepers import main; "
    "main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"
)
_PASSED_ON = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "PATH", "HOME", "SSL_CERT_FILE")
_OUTCOME = "outcome.json"
SWEEP_S = 30.0
_FIRST_SWEEP_S = 8.0
TRIAL_PATIENCE_S = 60.0
"""So long a node that has just started waits for an API that does not answer, before it is refused."""
_TRIAL_RETRY_S = 1.0
_REMOVE_RETRY_S = 0.5
_PLAIN_UID = 65_534
_DEFAULT_SWITCH_MS = PodSettings().switch_ms


class Pods:
    """All pods of one executor. ``started`` hears the number of each attempt whose command has begun to run, and when."""

    def __init__(self, root: Path, started: Callable[[int, int], None]) -> None:
        self._root = root
        self._folder = root / "pods"
        self._started = started
        self._name = os.environ.get(POD_NAME, "")
        self._api: PodApi | None = None
        self._worker: WorkerPod | None = None
        self._problems: dict[PodSettings, str] = {}
        self._live: dict[int, tuple[str, str, int]] = {}
        """By attempt's number: its pod's name, which start it is, and its switch in ms."""
        self._installs = itertools.count(-1, -1)
        """Numbers of pods that install packages: none of an attempt's."""
        self._keepers: subprocess.Popen[bytes] | None = None
        self._life_fd = -1
        self._news: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def possible(self) -> bool:
        """Whether the executor stands in a pod that may have others beside it."""
        return bool(self._name)

    async def start(self) -> None:
        """Make room, and delete what an earlier executor of this pod has left; the API may be away, that is tried on."""
        await asyncio.to_thread(shutil.rmtree, self._folder, True)
        if not self.possible:
            return
        self._folder.mkdir()
        for name in _IN_POD:
            target = self._folder / "code" / "workers" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_CODE_ROOT / "workers" / name, target)
        with contextlib.suppress(TimeoutError, PodApiError, KubernetesUnavailableError, HostError):
            async with asyncio.timeout(_FIRST_SWEEP_S):
                await asyncio.to_thread(self._sweep)
        self._sweeping = asyncio.create_task(self._sweep_on())

    async def close(self) -> None:
        """Delete every pod, once the warden has ended their runners."""
        for task in (self._sweeping, self._news):
            if task is not None:
                task.cancel()
        self._live.clear()
        if self._api is not None:
            with contextlib.suppress(PodApiError, HostError):
                await asyncio.to_thread(self._sweep)
        if self._keepers is not None:
            os.close(self._life_fd)
            await asyncio.to_thread(self._keepers.wait)

    # --- whether --------------------------------------------------------------------------------------------------

    async def problem(self, settings: PodSettings) -> str:
        """Try whether pods can be had here; return why not as a part of a sentence, or nothing.

        An API that does not answer is waited for a while. It is no reason to refuse a node that has passed before: jobs may run there.
        """
        passed = self._problems.get(settings) == ""
        try:
            found = await asyncio.to_thread(self._try, settings, 0.0 if passed else TRIAL_PATIENCE_S)
        except PodApiError as error:
            found = "" if passed else f"the Kubernetes API does not answer: {error}"
        self._problems[settings] = found
        if not found:
            self._ensure_keepers()
        return found

    def _try(self, settings: PodSettings, patience_s: float) -> str:
        """Raises PodApiError when the API has not answered for so long."""
        if not self.possible:
            return f"its Ray does not run in a pod that names itself in the variable {POD_NAME}"
        until = time.monotonic() + patience_s
        while True:
            try:
                return self._try_once(settings)
            except PodApiError as error:
                if not error.passes:
                    return f"the Kubernetes API says: {error}"
                if time.monotonic() >= until:
                    raise
            time.sleep(_TRIAL_RETRY_S)

    def _try_once(self, settings: PodSettings) -> str:
        try:
            worker = self._find_worker()
            return pod_trial.problem(self._connected(), self._plan_of_trial(settings, worker))
        except (KubernetesUnavailableError, HostError) as error:
            return str(error)

    def _connected(self) -> PodApi:
        if self._api is None:
            self._api = PodApi()
        return self._api

    def _find_worker(self) -> WorkerPod:
        if self._worker is None:
            self._worker = pod_trial.own_pod(
                self._connected(),
                pod_trial.own_namespace(os.environ.get(POD_NAMESPACE, "")),
                self._name,
                str(self._root),
            )
        return self._worker

    def _plan_of_trial(self, settings: PodSettings, worker: WorkerPod) -> PodPlan:
        launch = Launch("trial", 1, ("true",), cpu_milli=100, memory_mib=64)
        launch = dataclasses.replace(
            launch, isolation=dataclasses.replace(launch.isolation, tier=Tier.POD, pod=settings)
        )
        attempt = Attempt(launch, 0, self._root / "attempts" / "trial", uid=None)
        return self._plan(attempt, worker, uuid.uuid4().hex)

    def problem_with(self, launch: Launch) -> str | None:
        """Return a sentence saying why a launch cannot run in a pod here, or None."""
        settings = launch.isolation.pod
        problem = self._problems.get(settings, "it has not been tried yet")
        if problem or self._worker is None:
            return f"the pool's jobs must run in pods, and this node cannot have them: {problem}"
        if launch.isolation.network is Network.NONE and launch.world_size > 1:
            return "the pool gives its jobs no network, which the ranks of a gang need to meet"
        if launch.gpu_indices and 0 < launch.gpu_milli < 1000:
            return "jobs of this pool run in pods, which get whole GPUs, not parts of one"
        for path in _read_only(launch):
            real = os.path.realpath(path)
            if _within(real, str(self._root)) or _within(str(self._root), real):
                return f"{path} cannot be shown to jobs: other jobs' folders are in it"
            try:
                self._worker.place(path)
            except HostError as error:
                return f"the job's pod cannot have a folder it needs: {error}"
        return None

    # --- one pod --------------------------------------------------------------------------------------------------

    def spec(self, attempt: Attempt, env: dict[str, str]) -> dict[str, Any]:
        """Write down what the keeper needs and return what the warden is to start; raises OSError, HostError."""
        self._ensure_keepers()
        launch, number = attempt.launch, attempt.number
        key = launch.key
        if launch.gpu_indices:
            # Kubernetes chose which: the pod sees those and no others, counted from 0.
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(len(launch.gpu_indices))))
            env.pop("NVIDIA_VISIBLE_DEVICES", None)
        shown = [env["VIRTUAL_ENV"]] if launch.packages and env.get("VIRTUAL_ENV") else []
        gang = launch.world_size > 1
        front = ray_job.front(launch, str(attempt.folder), env, True)
        job = {
            "argv": [*front, *launch.argv],
            "supervised": bool(front),
            "env": env,
            "cwd": f"{attempt.folder}/work",
            "own_master": gang and launch.rank == 0,
        }
        first = name_of(launch.keep.region, key.job_id, key.attempt, 0) if gang and launch.rank else ""
        plan = self._plan(attempt, self._known_worker(), uuid.uuid4().hex, shown)
        return {
            "argv": self._write(number, plan, job, first),
            "env": {procfs.MARKER: str(attempt.folder), "LANG": "C.UTF-8"},
            "cwd": "/",
            "stdout": f"{attempt.folder}/stdout.log",
            "stderr": f"{attempt.folder}/stderr.log",
            "log_limit": launch.log_limit_bytes,
            "data_limit": 0,
            "front": [],
        }

    def _known_worker(self) -> WorkerPod:
        if self._worker is None:
            raise HostError("the worker's pod is not known")
        return self._worker

    def _write(self, number: int, plan: PodPlan, job: Mapping[str, Any], await_pod: str = "") -> list[str]:
        """Make a pod's place and return the command line of its runner."""
        launch, settings, place = plan.launch, plan.settings, self._place(number)
        switch_ms = settings.switch_ms or _DEFAULT_SWITCH_MS
        control = Path(plan.control)
        control.mkdir(parents=True)
        (control / "alive").touch()
        manifest = render(plan)
        fields = {
            "number": number,
            "manifest": manifest,
            "job": {
                "argv": list(launch.argv),
                "file_limit": launch.isolation.disk_mib << 20,
                "switch_ms": settings.switch_ms,
                **job,
            },
            "control": plan.control,
            "outcome": str(place / _OUTCOME),
            "start_timeout_ms": settings.start_timeout_ms,
            "switch_ms": switch_ms,
            "memory_mib": launch.memory_mib,
            "await_pod": await_pod,
        }
        (place / "spec.json").write_text(json.dumps(fields), encoding="utf-8")
        self._live[number] = (manifest["metadata"]["name"], plan.start, switch_ms)
        runner = str(Path(__file__).with_name("pod_runner.py"))
        return [sys.executable, "-I", "-S", runner, str(self._folder / "keepers.sock"), str(place / "spec.json")]

    def installer(self, launch: Launch) -> Install:
        """Return how packages of a launch are installed: in a pod of its own, with what the job was granted, and the network."""
        self._ensure_keepers()
        return lambda argv, folder: self._install(argv, folder, launch)

    def _install(self, argv: list[str], folder: Path, launch: Launch) -> None:
        number = next(self._installs)
        place = self._place(number)
        (place / "tmp").mkdir(parents=True)
        isolation = dataclasses.replace(launch.isolation, network=Network.HOST)
        made = Launch(
            f"packages-{uuid.uuid4().hex}",
            1,
            tuple(argv),
            cpu_milli=launch.cpu_milli,
            memory_mib=launch.memory_mib,
            keep=launch.keep,
            isolation=isolation,
        )
        own_uid = os.geteuid() == 0
        attempt = Attempt(made, number, place, uid=_PLAIN_UID if own_uid else None)
        plan = dataclasses.replace(
            self._plan(attempt, self._known_worker(), uuid.uuid4().hex), writable=(str(folder),), folder=str(place)
        )
        # Its own temporary folder is the pod's /tmp.
        env = installer_environment(folder, os.environ) | {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108
        runner = self._write(number, plan, {"env": env, "cwd": "/tmp", "own_master": False})  # noqa: S108
        if own_uid:
            for path in (place / "tmp", folder):
                give(path, _PLAIN_UID)
        try:
            run_installer(runner, folder, {"LANG": "C.UTF-8"})
        except PackagesError:
            told = Outcome.read(place / _OUTCOME)
            if told is not None and not told.ran:
                raise PackagesError(told.message) from None
            raise
        finally:
            name, start, switch_ms = self._live[number]
            if Outcome.read(place / _OUTCOME) is None:
                self._remove(name, start, place / LOCK, time.monotonic() + switch_ms / 1000 + UNCONFIRMED_S)
            del self._live[number]
            shutil.rmtree(place, ignore_errors=True)
            if own_uid and folder.exists():
                give(folder, os.geteuid())

    def _place(self, number: int) -> Path:
        return self._folder / str(number)

    def _plan(self, attempt: Attempt, worker: WorkerPod, start: str, shown: Iterable[str] = ()) -> PodPlan:
        """``shown``: more that the pod may read."""
        launch, folder = attempt.launch, str(attempt.folder)
        own = [*shown, *([f"{folder}/data"] if launch.data_dirs else [])]
        if launch.parameters_json is not None:
            own.append(f"{folder}/parameters.json")
        return PodPlan(
            launch=launch,
            worker=worker,
            start=start,
            uid=attempt.uid if attempt.uid is not None else os.geteuid() or _PLAIN_UID,
            gid=attempt.uid if attempt.uid is not None else os.getegid() or _PLAIN_UID,
            folder=folder,
            writable=tuple(f"{folder}/{name}" for name in PARTS),
            read_only=(*own, *_read_only(launch)),
            code=str(self._folder / "code"),
            control=str(self._place(attempt.number) / "control"),
        )

    async def outcome(self, number: int) -> Outcome:
        """Return how an attempt's pod ended, once nothing of it runs any more as far as can be told."""
        told = await asyncio.to_thread(Outcome.read, self._place(number) / _OUTCOME)
        if told is None:
            await self.remove(number)
            told = Outcome(ExitReason.LOST, "the runner of the job's pod died, and the pod was deleted", True)
        self._live.pop(number, None)
        await asyncio.to_thread(shutil.rmtree, self._place(number), True)
        return told

    async def remove(self, number: int) -> None:
        """Have a pod deleted whose runner is gone; returns when it is gone, or must have ended itself."""
        if number not in self._live:
            return
        name, start, switch_ms = self._live[number]
        until = time.monotonic() + switch_ms / 1000 + UNCONFIRMED_S
        await asyncio.to_thread(self._remove, name, start, self._place(number) / LOCK, until)

    def _remove(self, name: str, start: str, lock: Path, until: float) -> None:
        while time.monotonic() < until and not (_is_free(lock) and self._gone(name, start)):
            time.sleep(_REMOVE_RETRY_S)

    def _gone(self, name: str, start: str) -> bool:
        """Ask for a pod's deletion; whether it is gone."""
        api, worker = self._connected(), self._find_worker()
        try:
            pod = api.get(worker.namespace, name)
            if pod["metadata"].get("labels", {}).get(START_LABEL) != start:
                return True
            api.delete(worker.namespace, name, pod["metadata"]["uid"], 0)
        except PodApiError as error:
            return error.status == NOT_FOUND
        return False

    # --- what is left over ----------------------------------------------------------------------------------------

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(PodApiError, KubernetesUnavailableError, HostError):
                await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        """Delete the pods of this worker's pod that no live attempt has."""
        api, worker = self._connected(), self._find_worker()
        selector = f"{WORKER_LABEL}={worker.uid},app.kubernetes.io/component={COMPONENT}"
        found, _ = api.list(worker.namespace, label_selector=selector)
        # Looked at after the list: one that begins now is in both.
        starts = {start for _, start, _ in list(self._live.values())}
        for pod in found:
            if pod["metadata"]["labels"].get(START_LABEL) not in starts:
                api.delete(worker.namespace, pod["metadata"]["name"], pod["metadata"]["uid"], 0)

    # --- the keepers' process -------------------------------------------------------------------------------------

    def _ensure_keepers(self) -> None:
        """Start the process that makes keepers, unless it runs. Runners that come before it listens are told to come again."""
        if self._keepers is not None and self._keepers.poll() is None:
            return
        if self._keepers is not None:
            os.close(self._life_fd)
        news_read, news_write = os.pipe()
        life_read, self._life_fd = os.pipe()
        argv = [sys.executable, "-I", "-c", _BOOT, str(self._folder / "keepers.sock"), str(news_write), str(life_read)]
        self._keepers = subprocess.Popen(
            [*argv, str(_CODE_ROOT)],
            pass_fds=(news_write, life_read),
            env=_keepers_environment(os.environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(news_write)
        os.close(life_read)
        self._news = asyncio.create_task(self._take_news(news_read))

    async def _take_news(self, fd: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
        try:
            while line := await reader.readline():
                told = json.loads(line)
                if told["number"] in self._live:
                    self._started(told["number"], told["at_ms"])
        finally:
            transport.close()


def _is_free(lock: Path) -> bool:
    """Whether no keeper holds it."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _keepers_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {name: inherited[name] for name in _PASSED_ON if name in inherited} | {"LANG": "C.UTF-8"}


def _read_only(launch: Launch) -> tuple[str, ...]:
    return (*launch.isolation.extra_read_only, *launch.data_dirs.values())


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
