"""The stream to the control plane: enrols once, dials, dials again, and never gives up."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from protos.suanli.v1 import regions_pb2 as pb
from protos.suanli.v1.regions_pb2_grpc import RegionServiceStub
from workers.agent_logs import LogTails
from workers.config import AgentConfig
from workers.core_types import FromControl, Input, LinkDown, LinkUp

log = logging.getLogger("workers.agent")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
CALL_TIMEOUT_S = 20.0
MAX_OUTGOING = 20_000
"""Messages that wait for the network; a control plane that takes none for so long is hung up on."""
MAX_LOGS_WAITING = 8
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class SetupError(Exception):
    """What the agent needs to begin (a key, the Ray cluster) is not to be had; the text is a sentence that says what to do."""


class LinkUser(Protocol):
    """Whose words the link carries."""

    def feed(self, item: Input) -> None:
        """Something has happened on the link."""
        ...

    async def room(self) -> None:
        """Wait while too much waits to be handled."""
        ...

    def open_logs(self, send: Callable[[pb.ConnectRequest], Any]) -> LogTails | None:
        """Logs for one connection; None while there are no nodes to read them from."""
        ...

    def on_welcome(self, welcome: pb.Welcome) -> None:
        """The control plane has answered."""
        ...


class Credential:
    """The agent's key on disk, readable by its user alone."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config

    def read(self) -> str | None:
        """The key; None when there is none yet. ``SetupError`` when it cannot be read."""
        try:
            return self._config.credential_file.read_text().strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"cannot read the agent's key {self._config.credential_file}: {error}") from error

    def token(self) -> str:
        """The enrolment token."""
        path = self._config.token_file
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(
                f"the agent has no key and cannot read its enrolment token {path}; make one with "
                f"`suanli region enrol-token {self._config.region}` and write it to that file"
            ) from error
        if not token:
            raise SetupError(f"the enrolment token file {path} is empty")
        return token

    def write(self, key: str) -> None:
        """Keep a new key, whole or not at all."""
        path = self._config.credential_file
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class ControlLink:
    """Keeps one stream open. ``run`` returns only with an error that dialling again does not mend."""

    def __init__(self, config: AgentConfig, user: LinkUser) -> None:
        self._config = config
        self._user = user
        self._credential = Credential(config)
        self._random = random.Random()  # noqa: S311 - jitter, nothing secret
        self._failures = 0
        self._outgoing: asyncio.Queue[pb.ConnectRequest] | None = None
        self._logs_room = asyncio.Semaphore(MAX_LOGS_WAITING)
        self._call: grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse] | None = None

    def send(self, message: pb.ConnectRequest) -> None:
        """Send a message of the core; dropped when the stream is gone."""
        if self._outgoing is None:
            return
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.hang_up("it has taken no message for a long time")

    def hang_up(self, reason: str) -> None:
        """End the stream; ``run`` dials again."""
        log.warning("hanging up on the control plane: %s", reason)
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Dial for ever. ``SetupError`` when there is no key to be had."""
        channel = self._channel()
        try:
            stub: Any = RegionServiceStub(channel)
            while True:
                try:
                    key = self._credential.read() or await self._enrol(stub)
                    await self._session(stub, key)
                    log.info("the control plane ended the stream")
                except grpc.aio.AioRpcError as error:
                    await self._on_error(stub, error)
                await self._wait()
        finally:
            await channel.close()

    def _channel(self) -> grpc.aio.Channel:
        config = self._config
        if config.tls_ca is None and config.loopback:
            return grpc.aio.insecure_channel(config.control_plane, options=OPTIONS)
        try:
            authorities = config.tls_ca.read_bytes() if config.tls_ca is not None else None
        except OSError as error:
            raise SetupError(f"cannot read tls_ca {config.tls_ca}: {error.strerror}") from error
        return grpc.aio.secure_channel(
            config.control_plane, grpc.ssl_channel_credentials(root_certificates=authorities), options=OPTIONS
        )

    async def _wait(self) -> None:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(self._random.uniform(longest / 2, longest))

    async def _on_error(self, stub: Any, error: grpc.aio.AioRpcError) -> None:
        level = logging.INFO if error.code() is grpc.StatusCode.UNAVAILABLE else logging.WARNING
        log.log(level, "control plane %s: %s", self._config.control_plane, error.details() or error.code().name)
        if error.code() is grpc.StatusCode.UNAUTHENTICATED and self._config.token_file.exists():
            # The key was revoked, perhaps because the region is to enrol anew. Jobs run on meanwhile.
            try:
                await self._enrol(stub)
            except (SetupError, grpc.aio.AioRpcError) as failure:
                log.warning("the agent's key is refused, and so is its token: %s", failure)

    async def _enrol(self, stub: Any) -> str:
        token = self._credential.token()
        name = socket.gethostname()[:128]
        request = pb.EnrolAgentRequest(token=token, region=self._config.region, agent_name=name)
        try:
            answer: pb.EnrolAgentResponse = await stub.EnrolAgent(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
            ):
                raise SetupError(
                    f"the control plane refused the enrolment token in {self._config.token_file}: {error.details()}"
                ) from error
            raise
        self._credential.write(answer.api_key)
        log.info("enrolled as the agent of region %s", self._config.region)
        return answer.api_key

    async def _session(self, stub: Any, key: str) -> None:
        call = stub.Connect(metadata=(("authorization", f"Bearer {key}"),))
        self._call = call
        self._outgoing = asyncio.Queue(MAX_OUTGOING)
        self._logs_room = asyncio.Semaphore(MAX_LOGS_WAITING)
        logs = self._user.open_logs(self._send_log)
        self._user.feed(LinkUp())
        writer = asyncio.create_task(self._write(call, self._outgoing))
        try:
            async for message in call:
                kind = message.WhichOneof("message")
                if kind == "log_request":
                    if logs is None:
                        logs = self._user.open_logs(self._send_log)
                    if logs is not None:
                        logs.start(message.log_request)
                elif kind == "log_cancel":
                    if logs is not None:
                        logs.cancel(message.log_cancel.request_id)
                else:
                    if kind == "welcome":
                        self._failures = 0
                        self._user.on_welcome(message.welcome)
                    self._user.feed(FromControl(message))
                    await self._user.room()
        except asyncio.CancelledError:
            # hang_up cancels the call and not this task.
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
        finally:
            self._call = self._outgoing = None
            writer.cancel()
            call.cancel()
            if logs is not None:
                await logs.close()
            await asyncio.gather(writer, return_exceptions=True)
            self._user.feed(LinkDown())

    async def _write(self, call: Any, outgoing: asyncio.Queue[pb.ConnectRequest]) -> None:
        try:
            while True:
                message = await outgoing.get()
                await call.write(message)
                if message.HasField("log"):
                    self._logs_room.release()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # The reader sees why the stream ended.
            log.debug("writing to the control plane: %s", error)

    async def _send_log(self, message: pb.ConnectRequest) -> None:
        outgoing = self._outgoing
        await self._logs_room.acquire()
        if outgoing is not None:
            outgoing.put_nowait(message)


def write_ready_file(path: Path) -> None:
    """Tell whoever waits for the agent that it serves."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(f"{os.getpid()}\n")
    draft.replace(path)
