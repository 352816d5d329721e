"""A connection to the control plane: the services' stubs, the key on every call, and failures as our errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from protos.suanli.v1 import (
    admin_pb2_grpc,
    artifacts_pb2_grpc,
    audit_pb2_grpc,
    data_pb2_grpc,
    jobs_pb2_grpc,
    regions_pb2_grpc,
    usage_pb2_grpc,
)
from suanli.errors import (
    ConfigurationError,
    ResourceExhausted,
    SuanliError,
    Unauthenticated,
    Unavailable,
    from_rpc,
)
from suanli.settings import Settings, logins_file
from suanli.sign_in.bearer import Bearer

__all__ = ["Backoff", "Connection", "Settings", "connect"]

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)
Item = TypeVar("Item")
T = TypeVar("T")

TIMEOUT_S: Final = 60.0
PATIENCE_S: Final = 10.0
TOLD_S: Final = 300.0
"""For so long in all a call waits because the control plane tells it to come again later."""
_MAX_SEND_BYTES: Final = 16 << 20
# The control plane may answer with more than it takes.
_MAX_RECEIVE_BYTES: Final = 64 << 20
_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", _MAX_SEND_BYTES),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    # A connection that a firewall has forgotten is found out while a stream waits for something to happen.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Our own pauses between tries are what paces them; gRPC's would sit on top, up to two minutes long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Unary(Protocol[Request, Response]):
    """A stub's method that answers once."""

    def __call__(self, request: Request, /, *, timeout: float | None = None) -> Awaitable[Response]:
        """Call it."""
        ...


class Streaming(Protocol[Request, Item]):
    """A stub's method that answers with a stream."""

    def __call__(self, request: Request, /) -> grpc.aio.UnaryStreamCall[Any, Item]:
        """Call it."""
        ...


class Backoff:
    """Pauses between tries: doubling from 0.1 s to 2 s, each shortened by chance so that clients spread out."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._next_s = 0.1

    def pause_s(self) -> float:
        """The next pause, in seconds."""
        pause_s = self._next_s * (0.5 + self._chance() / 2)
        self._next_s = min(2.0, self._next_s * 2)
        return pause_s

    def reset(self) -> None:
        """Begin again with short pauses, after something went well."""
        self._next_s = 0.1


class _Told:
    """What one call has waited because it was told to."""

    def __init__(self, connection: Connection, chance: Callable[[], float] = random.random) -> None:
        self._connection = connection
        self._chance = chance
        self._left_s = TOLD_S

    async def wait(self, error: ResourceExhausted) -> None:
        """Wait as long as the refusal says, and a little longer, so that not all come back at once; raise it where that is too long."""
        # Never earlier: who comes too early is refused again.
        pause_s = error.retry_s + (0.1 + error.retry_s / 10) * self._chance()
        self._left_s -= pause_s
        if not error.retry_s or self._left_s < 0:
            raise error
        if self._connection.on_wait is not None:
            self._connection.on_wait(pause_s, error)
        await asyncio.sleep(pause_s)


class Connection:
    """The stubs ``jobs``, ``admin``, ``usage``, ``artifacts``, ``audit``, ``data`` and ``regions`` on one channel.

    Every call carries the key. Every failure, of a stub's method as of ``call``, is a ``SuanliError``; ``call`` also
    tries again. Made by ``connect`` inside a running event loop, and used within that loop only.
    """

    def __init__(self, settings: Settings, patience_s: float = PATIENCE_S) -> None:
        self.settings = settings
        self.patience_s = patience_s
        self.on_wait: Callable[[float, SuanliError], None] | None = None
        """Told for how many seconds a call is going to wait, and why, when the control plane asks it to."""
        self._bearer = Bearer(settings.api_key, settings.login, logins_file())
        self.channel = _channel(settings, self._bearer)
        self.jobs = jobs_pb2_grpc.JobServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self.channel)
        self.artifacts = artifacts_pb2_grpc.ArtifactServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)
        self.data = data_pb2_grpc.DataServiceStub(self.channel)
        self.regions = regions_pb2_grpc.RegionServiceStub(self.channel)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the calls under way and the connection."""
        await self.channel.close()

    async def call(
        self,
        method: Unary[Request, Response],
        request: Request,
        *,
        idempotent: bool = False,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Response:
        """Call a method; an ``idempotent`` one again for ``patience_s`` seconds while the server is unavailable.

        ``timeout_s`` bounds each try. Reads are idempotent; so is a submission that carries a request_id.
        """

        async def once() -> Response:
            return await method(request, timeout=timeout_s)

        return await (self.persist(once) if idempotent else self._as_told(once, _Told(self)))

    async def persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that may be repeated until it is not ``Unavailable``, or ``patience_s`` seconds have passed.

        Where the control plane says when to come again, it is done so, ``TOLD_S`` seconds of waiting in all.
        """
        backoff, told = Backoff(), _Told(self)
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return await self._as_told(work, told)
            except Unavailable:
                pause_s = backoff.pause_s()
                if time.monotonic() + pause_s > deadline:
                    raise
                await asyncio.sleep(pause_s)

    async def _as_told(self, work: Callable[[], Awaitable[T]], told: _Told) -> T:
        """Do work that a refusal leaves undone, so that it may be done again, whatever it is."""
        while True:
            try:
                return await work()
            except ResourceExhausted as error:
                await told.wait(error)

    async def stream(self, method: Streaming[Request, Item], request: Request) -> AsyncGenerator[Item, None]:
        """The answers of a streaming method, once; closing the iterator ends the call."""
        call = method(request)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()

    async def resume(self, method: Streaming[Request, Item], ask: Callable[[], Request]) -> AsyncGenerator[Item, None]:
        """The answers of a streaming method, opened again where ``ask`` says whenever the control plane goes away.

        Before the first answer it gives up after ``patience_s`` seconds of pauses, so that a wrong address shows; after
        it, never: what is waited for may take days, and the caller has a clock of its own.
        """
        backoff, told = Backoff(), _Told(self)
        left_s = self.patience_s
        renew = False
        while True:
            try:
                async with aclosing(self.stream(method, ask())) as responses:
                    async for response in responses:
                        left_s = float("inf")
                        renew = self._bearer.renews
                        backoff.reset()
                        yield response
                return
            except Unauthenticated as error:
                # A token ended while the stream was open: another try takes the next one, once for each that was good.
                if not renew or error.reason != "TOKEN_EXPIRED":
                    raise
                renew = False
                pause_s = backoff.pause_s()
            except ResourceExhausted as error:
                await told.wait(error)
                continue
            except Unavailable:
                pause_s = backoff.pause_s()
                left_s -= pause_s
                if left_s < 0:
                    raise
            await asyncio.sleep(pause_s)


def connect(settings: Settings, patience_s: float = PATIENCE_S) -> Connection:
    """Open a connection, lazily: the first call finds out whether anybody listens.

    ``patience_s`` is how long idempotent calls are tried again. Raises ``ConfigurationError`` for an unreadable ``ca``.
    """
    return Connection(settings, patience_s)


def _channel(settings: Settings, bearer: Bearer) -> grpc.aio.Channel:
    interceptors = [kind(settings, bearer) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary)]
    if settings.loopback and not settings.ca:
        # A proxy of the environment is never the way to this machine itself.
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0))
        return grpc.aio.insecure_channel(settings.address, options=options, interceptors=interceptors)
    try:
        roots = Path(settings.ca).expanduser().read_bytes() if settings.ca else None
    except OSError as error:
        raise ConfigurationError(
            f"The certificates in {settings.ca} cannot be read: {error.strerror}.", field="ca"
        ) from error
    credentials = grpc.ssl_channel_credentials(roots)
    return grpc.aio.secure_channel(settings.address, credentials, options=_OPTIONS, interceptors=interceptors)


class _Keyed:
    """Adds the key to calls, and makes our errors of failures."""

    def __init__(self, settings: Settings, bearer: Bearer) -> None:
        self._address = settings.address
        self._bearer = bearer

    async def _with_key(self, details: Any) -> Any:
        shown = await self._bearer.value()
        if not shown:
            return details
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", f"Bearer {shown}")
        return details._replace(metadata=metadata)

    def _failure(self, error: grpc.aio.AioRpcError) -> SuanliError:
        return from_rpc(error, self._address)


class _UnaryUnary(_Keyed, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(await self._with_key(client_call_details), request)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error


class _UnaryStream(_Keyed, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._responses(await continuation(await self._with_key(client_call_details), request))

    async def _responses(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error


class _StreamUnary(_Keyed, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        call = await continuation(await self._with_key(client_call_details), request_iterator)
        try:
            # gRPC wants the call back, not its answer, when requests are a stream.
            await call
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        return call
