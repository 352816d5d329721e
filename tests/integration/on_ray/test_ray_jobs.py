"""Ray jobs with a real Ray, in the sandbox and as processes: a cluster of the job's own, closed to all others, and gone with the job."""

import dataclasses
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration import executor_tools
from tests.integration.executor_tools import IsolatingExecutor, Run, config, eventually
from workers.executor import procfs
from workers.executor.isolation import Isolation, Tier
from workers.executor.types import Exited, ExitReason, Launch, RayCluster, Started, Stream

START_S = 240
"""A start of Ray takes 5 s on an idle machine, and many times that on one that others load."""
TOKEN = "5ec4e7" * 10
JOB = Launch("job", 1, ("python", "job.py"), cpu_milli=2000, memory_mib=1536, ray=RayCluster(200, TOKEN))

ONE_RANK = """
import json, os, socket, subprocess, sys
import grpc, ray

ray.init()

@ray.remote
def square(x):
    print("task", x)
    return x * x, os.environ["SUANLI_JOB_ID"]

def listening():
    for family in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{family}").read().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A":
                yield *local.split(":"), rest[5]

def sockets_of_the_job():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.environ["SUANLI_ATTEMPT_ROOT"].encode() in open(f"/proc/{name}/environ", "rb").read():
                for fd in os.listdir(f"/proc/{name}/fd"):
                    yield os.readlink(f"/proc/{name}/fd/{fd}")
        except OSError:
            pass

def answer(address, method, token):
    with grpc.insecure_channel(address) as channel:
        try:
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            channel.unary_unary(method)(b"", metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"

ours = set(sockets_of_the_job())
mine = [(address, int(port, 16)) for address, port, inode in listening() if f"socket:[{inode}]" in ours]
nodes, get = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", ray.get_runtime_context().gcs_address
manager = f"127.0.0.1:{ray.nodes()[0]['NodeManagerPort']}"
token = open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()
print(json.dumps({
    "squares": ray.get([square.remote(x) for x in range(3)]),
    "resources": ray.cluster_resources(),
    "nodes": [node["NodeName"] for node in ray.nodes()],
    "address": get,
    "addresses": sorted({address for address, _ in mine}),
    "ports": sorted(port for _, port in mine),
    "answers": [answer(get, nodes, one) for one in ("", "guessed", token)],
    "node": answer(manager, "/ray.rpc.NodeManagerService/GetNodeStats", ""),
    "environment": dict(os.environ),
}))
raise SystemExit(7)
"""

GANG = """
import signal, sys, time
import ray

ray.init(log_to_driver=False)

@ray.remote(num_cpus=2)
def where():
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()

def save(*_):
    # The grace is for this: the cluster is still there.
    print("saved from", len(set(ray.get([where.remote(), where.remote()]))), "nodes", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
print(len(ray.nodes()), "nodes,", len(set(ray.get([where.remote(), where.remote()]))), "of them work", flush=True)
time.sleep(600)
"""


class Site:
    """An executor that runs the files given to it as ray jobs."""

    def __init__(self, folder: Path, executor: IsolatingExecutor) -> None:
        self.folder = folder
        self.executor = executor
        self.run = Run(executor)

    async def start(self, script: str, tier: Tier, ranks: int = 1) -> None:
        self.executor.isolation = Isolation(tier, disk_mib=0)
        port = self.executor.free_port() if ranks > 1 else 0
        argv = ("python", "-c", script)
        one = dataclasses.replace(JOB, argv=argv, world_size=ranks, local_world_size=ranks, master_port=port)
        launches = [dataclasses.replace(one, rank=rank, local_rank=rank) for rank in range(ranks)]
        assert await self.executor.launch(launches) == ()

    async def log(self, rank: int = 0, stream: Stream = Stream.STDOUT) -> str:
        return (await self.executor.read_log("job", 1, rank, stream, 0, 1 << 20)).data.decode()

    async def exited(self, rank: int = 0) -> Exited:
        ended = await self.run.exited(rank=rank)
        self.said = {stream: await self.log(rank, stream) for stream in Stream}
        return ended

    async def until_said(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while text not in await self.log():
            assert time.monotonic() < deadline, f"was not said: {text}; {await self.log(0, Stream.STDERR)}"
            await self.run.executor.poll(self.run.cursor, 0.2)

    def processes(self, wanted: Callable[[list[str]], bool] = lambda _: True) -> list[int]:
        """Living processes of the job, those that hold a sandbox together included, whose command line is ``wanted``."""
        found = []
        mark = os.fsencode(self.folder / "node" / "attempts")
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                place = Path("/proc", name)
                words = (place / "cmdline").read_bytes()
                marked = mark in (place / "environ").read_bytes() or mark in words
            except OSError:
                continue
            process = procfs.read_process(int(name))
            if (
                marked
                and process is not None
                and not process.zombie
                and wanted(words.decode("utf-8", "replace").split("\0"))
            ):
                found.append(int(name))
        return found

    def nothing_is_left(self) -> None:
        assert self.processes() == []
        left = [path.name for path in (self.folder / "node" / "attempts").rglob("*") if not path.is_dir()]
        assert set(left) <= {"stdout.log", "stderr.log"}
        links = Path(tempfile.gettempdir(), f"suanli-{os.geteuid()}")
        assert [link for link in links.glob("*") if str(self.folder) in os.readlink(link)] == []
        for path in self.folder.rglob("*"):
            assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(executor_tools, "DEADLINE_S", START_S)
    os.chmod(tmp_path, 0o755)
    executor = IsolatingExecutor(config(tmp_path))
    await executor.start()
    assert executor.sandbox_problem == ""
    site = Site(tmp_path, executor)
    yield site
    await executor.close()
    assert site.processes() == []


@pytest.mark.parametrize("tier", [Tier.SANDBOX, Tier.PROCESS])
async def test_a_job_has_a_cluster_of_its_own_that_nobody_else_gets_into(site: Site, tier: Tier) -> None:
    await site.start(ONE_RANK, tier)
    ended = await site.exited()
    assert (ended.reason, ended.exit_code) == (ExitReason.EXITED, 7), site.said
    out = site.said[Stream.STDOUT]
    found: dict[str, Any] = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert found["squares"] == [[0, "job"], [1, "job"], [4, "job"]]
    # The prints of tasks are in the job's log.
    assert "task 2" in out
    assert (found["resources"]["CPU"], found["nodes"]) == (2, ["rank-0"])
    assert found["resources"]["object_store_memory"] == 200 << 20
    assert found["answers"] == ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK"]
    assert found["node"] == "UNAUTHENTICATED"
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert set(found["addresses"]) <= loopback
    assert int(found["address"].partition(":")[2]) in found["ports"]
    # Neither the dashboard nor what takes submissions of jobs.
    assert not {8265, 52365} & set(found["ports"])
    assert TOKEN not in json.dumps(found)
    assert TOKEN not in "".join(site.said.values())
    site.nothing_is_left()


async def test_a_gang_is_one_cluster_that_outlasts_the_command_it_is_asked_to_end_with(site: Site) -> None:
    await site.start(GANG, Tier.SANDBOX, ranks=2)
    await site.until_said("2 nodes, 2 of them work")
    # What anybody on the node can read, the command lines of sandboxes among it, gives no way in.
    assert site.processes(lambda words: any(TOKEN in word for word in words)) == []
    await site.executor.stop("job", 1, 60_000)
    for rank in (0, 1):
        ended = await site.exited(rank)
        assert (ended.reason, ended.exit_code, ended.signal) == (ExitReason.STOPPED, 0, None), site.said
        if rank == 0:
            assert "saved from 2 nodes" in site.said[Stream.STDOUT]
    site.nothing_is_left()


async def test_nothing_outlives_a_supervisor_that_is_killed(site: Site) -> None:
    await site.start("import ray, time; ray.init(); print('in', flush=True); time.sleep(600)", Tier.PROCESS)
    await site.until_said("in")
    assert len(site.processes(lambda words: words[0].startswith("ray::") or "raylet" in words[0])) >= 2
    (supervisor,) = site.processes(lambda words: any("suanli.ray_job" in word for word in words))
    os.kill(supervisor, signal.SIGKILL)
    ended = await site.exited()
    assert (ended.reason, ended.signal) == (ExitReason.SIGNALLED, "SIGKILL")
    site.nothing_is_left()


@pytest.mark.parametrize("tier", [Tier.SANDBOX, Tier.PROCESS])
async def test_a_command_that_is_not_there_is_said_as_for_any_job(site: Site, tier: Tier) -> None:
    site.executor.isolation = Isolation(tier, disk_mib=0)
    assert await site.executor.launch([dataclasses.replace(JOB, argv=("no-such-command",))]) == ()
    ended = await site.run.exited()
    assert (ended.reason, ended.message) == (
        ExitReason.SPAWN_FAILED,
        "the node has no command 'no-such-command' in the job's PATH",
    )
    assert not any(isinstance(event, Started) for event in site.run.events)
    await eventually(lambda: os.listdir(site.folder / "node/attempts") == [], "its folder, with the token, is removed")
    site.nothing_is_left()
