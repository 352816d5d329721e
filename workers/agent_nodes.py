"""Carries out what the core asks of nodes: launches and stops in batches per node, ports, merged results and logs."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from artifacts import ArtifactStore, Entry
from workers.agent_isolation import NodeIsolation
from workers.agent_ray import RayTokens
from workers.core_types import (
    AllocatePort,
    Input,
    LaunchRefused,
    LaunchUnsure,
    MergeResults,
    PortAllocated,
    RenewNode,
    ResultsMerged,
    StartRank,
    StopRank,
)
from workers.executor import types as ex

log = logging.getLogger("workers.agent")

MAX_LAUNCHES_PER_CALL = 256
MAX_PLACES = 50_000


class NodeGateway(Protocol):
    """The way to the nodes (``workers.ray_gateway.RayGateway``). Requests raise ``ExecutorError`` when in doubt."""

    async def next_event(self) -> ex.GatewayEvent:
        """The next event of any node."""
        ...

    def acknowledge(self, node_id: str, cursor: ex.Cursor) -> None:
        """The events up to the cursor are safe."""
        ...

    async def launch(self, node_id: str, launches: tuple[ex.Launch, ...]) -> tuple[ex.Refused, ...]:
        """Start processes."""
        ...

    async def stop(self, node_id: str, job_id: str, attempt: int, grace_ms: int, reason: str) -> None:
        """End all ranks of an attempt on a node."""
        ...

    async def renew(self, node_id: str, lease_ms: int) -> None:
        """Let attempts that run under a lease on a node go on for so long."""
        ...

    async def free_port(self, node_id: str) -> int:
        """A port that nothing listens on."""
        ...

    async def close(self) -> None:
        """Let go of the nodes; what runs there goes on."""
        ...

    async def read_log(
        self, node_id: str, job_id: str, attempt: int, rank: int, stream: ex.Stream, offset: int, limit: int
    ) -> ex.LogChunk:
        """A piece of a log."""
        ...


class Places:
    """On which node each rank was put last, also of attempts that have ended; the newest 50,000."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[ex.AttemptKey, str] = OrderedDict()

    def put(self, key: ex.AttemptKey, node_id: str) -> None:
        """Remember one."""
        self._nodes[key] = node_id
        self._nodes.move_to_end(key)
        while len(self._nodes) > MAX_PLACES:
            self._nodes.popitem(last=False)

    def get(self, key: ex.AttemptKey) -> str | None:
        """The node, if it is known."""
        return self._nodes.get(key)


class NodeLines:
    """One line of requests per node, in order, each call carrying all that has gathered; no task per job.

    ``answer`` takes what comes back. The order of a launch and a stop of the same attempt is kept.
    """

    def __init__(
        self,
        gateway: NodeGateway,
        answer: Callable[[Input], None],
        artifacts_url: str,
        isolation: NodeIsolation,
        ray_tokens: RayTokens,
    ) -> None:
        self._gateway = gateway
        self._answer = answer
        self._artifacts_url = artifacts_url
        self._isolation = isolation
        self._ray_tokens = ray_tokens
        self._lines: dict[str, list[StartRank | StopRank]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._merging = asyncio.Semaphore(2)
        self.places = Places()

    def put(self, effect: StartRank | StopRank) -> None:
        """Put a request in its node's line."""
        if isinstance(effect, StartRank):
            self.places.put(effect.launch.key, effect.node_id)
        line = self._lines.get(effect.node_id)
        if line is None:
            line = self._lines[effect.node_id] = []
            self._task(self._serve(effect.node_id, line))
        line.append(effect)

    def renew(self, effect: RenewNode) -> None:
        """Hand a lease on to a node, beside its line of launches and stops."""
        self._task(self._renew(effect))

    def ask_port(self, effect: AllocatePort) -> None:
        """Find a port for a gang."""
        self._task(self._port(effect))

    def merge(self, effect: MergeResults) -> None:
        """Merge what the ranks of a gang left."""
        self._task(self._merge(effect))

    async def close(self) -> None:
        """Drop what has not been sent; what is under way may or may not arrive."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, node_id: str, line: list[StartRank | StopRank]) -> None:
        # The task lives as long as there is something in the line, so that a node that goes leaves nothing behind.
        while line:
            starting = isinstance(line[0], StartRank)
            count = next((n for n, one in enumerate(line) if isinstance(one, StartRank) is not starting), len(line))
            batch = line[: min(count, MAX_LAUNCHES_PER_CALL)]
            del line[: len(batch)]
            if starting:
                await self._launch(node_id, tuple(one.launch for one in batch if isinstance(one, StartRank)))
            else:
                await self._stop(node_id, [one for one in batch if isinstance(one, StopRank)])
        del self._lines[node_id]

    async def _launch(self, node_id: str, launches: tuple[ex.Launch, ...]) -> None:
        launches = tuple(self._ray_tokens.equip(self._isolation.isolate(node_id, one)) for one in launches)
        try:
            refused = await self._gateway.launch(node_id, launches)
        except Exception as error:
            log.warning("launches on node %s may have failed: %s", node_id, error)
            for launch in launches:
                self._answer(LaunchUnsure(launch.key, f"the node did not answer: {error}"))
            return
        for one in refused:
            self._answer(LaunchRefused(one.key, one.message))

    async def _stop(self, node_id: str, stops: list[StopRank]) -> None:
        # An executor stops all ranks of an attempt at once.
        whole: dict[tuple[str, int], StopRank] = {}
        for one in stops:
            name = (one.key.job_id, one.key.attempt)
            if name not in whole or one.grace_ms < whole[name].grace_ms:
                whole[name] = one
        calls = [
            self._gateway.stop(node_id, job_id, attempt, one.grace_ms, one.message)
            for (job_id, attempt), one in whole.items()
        ]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, Exception):
                # The core asks again until the rank has ended or the node is lost.
                log.warning("a stop on node %s may have failed: %s", node_id, result)

    async def _renew(self, effect: RenewNode) -> None:
        try:
            await self._gateway.renew(effect.node_id, effect.lease_ms)
        except Exception as failure:
            # The next lease brings the next try.
            log.warning("the lease of node %s could not be renewed: %s", effect.node_id, failure)

    async def _port(self, effect: AllocatePort) -> None:
        try:
            port, error = await self._gateway.free_port(effect.node_id), ""
        except Exception as failure:
            port, error = 0, str(failure)
        self._answer(PortAllocated(effect.job_id, effect.attempt, port, error))

    async def _merge(self, effect: MergeResults) -> None:
        errors: list[str] = []
        async with self._merging:
            results = await self._merged("results", effect.results, errors)
            logs = await self._merged("logs", effect.logs, errors)
        self._answer(ResultsMerged(effect.job_id, effect.attempt, results, logs, "; ".join(errors)))

    async def _merged(self, what: str, manifests: tuple[str, ...], errors: list[str]) -> str:
        """One manifest of several; empty when that fails, which is noted in ``errors``."""
        if len(manifests) < 2:
            return manifests[0] if manifests else ""
        try:
            return await asyncio.to_thread(merge_manifests, self._artifacts_url, manifests)
        except Exception as failure:
            errors.append(f"{what}: {str(failure) or repr(failure)}")
            return ""


def merge_manifests(artifacts_url: str, manifests: tuple[str, ...]) -> str:
    """Store one manifest with the files of all; of two files with one path, the lower rank's counts. Blocks."""
    store = ArtifactStore(artifacts_url)
    entries: dict[str, Entry] = {}
    for manifest in manifests:
        for entry in store.manifest(manifest):
            entries.setdefault(entry.path, entry)
    return store.put_manifest(list(entries.values()))
