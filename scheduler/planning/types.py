"""What planning reads and what it answers.

``plan(snapshot, policy, now_ms) -> Plan`` is a pure function: it reads the snapshot, changes nothing in it, and answers the
same for the same input. The service builds the snapshot from views that are replaced, never changed, when something happens,
so taking one costs nothing; whoever applies the plan checks every decision against the newest state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.mix import JobType

NO_MIX: Mapping[JobType, int] = MappingProxyType({})
UNLIMITED = Resources(1 << 62, 1 << 62, 1 << 62)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node and what is free on it. ``gpu_free`` is milli-GPUs free per GPU index.

    ``schedulable``: its region's agent is connected, reports it, and it is not draining. ``isolated``: it keeps jobs apart.
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
    isolated: bool = False

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
    """What an institution, a project or a user may hold, holds now, and has held on average.

    ``past`` is the decayed average of what was held (``usage.decayed``), in the same units as ``in_use``.
    """

    weight: int
    in_use: Resources = ZERO
    quota: Resources = UNLIMITED
    home_region: str = ""
    past: Resources = ZERO


class PendingJob(NamedTuple):
    """One place in the queue: a job, a task to be tried again, or an array with ``tasks`` tasks to start.

    ``rank`` is its static place in line (``rank.rank_of``); ``tasks`` is bounded by the array's own limit of parallel tasks.
    ``expected_ms`` is how long it will probably run from its next start on, ``limit_ms`` how long at most; ``grace_ms`` is what it
    is given between the notice and its end when it is stopped.
    """

    rank: int
    job_no: int
    tasks: int
    submit_ms: int
    expected_ms: int
    limit_ms: int
    grace_ms: int = 0


class GroupKey(NamedTuple):
    """Jobs of one user, priority and shape stand in one line."""

    institution: str
    project: str
    user: str
    priority: PriorityClass
    preemptible: bool
    shape: Shape

    def path(self, depth: int) -> tuple[str, ...]:
        """The tenants it belongs to, from the institution down, at most ``depth`` of them."""
        return (self.institution, self.project, self.user)[:depth]


@dataclass(frozen=True, slots=True)
class RunningView:
    """An attempt that holds an allocation.

    ``start_ms``: when its processes started, or the grant as long as they have not; ``limit_end_ms``: when it is ended for having
    reached its limit; ``saved_ms``: the instant up to which its work is safe in a checkpoint (``start_ms`` when it has none).
    ``stopped_by_ms``: 0, or when a stop that was ordered will have taken effect; ``for_job_no``: 0, or the waiting job for which it
    was ordered. ``name`` is the job's name, for the prediction of its runtime; ``submit_ms`` when it was submitted.
    """

    launch_seq: int
    job_no: int
    group: GroupKey
    name: str
    region: str
    pool: str
    accelerator: str
    replicas: tuple[ReplicaPlacement, ...]
    start_ms: int
    limit_end_ms: int
    saved_ms: int
    grace_ms: int = 0
    stopped_by_ms: int = 0
    for_job_no: int = 0
    submit_ms: int = 0


class Runtimes(Protocol):
    """Says how long running jobs will go on."""

    def remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """The expected time until it ends by itself, at least 1 and at most until its limit."""
        ...


class LimitRuntimes:
    """Expects every job to run to its limit."""

    def remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """The time until its limit."""
        return max(1, running.limit_end_ms - now_ms)


class PendingQueue(Protocol):
    """The queue, grouped. Iterating a group is lazy, so that a round need not look at jobs it cannot start."""

    def groups(self) -> Sequence[GroupKey]:
        """All non-empty groups, in a fixed order."""
        ...

    def head(self, key: GroupKey) -> PendingJob:
        """The group's first job by (rank, job_no)."""
        ...

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """The group's jobs by (rank, job_no)."""
        ...

    def size(self, key: GroupKey) -> int:
        """How many places (arrays count as one) stand in the group; 0 in one that has none."""
        ...


class PoolUse(NamedTuple):
    """What an institution holds of a pool; ``firm`` is the part of it held by jobs that are not preemptible."""

    held: Resources
    firm: Resources


@dataclass(slots=True)
class Changes:
    """What is not as it was at the planner's last look; lets it carry over what it derived from the rest.

    ``nodes`` are (region, node id), of nodes that came, went or changed in any way; ``groups`` the lines of the queue that somebody
    joined or left; ``running`` the launch numbers of attempts that came, went or changed.
    """

    nodes: set[tuple[str, str]] = field(default_factory=set)
    groups: set[GroupKey] = field(default_factory=set)
    running: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state a plan is made from.

    ``pools`` maps every known pool to its nodes by id (nodes that are down included); ``institutions`` by id; ``projects`` by
    (institution, project); ``users`` by (institution, project, user), those without use may be absent; ``running`` by launch number;
    ``pool_use`` by (institution, pool), absent where nothing is held; ``evictions``: how many attempts each institution lost to
    others in the last hour; ``claims``: the jobs for which others were stopped and that have not started since; ``mix``: how many
    jobs of each type the platform has seen lately, another object whenever it is another. ``changes`` is a hint that changes no answer; None: everything may have changed.
    """

    pools: Mapping[PoolKey, Mapping[str, NodeView]]
    queue: PendingQueue
    institutions: Mapping[str, TenantView]
    projects: Mapping[tuple[str, str], TenantView]
    online_regions: frozenset[str]
    users: Mapping[tuple[str, str, str], TenantView] = field(default_factory=dict)
    running: Mapping[int, RunningView] = field(default_factory=dict)
    pool_use: Mapping[tuple[str, PoolKey], PoolUse] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    claims: Mapping[int, GroupKey] = field(default_factory=dict)
    runtimes: Runtimes = field(default_factory=LimitRuntimes)
    mix: Mapping[JobType, int] = field(default_factory=lambda: NO_MIX)
    changes: Changes | None = None


class Start(NamedTuple):
    """Start a job (or the next task of an array) here."""

    job_no: int
    region: str
    pool: str
    accelerator: str
    replicas: tuple[ReplicaPlacement, ...]


class Eviction(NamedTuple):
    """Stop an attempt with notice, because ``for_job_no`` needs its place.

    ``rule`` is RECLAIM, FAIR_SHARE, PRIORITY, SHORTER or MOVE (``PreemptionPolicy``); ``grace_ms`` is the notice it is given.
    """

    launch_seq: int
    job_no: int
    for_job_no: int
    rule: str
    grace_ms: int


class Reservation(NamedTuple):
    """A blocked job will start here at ``start_ms`` at the latest, if what runs there ends as its limits say.

    ``nodes`` are the ids of the nodes kept for it, once for each replica.
    """

    job_no: int
    region: str
    pool: str
    accelerator: str
    nodes: tuple[str, ...]
    start_ms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions in the order to apply them.

    ``truncated``: the round ended at its bound, and another would start more at once. ``reservations`` say what the round kept
    free; they are not applied, the next round makes them anew.
    """

    starts: tuple[Start, ...] = ()
    truncated: bool = False
    evictions: tuple[Eviction, ...] = ()
    reservations: tuple[Reservation, ...] = ()
