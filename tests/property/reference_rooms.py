"""What is free on nodes and how nodes are compared, plainly: replicas are tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.mix import NodeKind, mix_of
from scheduler.planning.policy import Policy
from scheduler.planning.types import NodeView, Snapshot
from scheduler.planning.worth import Weights
from tests.property.reference_scoring import gpus_after
from tests.property.reference_scoring import score as plain_score

SiteId = tuple[str, str, str, bool]


def gpus_for(milli: int, free: Sequence[int]) -> tuple[int, ...] | None:
    """The fullest GPU with room for a share; the first whole ones else."""
    if milli == 0:
        return ()
    if milli < GPU_UNIT:
        possible = [index for index, left in enumerate(free) if left >= milli]
        return (min(possible, key=lambda index: (free[index], index)),) if possible else None
    whole = [index for index, left in enumerate(free) if left == GPU_UNIT]
    count = milli // GPU_UNIT
    return tuple(whole[:count]) if milli % GPU_UNIT == 0 and len(whole) >= count else None


class Scoring(Protocol):
    """How nodes, and GPUs of a node, are compared: lower is better. Only asked about what fits."""

    def score(self, view: NodeView, free: Resources, gpus: Sequence[int], request: Resources) -> int: ...

    def gpus(self, request: Resources, free: Sequence[int]) -> tuple[int, ...]: ...


class Worth:
    """The planner's scorer, by its own plain form."""

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        views = [view for nodes in snapshot.pools.values() for view in nodes.values()]
        self.kinds = sorted({NodeKind(view.accelerator, view.capacity.gpu_milli > 0) for view in views})
        self.most = Resources(*(max(1, *(view.capacity[r] for view in views)) for r in range(3)))
        self.mix = mix_of(snapshot.mix, self.kinds, max(len(view.gpu_free) for view in views))
        usual, weights = Weights(), policy.score
        terms = (each * weights.fragmentation // 1000 for each in (usual.gap, usual.room, usual.reach))
        self.weights = Weights(*terms, usual.best_fit * weights.best_fit // 1000)

    def score(self, view: NodeView, free: Resources, gpus: Sequence[int], request: Resources) -> int:
        kind = self.kinds.index(NodeKind(view.accelerator, view.capacity.gpu_milli > 0))
        on = (free.cpu_milli, free.memory_mib, gpus)
        found = plain_score(kind, on, self.most, request, self.mix, self.weights)
        assert found is not None
        return found[0]

    def gpus(self, request: Resources, free: Sequence[int]) -> tuple[int, ...]:
        after = gpus_after(free, request, self.mix)
        assert after is not None
        return tuple(index for index, left in enumerate(after[0]) if left != free[index])


class Room:
    """What is free on a node."""

    def __init__(self, free: Resources, gpus: Sequence[int]) -> None:
        self.free, self.gpus = free, list(gpus)

    def copy(self) -> Room:
        return Room(self.free, self.gpus)

    def fits(self, request: Resources) -> bool:
        return request.fits(self.free) and gpus_for(request.gpu_milli, self.gpus) is not None

    def give(self, request: Resources, indexes: Sequence[int], sign: int = 1) -> None:
        self.free = self.free.plus(request.times(sign))
        for index in indexes:
            self.gpus[index] += sign * min(request.gpu_milli, GPU_UNIT)

    def take(self, request: Resources, chosen: tuple[int, ...] | None = None) -> tuple[int, ...]:
        indexes = gpus_for(request.gpu_milli, self.gpus) if chosen is None else chosen
        assert indexes is not None
        self.give(request, indexes, -1)
        return indexes

    def count(self, request: Resources, most: int) -> int:
        left, count = self.copy(), 0
        while count < most and left.fits(request):
            left.take(request)
            count += 1
        return count

    def least(self, other: Room) -> Room:
        return Room(
            Resources(*map(min, self.free, other.free)), [min(a, b) for a, b in zip(self.gpus, other.gpus, strict=True)]
        )


class Node:
    """A node: what anybody may have of it (``room``) and, while some is kept for a reservation, what is really free."""

    def __init__(self, view: NodeView, snapshot: Snapshot) -> None:
        self.view = view
        self.id = view.node_id
        self.site: SiteId = (view.region, view.pool, view.accelerator, view.capacity.gpu_milli > 0)
        self.serves = view.up and not view.draining
        self.room = Room(view.free, view.gpu_free)
        self.real: Room | None = None
        self.until_ms = 0
        self.releases: list[tuple[int, Resources, Sequence[int]]] = []
        for running in snapshot.running.values():
            end_ms = running.stopped_by_ms or running.limit_end_ms + running.grace_ms
            for replica in running.replicas:
                if (running.region, replica.node_id) == (view.region, view.node_id):
                    self.releases.append((end_ms, running.group.shape.request, replica.gpu_indexes))

    def carries(self, shape: Shape) -> bool:
        return self.serves and set(shape.node_selector) <= set(self.view.labels)

    def domain(self, label: str) -> str:
        values = dict(self.view.labels)
        return f"node {self.id}" if label == "node" or label not in values else f"value {values[label]}"

    def room_at(self, time_ms: int) -> Room:
        """What anybody may have when all that ends by then has ended."""
        then = self.room.copy()
        for end_ms, request, indexes in self.releases:
            if end_ms <= time_ms:
                then.give(request, indexes)
        return then

    def place(self, request: Resources, scoring: Scoring) -> ReplicaPlacement:
        indexes = self.room.take(request, scoring.gpus(request, self.room.gpus))
        if self.real is not None:
            self.real.give(request, indexes, -1)
        return ReplicaPlacement(self.id, indexes)

    def place_before_reservation(self, request: Resources) -> ReplicaPlacement:
        assert self.real is not None
        indexes = self.real.take(request)
        self.room = self.room.least(self.real)
        return ReplicaPlacement(self.id, indexes)

    def keep(self, request: Resources, replicas: int, time_ms: int) -> None:
        then = self.room_at(time_ms)
        for _ in range(replicas):
            then.take(request)
        self.real, self.until_ms = self.room.copy(), time_ms
        self.room = self.room.least(then)
