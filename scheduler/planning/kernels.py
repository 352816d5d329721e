"""The planner's inner loops, compiled by Numba: arithmetic on the arrays of a site (``sites.Site``).

``free`` is nodes x (CPU milli-cores, memory MiB, GPU milli), ``gpus`` nodes x GPU index (milli free on each, 0 where a node has none).
A node that takes no work has -1 free CPU, which no request fits. All of it has a plain counterpart in ``fit``; property tests
compare the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler.planning.compiled import compiled

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

GPU = 1000
NEVER = np.iinfo(np.int64).max
MANY = 1 << 20


@compiled
def room_on(free: Any, gpus: Any, cpu: int, memory: int, gpu: int) -> int:
    """How many replicas fit side by side on one node (one row of each array)."""
    count = MANY
    if free[0] < cpu or free[1] < memory or free[2] < gpu or free[0] < 0:
        return 0
    if cpu > 0:
        count = min(count, free[0] // cpu)
    if memory > 0:
        count = min(count, free[1] // memory)
    if gpu > 0:
        count = min(count, free[2] // gpu)
        on_gpus = 0
        if gpu < GPU:
            for index in range(gpus.shape[0]):
                on_gpus += gpus[index] // gpu
        elif gpu % GPU == 0:
            for index in range(gpus.shape[0]):
                if gpus[index] >= GPU:
                    on_gpus += 1
            on_gpus //= gpu // GPU
        count = min(count, on_gpus)
    return count


@compiled
def rooms(free: Any, gpus: Any, cpu: int, memory: int, gpu: int) -> Any:
    """``room_on`` of every node."""
    found = np.empty(free.shape[0], dtype=np.int64)
    for node in range(free.shape[0]):
        found[node] = room_on(free[node], gpus[node], cpu, memory, gpu)
    return found


@compiled
def rule_out(free: Any, gpus: Any, numbers: Any, cpu: int, memory: int, gpu: int, scores: Any, no_fit: int) -> bool:
    """Note of these nodes that one replica does not fit, up to the first where it does; False: there is such a one."""
    for at in range(numbers.shape[0]):
        node = numbers[at]
        if room_on(free[node], gpus[node], cpu, memory, gpu):
            return False
        scores[node] = no_fit
    return True


@compiled
def pick(gpus: Any, node: int, gpu: int, picked: Any) -> int:
    """The GPU indexes one replica of whole GPUs takes on a node, into ``picked``; returns how many (0: too few).

    The lowest indexes that are wholly free.
    """
    wanted = gpu // GPU
    found = 0
    for index in range(gpus.shape[1]):
        if gpus[node, index] >= GPU:
            picked[found] = index
            found += 1
            if found == wanted:
                return found
    return 0


@compiled
def take(free: Any, gpus: Any, node: int, cpu: int, memory: int, gpu: int, picked: Any) -> None:
    """Hold one replica's resources on a node, with these GPU indexes."""
    free[node, 0] -= cpu
    free[node, 1] -= memory
    free[node, 2] -= gpu
    each = min(gpu, GPU)
    for at in range(picked.shape[0]):
        gpus[node, picked[at]] -= each


@compiled
def add_release(slots: Any, counts: Any, node: int, entry: Any) -> None:
    """Note what a running attempt will give back on a node, in order of time. ``entry``: see ``sites.RELEASE``."""
    at = counts[node]
    while at > 0 and slots[node, at - 1, 0] > entry[0]:
        slots[node, at] = slots[node, at - 1]
        at -= 1
    slots[node, at] = entry
    counts[node] += 1


@compiled
def drop_release(slots: Any, counts: Any, node: int, launch_seq: int) -> None:
    """Forget all that an attempt was to give back on a node."""
    kept = 0
    for at in range(counts[node]):
        if slots[node, at, 1] != launch_seq:
            if kept != at:
                slots[node, kept] = slots[node, at]
            kept += 1
    counts[node] = kept


@compiled
def give_back(free: Any, gpus: Any, entry: Any) -> None:
    """Add what one entry releases to a node's row."""
    free[0] += entry[2]
    free[1] += entry[3]
    free[2] += entry[4]
    if entry[6]:
        for index in range(gpus.shape[0]):
            if entry[6] >> index & 1:
                gpus[index] += entry[5]


@compiled
def openings(
    free: Any, gpus: Any, open_nodes: Any, slots: Any, counts: Any, cpu: int, memory: int, gpu: int, most: int
) -> Any:
    """When each node will have room for more replicas: rows of (time, node, how many more); time 0 is now.

    Stops at ``most`` replicas a node. Only nodes flagged in ``open_nodes`` count.
    """
    nodes = free.shape[0]
    found = np.empty((nodes + counts.sum(), 3), dtype=np.int64)
    size = 0
    now_gpus = np.empty(gpus.shape[1], dtype=np.int64)
    now_free = np.empty(3, dtype=np.int64)
    for node in range(nodes):
        if not open_nodes[node]:
            continue
        now_free[:] = free[node]
        now_gpus[:] = gpus[node]
        had = min(most, room_on(now_free, now_gpus, cpu, memory, gpu))
        if had:
            found[size, 0], found[size, 1], found[size, 2] = 0, node, had
            size += 1
        for at in range(counts[node]):
            if had >= most:
                break
            give_back(now_free, now_gpus, slots[node, at])
            if at + 1 < counts[node] and slots[node, at + 1, 0] == slots[node, at, 0]:
                continue
            room = min(most, room_on(now_free, now_gpus, cpu, memory, gpu))
            if room > had:
                found[size, 0], found[size, 1], found[size, 2] = slots[node, at, 0], node, room - had
                size += 1
                had = room
    return found[:size]


@compiled
def first_opening(
    free: Any, gpus: Any, open_nodes: Any, slots: Any, counts: Any, cpu: int, memory: int, gpu: int, before: int
) -> Any:
    """When and where a single replica fits first: (time, node); the node is -1 when it does not before ``before``."""
    best, where = before, -1
    now_gpus = np.empty(gpus.shape[1], dtype=np.int64)
    now_free = np.empty(3, dtype=np.int64)
    for node in range(free.shape[0]):
        if not open_nodes[node]:
            continue
        now_free[:] = free[node]
        now_gpus[:] = gpus[node]
        if room_on(now_free, now_gpus, cpu, memory, gpu):
            return 0, node
        for at in range(counts[node]):
            if slots[node, at, 0] >= best:
                break
            give_back(now_free, now_gpus, slots[node, at])
            if room_on(now_free, now_gpus, cpu, memory, gpu):
                best, where = slots[node, at, 0], node
                break
    return best, where
