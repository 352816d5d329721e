"""The gateway on a real local Ray cluster of two nodes: discovery, jobs, loss of a node, a new gateway."""

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from suanli.local.ray_cluster import LocalRayCluster, cluster_pids, remove_cluster, short_folder
from tests.integration.executor_tools import SLEEPER, alive, config, eventually, shell
from workers.executor import procfs
from workers.executor.types import (
    Exited,
    ExitReason,
    GatewayEvent,
    NodeDown,
    NodeEvents,
    NodesFound,
    NodeUp,
    Started,
    Stream,
    UnknownAttemptError,
)
from workers.ray_gateway import GatewayConfig, NodeUnavailableError, RayGateway

DEADLINE_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRayCluster]:
    folder = tmp_path_factory.mktemp("ray")
    labels = {"suanli.io/pool": "gpu", "ray.io/accelerator-type": "A100"}
    cluster = LocalRayCluster("east", folder, num_cpus=2, num_gpus=2, labels=labels, memory_mib=2048)
    cluster.start()
    cluster.add_node("second", num_cpus=1, labels={"suanli.io/pool": "cpu", "suanli.io/cpu-milli": "500"})
    before = dict(os.environ)
    os.environ.update(cluster.client_env())
    sessions = {node.pid for node in cluster.nodes}
    yield cluster
    os.environ.clear()
    os.environ.update(before)
    cluster.stop()
    left = cluster_pids(folder)
    remove_cluster(folder)
    assert left == []
    assert [one.pid for one in procfs.snapshot().values() if one.sid in sessions and not one.zombie] == []


class Watch:
    """A gateway, the events that it has told so far, and the acknowledging of them."""

    def __init__(self, gateway: RayGateway) -> None:
        self.gateway = gateway
        self.events: list[GatewayEvent] = []
        self.acknowledging = True

    async def until(self, wanted: Callable[[GatewayEvent], bool]) -> GatewayEvent:
        async with asyncio.timeout(DEADLINE_S):
            seen = 0
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                event = await self.gateway.next_event()
                self.events.append(event)
                if isinstance(event, NodeEvents) and event.cursor and self.acknowledging:
                    self.gateway.acknowledge(event.node_id, event.cursor)

    async def node(self, name: str) -> NodeUp:
        event = await self.until(lambda one: isinstance(one, NodeUp) and one.name == f"east-{name}")
        assert isinstance(event, NodeUp)
        return event

    async def exited(self, job_id: str) -> Exited:
        def of_job(event: GatewayEvent) -> list[Exited]:
            return [
                one
                for one in (event.events if isinstance(event, NodeEvents) else ())
                if isinstance(one, Exited) and one.job_id == job_id
            ]

        return of_job(await self.until(lambda event: bool(of_job(event))))[0]


@pytest.fixture
def gateway_config(cluster: LocalRayCluster, tmp_path_factory: pytest.TempPathFactory) -> GatewayConfig:
    # Executors outlive a gateway, and so must their folders: one for all tests of this cluster.
    folder = cluster.temp_dir / "executors"
    executor = config(folder)
    executor = type(executor)(root=f"{folder}/{{node_id}}", artifact_url=f"{folder}/store", checkpoint_interval_ms=0)
    return GatewayConfig(cluster.address, executor, discover_interval_s=0.2)


@pytest.fixture
async def watch(gateway_config: GatewayConfig) -> AsyncIterator[Watch]:
    gateway = RayGateway(gateway_config)
    await gateway.start()
    yield Watch(gateway)
    await gateway.close()


async def test_nodes_are_found_with_what_they_declare(watch: Watch) -> None:
    head, second = await watch.node("head"), await watch.node("second")
    await watch.until(lambda event: isinstance(event, NodesFound))
    assert (head.cpu_milli, head.memory_mib, head.accelerator_type) == (2000, 2048, "A100")
    assert [(gpu.index, gpu.name) for gpu in head.gpus] == [(0, "A100"), (1, "A100")]
    assert (second.cpu_milli, second.gpus, second.labels["suanli.io/pool"]) == (500, (), "cpu")
    assert head.address == "127.0.0.1"


async def test_a_job_runs_on_the_node_it_is_sent_to_and_sees_nothing_of_ray(watch: Watch) -> None:
    for name in ("head", "second"):
        node = await watch.node(name)
        assert await watch.gateway.launch(node.node_id, (shell("env; pwd", f"env-{name}"),)) == ()
        assert (await watch.exited(f"env-{name}")).succeeded
        chunk = await watch.gateway.read_log(node.node_id, f"env-{name}", 1, 0, Stream.STDOUT, 0, 100_000)
        assert node.node_id in chunk.data.decode()
        assert "RAY" not in chunk.data.decode().replace(node.node_id, "")
    with pytest.raises(UnknownAttemptError, match="no logs of job none"):
        await watch.gateway.read_log(node.node_id, "none", 1, 0, Stream.STDOUT, 0, 10)
    with pytest.raises(NodeUnavailableError, match="no node nowhere"):
        await watch.gateway.free_port("nowhere")
    assert 1024 < await watch.gateway.free_port(node.node_id) < 65536


async def test_start_is_quick(watch: Watch) -> None:
    node = await watch.node("head")
    took = []
    for number in range(20):
        begin = time.monotonic()
        await watch.gateway.launch(node.node_id, (shell("exit 0", f"quick-{number}"),))
        await watch.exited(f"quick-{number}")
        took.append(time.monotonic() - begin)
    assert sorted(took)[10] < 0.5, took


async def test_jobs_outlive_the_gateway_and_events_wait_for_the_next(gateway_config: GatewayConfig) -> None:
    first = RayGateway(gateway_config)
    await first.start()
    watch = Watch(first)
    node = await watch.node("head")
    watch.acknowledging = False
    await first.launch(node.node_id, (shell("sleep 600", "long"), shell("exit 4", "short")))
    await watch.until(lambda event: isinstance(event, NodeEvents))
    await first.close()

    second = RayGateway(gateway_config)
    await second.start()
    try:
        watch = Watch(second)
        again = await watch.node("head")
        assert again.boot_id == node.boot_id
        assert {"long", "short"} <= {one.job_id for one in again.attempts}
        assert (await watch.exited("short")).exit_code == 4
        await second.stop(again.node_id, "long", 1, 0)
        assert (await watch.exited("long")).reason is ExitReason.STOPPED
    finally:
        await second.close()


async def test_loss_of_a_node_ends_its_processes_and_is_told(cluster: LocalRayCluster, watch: Watch) -> None:
    cluster.add_node("doomed", num_cpus=1)
    node = await watch.node("doomed")
    marker = uuid.uuid4().hex
    await watch.gateway.launch(node.node_id, (shell(f"setsid {SLEEPER} {marker} & {SLEEPER} {marker}"),))
    await eventually(lambda: len(alive(marker)) >= 2, "the job's processes")
    cluster.kill_node("doomed")
    await eventually(lambda: alive(marker) == [], "no process of the job")
    await watch.until(lambda event: isinstance(event, NodeDown) and event.node_id == node.node_id)


async def test_death_of_an_executor_is_told_and_mended(watch: Watch) -> None:
    node = await watch.node("second")
    marker = uuid.uuid4().hex
    script = f"echo $PPID > $SUANLI_RESULTS/../warden; {SLEEPER} {marker}"
    await watch.gateway.launch(node.node_id, (shell(script, "victim"),))
    await watch.until(
        lambda event: (
            isinstance(event, NodeEvents)
            and any(isinstance(one, Started) and one.job_id == "victim" for one in event.events)
        )
    )
    await eventually(lambda: alive(marker) != [], "the job's process")
    kill_actor = (
        "import ray, sys; ray.init(namespace='suanli', log_to_driver=False);"
        "ray.kill(ray.get_actor('suanli-executor-' + sys.argv[1]))"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", kill_actor, node.node_id], check=True, timeout=60)
    await watch.until(lambda event: isinstance(event, NodeDown) and event.node_id == node.node_id)
    again = await watch.until(
        lambda event: isinstance(event, NodeUp) and event.node_id == node.node_id and event.boot_id != node.boot_id
    )
    assert isinstance(again, NodeUp)
    assert again.attempts == ()
    assert alive(marker) == []
    await watch.gateway.launch(node.node_id, (shell("exit 0", "after"),))
    assert (await watch.exited("after")).succeeded


def listening_addresses(pids: list[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        for fd in Path("/proc", str(pid), "fd").iterdir():
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1].split(":")[0])
    return found


NODES = "import json, ray; ray.init(log_to_driver=False); print(json.dumps([n['NodeName'] for n in ray.nodes()]))"


def test_two_clusters_side_by_side_on_loopback_only(cluster: LocalRayCluster, tmp_path: Path) -> None:
    other = LocalRayCluster("west", tmp_path, num_cpus=1)
    other.start()
    try:
        loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
        for one in (cluster, other):
            addresses = listening_addresses(cluster_pids(one.temp_dir))
            assert addresses
            assert addresses <= loopback
            assert one.temp_dir.stat().st_mode & 0o077 == 0
        plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        asked = subprocess.run(
            [sys.executable, "-c", NODES], env=plain | other.client_env(), capture_output=True, timeout=60, check=True
        )
        assert json.loads(asked.stdout.splitlines()[-1]) == ["west-head"]
        # A client with another cluster's token is not let in.
        stranger = plain | other.client_env() | {"RAY_AUTH_TOKEN_PATH": str(cluster.token_path)}
        refused = subprocess.run(
            [sys.executable, "-c", NODES], env=stranger, capture_output=True, timeout=60, check=False
        )
        assert refused.returncode != 0
    finally:
        other.stop()
    assert cluster_pids(tmp_path) == []
    assert cluster_pids(cluster.temp_dir) != []
    remove_cluster(tmp_path)
    assert not short_folder(tmp_path).exists() or not any(short_folder(tmp_path).iterdir())


def options_of(cluster: LocalRayCluster) -> dict[str, str]:
    """The options with which the head of a cluster was started."""
    words = Path(f"/proc/{cluster.nodes[0].pid}/cmdline").read_bytes().decode().split("\0")
    return dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)


def answer(address: str, method: str, token: str = "") -> grpc.StatusCode:
    """How Ray answers a call with this token, or none."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("port", "method"),
    [
        ("port", "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"),
        ("port", "/ray.rpc.InternalKVGcsService/InternalKVKeys"),
        ("node-manager-port", "/ray.rpc.NodeManagerService/GetNodeStats"),
        ("ray-client-server-port", "/ray.rpc.RayletDriver/ClusterInfo"),
    ],
    ids=["nodes at GCS", "key-value store at GCS", "raylet", "Ray Client"],
)
def test_without_the_token_ray_answers_nobody(cluster: LocalRayCluster, port: str, method: str) -> None:
    address = f"127.0.0.1:{options_of(cluster)[port]}"
    for token in ("", "guessed"):
        assert answer(address, method, token) is grpc.StatusCode.UNAUTHENTICATED
    assert answer(address, method, cluster.token_path.read_text()) is not grpc.StatusCode.UNAUTHENTICATED


def test_there_is_no_dashboard(cluster: LocalRayCluster) -> None:
    options = options_of(cluster)
    assert options["include-dashboard"] == "false"
    for name in ("dashboard-port", "dashboard-agent-listen-port"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(options[name]))) == errno.ECONNREFUSED, name
