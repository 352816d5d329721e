"""An agent core with a spool in memory, as a runner owes it: commit, then take the effects. Restarts lose only what they may."""

from __future__ import annotations

from collections.abc import Sequence

from protos.suanli.v1 import common_pb2, jobs_pb2
from protos.suanli.v1 import regions_pb2 as pb
from workers.core import AgentCore
from workers.core_types import (
    CoreConfig,
    Effect,
    FromControl,
    HangUp,
    Input,
    LinkDown,
    LinkUp,
    NodesSettled,
    Send,
    StartRank,
    StopRank,
    Tick,
)
from workers.executor import types as ex
from workers.spool import MemorySpool

NODES = ("n1", "n2", "n3")
WALL = 1_700_000_000_000


def node_up(
    node_id: str, boot_id: str = "e1", gpus: int = 0, attempts: Sequence[ex.AttemptInfo] = (), **labels: str
) -> ex.NodeUp:
    """A node with 4 cores."""
    return ex.NodeUp(
        node_id=node_id,
        name=f"name-{node_id}",
        labels=labels,
        cpu_milli=4000,
        memory_mib=8192,
        gpus=tuple(ex.GpuInfo(index + 4) for index in range(gpus)),
        accelerator_type="A100" if gpus else "",
        boot_id=boot_id,
        address=f"10.0.0.{node_id[1:]}",
        attempts=tuple(attempts),
    )


def launch(
    job: str = "j1",
    attempt: int = 1,
    nodes: Sequence[str] = ("n1",),
    seq: int = 1,
    epoch: int = 7,
    move: bool = False,
    grace_ms: int = 3000,
) -> pb.Launch:
    """A launch of one rank on each of ``nodes``."""
    policy = jobs_pb2.PARTITION_POLICY_MOVE if move else jobs_pb2.PARTITION_POLICY_WAIT
    spec = jobs_pb2.JobSpec(
        name="a job", institution="uni", project="p", grace_period_ms=grace_ms, partition_policy=policy
    )
    spec.resources.cpu_milli = 1000
    spec.environment["A"] = "1"
    replicas = [jobs_pb2.ReplicaPlacement(rank=rank, node_id=node) for rank, node in enumerate(nodes)]
    return pb.Launch(
        job_id=job,
        attempt=attempt,
        lease_epoch=epoch,
        launch_seq=seq,
        spec=spec,
        user="ann",
        pool="cpu",
        replicas=replicas,
        argv=["true"],
    )


def stop(job: str = "j1", attempt: int = 1, epoch: int = 7, grace_ms: int = 2000, outcome: int = 4) -> pb.Stop:
    """A stop; outcome 4 is CANCELLED, 5 PREEMPTED."""
    return pb.Stop(
        job_id=job,
        attempt=attempt,
        lease_epoch=epoch,
        grace_ms=grace_ms,
        outcome=common_pb2.AttemptOutcome.Name(outcome),
        message="asked for",
    )


def started(job: str = "j1", attempt: int = 1, rank: int = 0, at_ms: int = WALL) -> ex.Started:
    return ex.Started(job, attempt, rank, 100 + rank, at_ms)


def exited(
    job: str = "j1",
    attempt: int = 1,
    rank: int = 0,
    reason: ex.ExitReason = ex.ExitReason.EXITED,
    code: int | None = 0,
    **more: object,
) -> ex.Exited:
    fields: dict[str, object] = {
        "signal": None,
        "message": "",
        "started_ms": WALL,
        "ended_ms": WALL,
        "usage": ex.Usage(cpu_ms=10, peak_memory_mib=5),
    }
    if reason is not ex.ExitReason.EXITED:
        code = None
    fields |= more
    return ex.Exited(job_id=job, attempt=attempt, rank=rank, reason=reason, exit_code=code, **fields)  # type: ignore[arg-type]


def info(
    rank: int = 0, state: ex.AttemptState = ex.AttemptState.RUNNING, ended: ex.Exited | None = None
) -> ex.AttemptInfo:
    return ex.AttemptInfo("j1", 1, rank, state, 9, WALL, ex.Usage(), ended)


class Rig:
    """Feeds a core, keeps its effects, and stands for the control plane's acknowledgements."""

    def __init__(self, **config: object) -> None:
        self.config = config
        self.spool = MemorySpool("spool-1")
        self.wall_ms = WALL
        self.mono_ms = 1_000
        self.boots = 0
        self.machine = "m1"
        self.effects: list[Effect] = []
        self.start()

    def start(self) -> None:
        """Start the agent anew from what its spool holds."""
        self.boots += 1
        options = CoreConfig(region="east", boot_id=f"b{self.boots}", machine=self.machine, **self.config)  # type: ignore[arg-type]
        self.core = AgentCore(options, self.spool.load())
        self.effects.clear()

    def feed(self, *inputs: Input) -> list[Effect]:
        """One turn; its effects."""
        turn = self.core.handle(inputs, self.wall_ms, self.mono_ms)
        self.spool.commit(turn.durable)
        self.effects.extend(turn.effects)
        return turn.effects

    def say(self, **message: object) -> list[Effect]:
        """One message of the control plane."""
        return self.feed(FromControl(pb.ConnectResponse(**message)))  # type: ignore[arg-type]

    def later(self, ms: int) -> list[Effect]:
        """Let time pass, then tick."""
        self.wall_ms += ms
        self.mono_ms += ms
        return self.feed(Tick())

    def executor(self, node_id: str, *events: ex.Event) -> list[Effect]:
        """Events of one executor."""
        return self.feed(ex.NodeEvents(node_id, events))

    def join(self, nodes: Sequence[str] = NODES) -> Rig:
        """All nodes up and settled."""
        self.feed(*(node_up(node_id) for node_id in nodes), NodesSettled())
        return self

    def connect(self, acked: int | None = None, epoch: int = 1, heartbeat_ms: int = 1000) -> Rig:
        """A new stream, welcomed. ``acked`` defaults to what the spool was told last."""
        self.feed(LinkDown(), LinkUp())
        acked = self.spool.load().acked_seq if acked is None else acked
        self.say(welcome=pb.Welcome(leader_epoch=epoch, heartbeat_interval_ms=heartbeat_ms, acked_event_seq=acked))
        return self

    def lease(self, ttl_ms: int = 10_000, floor: int = 0) -> list[Effect]:
        """A lease for the newest report."""
        return self.say(lease=pb.Lease(report_seq=self.reports()[-1].report_seq, ttl_ms=ttl_ms, launch_floor=floor))

    def ready(self) -> Rig:
        """Nodes, stream and lease are there; no effects kept."""
        self.join().connect().lease()
        self.effects.clear()
        return self

    def sent(self, kind: str) -> list[object]:
        """Messages of a kind that were sent since ``effects`` was cleared."""
        messages = [effect.message for effect in self.effects if isinstance(effect, Send)]
        return [getattr(message, kind) for message in messages if message.WhichOneof("message") == kind]

    def reports(self) -> list[pb.StateReport]:
        return self.sent("state")  # type: ignore[return-value]

    def events(self) -> list[pb.AttemptEvent]:
        """Every event sent, resent ones too."""
        return [event for batch in self.sent("events") for event in batch.events]  # type: ignore[attr-defined]

    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events()]

    def finished(self) -> pb.AttemptFinished:
        """The only end that was reported."""
        (event,) = (event for event in self.events() if event.HasField("finished"))
        return event.finished

    def starts(self) -> list[ex.Launch]:
        return [effect.launch for effect in self.effects if isinstance(effect, StartRank)]

    def stops(self) -> list[tuple[str, int, int]]:
        """(node, rank, grace) of every stop."""
        return [(e.node_id, e.key.rank, e.grace_ms) for e in self.effects if isinstance(e, StopRank)]

    def hang_ups(self) -> list[str]:
        return [effect.reason for effect in self.effects if isinstance(effect, HangUp)]

    def ack_all(self) -> None:
        """The control plane holds every event."""
        last = self.spool.load().events
        if last:
            self.say(ack=pb.EventAck(seq=last[-1].seq))
