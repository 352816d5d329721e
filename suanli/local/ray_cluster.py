"""Ray clusters on this machine: isolated from one another and from the network, and ended by process id.

Each cluster has its own folder, ports and token, listens on 127.0.0.1 alone, and shares nothing with the user's home.
Every process of it carries the mark ``SUANLI_RAY_CLUSTER=<folder>`` in its environment, so that it can be found and
ended by any later process, even after a crash, and no other cluster is ever touched (``ray stop`` ends them all).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from suanli.ray_nodes import (
    LOOPBACK,
    MAX_FOLDER,
    STARTED,
    NodeStart,
    client_environment,
    free_ports,
    head_options,
    join_options,
    start_command,
)

MARKER = "SUANLI_RAY_CLUSTER"
NODE_MARKER = "SUANLI_RAY_NODE"
HEAD = "head"
"""Name of a cluster's first node."""
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_STATE = "suanli-cluster.json"


class RayClusterError(Exception):
    """A local Ray cluster does not start or stop; the text says what Ray said."""


@dataclasses.dataclass(frozen=True, slots=True)
class RayNode:
    """A running node: its name and the id of its ``ray start`` process."""

    name: str
    pid: int


class LocalRayCluster:
    """One local Ray cluster. All methods block; a start takes some seconds.

    ``temp_dir`` is the cluster's own folder; one whose path is too long for sockets gets a short twin under the
    system's temporary folder. ``memory_mib`` is the memory that nodes offer to jobs (None: what Ray finds), and
    ``labels`` are Ray node labels, such as ``{"suanli.io/pool": "cpu"}``.
    """

    def __init__(
        self,
        region: str,
        temp_dir: str | Path,
        num_cpus: int,
        num_gpus: int = 0,
        labels: Mapping[str, str] | None = None,
        memory_mib: int | None = None,
        object_store_mib: int = 80,
    ) -> None:
        self.region = region
        self.temp_dir = short_folder(Path(temp_dir))
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._labels = dict(labels or {})
        self._memory_mib = memory_mib
        self._object_store_mib = object_store_mib
        self._port = 0
        self._monitor_port = 0
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """What ``ray.init(address=...)`` takes."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def nodes(self) -> tuple[RayNode, ...]:
        """The nodes that this object has started."""
        return tuple(RayNode(name, process.pid) for name, process in self._nodes.items())

    @property
    def token_path(self) -> Path:
        """File with the cluster's token; readable by its owner only."""
        return self.temp_dir / "token"

    def client_env(self) -> dict[str, str]:
        """Return the variables that a process needs before it imports ray, to be let in."""
        return {**client_environment(str(self.token_path), LOOPBACK), "RAY_ADDRESS": self.address}

    def start(self) -> None:
        """Start the head node; raises RayClusterError when Ray has failed twice, or is not up within a minute.

        On a busy machine Ray's own helpers now and then give up on one another at the start; a second try is then enough.
        """
        try:
            self._start_once()
        except RayClusterError:
            self._start_once()

    def _start_once(self) -> None:
        # Ray opens its own folder, the one below, to all users, and every client of it does so again.
        self.temp_dir.mkdir(parents=True, exist_ok=True)
        self.temp_dir.chmod(0o700)
        stop_cluster(self.temp_dir)
        token = os.open(self.token_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(token, "w") as file:
            file.write(secrets.token_hex(32))
        with free_ports(9) as ports:
            self._port = ports[0]
            head = head_options(ports[0], ports[1], ports[7])
            ready = ports[2:7]
            self._monitor_port = ports[8]
        try:
            self._start_node(HEAD, head, ready, self._num_cpus, self._num_gpus, self._labels)
        except BaseException:
            self.stop()
            raise

    def add_node(self, name: str, num_cpus: int, num_gpus: int = 0, labels: Mapping[str, str] | None = None) -> RayNode:
        """Add a node on this machine, with the cluster's labels unless others are given."""
        with free_ports(5) as ports:
            ready = list(ports)
        labels = self._labels if labels is None else labels
        self._start_node(name, join_options(self.address), ready, num_cpus, num_gpus, labels)
        return RayNode(name, self._nodes[name].pid)

    def kill_node(self, name: str) -> None:
        """End a node at once and without warning, as a power cut would."""
        process = self._nodes.pop(name)
        mark = f"{self.temp_dir}:{name}"
        # The supervisor first, or it would begin an orderly end of the rest.
        process.kill()
        process.wait()
        _end_marked(NODE_MARKER, mark)

    def stop(self) -> None:
        """End all processes of this cluster and nothing else. Its folder stays."""
        stop_cluster(self.temp_dir)
        for process in self._nodes.values():
            process.wait()
        self._nodes.clear()

    def _start_node(
        self, name: str, options: list[str], ports: list[int], num_cpus: int, num_gpus: int, labels: Mapping[str, str]
    ) -> None:
        if name in self._nodes:
            raise ValueError(f"the cluster has a node {name!r} already")
        node = NodeStart(
            f"{self.region}-{name}",
            LOOPBACK,
            f"{self.temp_dir}/r",
            num_cpus,
            num_gpus,
            self._object_store_mib,
            self._memory_mib,
            labels,
            (ports[0], ports[1], ports[2], ports[3], ports[4]),
        )
        argv = [*start_command(sys.executable, node, options), "--include-log-monitor=false"]
        log = self.temp_dir / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                argv,
                env=self._node_env(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.temp_dir,
                start_new_session=True,
            )
        self._nodes[name] = process
        self._record()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while STARTED.encode() not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text("utf-8", "replace").strip()[-2000:]
                raise RayClusterError(f"Ray node {name!r} of region {self.region} does not start:\n{text}")
            time.sleep(0.05)

    def _node_env(self, name: str) -> dict[str, str]:
        # Nothing that would make this node a part of, or a client of, another cluster.
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("RAY_", "SUANLI_"))}
        return {
            **kept,
            **self.client_env(),
            # Jobs descend from a Ray worker, which would hand down its niceness of 15.
            "RAY_worker_niceness": "0",
            "AUTOSCALER_METRIC_PORT": str(self._monitor_port),
            # The address is for clients: a node is told it on its command line.
            "RAY_ADDRESS": "",
            # Last: Ray's helpers write their titles over the beginning of their environment.
            NODE_MARKER: f"{self.temp_dir}:{name}",
            MARKER: str(self.temp_dir),
        }

    def _record(self) -> None:
        state = {"region": self.region, "address": self.address, "pids": [node.pid for node in self.nodes]}
        scratch = self.temp_dir / f"{_STATE}.new"
        scratch.write_text(json.dumps(state))
        scratch.replace(self.temp_dir / _STATE)


def short_folder(folder: Path) -> Path:
    """Return ``folder`` itself, or a short twin of it when sockets below it would have too long a path."""
    folder = folder.absolute()
    if len(os.fsencode(folder)) <= MAX_FOLDER:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    short = Path(tempfile.gettempdir(), f"suanli-{os.getuid()}-{digest}")
    if len(os.fsencode(short)) > MAX_FOLDER:
        raise RayClusterError(f"the folder {folder} is too long for Ray's sockets ({MAX_FOLDER} characters at most)")
    short.mkdir(mode=0o700, exist_ok=True)
    status = os.lstat(short)
    if not os.path.isdir(short) or os.path.islink(short) or status.st_uid != os.getuid():
        raise RayClusterError(f"{short} exists and is not a folder of yours")
    return short


def stop_cluster(temp_dir: str | Path) -> int:
    """End every process of the cluster in this folder and return how many there were; 0 when none runs.

    At once: asked kindly, Ray drains for half a minute. What runs jobs on its nodes ends them when it dies.
    """
    return _end_marked(MARKER, str(short_folder(Path(temp_dir))))


def remove_cluster(temp_dir: str | Path) -> None:
    """End the cluster in this folder and remove the folder."""
    stop_cluster(temp_dir)
    shutil.rmtree(short_folder(Path(temp_dir)), ignore_errors=True)


def cluster_pids(temp_dir: str | Path) -> list[int]:
    """Return the ids of the cluster's living processes."""
    found = []
    for pid, fd in _marked(MARKER, str(short_folder(Path(temp_dir)))):
        os.close(fd)
        found.append(pid)
    return sorted(found)


def _end_marked(marker: str, value: str) -> int:
    """Kill all marked processes until there are none; return how many there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while True:
        found = dict(_marked(marker, value))
        if not found:
            return len(ended)
        for fd in found.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        ended |= found.keys()
        poller = select.poll()
        for fd in found.values():
            poller.register(fd, select.POLLIN)
        poller.poll(200)
        for fd in found.values():
            os.close(fd)
        if time.monotonic() > deadline:
            raise RayClusterError(f"processes {sorted(found)} of the Ray cluster in {value} do not end")


def _marked(marker: str, value: str) -> Iterator[tuple[int, int]]:
    """Yield (pid, pidfd) of living processes that carry the mark or share a session with one that does.

    The caller closes the descriptors. Each node is a session of its own, so that no stranger is in it.
    """
    wanted = f"{marker}={value}".encode()
    found: list[tuple[int, int, int, bool]] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            fd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
            environ = Path("/proc", name, "environ").read_bytes()
        except OSError:
            fields, environ = [b"X"], b""
        if fields[0] in {b"Z", b"X"}:
            os.close(fd)
        else:
            found.append((int(name), fd, int(fields[3]), wanted in environ.split(b"\0")))
    sessions = {session for _, _, session, marked in found if marked} - {os.getsid(0)}
    for pid, fd, session, marked in found:
        if marked or session in sessions:
            yield pid, fd
        else:
            os.close(fd)
