"""A whole platform of real processes on this machine: control plane on SQLite, a Ray cluster, the region's agent.

Each part can be killed and started again in the middle of a test. Everything is ended by process id.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import trustme
import yaml

from protos.suanli.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from suanli.local.ray_cluster import LocalRayCluster, cluster_pids, remove_cluster
from tests.support.api import Client

DEADLINE_S = 90.0
ROOT = Path(__file__).parents[2]
REGION = "east"
POOL = "cpu"
INSTITUTION = "uni-a"


class Daemon:
    """One of our processes: it says in a file that it serves, and can be started again after its end."""

    def __init__(
        self, module: str, folder: Path, settings: Mapping[str, object], environment: Mapping[str, str]
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        self._ready = folder / "ready"
        self._config = folder / "config.yaml"
        self._argv = [sys.executable, "-m", module, "--config", str(self._config)]
        self.environment = {k: v for k, v in os.environ.items() if k != "SUANLI_DATABASE_URL"} | dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = dict(settings)

    def start(self) -> str:
        """Start, wait until it serves, and give what it wrote then."""
        self._config.write_text(yaml.safe_dump(self.settings | {"ready_file": str(self._ready)}))
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._argv, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._argv[2]} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)
        return self._ready.read_text()

    def running(self) -> bool:
        """Whether its process lives, be it ready or not."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As kill -9."""
        assert self.process is not None
        self.process.kill()
        assert self.process.wait(DEADLINE_S) == -signal.SIGKILL

    def end(self) -> int:
        """Ask it to end; gives the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(DEADLINE_S)


class Platform:
    """All parts of it. ``second`` names a second Ray node to begin with; empty: none. ``tier``: how jobs are kept apart.

    By default they are not: jobs keep diaries in folders of the tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 4,
        memory_mib: int = 2048,
        second: str = "",
        tls: bool = False,
        tier: str = "process",
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.cpus = cpus
        self._second = second
        self._tier = tier
        self._authority = trustme.CA() if tls else None
        self._settings = settings
        self.cluster = LocalRayCluster(
            REGION, folder / "ray", num_cpus=cpus, labels={"suanli.io/pool": POOL}, memory_mib=memory_mib
        )
        self.keys: dict[str, str] = {}
        self.address = ""
        self.server: Daemon
        self.agent: Daemon

    def start(self) -> None:
        """Start everything and wait until the region takes jobs; a failure ends all of it."""
        try:
            with ThreadPoolExecutor(1) as pool:
                ray = pool.submit(self._start_ray)
                self._start_server()
                ray.result()
            self._start_agent()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything; raises when a process is left."""
        problems = []
        for name in ("agent", "server"):
            daemon: Daemon | None = getattr(self, name, None)
            if daemon is not None and (status := daemon.end()) not in (0, -signal.SIGKILL):
                problems.append(f"{name}: status {status}: {daemon.log.read_text()[-3000:]}")
        self.cluster.stop()
        left = cluster_pids(self.folder / "ray")
        remove_cluster(self.folder / "ray")
        assert (problems, left) == ([], []), (problems, left)

    def client(self, user: str = "ada") -> Client:
        """The services as a researcher (``ada``), an institution's admin (``ann``) or the operator (``admin``)."""
        credentials = None
        if self._authority is not None:
            credentials = grpc.ssl_channel_credentials(self._authority.cert_pem.bytes())
        return Client(self.address, self.keys[user], credentials)

    def admin(self) -> admin_pb2_grpc.AdminServiceStub:
        """The operator's service, without asyncio."""
        interceptor = _WithKey(self.keys["admin"])
        if self._authority is None:
            channel = grpc.insecure_channel(self.address)
        else:
            channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self._authority.cert_pem.bytes()))
        return admin_pb2_grpc.AdminServiceStub(grpc.intercept_channel(channel, interceptor))

    def nodes_up(self) -> dict[str, str]:
        """Names and ids of the nodes that the control plane knows to be up."""
        nodes = self.admin().ListNodes(admin_pb2.ListNodesRequest(), timeout=DEADLINE_S).nodes
        return {status.node.name.removeprefix(f"{REGION}-"): status.node.id for status in nodes if status.up}

    def wait_nodes(self, *names: str) -> dict[str, str]:
        """Wait until exactly these nodes are up, by the names the cluster gave them."""
        deadline = time.monotonic() + DEADLINE_S
        while set(found := self.nodes_up()) != set(names):
            assert time.monotonic() < deadline, f"{found} is up, not {names}"
            time.sleep(0.05)
        return found

    def add_node(self, name: str) -> str:
        """Add a node like the first to the Ray cluster; gives its id when it takes jobs."""
        self.cluster.add_node(name, self.cpus)
        return self.wait_nodes(*{node.name for node in self.cluster.nodes})[name]

    def _start_ray(self) -> None:
        self.cluster.start()
        if self._second:
            self.cluster.add_node(self._second, self.cpus)

    def _start_server(self) -> None:
        settings: dict[str, object] = {
            "listen": f"127.0.0.1:{free_port()}",
            "metrics_listen": "",
            "state_dir": str(self.folder / "state"),
            "bootstrap_admin_key_file": str(self.folder / "admin.key"),
            "heartbeat_interval_ms": 200,
            "lease_ttl_ms": 10_000,
            **self._settings,
        }
        if self._authority is not None:
            settings["tls"] = self._write_certificates(self._authority)
        self.server = Daemon("scheduler.server", self.folder / "server", settings, {})
        self.address = json.loads(self.server.start())["listen"]
        self.keys["admin"] = (self.folder / "admin.key").read_text().strip()
        admin = self.admin()
        admin.PutInstitution(admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id=INSTITUTION)))
        for user, role in (("ada", common_pb2.ROLE_RESEARCHER), ("ann", common_pb2.ROLE_INSTITUTION_ADMIN)):
            person = admin_pb2.User(id=user, institution=INSTITUTION, role=role)
            admin.PutUser(admin_pb2.PutUserRequest(user=person))
            self.keys[user] = admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(user=user)).secret

    def _write_certificates(self, authority: trustme.CA) -> dict[str, str]:
        certificate = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        certificate.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        certificate.private_key_pem.write_to_path(self.folder / "key.pem")
        return {name: str(self.folder / f"{name}.pem") for name in ("cert", "key")}

    def _start_agent(self) -> None:
        request = admin_pb2.CreateEnrolmentTokenRequest(region=REGION)
        folder = self.folder / "agent"
        settings: dict[str, object] = {
            "region": REGION,
            "control_plane": self.address,
            "state_dir": str(folder),
            "ray_address": self.cluster.address,
            "isolation": {"tier": self._tier},
        }
        if self._authority is not None:
            settings["tls_ca"] = str(self.folder / "ca.pem")
        self.agent = Daemon("workers.agent", folder, settings, self.cluster.client_env())
        (folder / "token").write_text(self.admin().CreateEnrolmentToken(request).token)
        self.agent.start()
        self.wait_nodes(*{node.name for node in self.cluster.nodes})


class _WithKey(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, key: str) -> None:
        self._key = key

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(("authorization", f"Bearer {self._key}"),)), request)


@contextmanager
def running_platform(folder: Path, **settings: Any) -> Iterator[Platform]:
    """A platform for a module's tests."""
    platform = Platform(folder, **settings)
    platform.start()
    try:
        yield platform
    finally:
        platform.stop()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def eventually(check: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """Wait until ``check``, plain or a coroutine function, gives something true; gives that."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert loop.time() < end, what or f"{check} did not come true"
        await asyncio.sleep(0.03)
