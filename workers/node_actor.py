"""The Ray actor that puts a node executor on a node.

It is detached: it lives on when the agent that created it dies, and the next agent finds it by its name. When the
actor's process dies, for whatever reason, its warden kills the job processes.
"""

from __future__ import annotations

import asyncio
import dataclasses

from workers.executor.config import ExecutorConfig
from workers.executor.isolation import PodSettings
from workers.executor.pod_executor import PodExecutor
from workers.executor.types import AttemptInfo, Cursor, Launch, LogChunk, NodeInfo, Polled, Refused, Stream

NAMESPACE = "suanli"


def actor_name(node_id: str) -> str:
    """Return the name of a node's executor."""
    return f"suanli-executor-{node_id}"


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """An executor's node and what stands on it."""

    node: NodeInfo
    attempts: tuple[AttemptInfo, ...]
    sandbox_problem: str


class NodeActor:
    """One node's executor behind Ray. Methods are those of ``NodeExecutor``; the first call starts it."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._executor: PodExecutor | None = None
        self._starting = asyncio.Lock()

    async def _ready(self) -> PodExecutor:
        async with self._starting:
            if self._executor is None:
                executor = PodExecutor(self._config)
                await executor.start()
                self._executor = executor
            return self._executor

    async def describe(self) -> Description:
        """Return the node and all attempts that the executor knows."""
        executor = await self._ready()
        return Description(executor.info(), await executor.attempts(), executor.sandbox_problem)

    async def pod_problems(self, settings: tuple[PodSettings, ...]) -> tuple[str, ...]:
        """Try whether jobs can have such pods; return for each why not, empty where they can."""
        executor = await self._ready()
        return tuple(await asyncio.gather(*(executor.pod_problem(one) for one in settings)))

    async def launch(self, launches: tuple[Launch, ...]) -> tuple[Refused, ...]:
        """Start processes."""
        return await (await self._ready()).launch(launches)

    async def stop(self, job_id: str, attempt: int, grace_ms: int, reason: str, rank: int | None) -> None:
        """End one rank of an attempt, or all that are on this node."""
        await (await self._ready()).stop(job_id, attempt, grace_ms, reason, rank)

    async def renew(self, lease_ms: int) -> None:
        """Let attempts under a lease go on for so long."""
        await (await self._ready()).renew(lease_ms)

    async def poll(self, cursor: Cursor | None, timeout_s: float) -> Polled:
        """Return events after the cursor, waiting for the first."""
        return await (await self._ready()).poll(cursor, timeout_s)

    async def read_log(self, job_id: str, attempt: int, rank: int, stream: Stream, offset: int, limit: int) -> LogChunk:
        """Return a piece of a log."""
        return await (await self._ready()).read_log(job_id, attempt, rank, stream, offset, limit)

    async def free_port(self) -> int:
        """Return a TCP port that nothing listens on."""
        return (await self._ready()).free_port()

    async def close(self) -> None:
        """Kill every process and free the folder; the actor is of no use afterwards."""
        async with self._starting:
            if self._executor is not None:
                await self._executor.close()
