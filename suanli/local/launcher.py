"""A whole deployment on this machine: one control plane, and for each region a Ray cluster and an agent.

All of them start at once. A process that has died, by whatever hand, is started again by the next ``up``; one that lives is
left alone. Everything is recorded in the state folder before it is waited for, so that an ``up`` that is killed leaves
nothing behind that ``down`` does not find.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from suanli.local import processes, ray_cluster
from suanli.local.certificates import Certificates
from suanli.local.control import Control
from suanli.local.ray_cluster import LocalRayCluster, RayClusterError
from suanli.local.state import LocalError, Process, RegionSettings, RunningRegion, Settings, StateDir, Up

HOST = "127.0.0.1"
CONTROL_PLANE = "control-plane"
START_TIMEOUT_S = 120.0
CONTROL_PLANE_PATIENCE_S = 20.0
STOP_GRACE_MS = 5_000
"""What running jobs get to end at ``down``, between SIGTERM and SIGKILL."""
AGENT_PATIENCE_S = STOP_GRACE_MS / 1000 + 25
_POLL_S = 0.05
_MIN_MEMORY_MIB = 1024

Progress = Callable[[str, str], None]
"""Told the name of a part and what it is doing now: "starting", "ready", "stopping", "stopped"."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What ``up`` was asked for; None: as the last time, else the defaults."""

    regions: tuple[str, ...] | None = None
    cpus: int | None = None
    gpus: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the deployment as ``status`` tells of it. ``detail`` is an address or what a region holds."""

    name: str
    pid: int
    alive: bool
    detail: str


def agent_of(region: str) -> str:
    """The name of a region's agent among the processes."""
    return f"agent:{region}"


def ray_of(region: str) -> str:
    """The name of a region's Ray cluster among the processes."""
    return f"ray:{region}"


class Launcher:
    """Starts, mends and ends the deployment in one state folder. Its methods block and raise LocalError."""

    def __init__(self, state: StateDir, progress: Progress) -> None:
        self._state = state
        self._certificates = Certificates(state.tls)
        self._progress = progress
        self._cancelled = threading.Event()
        self._guard = threading.Lock()
        self._up = Up(processes.boot_id())
        self._begun: list[str] = []

    # --- up -------------------------------------------------------------------------------------------------------

    def up(self, wanted: Wanted) -> tuple[Up, list[str]]:
        """Start what does not run. Returns what runs now, and the names of what this call has started.

        When something does not start, what this call has started is ended again.
        """
        with self._state.locked():
            self._up = self._recorded() or Up(processes.boot_id())
            last = self._state.read_settings()
            for settings in self._settings(wanted, last):
                self._up.regions.setdefault(settings.id, RunningRegion(settings))
            self._begun = []
            self._certificates.ensure(list(self._up.regions))
            try:
                self._start_all(last.address)
            except BaseException as error:
                self._cancelled.set()
                self._end([name for name in self._up.processes if name in self._begun])
                self._forget_ended()
                if isinstance(error, RayClusterError):
                    raise LocalError(str(error)) from error
                raise
            regions = tuple(region.settings for region in self._up.regions.values())
            self._state.write_settings(Settings(self._up.address, regions))
            return self._up, self._begun

    def _settings(self, wanted: Wanted, last: Settings) -> list[RegionSettings]:
        """What each region declares: as it runs, else as asked, else as the last time, else a fair part of the machine."""
        running = {name: region.settings for name, region in self._up.regions.items()}
        known = {settings.id: settings for settings in last.regions} | running
        names = wanted.regions or tuple(known) or ("local",)
        memory = max(_MIN_MEMORY_MIB, (psutil.virtual_memory().total >> 20) * 8 // 10 // len(names))
        chosen = []
        for name in names:
            base = known.get(name) or RegionSettings(name, max(2, os.cpu_count() or 1), 0, memory)
            settings = RegionSettings(
                name,
                base.cpus if wanted.cpus is None else wanted.cpus,
                base.gpus if wanted.gpus is None else wanted.gpus,
                base.memory_mib if wanted.memory_mib is None else wanted.memory_mib,
            )
            if name in running and settings != running[name]:
                raise LocalError(
                    f"The region {name} runs with {base.cpus} CPUs, {base.gpus} GPUs and {base.memory_mib} MiB. "
                    "Use `suanli down` before you give it others."
                )
            chosen.append(settings)
        return chosen

    def _start_all(self, last_address: str) -> None:
        with ThreadPoolExecutor(1 + len(self._up.regions), "suanli-up") as pool:
            control: Future[None] = pool.submit(self._start_control_plane, self._up.address or last_address)
            parts = [control]
            parts += [pool.submit(self._start_region, region, control) for region in self._up.regions.values()]
            try:
                wait(parts, return_when=FIRST_EXCEPTION)
            finally:
                if any(not part.done() for part in parts) or any(part.exception() for part in parts):
                    self._cancelled.set()
                    self._end_starting_clusters()
            for part in parts:
                if part.done() and not isinstance(part.exception(), _CancelledError):
                    part.result()

    def _end_starting_clusters(self) -> None:
        """Ray takes its time; what is cancelled need not be waited for."""
        with self._guard:
            starting = [name for name in self._begun if name.startswith("ray:") and not self._is_alive(name)]
        for name in starting:
            ray_cluster.stop_cluster(self._state.ray(name.removeprefix("ray:")))

    def _start_control_plane(self, last_address: str) -> None:
        if self._is_alive(CONTROL_PLANE):
            return
        ready_file = self._state.control_plane / "ready.json"
        ready_file.unlink(missing_ok=True)
        # The address of the last time when it is free: whoever knows it, agents that live among them, need no news.
        config = {
            "listen": _same(last_address),
            "agents_listen": _same(self._up.agents),
            "tls": self._server_tls(),
            "metrics_listen": f"{HOST}:0",
            "state_dir": str(self._state.control_plane),
            "bootstrap_admin_key_file": str(self._state.key_file),
            "ready_file": str(ready_file),
            "heartbeat_interval_ms": 2_000,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SUANLI_")}
        self._spawn(CONTROL_PLANE, "scheduler.server", self._state.control_plane, config, environment)
        self._await_ready(CONTROL_PLANE, ready_file)
        try:
            ready = json.loads(ready_file.read_text())
        except ValueError as error:
            raise LocalError(f"The control plane wrote something unreadable to {ready_file}.") from error
        if not last_address:
            with Control(ready["listen"], self._state.key_file, str(self._certificates.ca)) as control:
                control.make_local_institution()
        with self._guard:
            self._up.address, self._up.metrics = ready["listen"], ready["metrics_listen"]
            self._up.agents, self._up.ca = ready["agents_listen"], str(self._certificates.ca)
            self._state.write_up(self._up)
        self._progress(CONTROL_PLANE, "ready")

    def _server_tls(self) -> dict[str, Any]:
        files = self._certificates
        return {
            "cert": str(files.server),
            "key": str(files.server_key),
            "agent_ca_cert": str(files.ca),
            "agents_need_certificates": True,
        }

    def _start_region(self, region: RunningRegion, control: Future[None]) -> None:
        name = region.settings.id
        dialled = (self._up.address, self._up.agents)
        ray_was_there = self._is_alive(ray_of(name))
        if not ray_was_there:
            # An agent knows the cluster that is gone; its jobs went with that.
            self._end([agent_of(name), ray_of(name)])
            self._start_ray(region)
        while not control.done():
            self._pause()
        control.result()
        if self._is_alive(agent_of(name)) and ray_was_there and dialled == (self._up.address, self._up.agents):
            return
        self._end([agent_of(name)])
        self._start_agent(region)

    def _start_ray(self, region: RunningRegion) -> None:
        settings = region.settings
        name = ray_of(settings.id)
        folder = self._state.region(settings.id)
        # Nodes get new ids: the folders of those before are nobody's.
        shutil.rmtree(folder / "nodes", ignore_errors=True)
        # `down` goes by these folders, also when this process does not live to record the cluster.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        cluster = LocalRayCluster(
            settings.id,
            self._state.ray(settings.id),
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            labels={"suanli.io/pool": "gpu" if settings.gpus else "cpu"},
            memory_mib=settings.memory_mib,
        )
        self._progress(name, "starting")
        with self._guard:
            self._check_cancelled()
            self._begun.append(name)
        try:
            cluster.start()
        except RayClusterError:
            self._check_cancelled()
            raise
        head = cluster.nodes[0]
        with self._guard:
            self._up.processes[name] = Process(name, head.pid, processes.start_time(head.pid) or 0)
            region.ray_address = cluster.address
            self._state.write_up(self._up)
        self._progress(name, "ready")

    def _start_agent(self, region: RunningRegion) -> None:
        settings = region.settings
        name = agent_of(settings.id)
        folder = self._state.region(settings.id)
        ready_file = folder / "ready.json"
        folder.mkdir(parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
        with Control(self._up.address, self._state.key_file, self._up.ca) as control:
            if not (folder / "credential").exists():
                _write_private(folder / "token", control.enrolment_token(settings.id))
        config = {
            "region": settings.id,
            "control_plane": self._up.address,
            "state_dir": str(folder),
            "ray_address": region.ray_address,
            "ready_file": str(ready_file),
            "stop_grace_ms": STOP_GRACE_MS,
        }
        if self._up.agents:
            cert, key = self._certificates.agent(settings.id)
            config |= {
                "agents_address": self._up.agents,
                "tls_cert": str(cert),
                "tls_key": str(key),
                "tls_ca": self._up.ca,
            }
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SUANLI_", "RAY_"))}
        cluster = LocalRayCluster(settings.id, self._state.ray(settings.id), num_cpus=settings.cpus)
        environment |= cluster.client_env() | {"RAY_ADDRESS": region.ray_address}
        self._spawn(name, "workers.agent", folder, config, environment)
        self._await_ready(name, ready_file)
        self._progress(name, "ready")

    def _spawn(
        self, name: str, module: str, folder: Path, config: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / f"{module.rpartition('.')[2]}.yaml"
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        self._progress(name, "starting")
        argv = [sys.executable, "-m", module, "--config", str(file)]
        with self._guard:
            self._check_cancelled()
            self._begun.append(name)
            marked = {**environment, "PYTHONPATH": processes.python_path(), processes.MARKER: str(self._state.path)}
            self._up.processes[name] = processes.spawn(name, argv, marked, folder, self._state.log(name))
            self._state.write_up(self._up)

    def _await_ready(self, name: str, file: Path) -> None:
        """Wait for the file that a process puts there, whole, when it serves."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not file.exists():
            alive = self._is_alive(name)
            if not alive or time.monotonic() > deadline:
                what = f"was not ready within {START_TIMEOUT_S:.0f} seconds" if alive else "ended while it was starting"
                log = self._state.log(name)
                raise LocalError(f"The {_title(name)} {what}. The end of its log, {log}:\n{processes.last_words(log)}")
            self._pause()

    def _pause(self) -> None:
        self._cancelled.wait(_POLL_S)
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    # --- down -----------------------------------------------------------------------------------------------------

    def down(self) -> int:
        """End everything and return how many processes of the deployment ran; 0 when none did.

        Running jobs are stopped and stay in the queue: the next ``up`` runs them again.
        """
        with self._state.locked():
            recorded = self._recorded()
            up = recorded or Up(processes.boot_id())
            self._up = up
            count = sum(processes.is_alive(process) for process in up.processes.values())
            self._end(list(up.processes))
            # Also what an up.json that is lost or was never written does not tell of.
            folders = {self._state.ray(region) for region in up.regions}
            folders |= {path / "ray" for path in (self._state.path / "regions").glob("*")}
            for folder in sorted(folders):
                ray_cluster.remove_cluster(folder)
            strays = processes.end_marked(self._state.path)
            self._state.up_file.unlink(missing_ok=True)
            return count or strays

    def _end(self, names: Sequence[str]) -> None:
        """End processes: agents with their jobs first, then Ray, the control plane last, for it is to hear of the jobs."""
        ends = [
            ([name for name in names if name.startswith("agent:")], signal.SIGUSR1, AGENT_PATIENCE_S),
            ([name for name in names if name.startswith("ray:")], signal.SIGKILL, 1.0),
            ([name for name in names if name == CONTROL_PLANE], signal.SIGTERM, CONTROL_PLANE_PATIENCE_S),
        ]
        for group, number, patience_s in ends:
            with ThreadPoolExecutor(max(1, len(group)), "suanli-down") as pool:
                list(pool.map(lambda name, n=number, p=patience_s: self._end_one(name, n, p), group))

    def _end_one(self, name: str, number: signal.Signals, patience_s: float) -> None:
        process = self._up.processes.get(name)
        if process is None:
            return
        if processes.is_alive(process):
            self._progress(name, "stopping")
        if name.startswith("ray:"):
            ray_cluster.stop_cluster(self._state.ray(name.removeprefix("ray:")))
        processes.end(process, number, patience_s)
        if name.startswith("ray:"):
            processes.end_session(process, b"ray::")
        self._progress(name, "stopped")

    def _forget_ended(self) -> None:
        """After a start that failed: keep only what still runs."""
        for name in self._begun:
            # Also one that failed half-way and so is not among the processes.
            if name.startswith("ray:"):
                ray_cluster.remove_cluster(self._state.ray(name.removeprefix("ray:")))
        living = {name: process for name, process in self._up.processes.items() if processes.is_alive(process)}
        self._up.processes = living
        if living:
            self._state.write_up(self._up)
        else:
            self._state.up_file.unlink(missing_ok=True)

    # --- status ---------------------------------------------------------------------------------------------------

    def status(self) -> tuple[Up, list[Part]] | None:
        """What is recorded as running and whether it does; None when nothing is recorded."""
        up = self._recorded()
        if up is None:
            return None
        held: dict[str, str] = {}
        process = up.processes.get(CONTROL_PLANE)
        if process is not None and processes.is_alive(process) and up.address:
            with contextlib.suppress(LocalError), Control(up.address, self._state.key_file, up.ca) as control:
                for region in control.regions():
                    cpus, of = region.allocated.cpu_milli // 1000, region.capacity.cpu_milli // 1000
                    word = "online" if region.online else "offline"
                    held[agent_of(region.id)] = f"{word}, {cpus} of {of} CPUs held, {region.active_attempts} running"
        details = {CONTROL_PLANE: up.address, **held}
        details |= {ray_of(name): region.ray_address for name, region in up.regions.items()}
        return up, [
            Part(name, process.pid, processes.is_alive(process), details.get(name, ""))
            for name, process in sorted(up.processes.items(), key=lambda item: (item[0] != CONTROL_PLANE, item[0]))
        ]

    def _recorded(self) -> Up | None:
        up = self._state.read_up()
        if up is not None and up.boot_id != processes.boot_id():
            # The machine has been started anew since: process ids mean nothing any more.
            up.processes.clear()
            up.boot_id = processes.boot_id()
        return up

    def _is_alive(self, name: str) -> bool:
        process = self._up.processes.get(name)
        return process is not None and processes.is_alive(process)


class _CancelledError(Exception):
    """Another part has failed, or Ctrl-C was typed."""


def _title(name: str) -> str:
    kind, _, region = name.partition(":")
    return f"agent of region {region}" if region else kind.replace("-", " ")


def _same(address: str) -> str:
    """The address of before when it is free, else one with any port."""
    return address if address and _is_free(address) else f"{HOST}:0"


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        # As the server does: a port that an ended connection still holds for a minute is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
