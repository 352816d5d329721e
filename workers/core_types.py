"""What goes into ``workers.core.AgentCore`` and what comes out of it: plain values.

One turn: inputs in, a ``Turn`` out. Whoever runs the core commits ``Turn.durable`` in one transaction of the spool, then
acknowledges to the executors the events it had fed in, then performs ``Turn.effects`` in order. Nothing else is asked of it:
a crash between any two of these steps loses nothing and starts nothing twice.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from protos.suanli.v1 import regions_pb2 as pb
from workers.executor import types as ex


class Outcome(enum.IntEnum):
    """How an attempt ended; the values of ``suanli.v1.AttemptOutcome``."""

    UNSPECIFIED = 0
    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    PREEMPTED = 5
    NODE_LOST = 6
    OUT_OF_MEMORY = 7
    SPAWN_FAILED = 8
    ENVIRONMENT_FAILED = 9


AttemptName = tuple[str, int]
"""``(job_id, attempt)``: what names an attempt in a region."""


# What comes in, beside ``NodeUp``, ``NodeDown``, ``NodeEvents`` and ``NodeUsed`` of ``workers.executor.types``.


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A stream to the control plane is open; nothing has been sent on it."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The stream is gone; what was sent on it may or may not have arrived."""


@dataclass(frozen=True, slots=True)
class FromControl:
    """A message of the control plane, on the stream that is open. Messages about logs are not for the core."""

    message: pb.ConnectResponse


@dataclass(frozen=True, slots=True)
class NodesSettled:
    """Every node that lives has had its ``NodeUp``: attempts on any other node are lost. Fed once, after the start."""


@dataclass(frozen=True, slots=True)
class PortAllocated:
    """Answers ``AllocatePort``. ``port`` is 0 when there is none to be had; ``error`` says why."""

    job_id: str
    attempt: int
    port: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class LaunchRefused:
    """An executor did not take a launch on: nothing was started, and no event follows."""

    key: ex.AttemptKey
    message: str


@dataclass(frozen=True, slots=True)
class LaunchUnsure:
    """The call that carried a launch failed: the rank may or may not run."""

    key: ex.AttemptKey
    message: str


@dataclass(frozen=True, slots=True)
class ResultsMerged:
    """Answers ``MergeResults``. Of what could not be merged the manifest is empty, and ``error`` says what and why."""

    job_id: str
    attempt: int
    results: str
    logs: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class StopAll:
    """The region is being shut down: stop every attempt and report it as lost, so that it is queued again."""

    grace_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Fed a few times a second."""


Input = (
    LinkUp
    | LinkDown
    | FromControl
    | NodesSettled
    | PortAllocated
    | LaunchRefused
    | LaunchUnsure
    | ResultsMerged
    | StopAll
    | Tick
    | ex.NodeUp
    | ex.NodeDown
    | ex.NodeEvents
    | ex.NodeUsed
)


# What is to be made durable.


@dataclass(frozen=True, slots=True)
class AppendEvent:
    """Append an event to the spool; ``payload`` is a serialised ``AttemptEvent`` that carries ``seq`` too."""

    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DropEvents:
    """The control plane holds every event up to ``up_to``; later ones count on from there."""

    up_to: int


@dataclass(frozen=True, slots=True)
class ResetEvents:
    """Drop every event; ``acked_seq`` is where the control plane stands, and later ones count on from there."""

    acked_seq: int


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An accepted launch, or (``finished``) the tombstone of one, which keeps a late copy of the launch from running again.

    ``launch_seq`` is 0 in a tombstone made by a stop that came before its launch. ``made_ms`` is wall clock. ``body`` is the
    attempt's progress as JSON (``workers.core_attempt``), empty in a tombstone.
    """

    job_id: str
    attempt: int
    lease_epoch: int
    launch_seq: int
    finished: bool
    made_ms: int
    body: str = ""


@dataclass(frozen=True, slots=True)
class PutAttempt:
    """Insert or replace the record of this attempt."""

    record: AttemptRecord


@dataclass(frozen=True, slots=True)
class ForgetAttempt:
    """Delete the record of this attempt."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class PutMeta:
    """Set a named value."""

    name: str
    value: str


Durable = AppendEvent | DropEvents | ResetEvents | PutAttempt | ForgetAttempt | PutMeta


# What is to be done.


@dataclass(frozen=True, slots=True)
class Send:
    """Send this on the open stream; drop it when the stream is gone."""

    message: pb.ConnectRequest


@dataclass(frozen=True, slots=True)
class StartRank:
    """Have the executor of a node start one process. Launches for one node go in one call."""

    node_id: str
    launch: ex.Launch


@dataclass(frozen=True, slots=True)
class StopRank:
    """Have the executor of a node end one rank: SIGTERM, ``grace_ms``, SIGKILL. Unknown there: nothing to do."""

    node_id: str
    key: ex.AttemptKey
    grace_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class AllocatePort:
    """Find a free TCP port on a node for a gang's rendezvous; answered by ``PortAllocated``."""

    job_id: str
    attempt: int
    node_id: str


@dataclass(frozen=True, slots=True)
class MergeResults:
    """Make one manifest each of the results and the logs of a gang's ranks, by rank; answered by ``ResultsMerged``."""

    job_id: str
    attempt: int
    results: tuple[str, ...]
    logs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenewNode:
    """Tell a node's executor how long its attempts with partition_policy MOVE may go on without another word."""

    node_id: str
    lease_ms: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the stream and dial again after a while."""

    reason: str


Effect = Send | StartRank | StopRank | AllocatePort | MergeResults | RenewNode | HangUp


@dataclass(slots=True)
class Turn:
    """What one turn asks for: first ``durable``, all or nothing; then ``effects``, in order."""

    durable: list[Durable] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What a spool holds when it is opened. ``events`` by rising seq; ``acked_seq`` is the newest that was dropped."""

    spool_id: str
    acked_seq: int = 0
    events: tuple[AppendEvent, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolRule:
    """Nodes that carry all these labels, each with this very value, belong to the pool."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What the core is told once.

    ``machine`` names this start of the machine whose monotonic clock the core is fed: a lease kept in the spool is only as
    good as the clock it was measured with. ``data_dirs`` maps a data set's name to its folder on every node.
    """

    region: str
    boot_id: str
    machine: str
    software_version: str = ""
    pools: tuple[PoolRule, ...] = ()
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    resend_after_ms: int = 5_000
    welcome_timeout_ms: int = 10_000
    port_timeout_ms: int = 30_000
    max_attempts: int = 100_000
    usage_interval_ms: int = 30_000
    """What attempts have used so far is said at most this often."""
