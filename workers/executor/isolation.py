"""How well the processes of a job are kept apart from the node and from other jobs: what a pool declares."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

ISOLATION_LABEL = "suanli.io/isolation"
"""Label of a node, with the tier that its jobs run in: ``sandbox`` or ``process``."""
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


class Network(enum.StrEnum):
    """What a sandboxed job sees of the network."""

    NONE = "none"
    """Nothing but a loopback of its own. Gangs are refused: their ranks could not meet."""
    GANGS = "gangs"
    """The ranks of a gang share the node's network; every other job has none."""
    HOST = "host"
    """The node's network, its loopback included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Isolation:
    """What one pool declares. ``network``, ``extra_read_only`` and ``processes`` are of the sandbox only."""

    tier: Tier = Tier.AUTO
    network: Network = Network.GANGS
    extra_read_only: tuple[str, ...] = ()
    """Folders and files of the node that jobs may read, by absolute path."""
    disk_mib: int = 102_400
    """What an attempt may keep on the node's disk, in MiB; 0 is no limit."""
    processes: int = 4096
    """Processes and threads that an attempt may have at a time."""


TRUSTED = Isolation(Tier.PROCESS, disk_mib=0)
"""No isolation at all: what a launch gets from somebody who says nothing of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Isolations:
    """``default`` is for the pools that declare nothing."""

    default: Isolation = Isolation()
    pools: Mapping[str, Isolation] = dataclasses.field(default_factory=dict)

    def of(self, pool: str) -> Isolation:
        """Return what holds for the jobs of a pool."""
        return self.pools.get(pool, self.default)


def tier_on(isolation: Isolation, sandbox_problem: str) -> Tier | None:
    """Return the tier that jobs get on a node; None where the declared one cannot be had there.

    ``sandbox_problem`` says why the node has no sandbox, and is empty where it has one.
    """
    if isolation.tier is Tier.AUTO:
        return Tier.PROCESS if sandbox_problem else Tier.SANDBOX
    return None if isolation.tier is Tier.SANDBOX and sandbox_problem else isolation.tier
