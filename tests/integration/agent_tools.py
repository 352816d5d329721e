"""A small control plane for tests of the agent: it welcomes, leases, accepts events in order, and says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import yaml

from protos.suanli.v1 import jobs_pb2
from protos.suanli.v1 import regions_pb2 as pb
from protos.suanli.v1.regions_pb2_grpc import RegionServiceServicer, add_RegionServiceServicer_to_server
from workers.agent import Agent
from workers.config import AgentConfig, load_config
from workers.executor import types as ex
from workers.spool import MemorySpool

TOKEN = "enrol-me"
KEY = "suanli_test_key"
DEADLINE_S = 60.0


async def eventually(wanted: Callable[[], object]) -> None:
    """Wait until something outside this process holds; it is looked at often, for a minute at most."""
    async with asyncio.timeout(DEADLINE_S):
        while not wanted():  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(0.02)


class FakeControl(RegionServiceServicer):
    """The state that a control plane would keep: what was accepted, what was reported last."""

    def __init__(self) -> None:
        self.port = 0
        self.epoch = 1
        self.artifacts_url = ""
        self.key = KEY
        self.tokens_used: list[str] = []
        self.hellos: list[pb.Hello] = []
        self.report: pb.StateReport | None = None
        self.events: list[pb.AttemptEvent] = []
        self.logs: list[pb.LogChunk] = []
        self.usage: list[pb.AttemptUsage] = []
        self.accepted_seq = 0
        self.hold_acks = False
        self.floor = 0
        self._server: grpc.aio.Server | None = None
        self._outgoing: asyncio.Queue[pb.ConnectResponse] | None = None
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        """Listen; on the same port as before when it is started again."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_RegionServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Vanish."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def say(self, **message: Any) -> None:
        """Send a message to the agent that is connected."""
        assert self._outgoing is not None
        self._outgoing.put_nowait(pb.ConnectResponse(**message))

    async def until(self, wanted: Callable[[], object]) -> None:
        """Wait until something holds; looked at after each message."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(lambda: bool(wanted()))

    def kinds(self, job: str) -> list[str]:
        """The events of a job."""
        return [str(event.WhichOneof("event")) for event in self.events if event.job_id == job]

    def finished(self, job: str) -> pb.AttemptFinished | None:
        """How a job's attempt ended."""
        return next((e.finished for e in self.events if e.job_id == job and e.HasField("finished")), None)

    def log_text(self, request_id: int) -> bytes:
        """What has come of a log."""
        return b"".join(chunk.data for chunk in self.logs if chunk.request_id == request_id)

    # The service.

    async def EnrolAgent(self, request: pb.EnrolAgentRequest, context: Any) -> pb.EnrolAgentResponse:
        if request.token != TOKEN or self.tokens_used:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The enrolment token is not valid (any more).")
        self.tokens_used.append(request.token)
        return pb.EnrolAgentResponse(api_key=self.key, region=request.region)

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Any
    ) -> AsyncIterator[pb.ConnectResponse]:
        if ("authorization", f"Bearer {self.key}") not in [(k, v) for k, v in context.invocation_metadata()]:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The API key is not valid.")
        outgoing: asyncio.Queue[pb.ConnectResponse] = asyncio.Queue()
        self._outgoing = outgoing
        reader = asyncio.create_task(self._read(request_iterator, outgoing))
        try:
            while True:
                yield await outgoing.get()
        finally:
            reader.cancel()

    async def _read(
        self, requests: AsyncIterator[pb.ConnectRequest], outgoing: asyncio.Queue[pb.ConnectResponse]
    ) -> None:
        async for request in requests:
            async with self._changed:
                for answer in self._answers(request):
                    outgoing.put_nowait(answer)
                self._changed.notify_all()

    def _answers(self, request: pb.ConnectRequest) -> list[pb.ConnectResponse]:
        kind = request.WhichOneof("message")
        if kind == "hello":
            self.hellos.append(request.hello)
            welcome = pb.Welcome(
                leader_epoch=self.epoch,
                heartbeat_interval_ms=200,
                acked_event_seq=self.accepted_seq,
                artifacts_url=self.artifacts_url,
            )
            return [pb.ConnectResponse(welcome=welcome)]
        if kind == "state":
            self.report = request.state
            lease = pb.Lease(report_seq=request.state.report_seq, ttl_ms=30_000, launch_floor=self.floor)
            return [pb.ConnectResponse(lease=lease)]
        if kind == "usage":
            self.usage += request.usage.attempts
        if kind == "log":
            self.logs.append(request.log)
        if kind == "events":
            if self.hold_acks:
                return []
            for event in request.events.events:
                if event.seq == self.accepted_seq + 1:
                    self.accepted_seq = event.seq
                    self.events.append(event)
            return [pb.ConnectResponse(ack=pb.EventAck(seq=self.accepted_seq))]
        return []


def launch(job: str, node_ids: list[str], argv: list[str], seq: int, **fields: Any) -> pb.Launch:
    """A launch of one rank per node."""
    spec = jobs_pb2.JobSpec(name=job, institution="uni", project="p", grace_period_ms=500)
    spec.resources.cpu_milli = 100
    spec.resources.memory_mib = 256
    replicas = [jobs_pb2.ReplicaPlacement(rank=rank, node_id=node_id) for rank, node_id in enumerate(node_ids)]
    return pb.Launch(
        job_id=job,
        attempt=1,
        lease_epoch=3,
        launch_seq=seq,
        spec=spec,
        replicas=replicas,
        argv=argv,
        pool="cpu",
        **fields,
    )


def write_config(folder: Path, control: FakeControl, **keys: Any) -> Path:
    """The agent's configuration, with its token beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(TOKEN + "\n")
    document = {
        "region": "east",
        "control_plane": f"127.0.0.1:{control.port}",
        "token_file": "token",
        "state_dir": "state",
        "ready_file": "ready",
        "artifacts_url": "artifacts",
        # Jobs of the tests write into folders of the tests.
        "isolation": {"tier": "process"},
        **keys,
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
    return path


class NoNodes:
    """A cluster that has no nodes, yet."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[ex.GatewayEvent] = asyncio.Queue()
        self.events.put_nowait(ex.NodesFound())
        self.url = ""

    async def open(self, config: AgentConfig, artifacts_url: str) -> Any:
        self.url = artifacts_url
        return self

    async def next_event(self) -> ex.GatewayEvent:
        return await self.events.get()

    async def close(self) -> None:
        pass


class Running:
    """An agent in this process."""

    def __init__(self, config: Path, spool: MemorySpool) -> None:
        self.nodes = NoNodes()
        self.agent = Agent(load_config(config), spool, self.nodes.open)
        self.task = asyncio.create_task(self.agent.run())

    async def stop(self) -> None:
        self.agent.stop(jobs_too=False)
        async with asyncio.timeout(DEADLINE_S):
            await self.task
