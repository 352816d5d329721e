"""A whole platform for a benchmark: control plane, Ray clusters and agents, ended by their process ids afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import yaml

from benchmarks.server import Server, running_server
from protos.suanli.v1 import admin_pb2, admin_pb2_grpc
from suanli.local.ray_cluster import LocalRayCluster

START_S = 120


@contextmanager
def running_platform(regions: Sequence[str] = ("east",), cpus: int = 16, **settings: object) -> Iterator[Server]:
    """Start everything for these regions, each of one node that declares ``cpus`` cores, and end it afterwards."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server(**settings))
        clusters = []
        for region in regions:
            cluster = LocalRayCluster(
                region, server.folder / region, num_cpus=cpus, labels={"suanli.io/pool": "cpu"}, memory_mib=64 * 1024
            )
            stack.callback(cluster.stop)
            cluster.start()
            clusters.append(cluster)
        for region, cluster in zip(regions, clusters, strict=True):
            stack.enter_context(running_agent(server, region, cluster.address, cluster.client_env()))
        _wait_online(server, len(regions))
        yield server


@contextmanager
def running_agent(
    server: Server, region: str, ray_address: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Enrol an agent and run it."""
    folder = server.folder / f"agent-{region}"
    folder.mkdir()
    with grpc.insecure_channel(server.address) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        request = admin_pb2.CreateEnrolmentTokenRequest(region=region)
        token = admin.CreateEnrolmentToken(request, metadata=server.metadata).token
    (folder / "token").write_text(token)
    config = {
        "region": region,
        "control_plane": server.address,
        "state_dir": str(folder),
        "ray_address": ray_address,
        "ready_file": str(folder / "ready.json"),
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.agent", "--config", str(folder / "agent.yaml")],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
        try:
            _wait_for(folder / "ready.json", process, folder / "log")
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the agent did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    json.loads(file.read_text())


def _wait_online(server: Server, count: int) -> None:
    deadline = time.monotonic() + START_S
    with grpc.insecure_channel(server.address) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        while time.monotonic() < deadline:
            regions = admin.ListRegions(admin_pb2.ListRegionsRequest(), metadata=server.metadata).regions
            if sum(region.online and region.nodes > 0 for region in regions) == count:
                return
            time.sleep(0.05)
    raise SystemExit("the regions did not come online")
