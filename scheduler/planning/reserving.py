"""Reservations for jobs that do not fit yet, and what may run before they begin.

A reservation names nodes and the instant T at which all of it is free, if what runs there ends at its limits at the latest. On its
nodes the arrays of the site show, from then on, only what a job of any length may have: the least of what is free now and what will be
free at T beside the reservation. What is hidden may be used by jobs that are gone before T (EASY backfilling: Lifka 1995; with many
reservations, Mu'alem and Feitelson 2001). So no start can make a reservation begin later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning import kernels
from scheduler.planning.fit import choose_gpus, replicas_on
from scheduler.planning.kernels import Ints
from scheduler.planning.sites import Kept, Site


class Opening(NamedTuple):
    """Where and when a job could start: a node for each replica, and the time at the latest."""

    site: Site
    numbers: tuple[int, ...]
    start_ms: int


def earliest(sites: Iterable[Site], shape: Shape, now_ms: int) -> Opening | None:
    """The earliest time at which one of the sites surely has room for the job; None: none ever has, as far as limits tell.

    Nodes that are kept for another job do not count. Among equals the first site wins.
    """
    best: Opening | None = None
    for site in sites:
        found = _earliest_on(site, shape, now_ms, best.start_ms if best is not None else kernels.NEVER)
        if found is not None and (best is None or found.start_ms < best.start_ms):
            best = found
    return best


def _earliest_on(site: Site, shape: Shape, now_ms: int, before_ms: int) -> Opening | None:
    """The earliest on one site; for a single replica only if it is before ``before_ms``."""
    open_nodes = site.in_service.copy()
    if site.kept:
        open_nodes[list(site.kept)] = False
    selected = site.labelled(shape.node_selector)
    if selected is not None:
        open_nodes &= selected
    if not open_nodes.any():
        return None
    if shape.replicas == 1:
        start_ms, number = kernels.first_opening(
            site.free, site.gpus, open_nodes, site.slots, site.counts, *shape.request, before_ms
        )
        return None if number < 0 else Opening(site, (int(number),), max(now_ms, int(start_ms)))
    found: Ints = kernels.openings(
        site.free, site.gpus, open_nodes, site.slots, site.counts, *shape.request, shape.replicas
    )
    if not len(found):
        return None
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    if shape.pack and shape.replicas > 1:
        domain_of, count = site.domains(shape.pack)
        packed = _first_domain(found, domain_of[found[:, 1]], count, shape.replicas)
        if packed is not None:
            found = packed
        elif shape.pack_required:
            return None
    total = np.cumsum(found[:, 2])
    at = int(np.searchsorted(total, shape.replicas))
    if at == len(found):
        return None
    numbers: list[int] = []
    for _, number, more in found[: at + 1].tolist():
        numbers += [number] * more
    return Opening(site, tuple(numbers[: shape.replicas]), max(now_ms, int(found[at, 0])))


def _first_domain(found: Ints, domain_of: Ints, count: int, needed: int) -> Ints | None:
    """The rows of the domain that has room for all replicas first."""
    room = np.zeros(count, np.int64)
    for at in range(len(found)):
        domain = domain_of[at]
        room[domain] += found[at, 2]
        if room[domain] >= needed:
            mine: Ints = found[domain_of == domain]
            return mine
    return None


def keep(opening: Opening, shape: Shape, freed: Sequence[Ints] = ()) -> None:
    """Keep the opening's place free on the arrays of its site. ``freed``: releases that are not yet expected by the site, rows of
    (node number, CPU, memory, GPU, on each GPU, GPU mask) of attempts that are being stopped."""
    site = opening.site
    for number in dict.fromkeys(opening.numbers):
        free = [int(each) for each in site.free[number]]
        gpus = [int(each) for each in site.gpus[number]]
        then_free, then_gpus = list(free), list(gpus)
        for at in range(int(site.counts[number])):
            entry = site.slots[number, at]
            if entry[0] > opening.start_ms:
                break
            _give_back(then_free, then_gpus, *(int(each) for each in entry[2:]))
        for row in freed:
            if row[0] == number:
                _give_back(then_free, then_gpus, *(int(each) for each in row[1:]))
        for _ in range(opening.numbers.count(number)):
            _take(then_free, then_gpus, shape.request)
        kept = site.kept.get(number)
        if kept is None:
            site.kept[number] = Kept(free, gpus, opening.start_ms)
        else:
            kept.until_ms = min(kept.until_ms, opening.start_ms)
        site.free[number] = np.minimum(site.free[number], then_free)
        if len(gpus):
            site.gpus[number] = np.maximum(np.minimum(site.gpus[number], then_gpus), 0)
        site.touched.add(number)
        site.changed(number)


def _give_back(free: list[int], gpus: list[int], cpu: int, memory: int, gpu: int, each: int, mask: int) -> None:
    free[0] += cpu
    free[1] += memory
    free[2] += gpu
    for index in range(len(gpus)):
        if mask >> index & 1:
            gpus[index] += each


def _take(free: list[int], gpus: list[int], request: Resources) -> None:
    """Take one replica from what will be free; by amounts alone where its GPUs cannot be chosen."""
    for resource, amount in enumerate(request):
        free[resource] -= amount
    for index in choose_gpus(request.gpu_milli, gpus) or ():
        gpus[index] -= min(request.gpu_milli, GPU_UNIT)


def squeeze(site: Site, shape: Shape, end_ms: int) -> tuple[ReplicaPlacement, ...] | None:
    """Place a job that is gone at ``end_ms`` where nodes are kept for later, or answer None.

    It has to be gone before the reservation begins, not just then: as long as all that the reservation waits for comes in the same
    order, the next round chooses the same nodes again.
    A single replica goes to the kept node whose reservation begins soonest after it; a gang first fills what is free for all.
    """
    eligible = sorted(
        (kept.until_ms, number)
        for number, kept in site.kept.items()
        if kept.until_ms > end_ms and _room(site, number, shape)
    )
    if not eligible:
        return None
    if shape.replicas == 1:
        return (_take_kept(site, eligible[0][1], shape),)
    if shape.pack:
        return None
    usual = site.rooms(shape)
    usual[[number for _, number in eligible]] = 0
    if int(usual.sum()) + sum(_room(site, number, shape) for _, number in eligible) < shape.replicas:
        return None
    placed: list[ReplicaPlacement] = []
    for free_number in np.nonzero(usual)[0].tolist():
        count = min(int(usual[free_number]), shape.replicas - len(placed))
        placed += site.place(shape, [free_number] * count)
    for _, number in eligible:
        for _ in range(min(_room(site, number, shape), shape.replicas - len(placed))):
            placed.append(_take_kept(site, number, shape))
    return tuple(placed)


def _room(site: Site, number: int, shape: Shape) -> int:
    kept = site.kept[number]
    selected = site.labelled(shape.node_selector)
    if selected is not None and not selected[number]:
        return 0
    return replicas_on(shape.request, Resources(*kept.free), kept.gpus)


def _take_kept(site: Site, number: int, shape: Shape) -> ReplicaPlacement:
    """Take a replica from what is really free on a kept node. What all may have shrinks only where it would be more than that."""
    kept = site.kept[number]
    gpus = choose_gpus(shape.request.gpu_milli, kept.gpus)
    assert gpus is not None
    kept.take(shape.request, gpus)
    site.free[number] = np.minimum(site.free[number], kept.free)
    if len(kept.gpus):
        site.gpus[number] = np.minimum(site.gpus[number], kept.gpus)
    site.touched.add(number)
    site.changed(number)
    return ReplicaPlacement(site.ids[number], gpus)
