"""Whatever is sent, the fault is the sender's and is said to be: no INTERNAL, no UNKNOWN, and the server goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.suanli.v1 import admin_pb2, jobs_pb2, regions_pb2
from scheduler.api.serving import SERVICES
from scheduler.governance.limits import Limits
from scheduler.service.ids import WallClock
from scheduler.service.ports import CommitBatch
from scheduler.store.memory import MemoryStore
from tests.property.fuzzing import damaged, messages
from tests.support.api import LED, Agent, Api, digest_of, running_api

METHODS = {f"{service.name}/{method.name}": method for service in SERVICES for method in service.methods}
EXAMPLES = int(
    os.environ.get("SUANLI_FUZZ_EXAMPLES", "1000" if os.environ.get("SUANLI_HYPOTHESIS") == "soak" else "12")
)
MAX_GROWTH = 512 << 20
Code = grpc.StatusCode
THEIR_FAULT = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.PERMISSION_DENIED,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.ALREADY_EXISTS,
    Code.UNAUTHENTICATED,
    Code.OUT_OF_RANGE,
}


class StrictStore(MemoryStore):
    """Refuses what a database would: integers of more than 64 bits, texts with NUL."""

    def commit(self, epoch: int, commit_no: int, batch: CommitBatch) -> None:
        for name in CommitBatch.__slots__:
            for row in getattr(batch, name):
                for value in row if isinstance(row, tuple) else ():
                    assert not isinstance(value, int) or -(1 << 63) <= value < 1 << 63, (name, row)
                    if isinstance(value, str):
                        assert b"\0" not in value.encode(), (name, row)
        super().commit(epoch, commit_no, batch)


class Served:
    """A server in a thread, that Hypothesis, which is not asynchronous, can call."""

    def __init__(self, folder: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        off = Limits(**dict.fromkeys(Limits.__dataclass_fields__, 0))
        self._running = running_api(folder, limits=off, store=StrictStore(WallClock()))
        self.api: Api = self.run(self._running.__aenter__())
        self.known = self.run(self._fill())
        self.incidents: list[str] = []
        watch = logging.Handler(logging.ERROR)
        watch.emit = lambda record: self.incidents.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("scheduler").addHandler(watch)
        self._watch = watch
        self.words = ""
        """What the last call that failed was told."""
        self.memory = psutil.Process().memory_info().rss

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        self.run(self._running.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        logging.getLogger("scheduler").removeHandler(self._watch)
        self._loop.close()

    async def _fill(self) -> tuple[str, ...]:
        """Something of everything; the ids of it."""
        agent = Agent(self.api)
        await agent.enrol()
        self.api.clients["agent"] = agent.client
        plain, array = await self.api["ada"].submit(), await self.api["abe"].submit(array=jobs_pb2.ArraySpec(size=3))
        await self.api["ada"].jobs.UploadBlob(iter([jobs_pb2.UploadBlobRequest(digest=digest_of(b"x"), data=b"x")]))
        key, _ = await self.api.control_plane.create_api_key("abe", "", 0, "test")
        ids = (plain, array, f"{array}.1", key.prefix, digest_of(b"x"), "uni-a", "uni-b", "default", LED)
        return (*ids, "abe", "bob", "new", "east", "cpu", "n1", "", "true", "run.py", "sh", "-m")

    async def call(self, user: str, method: MethodDescriptor, bodies: list[bytes]) -> grpc.StatusCode:
        """Send, and read some of the answer."""
        client = self.api[user]
        kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
        function = getattr(client.channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
        # A stream that has nothing to say yet is ended by its caller.
        timeout = 0.1 if method.server_streaming else 30
        running = function(
            iter(bodies) if method.client_streaming else bodies[0], metadata=client.metadata, timeout=timeout
        )
        try:
            if not method.server_streaming:
                await running
                return Code.OK
            for _ in range(3):
                if await running.read() is grpc.aio.EOF:
                    break
        except grpc.aio.AioRpcError as error:
            ended = method.server_streaming and error.code() is Code.DEADLINE_EXCEEDED
            # Of the client's own library, when the answer came while it was still sending; ours says its incident.
            ended = ended or (method.client_streaming and error.details() == "Internal error from Core")
            self.words = str(error.details())
            return Code.OK if ended else error.code()
        finally:
            running.cancel()
        return Code.OK

    async def answers(self) -> bool:
        """Whether the server goes on: it answers, and nothing in it has failed."""
        await self.api["pau"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
        return self.api.control_plane.is_leader and not self.api.control_plane.failure.done()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("fuzz"))
    yield served
    served.stop()


def callers(method: MethodDescriptor) -> list[str]:
    return ["agent", "op"] if method.name == "Connect" else ["op", "op", "ada", "lea", "anonymous"]


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_is_sent_is_our_fault(served: Served, name: str) -> None:
    method = METHODS[name]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(callers(method)))
        count = data.draw(st.integers(1, 4)) if method.client_streaming else 1
        sent = [data.draw(messages(method.input_type, served.known)) for _ in range(count)]
        bodies = [one.SerializeToString() for one in sent]
        if name.endswith("/Connect") and data.draw(st.booleans()):
            hello = regions_pb2.Hello(
                region="east", boot_id="b", spool_id="s", protocol_version=1, software_version="t"
            )
            bodies.insert(0, regions_pb2.ConnectRequest(hello=hello).SerializeToString())
        if data.draw(st.integers(0, 3)) == 0:
            bodies[-1] = data.draw(damaged(bodies[-1]))
        code = served.run(served.call(user, method, bodies))
        assert code in THEIR_FAULT, (user, code, served.words, sent)
        assert served.run(served.answers())
        assert served.incidents == []

    attack()
    assert psutil.Process().memory_info().rss - served.memory < MAX_GROWTH
