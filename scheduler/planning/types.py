"""What planning reads and what it answers.

``plan(snapshot, policy, now_ms) -> Plan`` is a pure function: it reads the snapshot, changes nothing in it, and answers the
same for the same input. The service builds the snapshot from views that are replaced, never changed, when something happens,
so taking one costs nothing; whoever applies the plan checks every decision against the newest state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import PriorityClass, Shape

UNLIMITED = Resources(1 << 62, 1 << 62, 1 << 62)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node and what is free on it. ``gpu_free`` is milli-GPUs free per GPU index.

    ``schedulable``: its region's agent is connected, reports it, and it is not draining.
    """

    region: str
    node_id: str
    name: str
    pool: str
    accelerator: str
    labels: tuple[tuple[str, str], ...]
    capacity: Resources
    free: Resources
    gpu_free: tuple[int, ...]
    up: bool = True
    draining: bool = False

    @property
    def schedulable(self) -> bool:
        """Whether new work may be placed here."""
        return self.up and not self.draining


class PoolKey(NamedTuple):
    """Names a pool; written "region/pool"."""

    region: str
    pool: str

    def __str__(self) -> str:
        return f"{self.region}/{self.pool}"


@dataclass(frozen=True, slots=True)
class TenantView:
    """What an institution or a project may hold and holds now."""

    weight: int
    in_use: Resources = ZERO
    quota: Resources = UNLIMITED
    home_region: str = ""


class PendingJob(NamedTuple):
    """One place in the queue: a job, a task to be tried again, or an array with ``tasks`` tasks to start.

    ``tasks`` is bounded by the array's own limit of parallel tasks.
    """

    submit_ms: int
    job_no: int
    tasks: int


class GroupKey(NamedTuple):
    """Jobs of one project, priority and shape stand in one line."""

    institution: str
    project: str
    priority: PriorityClass
    shape: Shape


class PendingQueue(Protocol):
    """The queue, grouped. Iterating a group is lazy, so that a round need not look at jobs it cannot start."""

    def groups(self) -> Sequence[GroupKey]:
        """All non-empty groups, in a fixed order."""
        ...

    def head(self, key: GroupKey) -> PendingJob:
        """The group's first job by (submit_ms, job_no)."""
        ...

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """The group's jobs by (submit_ms, job_no)."""
        ...

    def size(self, key: GroupKey) -> int:
        """How many places (arrays count as one) stand in the group."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state a plan is made from.

    ``pools`` maps every known pool to its nodes by id (nodes that are down included); ``institutions`` by id; ``projects`` by
    (institution, project).
    """

    pools: Mapping[PoolKey, Mapping[str, NodeView]]
    queue: PendingQueue
    institutions: Mapping[str, TenantView]
    projects: Mapping[tuple[str, str], TenantView]
    online_regions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """How to plan.

    ``max_starts_per_round`` bounds a round, so that commits stay small. ``max_passed_over_ms``: the oldest job that has waited
    this long, of tenants below their fair part, goes first, and until it fits nothing else starts in the pools that could hold it.
    """

    max_starts_per_round: int = 512
    max_passed_over_ms: int = 1_800_000


class Start(NamedTuple):
    """Start a job (or the next task of an array) here."""

    job_no: int
    region: str
    pool: str
    accelerator: str
    replicas: tuple[ReplicaPlacement, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions in the order to apply them.

    ``truncated``: the round ended at its bound, and another would start more at once.
    """

    starts: tuple[Start, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PoolReason:
    """Why one pool does not take a job now; ``code`` as in ``suanli.v1.PoolExplanation``."""

    pool: PoolKey
    code: str
    message: str
    nodes_total: int = 0
    nodes_fit_now: int = 0
    nodes_fit_empty: int = 0
    nodes_lacking: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits; ``code`` as in ``suanli.v1.ExplainJobResponse``, ``position`` the jobs planned before it."""

    code: str
    message: str
    position: int = 0
    pools: tuple[PoolReason, ...] = ()
