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
from workers.certificate import Certificate, CertificateError, write_private
from workers.config import AgentConfig
from workers.core_types import FromControl, Input, LinkDown, LinkUp

log = logging.getLogger("workers.agent")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
CALL_TIMEOUT_S = 20.0
RENEW_EVERY_S = 60.0
"""How often the agent looks whether its certificate is to be renewed."""
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
        write_private(self._config.credential_file, f"{key}\n".encode())


class Channels:
    """The ways to the control plane, opened when they are needed, and anew when a certificate file has changed."""

    def __init__(self, config: AgentConfig, certificate: Certificate) -> None:
        self._config = config
        self._certificate = certificate
        self._open: dict[str, tuple[tuple[bytes | None, bytes, bytes], grpc.aio.Channel]] = {}

    def lacks_certificate(self) -> bool:
        """Whether the agent needs a certificate and has none."""
        return bool(self._config.agents_address) and self._certificate.read() is None

    async def anybody(self) -> Any:
        """The stub on the address that asks for no certificate."""
        return await self._stub(self._config.control_plane, b"", b"")

    async def agents(self) -> Any:
        """The stub with the agent's certificate, where there is an address for it. CertificateError without one."""
        if not self._config.agents_address:
            return await self.anybody()
        identity = self._certificate.read()
        if identity is None:
            raise CertificateError("the agent has no certificate yet")
        return await self._stub(self._config.agents_address, identity.key, identity.chain)

    async def close(self) -> None:
        """Hang up everywhere."""
        for _, channel in self._open.values():
            await channel.close()
        self._open.clear()

    async def _stub(self, address: str, key: bytes, chain: bytes) -> Any:
        files = (self._authorities(), key, chain)
        known = self._open.get(address)
        if known is not None and known[0] == files:
            return RegionServiceStub(known[1])
        channel = self._dial(address, *files)
        self._open[address] = (files, channel)
        if known is not None:
            await known[1].close()
        return RegionServiceStub(channel)

    def _authorities(self) -> bytes | None:
        path = self._config.tls_ca
        try:
            return path.read_bytes() if path is not None else None
        except OSError as error:
            raise SetupError(f"cannot read tls_ca {path}: {error.strerror}") from error

    def _dial(self, address: str, authorities: bytes | None, key: bytes, chain: bytes) -> grpc.aio.Channel:
        if authorities is None and self._config.loopback and not key:
            return grpc.aio.insecure_channel(address, options=OPTIONS)
        credentials = grpc.ssl_channel_credentials(authorities, key or None, chain or None)
        return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


class ControlLink:
    """Keeps one stream open. ``run`` returns only with an error that dialling again does not mend."""

    def __init__(self, config: AgentConfig, user: LinkUser) -> None:
        self._config = config
        self._user = user
        self._credential = Credential(config)
        self._certificate = Certificate(config)
        self._channels = Channels(config, self._certificate)
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
        renewing = asyncio.create_task(self._renew())
        try:
            while True:
                try:
                    key = self._credential.read()
                    if key is None or self._channels.lacks_certificate():
                        key = await self._enrol()
                    await self._session(await self._channels.agents(), key)
                    log.info("the control plane ended the stream")
                except grpc.aio.AioRpcError as error:
                    await self._on_error(error)
                except CertificateError as error:
                    # Perhaps just being replaced. Jobs run on meanwhile.
                    log.error("cannot dial the control plane: %s", error)
                await self._wait()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._channels.close()

    async def _renew(self) -> None:
        """Renew the agent's own certificate in time, with the one that is still good; the next dialling takes the new one."""
        while True:
            try:
                key = self._credential.read()
                if key is not None and self._config.agents_address and self._certificate.is_due():
                    private, request = self._certificate.request()
                    answer: pb.RenewCertificateResponse = await (await self._channels.agents()).RenewCertificate(
                        pb.RenewCertificateRequest(certificate_request=request),
                        metadata=(("authorization", f"Bearer {key}"),),
                        timeout=CALL_TIMEOUT_S,
                    )
                    self._certificate.keep(private, answer.certificate)
                    log.info("the agent's certificate has been renewed")
            except grpc.aio.AioRpcError as error:
                log.warning("the agent's certificate cannot be renewed now: %s", error.details() or error.code().name)
            except (CertificateError, SetupError, OSError) as error:
                log.warning("the agent's certificate cannot be renewed now: %s", error)
            await asyncio.sleep(RENEW_EVERY_S)

    async def _wait(self) -> None:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(self._random.uniform(longest / 2, longest))

    async def _on_error(self, error: grpc.aio.AioRpcError) -> None:
        level = logging.INFO if error.code() is grpc.StatusCode.UNAVAILABLE else logging.WARNING
        log.log(level, "control plane %s: %s", self._config.control_plane, error.details() or error.code().name)
        expired = bool(self._config.agents_address) and self._certificate.has_expired()
        if expired:
            log.error("the agent's certificate has expired; %s", self._certificate.remedy)
        if (expired or error.code() is grpc.StatusCode.UNAUTHENTICATED) and self._config.token_file.exists():
            # The key was revoked, perhaps because the region is to enrol anew. Jobs run on meanwhile.
            try:
                await self._enrol()
            except (SetupError, CertificateError, grpc.aio.AioRpcError) as failure:
                log.warning("the agent's key is refused, and so is its token: %s", failure)

    async def _enrol(self) -> str:
        token = self._credential.token()
        private, wish = b"", ""
        if self._config.agents_address and not self._certificate.brought:
            private, wish = self._certificate.request()
        stub = await self._channels.anybody()
        name = socket.gethostname()[:128]
        request = pb.EnrolAgentRequest(
            token=token, region=self._config.region, agent_name=name, certificate_request=wish
        )
        try:
            answer: pb.EnrolAgentResponse = await stub.EnrolAgent(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
            ):
                raise SetupError(
                    f"the control plane refused the enrolment token in {self._config.token_file}: {error.details()}"
                ) from error
            raise
        if wish and not answer.certificate:
            raise SetupError("the control plane gave no certificate: it is too old for agents_address")
        if wish:
            self._certificate.keep(private, answer.certificate)
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
