"""The agent's way to its nodes: finds them through Ray, keeps an executor on each, and brings their events.

The agent may die and come back at any time: executors are detached, keep running their jobs and keep every event that
was not acknowledged. A new gateway finds them by name and begins with a ``NodeUp`` that lists what stands there.

Ray is imported at the start and not before: it reads its settings, the mode of authentication among them, from the
environment at the moment of its first import.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Mapping
from typing import Any

from workers.executor.config import ExecutorConfig
from workers.executor.isolation import PodSettings
from workers.executor.node import NodeOverrides
from workers.executor.pod_keeper import UNCONFIRMED_S
from workers.executor.types import (
    Cursor,
    ExecutorError,
    GatewayEvent,
    Launch,
    LogChunk,
    NodeDown,
    NodeEvents,
    NodesFound,
    NodeUp,
    NodeUsed,
    Refused,
    Stream,
    UnknownAttemptError,
)
from workers.node_actor import NAMESPACE, Description, NodeActor, actor_name

_log = logging.getLogger(__name__)

ACCELERATOR_LABEL = "ray.io/accelerator-type"
CPU_LABEL = "suanli.io/cpu-milli"
MEMORY_LABEL = "suanli.io/memory-mib"
_POLL_S = 10.0
_FAREWELL_S = 10.0
"""How long Ray may take to disconnect: for ever, when its cluster is gone."""
_TRIAL_S = 120.0
_OLD_EXECUTOR = "its executor is of an earlier release"
_MAX_WAITING = 1000
"""Gateway events not taken yet; nodes wait above that."""


class NodeUnavailableError(ExecutorError):
    """The node or its executor is gone or does not answer; whether a request got through is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class GatewayConfig:
    """``executor`` is the pattern for all nodes: in its ``root``, ``{node_id}`` stands for the node's id.

    ``address`` is that of the Ray cluster. The token, if the cluster has one, comes from the environment.
    """

    address: str
    executor: ExecutorConfig
    pods: tuple[PodSettings, ...] = ()
    """The ways of making pods that pools declare: each node is asked whether it can."""
    discover_interval_s: float = 1.0
    request_timeout_s: float = 30.0


@dataclasses.dataclass(slots=True)
class _Node:
    """One node that has been found, from then until it is reported down."""

    node_id: str
    actor: Any
    task: asyncio.Task[None] | None = None
    up: bool = False
    lingers_s: float = 0.0
    """How long something may live on it after its executor has died."""
    leaving: bool = False
    acknowledged: Cursor | None = None
    may_go_on: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class RayGateway:
    """All nodes of one Ray cluster. Belongs to one event loop; there is one per process."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._nodes: dict[str, _Node] = {}
        self._queue: asyncio.Queue[GatewayEvent] = asyncio.Queue(_MAX_WAITING)
        self._discovery: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._settled = False
        self._ray: Any = None

    async def start(self) -> None:
        """Connect to Ray and begin to look for nodes; raises ConnectionError when there is no cluster."""
        self._ray = await asyncio.to_thread(importlib.import_module, "ray")
        if self._config.address.startswith("127."):
            # Ray would look for the cluster at the host's outward address. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 says the
            # same, but only to a process that has it before it first imports ray.
            importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
        await asyncio.to_thread(
            self._ray.init,
            address=self._config.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
        self._discovery = asyncio.create_task(self._discover())

    async def close(self) -> None:
        """Let go of Ray. Executors and their jobs go on."""
        tasks = [node.task for node in self._nodes.values()] + [self._discovery, *self._leaving]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await asyncio.to_thread(self._ray.shutdown)

    async def next_event(self) -> GatewayEvent:
        """Wait for the next event of any node. Those of one node come in order."""
        return await self._queue.get()

    def acknowledge(self, node_id: str, cursor: Cursor) -> None:
        """Say that all events up to ``cursor`` are safe: the node forgets them and sends what follows."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.acknowledged = cursor
            node.may_go_on.set()

    # --- requests to one node -------------------------------------------------------------------------------------

    async def launch(self, node_id: str, launches: tuple[Launch, ...]) -> tuple[Refused, ...]:
        """Start processes on a node; raises NodeUnavailableError. Sending a launch twice is harmless."""
        return await self._ask(node_id, "launch", launches)  # type: ignore[no-any-return]

    async def stop(
        self,
        node_id: str,
        job_id: str,
        attempt: int,
        grace_ms: int,
        reason: str = "stopped on request",
        rank: int | None = None,
    ) -> None:
        """End one rank of an attempt, or all that are on a node; raises NodeUnavailableError."""
        await self._ask(node_id, "stop", job_id, attempt, grace_ms, reason, rank)

    async def renew(self, node_id: str, lease_ms: int) -> None:
        """Let attempts that run under a lease on a node go on for so long; raises NodeUnavailableError."""
        await self._ask(node_id, "renew", lease_ms)

    async def read_log(
        self, node_id: str, job_id: str, attempt: int, rank: int, stream: Stream, offset: int, limit: int
    ) -> LogChunk:
        """Return a piece of a log; raises UnknownAttemptError or NodeUnavailableError."""
        return await self._ask(  # type: ignore[no-any-return]
            node_id, "read_log", job_id, attempt, rank, stream, offset, limit
        )

    async def free_port(self, node_id: str) -> int:
        """Return a port that nothing listens on at that node; raises NodeUnavailableError."""
        return int(await self._ask(node_id, "free_port"))

    async def _ask(self, node_id: str, method: str, *arguments: Any) -> Any:
        node = self._nodes.get(node_id)
        if node is None:
            raise NodeUnavailableError(f"there is no node {node_id}")
        return await self._call(node, method, *arguments)

    async def _call(self, node: _Node, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        try:
            async with asyncio.timeout(timeout_s or self._config.request_timeout_s):
                return await getattr(node.actor, method).remote(*arguments)
        except UnknownAttemptError as error:
            # Ray hands errors over as children of both their class and its own: only the sentence is wanted.
            cause = getattr(error, "cause", error)
            raise UnknownAttemptError(str(cause)) from None
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            text = str(error).strip().splitlines()
            raise NodeUnavailableError(text[-1][:500] if text else type(error).__name__) from error

    # --- finding nodes --------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        settling: set[str] | None = None
        while True:
            try:
                found = {node["NodeID"]: node for node in await asyncio.to_thread(self._ray.nodes) if node["Alive"]}
            except self._ray.exceptions.RayError as error:
                _log.warning("Ray does not tell its nodes: %s", error)
            else:
                for node_id, node in found.items():
                    if node_id not in self._nodes and _offers_anything(node):
                        entry = self._nodes[node_id] = _Node(node_id, None)
                        entry.task = asyncio.create_task(self._serve(entry, node))
                for node_id in [one for one in self._nodes if one not in found]:
                    await self._down(self._nodes[node_id], "Ray has lost the node")
                if not self._settled:
                    settling = set(self._nodes) if settling is None else settling
                    self._settled = all(one not in self._nodes or self._nodes[one].up for one in settling)
                    if self._settled:
                        await self._queue.put(NodesFound())
            await asyncio.sleep(self._config.discover_interval_s)

    async def _down(self, node: _Node, message: str) -> None:
        """Forget a node and say so, once. While Ray still lists it, it is found again and gets a new executor."""
        if self._nodes.get(node.node_id) is not node or node.leaving:
            return
        node.leaving = True
        if node.lingers_s:
            # Its place stays taken meanwhile: its loss must be told before it can be found again.
            leave = asyncio.create_task(self._leave(node, message))
            self._leaving.add(leave)
            leave.add_done_callback(self._leaving.discard)
        else:
            await self._leave(node, message)

    async def _leave(self, node: _Node, message: str) -> None:
        await asyncio.sleep(node.lingers_s)
        del self._nodes[node.node_id]
        if node.task is not None and node.task is not asyncio.current_task():
            node.task.cancel()
            await asyncio.gather(node.task, return_exceptions=True)
        await self._queue.put(NodeDown(node.node_id, message))

    async def _serve(self, node: _Node, found: Mapping[str, Any]) -> None:
        """Keep one node: its executor, then its events, until it is gone."""
        try:
            node.actor = await asyncio.to_thread(self._actor, found)
            described: Description = await self._call(node, "describe")
            problems = await self._pod_problems(node)
            await self._queue.put(_node_up(found, described, problems))
            node.up = True
            while True:
                polled = await self._call(node, "poll", node.acknowledged, _POLL_S, timeout_s=_POLL_S * 3)
                # An executor that was started by an agent of an earlier release tells none.
                if used := getattr(polled, "used", ()):
                    await self._queue.put(NodeUsed(node.node_id, used))
                if not polled.events:
                    continue
                node.may_go_on.clear()
                await self._queue.put(NodeEvents(node.node_id, polled.events, polled.cursor))
                await node.may_go_on.wait()
        except (NodeUnavailableError, self._ray.exceptions.RayError, ValueError) as error:
            _log.warning("executor of node %s: %s", node.node_id, error)
            # An executor that does not answer may still run jobs: it must be gone before it is called gone.
            if node.actor is not None:
                with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                    await asyncio.to_thread(self._ray.kill, node.actor)
            await self._down(node, f"the node's executor is gone: {error}")

    async def _pod_problems(self, node: _Node) -> dict[PodSettings, str]:
        """Ask a node whether jobs can have pods there."""
        wanted = self._config.pods
        if not wanted:
            return {}
        if not hasattr(node.actor, "pod_problems"):
            return dict.fromkeys(wanted, _OLD_EXECUTOR)
        found = dict(zip(wanted, await self._call(node, "pod_problems", wanted, timeout_s=_TRIAL_S), strict=True))
        # A pod whose keeper has died ends itself, but not at once.
        switches = [one.switch_ms / 1000 + UNCONFIRMED_S for one, problem in found.items() if not problem]
        node.lingers_s = max(switches, default=0.0)
        return found

    def _actor(self, found: Mapping[str, Any]) -> Any:
        node_id = found["NodeID"]
        pattern = self._config.executor
        overrides = _overrides(found)
        config = dataclasses.replace(pattern, root=pattern.root.replace("{node_id}", node_id), node=overrides)
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        actor_class = self._ray.remote(NodeActor)
        return actor_class.options(
            name=actor_name(node_id),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=1000,
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(config)


def _offers_anything(found: Mapping[str, Any]) -> bool:
    return bool(found["Resources"].get("CPU") or found["Resources"].get("GPU") or CPU_LABEL in found["Labels"])


def _overrides(found: Mapping[str, Any]) -> NodeOverrides:
    """Return the capacity that the node declares: by label, else by its Ray resources."""
    labels, resources = found["Labels"], found["Resources"]
    return NodeOverrides(
        cpu_milli=_whole(labels.get(CPU_LABEL)) or int(resources.get("CPU", 0) * 1000),
        memory_mib=_whole(labels.get(MEMORY_LABEL)) or int(resources.get("memory", 0)) >> 20,
        gpus=int(resources.get("GPU", 0)),
        accelerator_type=labels.get(ACCELERATOR_LABEL, ""),
        address=found["NodeManagerAddress"],
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _node_up(found: Mapping[str, Any], described: Description, pod_problems: Mapping[PodSettings, str]) -> NodeUp:
    node = described.node
    return NodeUp(
        node_id=found["NodeID"],
        name=found.get("NodeName") or node.hostname,
        labels=dict(found["Labels"]),
        cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib,
        gpus=node.gpus,
        accelerator_type=node.accelerator_type,
        boot_id=node.boot_id,
        address=node.address,
        attempts=described.attempts,
        # An executor that was started by an agent of an earlier release knows of no sandbox.
        sandbox_problem=getattr(described, "sandbox_problem", _OLD_EXECUTOR),
        pod_problems=pod_problems,
        limits=getattr(node, "limits", ()),
    )
