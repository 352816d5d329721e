"""The nodes of a round: what is free on each, changed as the round places jobs, and the order of best fit.

Reading the snapshot is linear in the nodes, once per round. Each request then gets one ranking of the nodes it fits (NumPy),
and from there on a placement costs a few heap steps: a site notes which nodes changed, and a ranking catches up with those only.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.fit import MAX_REPLICAS, SiteKey, choose_gpus, labels_match, site_of
from scheduler.planning.types import NodeView, Snapshot

_NO_GPU = np.iinfo(np.int64).max


class Left(NamedTuple):
    """What a placement would leave on a node; the smallest is the best fit.

    ``on_gpu`` is what is left on the GPU that a share would go to (0 otherwise): shares fill opened GPUs first. Then GPUs, the
    scarcest, before CPU and memory. ``node`` breaks ties: nodes are numbered by id.
    """

    on_gpu: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    node: int


class Site:
    """The schedulable nodes of one site, by id. ``closed``: kept free for a job that has waited too long."""

    def __init__(self, key: SiteKey, nodes: list[NodeView]) -> None:
        self.key = key
        self.nodes = sorted(nodes, key=lambda node: node.node_id)
        self.closed = False
        self.changes: list[int] = []
        self.versions = [0] * len(nodes)
        self._free: dict[int, tuple[int, int, int, list[int]]] = {}
        self._rankings: dict[tuple[Resources, tuple[tuple[str, str], ...]], Ranking] = {}
        self._labelled: dict[tuple[tuple[str, str], ...], npt.NDArray[np.bool_]] = {}
        self._arrays: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def free(self, index: int) -> tuple[int, int, int, list[int]]:
        """What is free now: CPU, memory, GPUs, and per GPU index."""
        free = self._free.get(index)
        if free is None:
            node = self.nodes[index]
            free = self._free[index] = (*node.free, list(node.gpu_free))
        return free

    def take(self, index: int, request: Resources, gpu_indexes: tuple[int, ...]) -> None:
        """Hold one replica's resources on a node; ``give_back`` undoes it."""
        self._change(index, request, gpu_indexes, 1)

    def give_back(self, index: int, request: Resources, gpu_indexes: tuple[int, ...]) -> None:
        """Undo ``take``, when the rest of a gang found no place."""
        self._change(index, request, gpu_indexes, -1)

    def _change(self, index: int, request: Resources, gpu_indexes: tuple[int, ...], sign: int) -> None:
        cpu, memory, gpu, gpu_free = self.free(index)
        for gpu_index in gpu_indexes:
            gpu_free[gpu_index] -= sign * min(request.gpu_milli, GPU_UNIT)
        self._free[index] = (
            cpu - sign * request.cpu_milli,
            memory - sign * request.memory_mib,
            gpu - sign * request.gpu_milli,
            gpu_free,
        )
        self.versions[index] += 1
        self.changes.append(index)

    def ranking(self, shape: Shape) -> Ranking:
        """The ranking for the shape's request and selector; shapes that differ in neither share one."""
        key = (shape.request, shape.node_selector)
        ranking = self._rankings.get(key)
        if ranking is None:
            ranking = self._rankings[key] = Ranking(self, shape)
        return ranking

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What was free when the round began: nodes x (CPU, memory, GPU), and nodes x GPU index (0 where there is none)."""
        if self._arrays is None:
            free = np.array([node.free for node in self.nodes], dtype=np.int64).reshape(-1, 3)
            gpus = np.zeros(
                (len(self.nodes), max((len(node.gpu_free) for node in self.nodes), default=0)), dtype=np.int64
            )
            if gpus.shape[1]:
                for index, node in enumerate(self.nodes):
                    gpus[index, : len(node.gpu_free)] = node.gpu_free
            self._arrays = (free, gpus)
        return self._arrays

    def labelled(self, shape: Shape) -> npt.NDArray[np.bool_]:
        """Which nodes carry the selector's labels."""
        mask = self._labelled.get(shape.node_selector)
        if mask is None:
            mask = np.array([labels_match(node, shape) for node in self.nodes], dtype=np.bool_)
            self._labelled[shape.node_selector] = mask
        return mask


class Ranking:
    """The nodes of a site that fit one replica of a request, best fit first, kept true while the round goes on."""

    def __init__(self, site: Site, shape: Shape) -> None:
        self.site = site
        self.request = shape.request
        self._selected = site.labelled(shape) if shape.node_selector else None
        self._seen = 0
        self._room = 0
        self._start = self._rank_start()
        self._cursor = 0
        self._changed: list[tuple[Left, int]] = []

    def _rank_start(self) -> list[int]:
        """The nodes that fitted when the round began, best first; notes how many replicas they had room for."""
        free, gpus = self.site.arrays()
        request = np.array(self.request, dtype=np.int64)
        fits = (free >= request).all(axis=1)
        if self._selected is not None:
            fits &= self._selected
        gpu_milli = self.request.gpu_milli
        on_gpu = np.zeros(len(free), dtype=np.int64)
        gpu_room: npt.NDArray[np.int64] | None = None
        if 0 < gpu_milli < GPU_UNIT:
            on_gpu = np.where(gpus >= gpu_milli, gpus, _NO_GPU).min(axis=1, initial=_NO_GPU)
            gpu_room = (gpus // gpu_milli).clip(min=0).sum(axis=1)
        elif gpu_milli % GPU_UNIT:
            return []
        elif gpu_milli:
            gpu_room = (gpus >= GPU_UNIT).sum(axis=1) // (gpu_milli // GPU_UNIT)
        if gpu_room is not None:
            fits &= gpu_room > 0
        (indexes,) = np.nonzero(fits)
        left = free[indexes]
        asked = request > 0
        room = (left[:, asked] // request[asked]).min(axis=1, initial=MAX_REPLICAS)
        self._room = int((room if gpu_room is None else np.minimum(room, gpu_room[indexes])).sum())
        # The last key is the most significant one, and the sort is stable: equal nodes stay in the order of their ids.
        order = np.lexsort((left[:, 1], left[:, 0], left[:, 2], on_gpu[indexes]))
        ranked: list[int] = indexes[order].tolist()
        return ranked

    def left(self, index: int) -> Left | None:
        """What one more replica would leave on the node; None when it does not fit."""
        cpu, memory, gpu, gpu_free = self.site.free(index)
        request = self.request
        cpu -= request.cpu_milli
        memory -= request.memory_mib
        gpu -= request.gpu_milli
        if cpu < 0 or memory < 0 or gpu < 0:
            return None
        on_gpu = 0
        if request.gpu_milli:
            chosen = choose_gpus(request.gpu_milli, gpu_free)
            if chosen is None:
                return None
            if request.gpu_milli < GPU_UNIT:
                on_gpu = gpu_free[chosen[0]] - request.gpu_milli
        return Left(on_gpu, gpu, cpu, memory, index)

    def best(self) -> Left | None:
        """The best fit now, or None when no node fits."""
        self._catch_up()
        versions, start, changed = self.site.versions, self._start, self._changed
        while self._cursor < len(start) and versions[start[self._cursor]]:
            self._cursor += 1
        while changed and changed[0][1] != versions[changed[0][0].node]:
            heappop(changed)
        untouched = self.left(start[self._cursor]) if self._cursor < len(start) else None
        touched = changed[0][0] if changed else None
        if untouched is None or touched is None:
            return untouched or touched
        return min(untouched, touched)

    def _catch_up(self) -> None:
        """Rank anew the nodes that changed since the last look."""
        changes, versions = self.site.changes, self.site.versions
        if self._seen == len(changes):
            return
        # A dict keeps the order of the changes and takes each node once.
        for index in dict.fromkeys(changes[self._seen :]):
            if self._selected is not None and not self._selected[index]:
                continue
            left = self.left(index)
            if left is not None:
                heappush(self._changed, (left, versions[index]))
        self._seen = len(changes)

    def place(self, replicas: int) -> tuple[ReplicaPlacement, ...] | None:
        """Place all replicas, each where it fits best, or change nothing and answer None."""
        if replicas > self._room:
            return None
        placed: list[tuple[int, tuple[int, ...]]] = []
        site, request = self.site, self.request
        for _ in range(replicas):
            best = self.best()
            if best is None:
                for index, gpus in reversed(placed):
                    site.give_back(index, request, gpus)
                return None
            index = best.node
            gpus = choose_gpus(request.gpu_milli, site.free(index)[3]) or ()
            site.take(index, request, gpus)
            placed.append((index, gpus))
        return tuple(ReplicaPlacement(site.nodes[index].node_id, gpus) for index, gpus in placed)


def sites_of(snapshot: Snapshot) -> list[Site]:
    """The sites of all online regions, by key, with their schedulable nodes."""
    grouped: dict[SiteKey, list[NodeView]] = {}
    for node in _schedulable_nodes(snapshot):
        grouped.setdefault(site_of(node), []).append(node)
    return [Site(key, grouped[key]) for key in sorted(grouped)]


def _schedulable_nodes(snapshot: Snapshot) -> Iterator[NodeView]:
    for pool, nodes in snapshot.pools.items():
        if pool.region in snapshot.online_regions:
            for node in nodes.values():
                if node.up and not node.draining:
                    yield node
