"""What a simulation is given: jobs with their true runtimes, machines, tenants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class SimJob:
    """A job, with what the scheduler does not know: ``runtime_ms``, the time it runs undisturbed.

    A job whose runtime exceeds ``limit_ms`` is ended there, TIMED_OUT. It saves its work every ``checkpoint_ms`` of an attempt;
    with 0, when it is given notice and at no other time. When it runs again after an interruption, it has lost what was not saved
    and ``restart_cost_ms`` more (all of it, where that is more than it had).
    """

    submit_ms: int
    institution: str
    shape: Shape
    runtime_ms: int
    name: str = "job"
    project: str = "default"
    user: str = "someone"
    limit_ms: int = DAY_MS
    priority: PriorityClass = PriorityClass.NORMAL
    preemptible: bool = True
    grace_ms: int = 0
    restart_cost_ms: int = 0
    checkpoint_ms: int = 0
    succeeds: bool = True


@dataclass(frozen=True, slots=True)
class FleetChange:
    """From ``at_ms`` on, these are all nodes of the region. Attempts on nodes that are gone are lost."""

    at_ms: int
    region: str
    nodes: tuple[NodeReport, ...]


@dataclass(frozen=True, slots=True)
class SimTenant:
    """An institution (``project`` empty) or a project. A quota of None is no limit."""

    institution: str
    project: str = ""
    weight: int = 1000
    home_region: str = ""
    quota: Resources | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that happens to the platform. ``regions`` maps each region to its first nodes; tenants that jobs name and that are not
    listed are made with weight 1000."""

    jobs: Sequence[SimJob]
    regions: Mapping[str, Sequence[NodeReport]]
    tenants: Sequence[SimTenant] = ()
    changes: Sequence[FleetChange] = field(default_factory=tuple)
