"""What a region's agent says and is told, as plain values (``suanli.v1`` regions.proto is the same on the wire)."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.resources import Resources
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import AttemptOutcome


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent introduces itself: this start of it, and the spool its event numbers count in."""

    region: str
    boot_id: str
    spool_id: str
    software_version: str


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node as the agent sees it. ``labels`` are sorted pairs."""

    node_id: str
    name: str
    pool: str
    accelerator: str
    capacity: Resources
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptRef:
    """Names an attempt so exactly that an old one cannot be taken for a new one."""

    job_id: str
    attempt: int
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class StateReport:
    """All nodes the agent has and all attempts it knows, as of its event ``event_seq``."""

    report_seq: int
    event_seq: int
    nodes: tuple[NodeReport, ...]
    attempts: tuple[AttemptRef, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """Every replica's process has been started."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt is over and nothing of it runs any more."""

    outcome: AttemptOutcome
    exit_code: int = 0
    exit_signal: int = 0
    message: str = ""
    cpu_used_ms: int = 0
    peak_memory_mib: int = 0
    results: str = ""
    checkpoint: str = ""
    logs: str = ""
    gpu_used_milli_ms: int = 0
    gpu_peak_memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The newest checkpoint's manifest."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """One event of the agent's spool; ``age_ms`` is how long before the message's sending it happened."""

    seq: int
    ref: AttemptRef
    age_ms: int
    event: Started | Finished | Checkpointed


@dataclass(frozen=True, slots=True)
class AttemptEvents:
    """Events in the order of their numbers."""

    events: tuple[AttemptEvent, ...]


@dataclass(frozen=True, slots=True)
class AttemptUsage:
    """What a live attempt has used so far: totals that never go back. 1000 of ``gpu_used_milli_ms`` is one GPU busy for 1 ms."""

    ref: AttemptRef
    cpu_used_ms: int = 0
    peak_memory_mib: int = 0
    gpu_used_milli_ms: int = 0
    gpu_peak_memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What live attempts have used so far; a lost one does not matter, and not every attempt is in each."""

    attempts: tuple[AttemptUsage, ...]


AgentMessage = Hello | StateReport | AttemptEvents | UsageReport


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers Hello."""

    leader_epoch: int
    heartbeat_interval_ms: int
    acked_event_seq: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The agent may go on for ``ttl_ms`` after it sent ``report_seq``; launches below the floor are settled."""

    report_seq: int
    ttl_ms: int
    launch_floor: int


@dataclass(frozen=True, slots=True)
class EventAck:
    """All events up to ``seq`` are durable."""

    seq: int


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """Where one replica goes, and on which GPUs of that node."""

    node_id: str
    gpu_indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """Start this attempt. ``replicas`` by rank; ``array_size`` is 0 for a job that is no task of an array.

    ``isolated``: only where jobs are kept apart.
    """

    ref: AttemptRef
    launch_seq: int
    spec: JobSpec
    user: str
    pool: str
    accelerator: str
    replicas: tuple[ReplicaPlacement, ...]
    checkpoint: str = ""
    array_index: int = 0
    array_size: int = 0
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End this attempt with notice, and report ``outcome``. For an unknown attempt: report it so at once."""

    ref: AttemptRef
    grace_ms: int
    outcome: AttemptOutcome
    message: str


AgentCommand = Welcome | Lease | EventAck | Launch | Stop
