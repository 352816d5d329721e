"""A server process with a small agent beside it that really runs, on this machine, the commands it is given."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from artifacts import ArtifactStore, Part
from benchmarks.server import Server, running_server
from protos.suanli.v1 import admin_pb2, admin_pb2_grpc, common_pb2, jobs_pb2, regions_pb2, regions_pb2_grpc

ROOT = Path(__file__).parents[2]
REPORT_S = 1.0


@dataclass(frozen=True)
class Place:
    """A control plane with one institution "uni", its researchers' keys, and the region "east"."""

    address: str
    admin_key: str
    ada: str
    bob: str
    agent: MiniAgent


@contextmanager
def running_place() -> Iterator[Place]:
    """Start everything; end it afterwards."""
    with running_server() as server, grpc.insecure_channel(server.address) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)

        def call(name: str, request: Any) -> Any:
            return getattr(admin, name)(request, metadata=server.metadata, timeout=20)

        call("PutInstitution", admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="uni")))
        keys = []
        for user in ("ada", "bob"):
            person = admin_pb2.User(id=user, institution="uni", role=common_pb2.ROLE_RESEARCHER)
            call("PutUser", admin_pb2.PutUserRequest(user=person))
            keys.append(call("CreateApiKey", admin_pb2.CreateApiKeyRequest(user=user)).secret)
        token = call("CreateEnrolmentToken", admin_pb2.CreateEnrolmentTokenRequest(region="east")).token
        with MiniAgent(server, token) as agent:
            yield Place(server.address, server.key, keys[0], keys[1], agent)


class MiniAgent:
    """Speaks the agent protocol; no more of it than one undisturbed connection needs."""

    def __init__(self, server: Server, token: str) -> None:
        self._channel = grpc.insecure_channel(server.address)
        self._stub = regions_pb2_grpc.RegionServiceStub(self._channel)
        self._folder = server.folder / "mini-agent"
        self._store = ArtifactStore(str(server.folder / "state" / "artifacts"))
        request = regions_pb2.EnrolAgentRequest(token=token, region="east", agent_name="mini")
        self._key = self._stub.EnrolAgent(request, timeout=20).api_key
        self._outgoing: queue.SimpleQueue[regions_pb2.ConnectRequest | None] = queue.SimpleQueue()
        self._workers = ThreadPoolExecutor(4)
        self._lock = threading.Lock()
        self._live: dict[str, regions_pb2.AttemptRef] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[str] = set()
        self._event_seq = self._report_seq = 0

    def __enter__(self) -> MiniAgent:
        metadata = (("authorization", f"Bearer {self._key}"),)
        self._call = self._stub.Connect(self._requests(), metadata=metadata)
        hello = regions_pb2.Hello(
            region="east", boot_id="boot", spool_id="spool", protocol_version=1, software_version="test"
        )
        self._send(hello=hello)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._processes.values()):
            process.kill()
        self._workers.shutdown()
        self._outgoing.put(None)
        self._call.cancel()
        self._reader.join(20)
        self._channel.close()

    def _send(self, **message: Any) -> None:
        self._outgoing.put(regions_pb2.ConnectRequest(sent_at_ms=time.time_ns() // 1_000_000, **message))

    def _requests(self) -> Iterator[regions_pb2.ConnectRequest]:
        while True:
            try:
                message = self._outgoing.get(timeout=REPORT_S)
            except queue.Empty:
                self._report()
                continue
            if message is None:
                return
            yield message

    def _report(self) -> None:
        with self._lock:
            self._report_seq += 1
            node = regions_pb2.Node(
                id="n1", name="n1", pool="cpu", capacity=common_pb2.Resources(cpu_milli=4000, memory_mib=16384)
            )
            report = regions_pb2.StateReport(
                report_seq=self._report_seq,
                event_seq=self._event_seq,
                nodes=[node],
                attempts=list(self._live.values()),
            )
            self._send(state=report)

    def _read(self) -> None:
        try:
            for message in self._call:
                kind = message.WhichOneof("message")
                if kind == "welcome":
                    self._report()
                elif kind == "launch":
                    self._start(message.launch)
                elif kind == "stop":
                    self._stop(message.stop)
                elif kind == "log_request":
                    self._workers.submit(self._log, message.log_request)
        except grpc.RpcError:
            # The test is over.
            return

    def _start(self, launch: regions_pb2.Launch) -> None:
        ref = regions_pb2.AttemptRef(job_id=launch.job_id, attempt=launch.attempt, lease_epoch=launch.lease_epoch)
        with self._lock:
            if launch.job_id in self._live:
                return
            self._live[launch.job_id] = ref
        self._workers.submit(self._run, launch, ref)

    def _stop(self, stop: regions_pb2.Stop) -> None:
        self._stopping.add(stop.job_id)
        if process := self._processes.get(stop.job_id):
            process.terminate()

    def _run(self, launch: regions_pb2.Launch, ref: regions_pb2.AttemptRef) -> None:
        folder = self._folder / launch.job_id
        (folder / "results").mkdir(parents=True)
        if launch.working_folder:
            self._store.fetch_tree(launch.working_folder, folder / "work")
        (folder / "work").mkdir(exist_ok=True)
        argv = [sys.executable if word == "python" and not i else word for i, word in enumerate(launch.argv)]
        environment = {
            "PATH": os.environ["PATH"],
            "SUANLI_RESULTS": str(folder / "results"),
            "SUANLI_ARRAY_INDEX": str(launch.array_index),
            "RANK": "0",
        }
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(argv, cwd=folder / "work", env=environment, stdout=out, stderr=err)
            self._processes[launch.job_id] = process
            self._event(ref, started=regions_pb2.AttemptStarted())
            code = process.wait()
        outcome = common_pb2.ATTEMPT_OUTCOME_SUCCEEDED if code == 0 else common_pb2.ATTEMPT_OUTCOME_FAILED
        if launch.job_id in self._stopping:
            outcome = common_pb2.ATTEMPT_OUTCOME_CANCELLED
        stored = self._store.put_tree(Part(folder / "results"))
        end = regions_pb2.AttemptFinished(
            outcome=outcome, exit_code=max(code, 0), exit_signal=max(-code, 0), results=stored.ref or ""
        )
        with self._lock:
            del self._live[launch.job_id]
        self._event(ref, finished=end)

    def _event(self, ref: regions_pb2.AttemptRef, **event: Any) -> None:
        with self._lock:
            self._event_seq += 1
            one = regions_pb2.AttemptEvent(
                seq=self._event_seq,
                job_id=ref.job_id,
                attempt=ref.attempt,
                lease_epoch=ref.lease_epoch,
                at_ms=time.time_ns() // 1_000_000,
                **event,
            )
            self._send(events=regions_pb2.AttemptEvents(events=[one]))

    def _log(self, request: regions_pb2.LogRequest) -> None:
        """What there is when it has ended: these jobs are short."""
        name = "stderr" if request.stream == jobs_pb2.LOG_STREAM_STDERR else "stdout"
        if request.follow and (process := self._processes.get(request.job_id)):
            process.wait()
        content = (self._folder / request.job_id / name).read_bytes()
        start = max(0, len(content) + request.offset) if request.offset < 0 else request.offset
        chunk = regions_pb2.LogChunk(
            request_id=request.request_id, stream=request.stream, offset=start, data=content[start:], end=True
        )
        self._send(log=chunk)
