"""A control plane whose gate and handlers are called in this process, without a socket: what the fuzzer throws things at.

An input is four bytes that name the method (the CRC-32 of its name), one that chooses the caller, and the request's bytes. On
the stream of an agent a greeting goes before it when that byte is above 7.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from protos.suanli.v1 import common_pb2, regions_pb2
from scheduler.api.gate import Gate
from scheduler.api.permissions import PERMISSIONS
from scheduler.governance.limits import Limits
from scheduler.service.ids import WallClock
from tests.property.test_fuzz_rpcs import StrictStore
from tests.support.api import Api, running_api
from tests.unit.api.test_permission_matrix import CALLS, METHODS, Whose, fill

NAMES = sorted(METHODS)
BY_DIGEST = {zlib.crc32(name.encode()): name for name in NAMES}
CALLERS = ("op", "ada", "lea", "ann", "sam", "aud", "anonymous", "agent")
OURS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
"""What no request may be answered with."""
HEADER = 5
_STREAM_S = 0.02
_RESPONSES = 3
_MAX_DEPTH = 3


class Fault(Exception):
    """The server is to blame for something that was sent to it."""


class _Ended(Exception):
    """A handler has given its status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class _Context:
    """What a handler sees of its call."""

    def __init__(self, key: str) -> None:
        self._key = key

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._key}"),) if self._key else ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def time_remaining(self) -> float:
        return 30.0

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> NoReturn:
        del metadata
        raise _Ended(code, details)


class SeededIds:
    """The same ids every time, so that requests that were kept name what is there."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._jobs = 0

    def job_id(self, now_ms: int) -> str:
        del now_ms
        self._jobs += 1
        return f"j{self._jobs:018}"

    def token(self, size_bytes: int) -> bytes:
        return self._random.randbytes(size_bytes)


class Platform:
    """One control plane with something of everything in it. ``seeds`` are valid requests, as inputs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._handlers: dict[str, Any] = {}
        self.seeds: dict[str, bytes] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="suanli-fuzz-")
        self._api: Api = self._loop.run_until_complete(self._start())

    async def _start(self) -> Api:
        add = Gate.add

        def noting(gate: Gate, server: Any, service: Any, servicers: Any) -> None:
            with mock.patch("scheduler.api.gate.grpc.method_handlers_generic_handler") as generic:
                generic.side_effect = self._note
                add(gate, server, service, servicers)

        off = Limits(**dict.fromkeys(Limits.__dataclass_fields__, 0))
        with mock.patch.object(Gate, "add", noting), mock.patch("tests.support.api.RandomIds", SeededIds):
            api = await self._stack.enter_async_context(
                running_api(Path(self._folder.name), limits=off, store=StrictStore(WallClock()))
            )
        api.clients["agent"] = (await fill(api)).client
        for name in PERMISSIONS:
            make, build = CALLS[name]
            for whose, thing in (await make(api, "op")).items():
                if whose is not Whose.NOBODYS:
                    self.seeds[f"{name}-{whose.name}"] = message_input(name, build(thing))
        for name in NAMES:
            self.seeds[f"{name}-full"] = message_input(name, full(METHODS[name].input_type))
        for message in on_stream():
            kind = message.WhichOneof("message")
            self.seeds[f"stream-{kind}"] = message_input(
                "suanli.v1.RegionService/Connect", message, CALLERS.index("agent") | 8
            )
        return api

    def _note(self, service: str, handlers: dict[str, Any]) -> grpc.GenericRpcHandler:
        self._handlers |= {f"{service}/{name}": handler for name, handler in handlers.items()}
        return _GENERIC(service, handlers)

    def close(self) -> None:
        """End it."""
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()
        self._folder.cleanup()

    def call(self, data: bytes) -> grpc.StatusCode:
        """Make the call that an input stands for; raises ``Fault`` when the server fails over it."""
        return self._loop.run_until_complete(self._call(data))

    async def _call(self, data: bytes) -> grpc.StatusCode:
        name, user, body = decoded(data)
        handler, key = self._handlers[name], self._api[user].key
        bodies = [body]
        if name.endswith("/Connect") and data[4:5] >= b"\x08":
            bodies.insert(0, next(on_stream()).SerializeToString())
        # Each call in a task of its own, as gRPC runs them.
        task = asyncio.create_task(_made(handler, bodies, _Context(key)))
        try:
            await task
        except _Ended as ended:
            if ended.code in OURS:
                raise Fault(f"{name} as {user}: {ended}") from ended
            return ended.code
        if self._api.control_plane.failure.done():
            raise Fault(f"{name} as {user} has ended the control plane")
        return grpc.StatusCode.OK


_GENERIC = grpc.method_handlers_generic_handler


async def _made(handler: Any, bodies: list[bytes], context: _Context) -> None:
    raw: Any = _stream(bodies) if handler.request_streaming else bodies[0]
    if not handler.response_streaming:
        await (handler.stream_unary or handler.unary_unary)(raw, context)
        return
    answers = (handler.stream_stream or handler.unary_stream)(raw, context)
    try:
        # One that has nothing to say yet is left by its caller.
        async with asyncio.timeout(_STREAM_S):
            for _ in range(_RESPONSES):
                await anext(answers)
    except (StopAsyncIteration, TimeoutError):
        pass
    finally:
        await answers.aclose()


async def _stream(bodies: list[bytes]) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def decoded(data: bytes) -> tuple[str, str, bytes]:
    """Method, caller and request of an input; any bytes are one."""
    head = data[:HEADER].ljust(HEADER, b"\0")
    digest = int.from_bytes(head[:4], "big")
    name = BY_DIGEST.get(digest) or NAMES[digest % len(NAMES)]
    return name, CALLERS[head[4] % 8], data[HEADER:]


def message_input(name: str, message: Message, caller: int = 0) -> bytes:
    """The input that stands for a request."""
    return zlib.crc32(name.encode()).to_bytes(4, "big") + bytes([caller]) + message.SerializeToString()


def full(descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with a value in every field: a start for changes in each of them."""
    message: Message = message_factory.GetMessageClass(descriptor)()
    for one in descriptor.fields:
        if one.message_type is not None and (depth >= _MAX_DEPTH or one.message_type.GetOptions().map_entry):
            continue
        if one.message_type is not None:
            value: Any = full(one.message_type, depth + 1)
            if one.is_repeated:
                getattr(message, one.name).add().CopyFrom(value)
            else:
                getattr(message, one.name).CopyFrom(value)
            continue
        value = _VALUES.get(one.cpp_type, 1)
        if one.type == FieldDescriptor.TYPE_BYTES:
            value = b"x"
        if one.is_repeated:
            getattr(message, one.name).append(value)
        else:
            setattr(message, one.name, value)
    return message


_VALUES: dict[int, object] = {
    FieldDescriptor.CPPTYPE_STRING: "uni-a",
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_DOUBLE: 1.5,
    FieldDescriptor.CPPTYPE_FLOAT: 1.5,
}


def on_stream() -> Any:
    """What an agent says, its greeting first."""
    hello = regions_pb2.Hello(region="east", boot_id="b", spool_id="s", protocol_version=1, software_version="t")
    yield regions_pb2.ConnectRequest(sent_at_ms=1, hello=hello)
    capacity = common_pb2.Resources(cpu_milli=8000, memory_mib=32768)
    node = regions_pb2.Node(id="n1", name="node-one", pool="cpu", capacity=capacity)
    yield regions_pb2.ConnectRequest(state=regions_pb2.StateReport(report_seq=1, nodes=[node]))
    event = regions_pb2.AttemptEvent(seq=1, job_id="j", attempt=1, lease_epoch=1, started=regions_pb2.AttemptStarted())
    yield regions_pb2.ConnectRequest(events=regions_pb2.AttemptEvents(events=[event]))
    yield regions_pb2.ConnectRequest(log=regions_pb2.LogChunk(request_id=1, data=b"x"))
