"""RegionService: agents enrol, and talk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine

from protos.suanli.v1 import regions_pb2
from scheduler.api.gate import first_of
from scheduler.api.logs import LogBroker, RegionLink
from scheduler.api.tls import AgentAuthority
from scheduler.api.visibility import Caller
from scheduler.domain.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from scheduler.service.contract import AgentSession, Service
from scheduler.wire import check
from scheduler.wire.agent import command_to_proto, hello_from_proto, message_from_proto
from scheduler.wire.spec import SpecCodec

HELLO_TIMEOUT_S = 30.0
# Commands that wait for the network; beyond, they wait in the session.
_OUTGOING = 256

_Outgoing = asyncio.Queue[regions_pb2.ConnectResponse | BaseException | None]


class RegionApi:
    """Serves agents. ``artifacts_url`` is told to agents that have none of their own; ``authority`` signs their certificates."""

    def __init__(
        self,
        service: Service,
        codec: SpecCodec,
        logs: LogBroker,
        artifacts_url: str,
        authority: AgentAuthority | None = None,
    ) -> None:
        self._authority = authority
        self._service = service
        self._codec = codec
        self._logs = logs
        self._artifacts_url = artifacts_url

    async def enrol_agent(
        self, request: regions_pb2.EnrolAgentRequest, caller: Caller
    ) -> regions_pb2.EnrolAgentResponse:
        """Exchange a token for a key, and for a certificate when one is asked for."""
        del caller
        check.slug(request.region, "region", "a region's id")
        check.text(request.agent_name, 128, "agent_name")
        check.text(request.token, 256, "token")
        # What is wrong with the request must not cost the token, which is good for one use.
        certificate = ""
        if request.certificate_request:
            certificate = self._sign(request.certificate_request, request.region)
        key = await self._service.enrol_agent(request.token, request.region, request.agent_name)
        return regions_pb2.EnrolAgentResponse(api_key=key, region=request.region, certificate=certificate)

    async def renew_certificate(
        self, request: regions_pb2.RenewCertificateRequest, caller: Caller
    ) -> regions_pb2.RenewCertificateResponse:
        """Sign a new certificate for the caller's region; the gate has compared the present one with the key."""
        certificate = self._sign(request.certificate_request, caller.region)
        return regions_pb2.RenewCertificateResponse(certificate=certificate)

    def _sign(self, request: str, region: str) -> str:
        if self._authority is None:
            raise FailedPrecondition(
                "This control plane signs no certificates (tls.agent_ca_key): give the agent one of your own, as tls_cert and "
                "tls_key.",
                reason="NO_AGENT_CA",
            )
        return self._authority.sign(request, region, "certificate_request")

    async def connect(
        self, requests: AsyncIterator[regions_pb2.ConnectRequest], caller: Caller
    ) -> AsyncIterator[regions_pb2.ConnectResponse]:
        """One agent's session."""
        first = await first_of(requests, HELLO_TIMEOUT_S, "Hello")
        if first.WhichOneof("message") != "hello":
            raise InvalidArgument("The first message of an agent is Hello.", reason="NO_HELLO", field="hello")
        hello = hello_from_proto(first.hello)
        if hello.region != caller.region:
            raise PermissionDenied(
                f"hello.region: the key is for region {caller.region!r}, not for {hello.region!r}.",
                reason="OTHER_REGION",
                field="hello.region",
            )
        session = self._service.open_agent_session(hello.region)
        link = self._logs.attach(hello.region)
        outgoing: _Outgoing = asyncio.Queue(_OUTGOING)
        tasks = [
            asyncio.create_task(_ending(outgoing, self._listen(requests, session, link))),
            asyncio.create_task(_ending(outgoing, self._command(session, outgoing))),
            asyncio.create_task(_ending(outgoing, _forward(link.outgoing(), outgoing))),
        ]
        try:
            await session.receive(hello)
            while (item := await outgoing.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            for task in tasks:
                task.cancel()
            # Before anything that waits: the caller's hanging up may cut off what is done here, too.
            self._logs.detach(link)
            await session.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(
        self, requests: AsyncIterator[regions_pb2.ConnectRequest], session: AgentSession, link: RegionLink
    ) -> None:
        async for request in requests:
            message = message_from_proto(request)
            if message is not None:
                await session.receive(message)
            elif request.HasField("log"):
                link.deliver(request.log)

    async def _command(self, session: AgentSession, outgoing: _Outgoing) -> None:
        async for command in session.commands():
            await outgoing.put(command_to_proto(command, self._codec, self._artifacts_url))
        raise Unavailable(
            "This session has ended: a newer one of the region has begun, or this process leads no more; connect again.",
            reason="SESSION_ENDED",
        )


async def _forward(source: AsyncIterator[regions_pb2.ConnectResponse], outgoing: _Outgoing) -> None:
    async for response in source:
        await outgoing.put(response)


async def _ending(outgoing: _Outgoing, work: Coroutine[None, None, None]) -> None:
    """Do the work, then have the stream end: with its error, or in peace."""
    end: BaseException | None = None
    try:
        await work
    except Exception as error:
        end = error
    await outgoing.put(end)
