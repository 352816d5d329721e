"""What the gateway asks nodes about pods, and how long it waits before it calls a node with pods lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workers.executor.config import ExecutorConfig
from workers.executor.isolation import PodSettings
from workers.executor.pod_keeper import UNCONFIRMED_S
from workers.executor.types import NodeDown
from workers.ray_gateway import GatewayConfig, RayGateway, _Node

GOOD, BAD = PodSettings(switch_ms=40_000), PodSettings(runtime_class="none", switch_ms=90_000)


class Method:
    """A method of a Ray actor."""

    async def remote(self, settings: tuple[PodSettings, ...]) -> tuple[str, ...]:
        return tuple("" if one is GOOD else "no such class" for one in settings)


def gateway(tmp_path: Path, *pods: PodSettings) -> RayGateway:
    made = RayGateway(GatewayConfig("", ExecutorConfig(str(tmp_path), str(tmp_path)), pods=pods))
    made._ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RuntimeError))
    return made


async def test_a_node_is_asked_for_what_pools_declare(tmp_path: Path) -> None:
    node = _Node("n1", SimpleNamespace(pod_problems=Method()))
    assert await gateway(tmp_path, GOOD, BAD)._pod_problems(node) == {GOOD: "", BAD: "no such class"}
    assert node.lingers_s == 40 + UNCONFIRMED_S


async def test_without_pods_nothing_is_asked_and_nothing_waited_for(tmp_path: Path) -> None:
    for pods, actor in (((), object()), ((BAD,), SimpleNamespace(pod_problems=Method()))):
        node = _Node("n1", actor)
        assert all((await gateway(tmp_path, *pods)._pod_problems(node)).values())
        assert node.lingers_s == 0


async def test_an_executor_of_an_earlier_release_has_no_pods(tmp_path: Path) -> None:
    found = await gateway(tmp_path, GOOD)._pod_problems(_Node("n1", object()))
    assert found == {GOOD: "its executor is of an earlier release"}


async def test_a_node_with_pods_is_lost_once_they_have_ended_themselves(tmp_path: Path) -> None:
    found = gateway(tmp_path, GOOD)
    node: Any = _Node("n1", None, lingers_s=0.3)
    found._nodes["n1"] = node
    began = time.monotonic()
    await found._down(node, "gone")
    await found._down(node, "gone, said again")
    # Its place is taken until then: a new executor of it cannot come before its loss.
    assert found._nodes == {"n1": node}
    async with asyncio.timeout(10):
        assert await found.next_event() == NodeDown("n1", "gone")
    assert time.monotonic() - began >= 0.3
    assert (found._nodes, found._queue.empty()) == ({}, True)
