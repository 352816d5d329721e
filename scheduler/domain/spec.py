"""What a researcher asks for: the job's specification, as plain immutable values with all defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum

from scheduler.domain.resources import Resources


class PriorityClass(IntEnum):
    """Urgency; a higher class goes before a lower one within a tenant."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    URGENT = 4


class PartitionPolicy(IntEnum):
    """What to do with a running job whose region cannot be reached."""

    WAIT = 1
    MOVE = 2


class DependencyCondition(IntEnum):
    """When another job lets this one go."""

    AFTER_OK = 1
    AFTER_ANY = 2


@dataclass(frozen=True, slots=True)
class Dependency:
    """Waits for ``job_id``; or, before ids are given, for the job at ``batch_index`` of the same call (else -1)."""

    job_id: str
    condition: DependencyCondition
    batch_index: int = -1


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run, resolved: the command, the folder it runs in and its parameters.

    ``kind`` is "command", "python" or "algorithm"; ``working_folder`` a manifest digest or empty; ``parameters_json`` the
    validated parameters of an algorithm, defaults included, or empty; ``algorithm`` "name@version" or empty.
    """

    kind: str
    argv: tuple[str, ...]
    working_folder: str = ""
    parameters_json: str = ""
    algorithm: str = ""


@dataclass(frozen=True, slots=True, eq=True)
class Shape:
    """All that decides where a job fits: jobs of one shape fit, or do not fit, alike.

    ``pools`` holds "region/pool" or bare pool names; ``node_selector`` sorted (label, value) pairs. ``pack`` is "", "node", or the
    node label ("rack", "zone", ...) that all replicas should share; with ``pack_required`` the job waits for such a place.
    """

    request: Resources
    replicas: int
    accelerators: tuple[str, ...] = ()
    preferred_regions: tuple[str, ...] = ()
    required_regions: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    data_sets: tuple[str, ...] = ()
    pack: str = ""
    pack_required: bool = False
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        # Planning looks shapes up at every step; they are few, and hashing all of one each time is not cheap.
        parts = tuple(getattr(self, each.name) for each in fields(self) if each.compare)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def total(self) -> Resources:
        """What all replicas ask for together."""
        return self.request.times(self.replicas)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job's specification. One object is shared by all jobs whose ``encoded`` form is the same.

    ``encoded`` is the canonical form the store keeps (the serialised ``suanli.v1.JobSpec``), opaque here.
    """

    institution: str
    project: str
    name: str
    workload: Workload
    shape: Shape
    priority: PriorityClass
    preemptible: bool
    max_runtime_ms: int
    grace_ms: int
    max_retries: int
    backoff_ms: int
    partition_policy: PartitionPolicy
    array_size: int
    array_max_parallel: int
    encoded: bytes = field(repr=False)
    dependencies: tuple[Dependency, ...] = ()
    data_sets: tuple[str, ...] = ()
    purpose: str = ""
    labels: tuple[tuple[str, str], ...] = ()
