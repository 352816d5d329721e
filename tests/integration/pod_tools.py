"""Help for tests of jobs in pods: a fake cluster, or the real one of ``SUANLI_TEST_KUBECONFIG``.

A real cluster must have its one node on this machine, for executor and pods share a folder of it, and namespace ``suanli``; its pods
need ``SUANLI_TEST_IMAGE`` with this very Python at this very path, and ``SUANLI_TEST_RUNTIME_CLASS`` (default: the cluster's own).
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.executor_tools import DEADLINE_S, Run, config
from tests.support.kubernetes import NAMESPACE, FakeKubernetes
from workers.executor.isolation import Isolation, Network, PodSettings, Tier
from workers.executor.pod_executor import PodExecutor
from workers.executor.pods import POD_NAME, POD_NAMESPACE
from workers.executor.types import Launch, Refused, Stream

REAL = os.environ.get("SUANLI_TEST_KUBECONFIG", "")
SETTINGS = PodSettings(
    runtime_class=os.environ.get("SUANLI_TEST_RUNTIME_CLASS", "") if REAL else "gvisor",
    start_timeout_ms=60_000,
    switch_ms=10_000,
)
WORKER = "worker-0"


class InPods(PodExecutor):
    """Runs everything in pods."""

    isolation = Isolation(Tier.POD, Network.GANGS, disk_mib=0, pod=SETTINGS)

    async def launch(self, launches: Iterable[Launch]) -> tuple[Refused, ...]:
        return await super().launch(dataclasses.replace(one, isolation=self.isolation) for one in launches)


@contextmanager
def volume() -> Iterator[Path]:
    """A folder that stands for the volume of a worker's pod; not below /tmp, which pods have an own one of."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="suanli-pods-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stand_in(patch: pytest.MonkeyPatch, kubeconfig: str) -> None:
    """Let executors of this process believe themselves in the worker's pod."""
    patch.setenv("KUBECONFIG", kubeconfig)
    patch.setenv(POD_NAME, WORKER)
    patch.setenv(POD_NAMESPACE, NAMESPACE)


@contextmanager
def fake(folder: Path, place: Path) -> Iterator[FakeKubernetes]:
    """A fake cluster whose worker pod has the volume."""
    cluster = FakeKubernetes(folder)
    cluster.add_worker(place, WORKER)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def real_worker(place: Path) -> Iterator[None]:
    """A pod in the real cluster that stands for the worker's, with the folder of this machine."""
    config_module: Any = importlib.import_module("kubernetes.config")
    client: Any = importlib.import_module("kubernetes.client")
    config_module.load_kube_config(REAL)
    core = client.CoreV1Api()
    mount = {"name": "state", "mountPath": str(place)}
    container = {"name": "ray-worker", "image": os.environ["SUANLI_TEST_IMAGE"], "command": ["sleep", "86400"]}
    pod = {
        "metadata": {"name": WORKER},
        "spec": {
            "containers": [{**container, "volumeMounts": [mount]}],
            "volumes": [{"name": "state", "hostPath": {"path": str(place), "type": "Directory"}}],
        },
    }
    core.create_namespaced_pod(NAMESPACE, pod)
    try:
        until = time.monotonic() + 120
        while core.read_namespaced_pod(WORKER, NAMESPACE).status.phase != "Running":
            assert time.monotonic() < until, "the stand-in of the worker's pod does not run"
            time.sleep(1)
        yield
    finally:
        core.delete_namespaced_pod(WORKER, NAMESPACE, grace_period_seconds=1)


async def log(run: Run, stream: Stream = Stream.STDOUT, job_id: str = "job", rank: int = 0) -> bytes:
    text, offset = b"", 0
    while True:
        chunk = await run.executor.read_log(job_id, 1, rank, stream, offset, 1 << 20)
        text, offset = text + chunk.data, chunk.next_offset
        if not chunk.data:
            return text


async def shows(run: Run, name: str, wanted: bytes) -> None:
    """Wait until a log holds something."""
    async with asyncio.timeout(DEADLINE_S):
        while wanted not in await log(run, job_id=name):  # noqa: ASYNC110 - the log is another process's
            await asyncio.sleep(0.02)


async def executor_in(folder: Path, settings: PodSettings = SETTINGS) -> InPods:
    """An executor that has found out that it can have pods."""
    executor = InPods(config(folder))
    await executor.start()
    problem = await executor.pod_problem(settings)
    assert problem == ""
    return executor
