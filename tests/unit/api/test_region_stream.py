"""How an agent's session ends when its stream is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protos.suanli.v1 import regions_pb2
from scheduler.api.logs import LogBroker
from scheduler.api.permissions import Role, Scope
from scheduler.api.regions import RegionApi
from scheduler.api.visibility import Caller
from scheduler.domain.errors import Unavailable
from scheduler.wire.agent import PROTOCOL_VERSION
from scheduler.wire.spec import SpecCodec
from tests.unit.service.harness import NoAlgorithms

AGENT = Caller("agent-east", "", Role.AGENT, "east", Scope.ANY)


class Session:
    """One that has nothing to say."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.closed = False

    async def receive(self, message: object) -> None:
        self.heard.set()

    async def commands(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async def close(self) -> None:
        self.closed = True


class Service:
    def __init__(self) -> None:
        self.session = Session()

    def open_agent_session(self, region: str) -> Session:
        return self.session


@pytest.mark.parametrize("steps", range(12))
async def test_it_is_over_at_once_whenever_the_caller_hangs_up(steps: int) -> None:
    """The end of what the caller says and the caller's hanging up come one after the other, with any distance."""
    service, logs, ends = Service(), LogBroker(), asyncio.Event()

    async def requests() -> AsyncIterator[regions_pb2.ConnectRequest]:
        hello = regions_pb2.Hello(region="east", boot_id="b", spool_id="s", protocol_version=PROTOCOL_VERSION)
        yield regions_pb2.ConnectRequest(hello=hello)
        await ends.wait()

    api = RegionApi(service, SpecCodec(NoAlgorithms()), logs, "")  # type: ignore[arg-type]

    async def serve() -> None:
        async for _ in api.connect(requests(), AGENT):
            pass

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(20):
        await service.session.heard.wait()
    ends.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert service.session.closed
    with pytest.raises(Unavailable):
        logs.pull("east", None, 0, 0, follow=False)  # type: ignore[arg-type]
