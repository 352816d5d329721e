"""What the agent core and a node's executor say to each other: plain frozen values.

Units: ``*_ms`` at the end of a duration is milliseconds; ``at_ms``, ``started_ms`` and ``ended_ms`` are wall clock
milliseconds since 1970 (UTC); ``*_mib`` is mebibytes; ``cpu_milli`` and ``gpu_milli`` are thousandths of one device.
An artifact is named ``sha256:<64 hex digits>``, the hash of its manifest (see ``artifacts``).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from workers.executor.isolation import TRUSTED, Isolation


class ExecutorError(Exception):
    """A request that the executor refuses; the text is a sentence for people."""


class UnknownAttemptError(ExecutorError):
    """The executor has no such attempt: never launched here, or its folder has been cleaned away."""


class Stream(enum.StrEnum):
    """One of a process's two output streams."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ExitReason(enum.StrEnum):
    """Why a rank of an attempt is no longer alive."""

    EXITED = "exited"
    """The process ended by itself with ``exit_code`` (0 is success)."""
    SIGNALLED = "signalled"
    """The process died of ``signal``, which the executor did not send."""
    OUT_OF_MEMORY = "out_of_memory"
    """It used more memory than it asked for, or the kernel killed it for lack of memory."""
    OUT_OF_DISK = "out_of_disk"
    """It kept more on the node's disk than its pool allows."""
    TIMED_OUT = "timed_out"
    """It ran for longer than ``max_runtime_ms``."""
    STOPPED = "stopped"
    """``stop`` was called for it."""
    SPAWN_FAILED = "spawn_failed"
    """No process could be started: no such command, not executable, no such folder."""
    ENVIRONMENT_FAILED = "environment_failed"
    """The working folder, the checkpoint or the packages could not be prepared."""
    LOST = "lost"
    """The executor lost its grip on the process (its warden died) and has killed what was left of it."""


class AttemptState(enum.StrEnum):
    """Where one rank stands on its node."""

    PREPARING = "preparing"
    """Folder, checkpoint and packages are being made ready; there is no process yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It has been told to end and still has a process."""
    STORING = "storing"
    """The process has ended; results and checkpoint are on their way to the artifact store."""
    ENDED = "ended"


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Labels of a job that its process gets to see as ``SUANLI_*`` variables."""

    name: str = ""
    institution: str = ""
    project: str = ""
    user: str = ""
    region: str = ""
    pool: str = ""
    array_index: int | None = None
    array_size: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """One process of one attempt: rank ``rank`` of ``world_size``.

    ``argv[0]`` is looked up in the job's PATH; ``python`` is the interpreter of the node (or of the job's packages).
    ``env`` may not hold names that start with ``SUANLI_``; rank and GPU variables in it are overridden.
    """

    job_id: str
    attempt: int
    argv: tuple[str, ...]
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workdir_artifact: str | None = None
    checkpoint_artifact: str | None = None
    parameters_json: str | None = None
    """Text that the process finds in the file named by SUANLI_PARAMETERS."""
    packages: tuple[str, ...] = ()
    """Requirements in pip's form, installed into a virtual environment shared by equal lists."""
    cpu_milli: int = 1000
    memory_mib: int = 0
    """Limit for the whole process tree; 0 is no limit."""
    gpu_indices: tuple[int, ...] = ()
    gpu_milli: int = 0
    max_runtime_ms: int = 0
    """Counted from the start of the process; 0 is no limit."""
    lease_ms: int = 0
    """More than 0: it may run only under a lease, this long from now or as ``renew`` says later. 0: no lease."""
    grace_ms: int = 10_000
    """From SIGTERM to SIGKILL when the process runs out of time."""
    log_limit_bytes: int = 64 * 1024 * 1024
    """Per stream. Above it the first half and the newest half are kept."""
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    """0: no rendezvous; MASTER_ADDR and MASTER_PORT are not set."""
    data_dirs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Data set name to folder on this node; linked by name in the folder SUANLI_DATA."""
    keep: Keep = dataclasses.field(default_factory=Keep)
    isolation: Isolation = TRUSTED
    """What the job's pool declares."""
    isolated: bool = False
    """Whatever that is: refused where jobs are not kept apart."""

    @property
    def key(self) -> AttemptKey:
        """What names this process."""
        return AttemptKey(self.job_id, self.attempt, self.rank)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class AttemptKey:
    """One rank of one attempt of one job."""

    job_id: str
    attempt: int
    rank: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A launch that was not taken on; nothing was started and no event follows."""

    key: AttemptKey
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children used; diagnostic, not the bill (the bill is the allocation)."""

    cpu_ms: int = 0
    peak_memory_mib: int = 0
    memory_mib: int = 0
    """At the last sample; 0 after the end."""
    gpu_used_milli_ms: int = 0
    """Sum over samples of milli-GPUs busy × ms: 1000 is one GPU busy for 1 ms."""
    gpu_peak_memory_mib: int = 0
    """The most that the tree's processes held at a sample, summed over its GPUs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """The process runs the job's own command."""

    job_id: str
    attempt: int
    rank: int
    pid: int
    at_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpointed:
    """Rank 0's checkpoint folder is safe in the artifact store as ``manifest`` while the job runs on."""

    job_id: str
    attempt: int
    rank: int
    manifest: str
    at_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Exited:
    """The last event of a rank: nothing of it is alive, and what it left is stored."""

    job_id: str
    attempt: int
    rank: int
    reason: ExitReason
    exit_code: int | None
    """Set when the process ended by itself (0 to 255)."""
    signal: str | None
    """Name such as SIGSEGV when the process died of one."""
    message: str
    started_ms: int
    """0 when there never was a process."""
    ended_ms: int
    usage: Usage = dataclasses.field(default_factory=Usage)
    results_manifest: str | None = None
    checkpoint_manifest: str | None = None
    logs_manifest: str | None = None
    """Holds ``stdout.log`` and ``stderr.log``, those that are not empty (rank > 0: under ``rank-N/``)."""

    @property
    def succeeded(self) -> bool:
        """The process ended by itself with exit code 0."""
        return self.reason is ExitReason.EXITED and self.exit_code == 0


Event = Started | Checkpointed | Exited


@dataclasses.dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the stream of events of one run of one executor; handing it back acknowledges all before it."""

    boot_id: str
    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Polled:
    """Answer of ``poll``: the events after the cursor, oldest first, and the cursor that acknowledges them."""

    cursor: Cursor
    events: tuple[Event, ...]
    used: tuple[Used, ...] = ()
    """What those alive have used so far, now and then; not kept, not acknowledged."""


@dataclasses.dataclass(frozen=True, slots=True)
class Used:
    """What one rank that is alive has used so far."""

    job_id: str
    attempt: int
    rank: int
    usage: Usage


@dataclasses.dataclass(frozen=True, slots=True)
class AttemptInfo:
    """What the executor knows of one rank, for reconciliation."""

    job_id: str
    attempt: int
    rank: int
    state: AttemptState
    pid: int | None
    started_ms: int
    usage: Usage
    exited: Exited | None = None
    """Set in state ENDED."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a log from ``offset`` on. Offsets count all that was written, what was left out included."""

    data: bytes
    next_offset: int
    end: bool
    """The stream has ended and nothing follows ``next_offset``."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU of a node; ``memory_mib`` is 0 when unknown (a logical GPU)."""

    index: int
    name: str = ""
    memory_mib: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class NodeInfo:
    """The machine that an executor stands on."""

    hostname: str
    boot_id: str
    """Changes with each start of the executor: attempts of another boot id are gone."""
    cpu_milli: int
    memory_mib: int
    gpus: tuple[GpuInfo, ...]
    accelerator_type: str = ""
    address: str = "127.0.0.1"


@dataclasses.dataclass(frozen=True, slots=True)
class NodeUp:
    """A node with a working executor has joined (or has been found again after a restart of the agent)."""

    node_id: str
    name: str
    labels: Mapping[str, str]
    cpu_milli: int
    memory_mib: int
    gpus: tuple[GpuInfo, ...]
    accelerator_type: str
    boot_id: str
    address: str
    attempts: tuple[AttemptInfo, ...] = ()
    """What already stands there; for an agent that has just been restarted."""
    sandbox_problem: str = ""
    """Why the node has no sandbox for jobs; empty when it has one."""


@dataclasses.dataclass(frozen=True, slots=True)
class NodeDown:
    """The node, or the executor on it, is gone, and every process that it ran with it."""

    node_id: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class NodeEvents:
    """Events of the processes on one node, oldest first."""

    node_id: str
    events: tuple[Event, ...]
    cursor: Cursor | None = None
    """To be given to the gateway's ``acknowledge`` once the events are safe; no more come before that."""


@dataclasses.dataclass(frozen=True, slots=True)
class NodeUsed:
    """What the processes on one node have used so far."""

    node_id: str
    used: tuple[Used, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class NodesFound:
    """Said once after the start: every node that lived then has had its ``NodeUp``, or is gone."""


GatewayEvent = NodeUp | NodeDown | NodeEvents | NodeUsed | NodesFound
