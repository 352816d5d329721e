"""A ray job in a pod of the fake cluster: its Ray is in the pod, is stopped as the job is, and goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.executor_tools import Run
from tests.integration.pod_tools import executor_in, fake, log, shows, stand_in, volume
from workers.executor.types import ExitReason, Launch, RayCluster

TOKEN = "5ec4e7" * 10
PROGRAM = """
import os, ray, signal, sys, time
def told(number, frame):
    print("told, and Ray still answers", ray.get(double.remote(21)), flush=True)
    sys.exit(7)
ray.init()
signal.signal(signal.SIGTERM, told)  # after Ray's own
@ray.remote
def double(x):
    return 2 * x
print("nodes", len(ray.nodes()), "cpus", ray.cluster_resources()["CPU"], "double", ray.get(double.remote(4)), flush=True)
time.sleep(600)
"""


async def test_its_cluster_is_in_the_pod_and_outlasts_the_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with volume() as place, fake(tmp_path, place) as cluster:
        stand_in(monkeypatch, str(cluster.kubeconfig))
        executor = await executor_in(place)
        run = Run(executor)
        try:
            argv = ("python", "-c", PROGRAM)
            launch = Launch("job", 1, argv, cpu_milli=2000, memory_mib=1536, ray=RayCluster(200, TOKEN))
            assert await executor.launch([launch]) == ()
            await shows(run, "job", b"nodes 1 cpus 2.0 double 8")
            await executor.stop("job", 1, 60_000, "enough")
            ended = await run.exited("job")
            assert b"told, and Ray still answers 42" in await log(run)
        finally:
            await executor.close()
        assert (ended.reason, ended.exit_code) == (ExitReason.STOPPED, 7)
        assert cluster.jobs() == {}
