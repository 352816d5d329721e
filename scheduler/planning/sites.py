"""The nodes, as the planner keeps them from round to round: one site's in arrays, with the order of the best places.

A request's places on a site are scored once; from there on only nodes that changed are scored anew. A round takes from the
arrays what it hands out; before the next one the nodes concerned are read again from the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning import kernels
from scheduler.planning.fit import SiteKey
from scheduler.planning.kernels import Flags, Ints
from scheduler.planning.mix import NodeKind
from scheduler.planning.scoring import NO_FIT, Scorer
from scheduler.planning.types import NodeView, RunningView
from scheduler.planning.worth import Nodes

RELEASE = ("end_ms", "launch_seq", "cpu_milli", "memory_mib", "gpu_milli", "on_each_gpu", "gpu_mask")
"""The columns of what a running attempt's replica will give back, as kept for each node in order of time."""
_STARTED = -1
"""Stands for the launch number of what was started in this round."""
_MAX_RANKINGS = 512
_FIRST_SLOTS = 16

Labels = tuple[tuple[str, str], ...]


class Site:
    """The nodes of one site, by id. ``log`` holds the numbers of nodes in the order in which they changed."""

    def __init__(self, key: SiteKey, views: Mapping[str, NodeView], scorer: Scorer) -> None:
        self.key = key
        self.scorer = scorer
        self.ids = sorted(views)
        self.number = {node_id: number for number, node_id in enumerate(self.ids)}
        self.labels = [views[node_id].labels for node_id in self.ids]
        self.views = [views[node_id] for node_id in self.ids]
        size = len(self.ids)
        gpus = max((view.capacity.gpu_milli // GPU_UNIT for view in self.views), default=0)
        self.free: Ints = np.zeros((size, 3), np.int64)
        self.gpus: Ints = np.zeros((size, gpus), np.int64)
        self.capacity: Ints = np.array([view.capacity for view in self.views], np.int64).reshape(-1, 3)
        self.in_service: Flags = np.zeros(size, np.bool_)
        self.slots: Ints = np.zeros((size, _FIRST_SLOTS, len(RELEASE)), np.int64)
        self.counts: Ints = np.zeros(size, np.int64)
        self.online = True
        """Whether the region's agent is connected."""
        self.log: Ints = np.zeros(1024, np.int64)
        self.changes = 0
        """How many entries ``log`` has."""
        self.era = 0
        """Rises whenever ``log`` starts anew."""
        self.worth: Ints = np.zeros(size, np.int64)
        self.stale: Flags = np.ones(size, np.bool_)
        self.nodes = Nodes(np.zeros(size, np.int64), self.free, self.gpus, self.worth, self.stale, scorer.most)
        self._nodes_version = -1
        self._picked: Ints = np.zeros(max(1, gpus), np.int64)
        self._full_gpus: Ints = np.zeros((size, gpus), np.int64)
        for number, view in enumerate(self.views):
            self._full_gpus[number, : len(view.gpu_free)] = GPU_UNIT
        self.kept: dict[int, Kept] = {}
        """What the round keeps free on nodes for jobs with reservations, by the node's number."""
        self.touched: set[int] = set()
        self._started_on: set[int] = set()
        self._rankings: dict[tuple[Resources, Labels], Ranking] = {}
        self._labelled: dict[Labels, Flags] = {}
        for number, view in enumerate(self.views):
            self._read(number, view)

    # --- following the snapshot ---------------------------------------------------------------------------------------

    def refresh(self, number: int, view: NodeView) -> None:
        """Make a node's row what its view says."""
        self.touched.discard(number)
        row = self.free[number]
        gpu_free = view.gpu_free
        if view is self.views[number] or view.schedulable == bool(self.in_service[number]):
            same = not view.schedulable or (row[0], row[1], row[2]) == view.free
            if same and (not gpu_free or self.gpus[number, : len(gpu_free)].tolist() == list(gpu_free)):
                self.views[number] = view
                return
        self._read(number, view)
        self.changed(number)

    def changed(self, number: int) -> None:
        """Note that a node is not as it was."""
        if self.changes == len(self.log):
            self.log = np.concatenate([self.log, np.zeros_like(self.log)])
        self.log[self.changes] = number
        self.changes += 1
        self.stale[number] = True

    def scored_nodes(self) -> Nodes:
        """The arrays as the scorer reads them."""
        if self._nodes_version != self.scorer.version:
            self._nodes_version = self.scorer.version
            self.stale[:] = True
            kind = np.full(len(self.ids), self.scorer.number_of(NodeKind(self.key.accelerator, self.key.has_gpus)))
            self.nodes = Nodes(kind, self.free, self.gpus, self.worth, self.stale, self.scorer.most)
        return self.nodes

    def _read(self, number: int, view: NodeView) -> None:
        self.views[number] = view
        self.in_service[number] = view.schedulable
        if view.schedulable:
            self.free[number] = view.free
        else:
            self.free[number] = (-1, 0, 0)
        self.gpus[number, : len(view.gpu_free)] = view.gpu_free

    def begin(self) -> None:
        """Undo what the last round handed out and kept free."""
        self.kept.clear()
        for number in self._started_on:
            kernels.drop_release(self.slots, self.counts, number, _STARTED)
        self._started_on.clear()
        for number in list(self.touched):
            self.refresh(number, self.views[number])
        if self.changes > 4 * len(self.ids) + 100_000:
            self.changes = 0
            self.era += 1

    def is_same_node(self, view: NodeView) -> bool:
        """Whether a view differs from the one known only in what is free on the node and whether it takes work."""
        number = self.number.get(view.node_id)
        if number is None:
            return False
        known = self.views[number]
        return (
            known.capacity == view.capacity
            and known.labels == view.labels
            and len(known.gpu_free) == len(view.gpu_free)
        )

    def expect_release(self, running: RunningView, end_ms: int) -> None:
        """Note that an attempt will give back what it holds here at ``end_ms``."""
        self._expect(running.replicas, running.group.shape.request, end_ms, running.launch_seq)

    def expect_started(self, placed: Iterable[ReplicaPlacement], request: Resources, end_ms: int) -> None:
        """The same of what the round has started, until the next one begins."""
        for replica in placed:
            self._started_on.add(self.number[replica.node_id])
        self._expect(placed, request, end_ms, _STARTED)

    def _expect(self, placed: Iterable[ReplicaPlacement], request: Resources, end_ms: int, launch_seq: int) -> None:
        each = min(request.gpu_milli, GPU_UNIT)
        for replica in placed:
            number = self.number.get(replica.node_id)
            if number is None:
                continue
            if self.counts[number] == self.slots.shape[1]:
                self.slots = np.concatenate([self.slots, np.zeros_like(self.slots)], axis=1)
            mask = sum(1 << index for index in replica.gpu_indexes)
            entry = np.array((end_ms, launch_seq, *request, each, mask), np.int64)
            kernels.add_release(self.slots, self.counts, number, entry)

    def forget_release(self, running: RunningView) -> None:
        """Undo ``expect_release``."""
        for node_id in {replica.node_id for replica in running.replicas}:
            number = self.number.get(node_id)
            if number is not None:
                kernels.drop_release(self.slots, self.counts, number, running.launch_seq)

    # --- placing ------------------------------------------------------------------------------------------------------

    def take(self, number: int, request: Resources, gpu_indexes: tuple[int, ...]) -> None:
        """Hold one replica's resources on a node."""
        self.touched.add(number)
        picked = self._picked
        for at, index in enumerate(gpu_indexes):
            picked[at] = index
        kernels.take(self.free, self.gpus, number, *request, picked[: len(gpu_indexes)])
        if self.kept:
            kept = self.kept.get(number)
            if kept is not None:
                kept.take(request, gpu_indexes)
        self.changed(number)

    def ranking(self, shape: Shape) -> Ranking:
        """The ranking for the shape's request and selector; shapes that differ in neither share one."""
        key = (shape.request, shape.node_selector)
        ranking = self._rankings.get(key)
        if ranking is None:
            if len(self._rankings) >= _MAX_RANKINGS:
                del self._rankings[next(iter(self._rankings))]
                self.scorer.forgotten += 1
            ranking = self._rankings[key] = Ranking(self, shape)
        return ranking

    def labelled(self, selector: Labels) -> Flags | None:
        """Which nodes carry the selector's labels; None: it asks for none."""
        if not selector:
            return None
        mask = self._labelled.get(selector)
        if mask is None:
            mask = np.array([all(pair in labels for pair in selector) for labels in self.labels], np.bool_)
            self._labelled[selector] = mask
        return mask

    def domains(self, label: str) -> tuple[Ints, int]:
        """The number of each node's domain, by the value of a label ("node": every node is its own), and how many there are.

        A node without the label is in a domain of its own.
        """
        if label == "node":
            return np.arange(len(self.ids), dtype=np.int64), len(self.ids)
        numbers: dict[str, int] = {}
        found = np.empty(len(self.ids), np.int64)
        for number, labels in enumerate(self.labels):
            value = next((value for name, value in labels if name == label), None)
            name = f"={value}" if value is not None else self.ids[number]
            found[number] = numbers.setdefault(name, len(numbers))
        return found, len(numbers)

    def rooms(self, shape: Shape) -> Ints:
        """How many replicas each node has room for now."""
        found: Ints = kernels.rooms(self.free, self.gpus, *shape.request)
        selected = self.labelled(shape.node_selector)
        return found if selected is None else found * selected

    def rooms_when_empty(self, shape: Shape) -> Ints:
        """How many replicas each node in service would hold if nothing stood on it."""
        found: Ints = kernels.rooms(self.capacity, self._full_gpus, *shape.request) * self.in_service
        selected = self.labelled(shape.node_selector)
        return found if selected is None else found * selected

    def place(self, shape: Shape, numbers: Iterable[int]) -> tuple[ReplicaPlacement, ...]:
        """Take one replica on each of these nodes, which have room."""
        placed = []
        for number in numbers:
            gpus = self.gpus_for(number, shape.request)
            assert gpus is not None
            self.take(number, shape.request, gpus)
            placed.append(ReplicaPlacement(self.ids[number], gpus))
        return tuple(placed)

    def gpus_for(self, number: int, request: Resources) -> tuple[int, ...] | None:
        """The GPUs one replica takes on a node; None when it has too few."""
        if not request.gpu_milli:
            return ()
        if request.gpu_milli < GPU_UNIT:
            index = self.scorer.gpu_for(self.gpus[number], request.gpu_milli)
            return None if index < 0 else (index,)
        if request.gpu_milli % GPU_UNIT:
            return None
        count = kernels.pick(self.gpus, number, request.gpu_milli, self._picked)
        return tuple(self._picked[:count].tolist()) if count else None


class Kept:
    """What is really free on a node of which the site's arrays hide a part, kept for a reservation that begins at ``until_ms``."""

    __slots__ = ("free", "gpus", "until_ms")

    def __init__(self, free: list[int], gpus: list[int], until_ms: int) -> None:
        self.free, self.gpus, self.until_ms = free, gpus, until_ms

    def take(self, request: Resources, gpu_indexes: tuple[int, ...]) -> None:
        """Hold one replica's resources."""
        for resource, amount in enumerate(request):
            self.free[resource] -= amount
        for index in gpu_indexes:
            self.gpus[index] -= min(request.gpu_milli, GPU_UNIT)


class Ranking:
    """How well one replica of a request would stand on each node of a site, kept true as nodes change; the lowest is best."""

    def __init__(self, site: Site, shape: Shape) -> None:
        self.site = site
        self.request = shape.request
        self._selected = site.labelled(shape.node_selector)
        self.scores: Ints = np.full(len(site.ids), NO_FIT, np.int64)
        self._gpus: Ints = np.zeros(len(site.ids), np.int64)
        self.best_score = NO_FIT
        """The score of the node ``best`` answered last."""
        self._best = -1
        self._seen = -1
        self._era = -1
        self._version = -1

    def best(self) -> int:
        """The number of the best node, the first by id among equals; -1 when the request fits on none."""
        if self._is_behind() and not self._ruled_out():
            self._catch_up()
        return self._best

    def _is_behind(self) -> bool:
        site = self.site
        return self._seen != site.changes or self._era != site.era or self._version != site.scorer.version

    def _ruled_out(self) -> bool:
        """Whether the request fits on none of the nodes that changed, which is found sooner than how well it would stand there."""
        site = self.site
        if self._era != site.era or self._version != site.scorer.version or self._selected is not None:
            return False
        numbers = site.log[self._seen : site.changes]
        if not kernels.rule_out(site.free, site.gpus, numbers, *self.request, self.scores, NO_FIT):
            return False
        self._seen = site.changes
        if self._best >= 0:
            self._choose()
        return True

    def _choose(self) -> None:
        number = int(self.scores.argmin())
        self.best_score = int(self.scores[number])
        self._best = number if self.best_score < NO_FIT else -1

    def best_but(self, outside: Flags) -> int:
        """The best node outside of those flagged, which must exist."""
        self.best()
        return int(np.where(outside, NO_FIT, self.scores).argmin())

    def _catch_up(self) -> None:
        """Score what changed since the last look, and choose the best."""
        site = self.site
        if self._era == site.era and self._version == site.scorer.version:
            numbers = site.log[self._seen : site.changes]
        else:
            numbers = np.arange(len(self.scores), dtype=np.int64)
            self._era, self._version = site.era, site.scorer.version
        site.scorer.rescore(site.scored_nodes(), numbers, self.request, self.scores, self._gpus)
        self._seen = site.changes
        if self._selected is not None:
            self.scores[~self._selected] = NO_FIT
        self._choose()
