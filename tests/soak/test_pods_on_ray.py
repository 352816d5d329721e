"""Pods through a real Ray cluster: the node is asked, a job runs in a pod, and the executor's death is told when no pod is left."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from suanli.local.ray_cluster import LocalRayCluster, remove_cluster
from tests.integration.executor_tools import SLEEPER, alive, config, eventually, shell
from tests.integration.on_ray.test_ray_gateway import Watch
from tests.integration.pod_tools import SETTINGS, WORKER, fake, stand_in, volume
from tests.support.kubernetes import NAMESPACE, FakeKubernetes
from workers.executor.isolation import Isolation, PodSettings, Tier
from workers.executor.pods import POD_NAME, POD_NAMESPACE
from workers.executor.types import Launch, NodeDown, NodeEvents, NodeUp, Started
from workers.ray_gateway import GatewayConfig, RayGateway

NONE = PodSettings(runtime_class="none")


class PodCluster(LocalRayCluster):
    """Its nodes believe themselves in the worker's pod."""

    def _node_env(self, name: str) -> dict[str, str]:
        return {**super()._node_env(name), POD_NAME: WORKER, POD_NAMESPACE: NAMESPACE}


@pytest.fixture
def place() -> Iterator[Path]:
    with volume() as folder:
        yield folder


@pytest.fixture
def kubernetes(place: Path, tmp_path: Path) -> Iterator[FakeKubernetes]:
    with fake(tmp_path, place) as cluster, pytest.MonkeyPatch.context() as patch:
        stand_in(patch, str(cluster.kubeconfig))
        yield cluster


@pytest.fixture
def ray(kubernetes: FakeKubernetes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRayCluster]:
    folder = tmp_path_factory.mktemp("ray")
    cluster = PodCluster("east", folder, num_cpus=1, memory_mib=1024)
    cluster.start()
    before = dict(os.environ)
    os.environ.update(cluster.client_env())
    try:
        yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.stop()
        remove_cluster(folder)


def in_pod(launch: Launch) -> Launch:
    return dataclasses.replace(launch, isolation=Isolation(Tier.POD, pod=SETTINGS))


async def test_a_job_runs_in_a_pod_and_its_node_is_not_lost_before_its_pod(
    ray: LocalRayCluster, kubernetes: FakeKubernetes, place: Path
) -> None:
    executor = dataclasses.replace(config(place), root=f"{place}/nodes/{{node_id}}")
    gateway = RayGateway(GatewayConfig(ray.address, executor, pods=(SETTINGS, NONE), discover_interval_s=0.2))
    await gateway.start()
    watch = Watch(gateway)
    try:
        node = await watch.until(lambda event: isinstance(event, NodeUp))
        assert isinstance(node, NodeUp)
        assert dict(node.pod_problems) == {SETTINGS: "", NONE: "the cluster has no RuntimeClass 'none'"}
        await gateway.launch(node.node_id, (in_pod(shell("exit 7", "first")),))
        assert (await watch.exited("first")).exit_code == 7
        assert len(kubernetes.created) == 1

        marker = uuid.uuid4().hex
        await gateway.launch(node.node_id, (in_pod(shell(f"{SLEEPER} {marker}", "victim")),))
        await watch.until(
            lambda event: (
                isinstance(event, NodeEvents)
                and any(isinstance(one, Started) and one.job_id == "victim" for one in event.events)
            )
        )
        await eventually(lambda: alive(marker) != [], "the job runs")
        kubernetes.go_away()
        killed = time.monotonic()
        kill_actor = (
            "import ray, sys; ray.init(namespace='suanli', log_to_driver=False);"
            "ray.kill(ray.get_actor('suanli-executor-' + sys.argv[1]))"
        )
        await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", kill_actor, node.node_id], check=True, timeout=60
        )
        await watch.until(lambda event: isinstance(event, NodeDown))
        # Without the API nobody could delete the pod. It has ended before its node was called lost.
        assert alive(marker) == []
        assert time.monotonic() - killed > SETTINGS.switch_ms / 1000
        kubernetes.come_back()
        again = await watch.until(lambda event: isinstance(event, NodeUp) and event.boot_id != node.boot_id)
        assert isinstance(again, NodeUp)
        await eventually(lambda: kubernetes.jobs() == {}, "the keeper or the new executor has deleted the pod")
        await gateway.launch(node.node_id, (in_pod(shell("exit 0", "after")),))
        assert (await watch.exited("after")).succeeded
    finally:
        await gateway.close()
