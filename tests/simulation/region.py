"""A simulated region: nodes with executors that outlive the agent, and the real agent core over a spool."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protos.suanli.v1 import regions_pb2
from tests.simulation.link import Link
from workers.core import AgentCore
from workers.core_types import (
    AllocatePort,
    CoreConfig,
    FromControl,
    HangUp,
    Input,
    LinkDown,
    LinkUp,
    MergeResults,
    NodesSettled,
    PortAllocated,
    RenewNode,
    ResultsMerged,
    Send,
    StartRank,
    StopRank,
    Tick,
)
from workers.executor import types as ex
from workers.spool import MemorySpool

if TYPE_CHECKING:
    from tests.simulation.world import World


def stored_log(job_id: str, attempt: int, rank: int) -> str:
    """The manifest of the log that a rank leaves."""
    return f"sha256:{hashlib.sha256(f'{job_id}/{attempt}/{rank}'.encode()).hexdigest()}"


@dataclass
class Process:
    """One rank that is, or was, on a node."""

    launch: ex.Launch
    info: ex.AttemptInfo
    stopping: bool = False

    @property
    def alive(self) -> bool:
        """Whether a process exists."""
        return self.info.state in (ex.AttemptState.RUNNING, ex.AttemptState.STOPPING)


@dataclass
class SimNode:
    """A node with its executor; ``events`` are those the agent has not acknowledged."""

    node_id: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    pool: str
    accelerator: str
    boot: int = 1
    up: bool = True
    lease_until_ms: int = 0
    processes: dict[ex.AttemptKey, Process] = field(default_factory=dict)
    events: list[ex.Event] = field(default_factory=list)

    def node_up(self) -> ex.NodeUp:
        """What the gateway says of it."""
        return ex.NodeUp(
            node_id=self.node_id,
            name=self.node_id,
            labels={"suanli.io/pool": self.pool},
            cpu_milli=self.cpu_milli,
            memory_mib=self.memory_mib,
            gpus=tuple(ex.GpuInfo(i) for i in range(self.gpus)),
            accelerator_type=self.accelerator,
            boot_id=f"{self.node_id}-{self.boot}",
            address="127.0.0.1",
            attempts=tuple(p.info for p in self.processes.values() if p.info.state is not ex.AttemptState.ENDED),
        )


class Region:
    """The agent of a region and its nodes."""

    def __init__(self, world: World, name: str, nodes: Sequence[SimNode]) -> None:
        self.world = world
        self.kernel = world.kernel
        self.name = name
        self.nodes = {node.node_id: node for node in nodes}
        self.spool = MemorySpool(f"{name}-spool-1")
        self.core: AgentCore | None = None
        self.link: Link | None = None
        self._boots = 0
        self._partitioned = False
        self.spool_lost = False
        self._frozen_until_ms = 0
        self.starts: dict[tuple[str, int, int], int] = {}
        """How often a process of (job, attempt, rank) was ever started."""

    # --- the agent's life -------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the agent: the spool is read, the executors are found again, then the control plane is dialled."""
        self._boots += 1
        self._frozen_until_ms = 0
        boot = self._boots
        self.core = AgentCore(CoreConfig(self.name, f"{self.name}-{boot}", "machine"), self.spool.load())
        self.feed([node.node_up() for node in self.nodes.values() if node.up])
        for node in self.nodes.values():
            if node.events:
                self.feed_events(node)
        self.feed([NodesSettled()])
        self._tick(boot)
        self._dial(boot)

    def crash(self, lose_spool: bool) -> None:
        """kill -9 of the agent; jobs run on. Its disk may be lost as well."""
        self.core = None
        self._cut()
        if lose_spool:
            self.spool_lost = True
            self.spool = MemorySpool(f"{self.name}-spool-{self._boots + 1}")
        # Mostly it is back soon; now and then only after every lease has run out.
        away_ms = self.kernel.between(20_000, 60_000) if self.kernel.chance(0.2) else self.kernel.between(100, 8_000)
        self.kernel.after(away_ms, self.boot)

    def _tick(self, boot: int) -> None:
        if self.core is None or boot != self._boots:
            return
        if not self._frozen:
            self.feed([Tick()])
        self.kernel.after(250, lambda: self._tick(boot))

    def _dial(self, boot: int) -> None:
        if self.core is None or boot != self._boots or (self.link is not None and self.link.alive):
            return
        link = None if self._partitioned else self.world.control.accept(self)
        if link is None:
            self.kernel.after(self.kernel.between(200, 2_000), lambda: self._dial(boot))
            return
        self.link = link
        self._tell(LinkUp())

    def _cut(self) -> None:
        if self.link is not None:
            link, self.link = self.link, None
            link.cut()
            self.world.control.hung_up(self)

    def disconnect(self) -> None:
        """The stream breaks; the agent dials again."""
        if self.link is None:
            return
        self._cut()
        if self.core is not None:
            self._tell(LinkDown())
            boot = self._boots
            self.kernel.after(self.kernel.between(50, 1_500), lambda: self._dial(boot))

    def partition(self, for_ms: int) -> None:
        """Nothing passes for a while."""
        self._partitioned = True
        self.disconnect()
        self.kernel.after(for_ms, self._heal)

    def _heal(self) -> None:
        self._partitioned = False

    @property
    def _frozen(self) -> bool:
        return self.kernel.now_ms() < self._frozen_until_ms

    def freeze(self, for_ms: int) -> None:
        """The agent's process stands still for a while, as on a suspended machine; its stream stays open."""
        self._frozen_until_ms = self.kernel.now_ms() + for_ms
        self.kernel.after(for_ms, self._thaw)

    def _thaw(self) -> None:
        for node in self.nodes.values():
            self.feed_events(node)

    def _tell(self, item: Input) -> None:
        """Feed the core as soon as it is awake; what it is told while there is none is lost."""
        boot = self._boots
        if self._frozen:
            wait_ms = self._frozen_until_ms - self.kernel.now_ms()
            self.kernel.after(wait_ms, lambda: self._tell(item) if boot == self._boots else None)
        elif self.core is not None:
            self.feed([item])

    def said(self, link: Link, message: regions_pb2.ConnectResponse) -> None:
        """The control plane's word has arrived."""
        if self._frozen:
            self.kernel.after(self._frozen_until_ms - self.kernel.now_ms(), lambda: self.said(link, message))
        elif self.core is not None and link is self.link:
            self.feed([FromControl(message)])

    # --- the core's turns -------------------------------------------------------------------------------------------

    def feed(self, inputs: Sequence[Input]) -> None:
        """One turn of the core: durable first, then effects."""
        core = self.core
        assert core is not None
        now = self.kernel.now_ms()
        turn = core.handle(inputs, now, now - 1_000_000_000_000)
        self.spool.commit(turn.durable)
        for item in inputs:
            if isinstance(item, ex.NodeEvents):
                acked = len(item.events)
                del self.nodes[item.node_id].events[:acked]
        for effect in turn.effects:
            self._perform(effect)

    def feed_events(self, node: SimNode) -> None:
        """Hand the agent what the executor has to say; acknowledged in the same turn."""
        if self.core is not None and not self._frozen and node.up and node.events:
            self.feed([ex.NodeEvents(node.node_id, tuple(node.events))])

    def _perform(self, effect: object) -> None:
        if isinstance(effect, Send):
            if self.link is not None:
                self.world.control.heard_from(self, self.link, effect.message)
        elif isinstance(effect, StartRank):
            delay = self.kernel.between(0, 20)
            self.kernel.after(delay, lambda: self._start(self.nodes[effect.node_id], effect.launch))
        elif isinstance(effect, StopRank):
            delay = self.kernel.between(0, 20)
            self.kernel.after(delay, lambda: self._stop(self.nodes[effect.node_id], effect.key, effect.grace_ms))
        elif isinstance(effect, AllocatePort):
            port = PortAllocated(effect.job_id, effect.attempt, 29_500)
            self.kernel.after(5, lambda: self._tell(port))
        elif isinstance(effect, MergeResults):
            merged = ResultsMerged(effect.job_id, effect.attempt, "".join(effect.results[:1]), effect.logs[0])
            self.kernel.after(5, lambda: self._tell(merged))
        elif isinstance(effect, RenewNode):
            self.nodes[effect.node_id].lease_until_ms = self.kernel.now_ms() + effect.lease_ms
        elif isinstance(effect, HangUp):
            self.disconnect()

    # --- executors --------------------------------------------------------------------------------------------------

    def _say(self, node: SimNode, event: ex.Event) -> None:
        node.events.append(event)
        self.feed_events(node)

    def _start(self, node: SimNode, launch: ex.Launch) -> None:
        if not node.up:
            return
        known = node.processes.get(launch.key)
        if known is not None:
            # As the real executor does: tell again what an agent may have forgotten with its disk.
            info = known.info
            started = ex.Started(info.job_id, info.attempt, info.rank, 1, info.started_ms)
            self._say(node, info.exited or started)
            return
        key = (launch.job_id, launch.attempt, launch.rank)
        self.starts[key] = self.starts.get(key, 0) + 1
        now = self.kernel.now_ms()
        info = ex.AttemptInfo(launch.job_id, launch.attempt, launch.rank, ex.AttemptState.RUNNING, 1, now, ex.Usage())
        process = node.processes[launch.key] = Process(launch, info)
        if launch.lease_ms:
            node.lease_until_ms = max(node.lease_until_ms, now + launch.lease_ms)
            self._watch_lease(node, process)
        self.world.check_live()
        self._say(node, ex.Started(launch.job_id, launch.attempt, launch.rank, 1, now))
        runtime = int(launch.env.get("SIM_RUNTIME_MS", "1000"))
        code = int(launch.env.get("SIM_EXIT", "0"))
        flaky = float(launch.env.get("SIM_FLAKY", "0"))
        if flaky and self.kernel.chance(flaky):
            code = 1
        self.kernel.after(runtime, lambda: self._exit(node, process, ex.ExitReason.EXITED, code))

    def _watch_lease(self, node: SimNode, process: Process) -> None:
        """As the real executor does: what runs under a lease ends with it, whether or not there is an agent."""
        if not process.alive or node.processes.get(process.launch.key) is not process:
            return
        if self.kernel.now_ms() >= node.lease_until_ms:
            self._exit(node, process, ex.ExitReason.LOST, None)
        else:
            self.kernel.after(250, lambda: self._watch_lease(node, process))

    def _stop(self, node: SimNode, key: ex.AttemptKey, grace_ms: int) -> None:
        process = node.processes.get(key)
        if process is None or not node.up or not process.alive:
            return
        within = self.kernel.between(0, max(1, grace_ms))
        self.kernel.after(within, lambda: self._exit(node, process, ex.ExitReason.STOPPED, None))

    def _exit(self, node: SimNode, process: Process, reason: ex.ExitReason, code: int | None) -> None:
        if not process.alive or not node.up or node.processes.get(process.launch.key) is not process:
            return
        info = process.info
        now = self.kernel.now_ms()
        exited = ex.Exited(
            info.job_id,
            info.attempt,
            info.rank,
            reason,
            code,
            None,
            f"exit {code}",
            info.started_ms,
            now,
            logs_manifest=stored_log(info.job_id, info.attempt, info.rank),
        )
        process.info = ex.AttemptInfo(
            info.job_id, info.attempt, info.rank, ex.AttemptState.ENDED, None, info.started_ms, ex.Usage(), exited
        )
        self._say(node, exited)

    def crash_node(self, node: SimNode) -> None:
        """A node dies with all on it, and comes back empty."""
        if not node.up:
            return
        node.up = False
        node.processes.clear()
        node.events.clear()
        self.kernel.after(self.kernel.between(0, 1_000), lambda: self._node_seen_down(node))
        self.kernel.after(self.kernel.between(2_000, 20_000), lambda: self._revive(node))

    def _node_seen_down(self, node: SimNode) -> None:
        if not node.up:
            self._tell(ex.NodeDown(node.node_id, "the node died"))

    def _revive(self, node: SimNode) -> None:
        node.boot += 1
        node.up = True
        self._tell(node.node_up())
