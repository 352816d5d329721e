"""The gate every call passes: who calls, may they, does the message parse, and what goes back when something fails.

Handlers are registered from the service descriptors, so no method can be served past the gate. Messages are taken as bytes:
gRPC's own parsing would answer a caller's broken message with UNKNOWN instead of INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from scheduler.api.credentials import Admission, Credentials
from scheduler.api.errors import code_of, status_of
from scheduler.api.limits import Credential, scope_within
from scheduler.api.permissions import PUBLIC, Scope
from scheduler.api.visibility import Caller
from scheduler.domain.errors import (
    Internal,
    InvalidArgument,
    SuanliError,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger(__name__)
_BEARER = "bearer "
_HEAR_OUT_S = 1.0
_RECHECKED_AT_ONCE = 500
RECHECK_S = 2.0
"""How often the credentials of open streams are looked at again, when nothing says that one has ended."""
_NOBODY = Caller("", "", 0, "", Scope.OWN)
_CHANGE_CREDENTIALS = frozenset({"suanli.v1.AdminService/RevokeApiKey", "suanli.v1.AdminService/PutUser"})

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class RpcObserver(Protocol):
    """Counts calls."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A call has been answered."""
        ...

    def stream(self, method: str, change: int) -> None:
        """A stream has been opened (+1) or has ended (-1)."""
        ...


@dataclass(slots=True)
class _Call:
    """A call; those with streams are looked at again and again. ``failure`` is set when it has to end."""

    method: str
    caller: Caller = _NOBODY
    admission: Admission | None = None
    responses: Any = None
    failure: SuanliError | None = None


class Gate:
    """Makes gRPC handlers of servicers whose methods take ``(request, caller)``.

    A method ``SubmitJobs`` is served by ``submit_jobs``: a coroutine function, or an async generator function when it answers
    with a stream; a stream of requests comes as an async iterator.
    """

    def __init__(self, credentials: Credentials, observer: RpcObserver) -> None:
        self._credentials = credentials
        self._observer = observer
        self._streams: dict[asyncio.Task[object], _Call] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._recheck = asyncio.Event()
        self._waiting: set[asyncio.Task[object]] = set()
        """Streams that wait for something to say. One that is just saying something ends after that, so that its caller learns why."""
        self._closing = False
        self.open = False
        """Whether calls are taken. A standby refuses them all: it knows no keys."""

    def close(self) -> None:
        """Take no more calls, and end the streams that are open, which would never end by themselves."""
        self.open = False
        self._closing = True
        for task in list(self._waiting):
            task.cancel()

    def add(self, server: grpc.aio.Server, service: ServiceDescriptor, servicers: Sequence[object]) -> None:
        """Serve all methods of a service, each by the first servicer that has it."""
        handlers = {method.name: self._handler(method, _find(servicers, method)) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _handler(self, method: MethodDescriptor, function: Callable[..., Any]) -> Handler:
        if not method.server_streaming:
            make, unary = grpc.unary_unary_rpc_method_handler, self._unary(method, function)
            if method.client_streaming:
                make = grpc.stream_unary_rpc_method_handler
            return make(unary)
        stream = self._stream(method, function)
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_stream_rpc_method_handler(stream)

    async def keep_watch(self, every_s: float = RECHECK_S) -> None:
        """End open streams whose credential ends, until cancelled: at once when it is revoked here, else within ``every_s`` seconds."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._recheck.wait()
            self._recheck.clear()
            for number, (task, stream) in enumerate(list(self._streams.items()), 1):
                if stream.failure is None and (failure := _ended(stream)) is not None:
                    stream.failure = failure
                    if task in self._waiting:
                        task.cancel()
                if number % _RECHECKED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _admit(self, stream: _Call, context: Context) -> None:
        """Note who calls; ``Unauthenticated`` or ``PermissionDenied`` when that may not be."""
        if not self.open:
            raise self._not_serving()
        if stream.method not in PUBLIC:
            stream.admission = await self._credentials.admit(_credential_in(context))
            stream.caller = _caller(stream.method, stream.admission.credential)

    def _left(self, task: asyncio.Task[object]) -> None:
        """A call has ended. One that was cut off while it was saying something did so without a word to its generator."""
        if task in self._streams:
            leaving = asyncio.get_running_loop().create_task(self._close(task))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _close(self, task: asyncio.Task[object]) -> None:
        """Put a stream of responses away, once."""
        stream = self._streams.pop(task, None)
        if stream is None:
            return
        self._observer.stream(stream.method, -1)
        if stream.responses is not None:
            # A caller that hangs up leaves the generator in the middle: its clean-up must not wait for the collector.
            await stream.responses.aclose()

    def _not_serving(self) -> Unavailable:
        if self._closing:
            return Unavailable("The server is shutting down; try again in a moment.", reason="SHUTTING_DOWN")
        return Unavailable("This process is not the leader; try again in a moment.", reason="NOT_LEADER")

    def _unary(
        self, method: MethodDescriptor, function: Callable[[Any, Caller], Awaitable[Message]]
    ) -> Callable[[Any, Context], Awaitable[bytes]]:
        name, parse = _name(method), _parser(method)

        async def handle(raw: Any, context: Context) -> bytes:
            start = perf_counter()
            task, stream = _current_task(), _Call(name)
            try:
                await self._admit(stream, context)
                if method.client_streaming:
                    self._streams[task] = stream
                request = _parsed(raw, parse, stream) if method.client_streaming else parse(raw)
                response = (await function(request, stream.caller)).SerializeToString()
            except Exception as error:
                failure = self._failure(name, error)
                if method.client_streaming:
                    await _hear_out(raw)
            else:
                if name in _CHANGE_CREDENTIALS:
                    self._recheck.set()
                self._observer.rpc(name, "OK", perf_counter() - start)
                return response
            finally:
                self._streams.pop(task, None)
            self._observer.rpc(name, code_of(failure).name, perf_counter() - start)
            return await _abort(context, failure)

        return handle

    def _stream(
        self, method: MethodDescriptor, function: Callable[[Any, Caller], AsyncIterator[Message]]
    ) -> Callable[[Any, Context], AsyncIterator[bytes]]:
        name, parse = _name(method), _parser(method)

        async def handle(raw: Any, context: Context) -> AsyncIterator[bytes]:
            task = _current_task()
            stream = self._streams[task] = _Call(name)
            self._observer.stream(name, 1)
            task.add_done_callback(self._left)
            failure: SuanliError | None = None
            try:
                await self._admit(stream, context)
                request = _parsed(raw, parse, stream) if method.client_streaming else parse(raw)
                stream.responses = function(request, stream.caller)
                while True:
                    self._waiting.add(task)
                    try:
                        response = await anext(stream.responses)
                    except StopAsyncIteration:
                        break
                    finally:
                        self._waiting.discard(task)
                    yield response.SerializeToString()
                    failure = self._not_serving() if self._closing else stream.failure
                    if failure is not None:
                        break
            except Exception as error:
                failure = self._failure(name, error)
                if method.client_streaming and stream.responses is None:
                    await _hear_out(raw)
            except asyncio.CancelledError:
                failure = self._not_serving() if self._closing else stream.failure
                if failure is None:
                    raise
            finally:
                await self._close(task)
            if failure is not None:
                await _abort(context, failure)

        return handle

    def _failure(self, name: str, error: Exception) -> SuanliError:
        """What the caller is told. A defect is logged whole here and gives the caller its number only."""
        if isinstance(error, SuanliError) and not isinstance(error, Internal):
            return error
        incident = secrets.token_hex(4)
        log.error("incident %s in %s", incident, name, exc_info=error)
        return Internal(
            f"Something went wrong on the server (incident {incident}); its log says what. The call may be tried again.",
            metadata={"incident": incident},
        )


async def _hear_out(raw: AsyncIterator[bytes]) -> None:
    """Take in what a refused caller is just sending: gRPC tells a caller that is cut off in the middle of a message only that."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_HEAR_OUT_S):
            async for _ in raw:
                pass


async def _abort(context: Context, failure: SuanliError) -> bytes:
    code, details, metadata = status_of(failure)
    await context.abort(code, details, metadata)
    raise AssertionError("abort always raises")


async def _parsed(
    raw: AsyncIterator[bytes], parse: Callable[[bytes], Message], stream: _Call
) -> AsyncIterator[Message]:
    async for one in raw:
        if stream.failure is not None:
            raise stream.failure
        yield parse(one)


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "gRPC runs every call in a task"
    return task


def _caller(method: str, credential: Credential) -> Caller:
    """Who calls a method with a credential; ``PermissionDenied`` when that may not be."""
    scope = scope_within(method, credential)
    return Caller(credential.user, credential.institution, credential.role, credential.region, scope, credential)


def _ended(stream: _Call) -> SuanliError | None:
    """Why a stream has to end; None when its caller may go on."""
    if stream.admission is None:
        return None
    try:
        caller = _caller(stream.method, stream.admission.renew())
    except SuanliError as error:
        return error
    if caller == stream.caller:
        return None
    return Unavailable("Your rights have changed; open the stream again.", reason="RIGHTS_CHANGED")


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = message_factory.GetMessageClass(method.input_type)
    from_string = message_class.FromString

    def parse(raw: bytes) -> Message:
        try:
            return from_string(raw)
        except DecodeError as error:
            raise InvalidArgument(
                f"The request is not a readable {method.input_type.name}: {_reason(error)}", reason="MALFORMED_MESSAGE"
            ) from None

    return parse


def _reason(error: DecodeError) -> str:
    if "UTF-8" in str(error):
        return "a string in it is not valid UTF-8; encode text as UTF-8, and put other bytes into a file."
    return "its bytes are damaged or cut off; use the published protos to make it."


def _credential_in(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if text[: len(_BEARER)].lower() == _BEARER:
                return text[len(_BEARER) :].strip()
            break
    raise Unauthenticated(
        "There is no API key or token in the call; send one as metadata: authorization: Bearer suanli_….",
        reason="NO_API_KEY",
    )


def _name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def _find(servicers: Iterable[object], method: MethodDescriptor) -> Callable[..., Any]:
    attribute = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
    for servicer in servicers:
        function = getattr(servicer, attribute, None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise LookupError(f"nothing serves {_name(method)}: a method {attribute} is missing")


async def first_of(requests: AsyncIterator[Any], timeout_s: float, what: str) -> Any:
    """The next message of a stream. ``InvalidArgument`` when none comes in time or the stream ends."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests)
    except (StopAsyncIteration, TimeoutError):
        raise InvalidArgument(f"The stream gave no {what} within {timeout_s:g} s.", reason="NO_MESSAGE") from None
