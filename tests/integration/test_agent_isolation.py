"""What an agent does with nodes that have no sandbox, and with jobs on those that have one."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.agent_tools import FakeControl, launch, write_config
from workers.agent import Agent
from workers.agent_link import SetupError
from workers.config import AgentConfig, load_config
from workers.executor import types as ex
from workers.executor.isolation import Isolation, Network, PodSettings, Tier
from workers.spool import SqliteSpool

NODE = ex.NodeUp("n1", "node one", {"disk": "ssd"}, 4000, 4096, (), "", "boot", "127.0.0.1")
POD = PodSettings()
PODDED = replace(NODE, pod_problems={POD: ""})
BARE = replace(NODE, sandbox_problem="the program bwrap is not there")


class FakeGateway:
    """Tells of nodes and notes what it is asked."""

    def __init__(self, *events: ex.GatewayEvent) -> None:
        self.events: asyncio.Queue[ex.GatewayEvent] = asyncio.Queue()
        for event in events:
            self.events.put_nowait(event)
        self.launched: asyncio.Queue[ex.Launch] = asyncio.Queue()
        self.stopped: list[tuple[str, int]] = []
        self.acknowledged: list[ex.Cursor] = []

    async def next_event(self) -> ex.GatewayEvent:
        return await self.events.get()

    async def launch(self, node_id: str, launches: tuple[ex.Launch, ...]) -> tuple[ex.Refused, ...]:
        for one in launches:
            self.launched.put_nowait(one)
        return ()

    async def stop(self, node_id: str, job_id: str, attempt: int, grace_ms: int, reason: str) -> None:
        self.stopped.append((job_id, attempt))

    def acknowledge(self, node_id: str, cursor: ex.Cursor) -> None:
        self.acknowledged.append(cursor)

    async def close(self) -> None:
        pass


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    control = FakeControl()
    await control.start()
    yield control
    await control.stop()


def agent_with(config: AgentConfig, gateway: FakeGateway) -> Agent:
    async def open_gateway(_: AgentConfig, __: str) -> FakeGateway:
        return gateway

    return Agent(config, SqliteSpool(config.state_dir / "spool.db"), open_gateway)  # type: ignore[arg-type]


def configured(folder: Path, control: FakeControl, **isolation: object) -> AgentConfig:
    return load_config(write_config(folder, control, isolation=isolation))


async def test_a_region_whose_nodes_cannot_do_what_they_must_does_not_start(
    control: FakeControl, tmp_path: Path
) -> None:
    left = ex.AttemptInfo("old", 1, 0, ex.AttemptState.RUNNING, 7, 1, ex.Usage())
    gateway = FakeGateway(replace(BARE, attempts=(left,)), ex.NodesFound())
    agent = agent_with(configured(tmp_path, control, tier="sandbox"), gateway)
    async with asyncio.timeout(20):
        with pytest.raises(SetupError, match=r"node one is refused: .* bwrap is not there.*tier: process"):
            await agent.run()
    assert gateway.stopped == [("old", 1)]


@pytest.mark.parametrize(
    ("problems", "words"),
    [({POD: "the cluster has no RuntimeClass 'gvisor'"}, "no RuntimeClass"), ({}, "not been tried")],
)
async def test_a_node_that_cannot_have_pods_is_refused_with_the_reason(
    control: FakeControl, tmp_path: Path, problems: dict[PodSettings, str], words: str
) -> None:
    gateway = FakeGateway(replace(NODE, pod_problems=problems), ex.NodesFound())
    agent = agent_with(configured(tmp_path, control, tier="pod"), gateway)
    async with asyncio.timeout(20):
        with pytest.raises(SetupError, match=f"node one is refused: .* must run in pods, .*{words}"):
            await agent.run()


async def test_one_bad_node_is_left_out_and_the_others_serve(
    control: FakeControl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cursor = ex.Cursor("boot", 1)
    events = ex.NodeEvents("n1", (), cursor)
    gateway = FakeGateway(BARE, events, replace(NODE, node_id="n2", limits=("cpu", "pids")), ex.NodesFound())
    agent = agent_with(configured(tmp_path, control, tier="sandbox"), gateway)
    running = asyncio.create_task(agent.run())
    await control.until(lambda: control.report is not None and control.report.nodes)
    assert control.report is not None
    (node,) = control.report.nodes
    labels = {"disk": "ssd", "suanli.io/isolation": "sandbox", "suanli.io/limits": "cpu,pids"}
    assert (node.id, dict(node.labels)) == ("n2", labels)
    assert gateway.acknowledged == [cursor]
    assert "node one is refused" in caplog.text
    agent.stop(False)
    await running


@pytest.mark.parametrize(
    ("node", "tier", "label", "warned"),
    [
        (NODE, "auto", "sandbox", False),
        (BARE, "auto", "process", True),
        (NODE, "process", "process", True),
        (replace(PODDED, sandbox_problem="no bwrap"), "pod", "pod", False),
    ],
)
async def test_a_launch_carries_what_the_pool_declares_and_a_weak_tier_is_seen(
    control: FakeControl,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    node: ex.NodeUp,
    tier: str,
    label: str,
    warned: bool,
) -> None:
    caplog.set_level(logging.WARNING)
    gateway = FakeGateway(node, ex.NodesFound())
    agent = agent_with(configured(tmp_path, control, tier=tier, network="none", processes=99), gateway)
    running = asyncio.create_task(agent.run())
    await control.until(lambda: control.report is not None and control.report.nodes)
    assert control.report is not None
    labels = control.report.nodes[0].labels
    limits = "none" if label == "sandbox" else None
    assert (labels["suanli.io/isolation"], labels.get("suanli.io/limits")) == (label, limits)
    assert ("WITHOUT A SANDBOX" in caplog.text) is warned
    control.say(launch=launch("job", ["n1"], [sys.executable], 1))
    async with asyncio.timeout(20):
        launched = await gateway.launched.get()
    assert launched.isolation == Isolation(Tier(tier), Network.NONE, processes=99)
    assert not launched.isolated
    sensitive = launch("other", ["n1"], [sys.executable], 2)
    sensitive.isolated = True
    control.say(launch=sensitive)
    async with asyncio.timeout(20):
        assert (await gateway.launched.get()).isolated
    agent.stop(False)
    await running
