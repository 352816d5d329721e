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
from urllib.parse import unquote

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from scheduler.api.audited import AUDITED, Kind, Row, target_of
from scheduler.api.credentials import Admission, Credentials
from scheduler.api.errors import code_of, status_of
from scheduler.api.limiting import RATE_LIMITED, Limiting
from scheduler.api.limits import API_KEY, Credential, scope_within
from scheduler.api.permissions import PUBLIC, Role, Scope
from scheduler.api.tls import region_in
from scheduler.api.visibility import Caller
from scheduler.domain.audit import AuditOutcome
from scheduler.domain.errors import (
    DeadlineExceeded,
    Hidden,
    Internal,
    InvalidArgument,
    PermissionDenied,
    SuanliError,
    Unauthenticated,
    Unavailable,
)
from scheduler.service.auditing import ACTING, Acting
from scheduler.service.refusals import Refusal

log = logging.getLogger(__name__)
_BEARER = "bearer "
_HEAR_OUT_S = 1.0
RECHECK_S = 2.0
"""How often the credentials of open streams are looked at again, when nothing says that one has ended."""
_RECHECKED_AT_ONCE = 500
_CHANGE_CREDENTIALS = frozenset({"suanli.v1.AdminService/RevokeApiKey", "suanli.v1.AdminService/PutUser"})
_NO_PROJECTS: frozenset[str] = frozenset()
_NOBODY = Caller("", "", 0, "", Scope.OWN)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class Leads(Protocol):
    """Knows who leads which projects."""

    def led_by(self, user: str) -> frozenset[str]:
        """See ``scheduler.service.people.People``."""
        ...


class RpcObserver(Protocol):
    """Counts calls."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A call has been answered."""
        ...

    def stream(self, method: str, change: int) -> None:
        """A stream has been opened (+1) or has ended (-1)."""
        ...


class Auditor(Protocol):
    """Writes the audit log."""

    def note_refusal(self, refusal: Refusal) -> None:
        """See ``scheduler.service.audit_contract.AuditService``."""
        ...


@dataclass(slots=True)
class _Call:
    """A call; those with streams are looked at again and again. ``failure`` is set when it has to end."""

    method: str
    caller: Caller = _NOBODY
    admission: Admission | None = None
    counted: bool = False
    """Whether it counts among its caller's open streams."""
    responses: Any = None
    failure: SuanliError | None = None


class Gate:
    """Makes gRPC handlers of servicers whose methods take ``(request, caller)``.

    A method ``SubmitJobs`` is served by ``submit_jobs``: a coroutine function, or an async generator function when it answers
    with a stream; a stream of requests comes as an async iterator.
    """

    def __init__(
        self,
        credentials: Credentials,
        people: Leads,
        observer: RpcObserver,
        auditor: Auditor,
        limiting: Limiting,
        agents_need_certificates: bool = False,
    ) -> None:
        self._credentials = credentials
        self._people = people
        self._streams: dict[asyncio.Task[object], _Call] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._recheck = asyncio.Event()
        self._auditor = auditor
        self._limiting = limiting
        self._agents_need_certificates = agents_need_certificates
        self._observer = observer
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
                if stream.failure is None and (failure := self._ended(stream)) is not None:
                    stream.failure = failure
                    if task in self._waiting:
                        task.cancel()
                if number % _RECHECKED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _ended(self, stream: _Call) -> SuanliError | None:
        """Why a stream has to end; None when its caller may go on."""
        if stream.admission is None:
            return None
        try:
            caller = self._caller(stream.method, stream.admission.renew())
        except SuanliError as error:
            return error
        if caller == stream.caller:
            return None
        return Unavailable("Your rights have changed; open the stream again.", reason="RIGHTS_CHANGED")

    async def _admit(self, call: _Call, context: Context, acting: Acting) -> None:
        """Note who calls, who is also the one acting; ``Unauthenticated`` or ``PermissionDenied`` when that may not be."""
        if not self.open:
            raise self._not_serving()
        if call.method in PUBLIC:
            return
        admission = await self._credentials.admit(_credential_in(context))
        credential = admission.credential
        acting.actor, acting.role, acting.institution = credential.user, credential.role, credential.institution
        acting.key_prefix = credential.name if credential.kind == API_KEY else ""
        if credential.role == Role.AGENT:
            self._check_certificate(context, credential.region)
        call.caller = self._caller(call.method, credential)
        call.admission = admission

    def _caller(self, method: str, credential: Credential) -> Caller:
        """Who calls a method with a credential; ``PermissionDenied`` when that may not be."""
        scope = scope_within(method, credential)
        leads = self._people.led_by(credential.user) if scope is Scope.PROJECT else _NO_PROJECTS
        known = (credential.user, credential.institution, credential.role, credential.region)
        return Caller(*known, scope, leads, credential)

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
        if stream.counted:
            self._limiting.leave(stream.caller)
        if stream.responses is not None:
            # A caller that hangs up leaves the generator in the middle: its clean-up must not wait for the collector.
            await stream.responses.aclose()

    def _check_certificate(self, context: Context, region: str) -> None:
        """The certificate that an agent shows must be for the region that its key is for: neither is of use without the other."""
        shown = {region_in(uri.decode("utf-8", "replace")) for uri in context.auth_context().get("peer_uri", ())} - {""}
        if shown and shown != {region}:
            raise Unauthenticated(
                f"Your certificate is for region {sorted(shown)[0]!r}, your key is for {region!r}.",
                reason="OTHER_REGIONS_CERTIFICATE",
            )
        if not shown and self._agents_need_certificates:
            raise Unauthenticated(
                "Agents must show a certificate with their region in it here, on the address for agents (agents_listen).",
                reason="NO_AGENT_CERTIFICATE",
            )

    def _not_serving(self) -> Unavailable:
        if self._closing:
            return Unavailable("The server is shutting down; try again in a moment.", reason="SHUTTING_DOWN")
        return Unavailable("This process is not the leader; try again in a moment.", reason="NOT_LEADER")

    def _unary(
        self, method: MethodDescriptor, function: Callable[[Any, Caller], Awaitable[Message]]
    ) -> Callable[[Any, Context], Awaitable[bytes]]:
        name, parse, streams = _name(method), _parser(method), method.client_streaming
        limiting = self._limiting

        async def handle(raw: Any, context: Context) -> bytes:
            start, task, call = perf_counter(), _current_task(), _Call(name)
            acting, request = _acting(context), None
            try:
                await self._admit(call, context, acting)
                limiting.enter(name, call.caller, streams)
                if streams:
                    call.counted, self._streams[task] = True, call
                request = _parsed(raw, parse, call) if streams else parse(raw)
                if streams or context.time_remaining() is not None:
                    answer = await function(request, call.caller)
                else:
                    answer = await _in_time(function(request, call.caller), limiting.unary_deadline_s)
                response = answer.SerializeToString()
            except Exception as error:
                failure = self._failure(name, error)
                self._audit(name, acting, request, failure)
                if streams:
                    await _hear_out(raw)
            else:
                if name in _CHANGE_CREDENTIALS:
                    self._recheck.set()
                self._observer.rpc(name, "OK", perf_counter() - start)
                return response
            finally:
                self._streams.pop(task, None)
                if call.counted:
                    limiting.leave(call.caller)
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
            acting, request = _acting(context), None
            try:
                await self._admit(stream, context, acting)
                self._limiting.enter(name, stream.caller, True)
                stream.counted = True
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
                self._audit(name, acting, request, failure)
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

    def _audit(self, name: str, acting: Acting, request: object, failure: SuanliError) -> None:
        """Have a refusal recorded, and the failure of a change. What was done is recorded where it is done."""
        row = AUDITED.get(name, Row(Kind.CHANGE))
        if isinstance(failure, PermissionDenied | Unauthenticated | Hidden):
            outcome = AuditOutcome.REFUSED
        elif row.kind is Kind.CHANGE and not isinstance(failure, Unavailable | Internal):
            outcome = AuditOutcome.FAILED
        else:
            return
        # Whoever floods the server would flood the log of it; a metric counts these.
        if acting.told or failure.reason == RATE_LIMITED:
            return
        action, target = name.rpartition("/")[2], target_of(row, request)
        self._auditor.note_refusal(
            Refusal(
                acting.actor,
                acting.role,
                acting.institution,
                action,
                target,
                int(outcome),
                failure.reason,
                acting.peer,
                acting.key_prefix,
            )
        )

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


async def _in_time(answer: Awaitable[Message], deadline_s: float | None) -> Message:
    """An answer, if it comes within the server's own deadline."""
    try:
        async with asyncio.timeout(deadline_s) as timer:
            return await answer
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceeded(
            f"The call took longer than {deadline_s:g} s, and brought no deadline of its own; give it a longer one."
        ) from None


async def _abort(context: Context, failure: SuanliError) -> bytes:
    code, details, metadata = status_of(failure)
    await context.abort(code, details, metadata)
    raise AssertionError("abort always raises")


async def _parsed(raw: AsyncIterator[bytes], parse: Callable[[bytes], Message], call: _Call) -> AsyncIterator[Message]:
    async for one in raw:
        if call.failure is not None:
            raise call.failure
        yield parse(one)


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "gRPC runs every call in a task"
    return task


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


def _acting(context: Context) -> Acting:
    """Whoever calls, as far as is known before the key is looked at; what this call's task does is done by them."""
    address = context.peer() or ""
    # ipv4:192.0.2.1:50000, ipv6:%5B2001:db8::1%5D:50000, unix:…; the port says nothing and is another each time.
    kind, _, rest = address.partition(":")
    acting = Acting(peer=unquote(rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else address))
    ACTING.set(acting)
    return acting


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
