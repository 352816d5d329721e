"""How well the processes of a job are kept apart from the node and from other jobs: what a pool declares."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

ISOLATION_LABEL = "suanli.io/isolation"
"""Label of a node, with the tier that its jobs run in: ``sandbox``, ``pod`` or ``process``."""
LIMITS_LABEL = "suanli.io/limits"
"""Label of a node with sandboxes: what its kernel limits of each, as in ``cpu,pids``; else ``none``."""


class Tier(enum.StrEnum):
    """What stands between a job and its node."""

    AUTO = "auto"
    """The sandbox where the node can have one, else a process, with a warning."""
    SANDBOX = "sandbox"
    """Bubblewrap; where it does not work, jobs are refused."""
    PROCESS = "process"
    """A process of the executor's own user: for people who trust each other."""
    POD = "pod"
    """A Kubernetes pod of its own beside the executor's; where that does not work, jobs are refused."""


class Network(enum.StrEnum):
    """What a job in a sandbox or pod sees of the network. For pods it is a label that network policies select."""

    NONE = "none"
    """Nothing but a loopback of its own. Gangs are refused: their ranks could not meet."""
    GANGS = "gangs"
    """The ranks of a gang share the node's network, in pods that of all gangs; every other job has none."""
    HOST = "host"
    """The node's network, its loopback included; for pods that of the cluster."""


@dataclasses.dataclass(frozen=True, slots=True)
class PodSettings:
    """How the pods of a pool are made, in the tier ``pod``."""

    runtime_class: str = "gvisor"
    """Name of the RuntimeClass; empty: the cluster's default runtime, which shares the node's kernel."""
    image: str = ""
    """Empty: the image of the executor's own container."""
    gpu_resource: str = "nvidia.com/gpu"
    """Kubernetes' name of whole GPUs."""
    priority_class: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    """More labels of the pods."""
    start_timeout_ms: int = 600_000
    """From the creation of a pod to the start of its command, images included."""
    switch_ms: int = 30_000
    """A pod ends itself when it has seen no sign of life from its keeper for so long; 0: never."""


@dataclasses.dataclass(frozen=True, slots=True)
class Isolation:
    """What one pool declares.

    ``network`` and ``extra_read_only`` are of the sandbox and of pods, ``processes`` is of the sandbox only, ``pod`` of pods.
    """

    tier: Tier = Tier.AUTO
    network: Network = Network.GANGS
    extra_read_only: tuple[str, ...] = ()
    """Folders and files of the node that jobs may read, by absolute path."""
    disk_mib: int = 102_400
    """What an attempt may keep on the node's disk, in MiB; 0 is no limit."""
    processes: int = 4096
    """Processes and threads that an attempt may have at a time."""
    pod: PodSettings = PodSettings()


TRUSTED = Isolation(Tier.PROCESS, disk_mib=0)
"""No isolation at all: what a launch gets from somebody who says nothing of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Isolations:
    """``default`` is for the pools that declare nothing."""

    default: Isolation = Isolation()
    pools: Mapping[str, Isolation] = dataclasses.field(default_factory=dict)

    @property
    def pods(self) -> tuple[PodSettings, ...]:
        """Every way of making pods that is declared."""
        declared = (self.default, *self.pools.values())
        return tuple(dict.fromkeys(one.pod for one in declared if one.tier is Tier.POD))

    def of(self, pool: str) -> Isolation:
        """Return what holds for the jobs of a pool."""
        return self.pools.get(pool, self.default)


def tier_on(isolation: Isolation, sandbox_problem: str, pod_problem: str = "") -> Tier | None:
    """Return the tier that jobs get on a node; None where the declared one cannot be had there.

    ``sandbox_problem`` says why the node has no sandbox, and is empty where it has one; so ``pod_problem`` of pods. A pod is
    never fallen back to, nor from.
    """
    if isolation.tier is Tier.AUTO:
        return Tier.PROCESS if sandbox_problem else Tier.SANDBOX
    problem = {Tier.SANDBOX: sandbox_problem, Tier.POD: pod_problem}.get(isolation.tier, "")
    return None if problem else isolation.tier
