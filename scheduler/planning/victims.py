"""The cheapest attempts whose end makes room for a job, among those that may be stopped.

Greedy: node by node the cheapest until one more replica fits, then the cheapest nodes; at the end, whoever need not go stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.fit import choose_gpus, replicas_on
from scheduler.planning.kernels import Ints
from scheduler.planning.sites import Site
from scheduler.planning.types import RunningView

MAX_SPARE = 64
"""So many nodes are looked at for room for those of one shape that may be moved."""
MOVE = "MOVE"


class Candidate(NamedTuple):
    """An attempt that may be stopped, by which rule, and what that costs."""

    running: RunningView
    rule: str
    price: int


Offer = tuple[list[int], list[Candidate]]
"""The numbers of the nodes for the replicas, and who has to go."""


class Spare:
    """What is free on a site, as far as it is room for those that may be moved."""

    def __init__(self, site: Site, candidates: Iterable[Candidate]) -> None:
        self._site = site
        self._free: dict[int, tuple[list[int], list[int]]] = {}
        for shape in dict.fromkeys(each.running.group.shape for each in candidates if each.rule == MOVE):
            for number in np.nonzero(site.rooms(shape))[0][:MAX_SPARE].tolist():
                if number not in site.kept:
                    self._free[number] = (site.free[number].tolist(), site.gpus[number].tolist())

    def beside(self, *numbers: int) -> Moves:
        """A trial of moving attempts away from these nodes."""
        return Moves(self._site, {other: free for other, free in self._free.items() if other not in numbers})


class Moves:
    """Attempts that are moved together, each to where it fits first."""

    def __init__(self, site: Site, free: dict[int, tuple[list[int], list[int]]]) -> None:
        self._site = site
        self._free = free

    def place(self, running: RunningView) -> bool:
        """Give one more attempt a place; False: there is none left for it."""
        shape = running.group.shape
        selected = self._site.labelled(shape.node_selector)
        for number, (free, gpus) in self._free.items():
            if selected is not None and not selected[number]:
                continue
            if replicas_on(shape.request, Resources(*free), gpus):
                left, left_gpus = list(free), list(gpus)
                for resource, amount in enumerate(shape.request):
                    left[resource] -= amount
                for index in choose_gpus(shape.request.gpu_milli, gpus) or ():
                    left_gpus[index] -= min(shape.request.gpu_milli, GPU_UNIT)
                self._free[number] = (left, left_gpus)
                return True
        return False


class _Node:
    """A node on which somebody may be stopped: what is free there, and who is there."""

    def __init__(self, site: Site, number: int) -> None:
        self.node_id = site.ids[number]
        kept = site.kept.get(number)
        self.free = [int(each) for each in site.free[number]] if kept is None else [-1, 0, 0]
        self.gpus = [int(each) for each in site.gpus[number]]
        self.number = number
        self.candidates: list[Candidate] = []

    def room(self, shape: Shape, gone: set[int]) -> int:
        """How many replicas fit once these are gone."""
        if self.free[0] < 0:
            return 0
        free, gpus = list(self.free), list(self.gpus)
        for each in self.candidates:
            if each.running.launch_seq in gone:
                _release(free, gpus, each.running, self.node_id)
        return min(shape.replicas, replicas_on(shape.request, Resources(*free), gpus))


def _release(free: list[int], gpus: list[int], running: RunningView, node_id: str) -> None:
    request = running.group.shape.request
    for replica in running.replicas:
        if replica.node_id == node_id:
            for resource, amount in enumerate(request):
                free[resource] += amount
            for index in replica.gpu_indexes:
                gpus[index] += min(request.gpu_milli, GPU_UNIT)


def offers(site: Site, shape: Shape, candidates: list[Candidate]) -> Iterator[Offer]:
    """Nodes for the replicas, and who has to go for it, the cheapest first: for a single replica one for each node, for a gang one."""
    nodes: dict[int, _Node] = {}
    selected = site.labelled(shape.node_selector)
    for candidate in candidates:
        for node_id in dict.fromkeys(replica.node_id for replica in candidate.running.replicas):
            number = site.number.get(node_id)
            if number is None or (selected is not None and not selected[number]) or not site.in_service[number]:
                continue
            node = nodes.get(number)
            if node is None:
                node = nodes[number] = _Node(site, number)
            node.candidates.append(candidate)
    spare = Spare(site, candidates)
    if shape.replicas == 1:
        yield from _single_offers(shape, nodes, spare)
        return
    rooms = site.rooms(shape)
    rooms[list(site.kept)] = 0
    packed = bool(shape.pack) and shape.pack_required
    found = _cheapest_domain(site, shape, nodes, rooms, spare) if packed else _cheapest_of(shape, nodes, rooms, spare)
    if found is not None:
        yield found


def _single_offers(shape: Shape, nodes: dict[int, _Node], spare: Spare) -> Iterator[Offer]:
    """For each node the cheapest whose going makes room for one replica there."""
    found: list[tuple[int, int, list[Candidate]]] = []
    for number, node in nodes.items():
        steps = _steps(node, shape, spare)
        if not steps:
            continue
        victims = list(steps[0][3])
        for each in reversed(steps[0][3]):
            rest = [other for other in victims if other is not each]
            if node.room(shape, {other.running.launch_seq for other in rest}):
                victims = rest
        found.append((sum(each.price for each in victims), number, victims))
    for _, number, victims in sorted(found, key=lambda offer: offer[:2]):
        yield [number], sorted(victims, key=lambda each: each.running.launch_seq)


def _cheapest_domain(site: Site, shape: Shape, nodes: dict[int, _Node], rooms: Ints, spare: Spare) -> Offer | None:
    domain_of, count = site.domains(shape.pack)
    best: tuple[int, list[int], list[Candidate]] | None = None
    for domain in range(count):
        inside = {number: node for number, node in nodes.items() if domain_of[number] == domain}
        found = _cheapest_of(shape, inside, np.where(domain_of == domain, rooms, 0), spare) if inside else None
        if found is not None:
            price = sum(each.price for each in found[1])
            if best is None or price < best[0]:
                best = (price, *found)
    return None if best is None else best[1:]


def _cheapest_of(shape: Shape, nodes: dict[int, _Node], rooms: Ints, spare: Spare) -> Offer | None:
    steps = sorted(step for node in nodes.values() for step in _steps(node, shape, spare))
    gone: dict[int, Candidate] = {}
    room = {int(number): min(shape.replicas, int(rooms[number])) for number in np.nonzero(rooms)[0]}
    for number in nodes:
        room.setdefault(number, 0)
    needed = shape.replicas - sum(room.values())
    for _, number, _, victims in steps:
        if needed <= 0:
            break
        gone.update((each.running.launch_seq, each) for each in victims)
        needed -= _look_again(nodes, room, shape, gone, {number, *_elsewhere(nodes, victims)})
    if needed > 0:
        return None
    for launch_seq, each in sorted(gone.items(), key=lambda item: (-item[1].price, item[0])):
        del gone[launch_seq]
        concerned = {number for number, node in nodes.items() if each in node.candidates}
        before = {number: room[number] for number in concerned}
        _look_again(nodes, room, shape, gone, concerned)
        if sum(room.values()) < shape.replicas:
            gone[launch_seq] = each
            room.update(before)
    freed = {number for each in gone.values() for number in _elsewhere(nodes, [each])}
    order = sorted(room, key=lambda number: (number not in freed, number))
    numbers = [number for number in order for _ in range(room[number])]
    return numbers[: shape.replicas], [gone[launch_seq] for launch_seq in sorted(gone)]


def _elsewhere(nodes: dict[int, _Node], victims: Iterable[Candidate]) -> set[int]:
    """All candidate nodes on which one of these holds something."""
    ids = {replica.node_id for each in victims for replica in each.running.replicas}
    return {number for number, node in nodes.items() if node.node_id in ids}


def _look_again(
    nodes: dict[int, _Node], room: dict[int, int], shape: Shape, gone: Iterable[int], numbers: Iterable[int]
) -> int:
    """Bring ``room`` up to date for some nodes; returns by how much it grew."""
    grown = 0
    out = set(gone)
    for number in numbers:
        after = nodes[number].room(shape, out)
        grown += after - room[number]
        room[number] = after
    return grown


def _steps(node: _Node, shape: Shape, spare: Spare) -> list[tuple[int, int, int, list[Candidate]]]:
    """What each further replica on the node costs: (price, node, how many before, the victims of this step)."""
    steps: list[tuple[int, int, int, list[Candidate]]] = []
    gone: set[int] = set()
    had = node.room(shape, gone)
    waiting: list[Candidate] = []
    moves = spare.beside(node.number)
    for each in sorted(node.candidates, key=lambda each: (each.rule == MOVE, each.price, each.running.launch_seq)):
        if each.rule == MOVE and not moves.place(each.running):
            continue
        gone.add(each.running.launch_seq)
        waiting.append(each)
        room = node.room(shape, gone)
        if room > had:
            steps.append((sum(one.price for one in waiting), node.number, had, waiting))
            had, waiting = room, []
    return steps
