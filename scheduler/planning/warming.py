"""Compiles what the planner compiles, before anybody has to wait for it: ``python -m scheduler.planning.warming`` at installation, and
every server before it leads."""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.mix import JobType
from scheduler.planning.plan import plan
from scheduler.planning.policy import PRESETS
from scheduler.planning.types import GroupKey, NodeView, PendingJob, PoolKey, RunningView, Snapshot, TenantView

_NODE = Resources(8000, 8000, 2 * GPU_UNIT)
_HOUR_MS = 3_600_000


class _Lines:
    """A queue of a job a line."""

    def __init__(self, shapes: list[Shape]) -> None:
        self._lines = {
            GroupKey("a", "p", "u", PriorityClass.NORMAL, True, shape): PendingJob(
                number, number, 1, 0, _HOUR_MS, _HOUR_MS
            )
            for number, shape in enumerate(shapes, 2)
        }

    def groups(self) -> list[GroupKey]:
        """All lines."""
        return list(self._lines)

    def head(self, key: GroupKey) -> PendingJob:
        """The line's job."""
        return self._lines[key]

    def jobs(self, key: GroupKey) -> Iterator[PendingJob]:
        """The line's job."""
        return iter((self._lines[key],))

    def size(self, key: GroupKey) -> int:
        """One, or none."""
        return int(key in self._lines)


def warm_up() -> None:
    """Plan a small round in which everything comes up: shares, whole GPUs, gangs, a reservation, a release."""
    kinds = [Resources(1000, 1000, milli) for milli in (0, 300, 1000, 2000)]
    shapes = [Shape(kind, replicas) for kind in kinds for replicas in (1, 3)]
    views = {
        name: NodeView("r", name, name, "pool", "GPU", (("rack", name),), _NODE, _NODE, (GPU_UNIT, GPU_UNIT))
        for name in ("n1", "n2")
    }
    held = GroupKey("a", "p", "u", PriorityClass.NORMAL, False, Shape(Resources(1000, 1000, 1000), 1))
    views["n1"] = NodeView(
        "r", "n1", "n1", "pool", "GPU", (("rack", "n1"),), _NODE, Resources(7000, 7000, 1000), (0, GPU_UNIT)
    )
    running = RunningView(1, 1, held, "", "r", "pool", "GPU", (ReplicaPlacement("n1", (0,)),), 0, _HOUR_MS, 0)
    snapshot = Snapshot(
        {PoolKey("r", "pool"): views},
        _Lines(shapes),
        {"a": TenantView(1)},
        {("a", "p"): TenantView(1)},
        frozenset({"r"}),
        running={1: running},
        mix={JobType(kind): 1 for kind in kinds},
    )
    plan(snapshot, PRESETS["suanli"], 1)


if __name__ == "__main__":
    warm_up()
