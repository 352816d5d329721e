"""Who used how much of a GPU: readings of the driver and process trees in, figures of attempts out. No I/O.

An attempt's figure at one moment, over the GPUs it holds:

* of each, what the driver says of the processes of its tree, so jobs that share a GPU are each charged with their own;
* else, when it holds the GPU whole, what the driver says of the GPU. That is so when the driver tells nothing by process,
  or names processes of which this machine knows none: it counts them in another namespace (a container's executor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from workers.executor.gpu_probe import GpuReading

_GPU_MILLI = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """What an attempt holds and runs: the driver's numbers of its GPUs, whether they are its alone, its processes."""

    gpus: tuple[int, ...]
    whole: bool
    pids: Collection[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """An attempt's use of its GPUs at one moment: milli-GPUs busy and MiB held, summed; 0 where the driver is silent."""

    busy_milli: int
    memory_mib: int


def share_of(holding: Holding, readings: Mapping[int, GpuReading | None], known: Collection[int]) -> Share:
    """Return the attempt's share of what was read. ``known``: every process id of this machine."""
    busy_milli = memory_mib = 0
    for index in holding.gpus:
        reading = readings.get(index)
        if reading is None:
            continue
        foreign = _is_foreign(reading, known)
        by_process = None if foreign else reading.process_busy_milli
        if by_process is not None:
            busy_milli += min(_GPU_MILLI, sum(by_process.get(pid, 0) for pid in holding.pids))
        elif holding.whole:
            busy_milli += reading.busy_milli or 0
        memory = reading.process_memory_mib or {}
        if not foreign:
            memory_mib += sum(memory.get(pid, 0) for pid in holding.pids)
        elif holding.whole:
            memory_mib += sum(memory.values())
    return Share(busy_milli, memory_mib)


def _is_foreign(reading: GpuReading, known: Collection[int]) -> bool:
    named = {*(reading.process_busy_milli or ()), *(reading.process_memory_mib or ())}
    return bool(named) and not any(pid in known for pid in named)


@dataclasses.dataclass(slots=True)
class GpuTotals:
    """What an attempt has used of its GPUs so far. ``at_ms``: up to when, on a clock that never goes back."""

    at_ms: int
    used_milli_ms: int = 0
    """Sum of milli-GPUs busy × ms: 1000 is one GPU busy for 1 ms."""
    peak_memory_mib: int = 0

    def add(self, share: Share | None, at_ms: int) -> None:
        """Take a sample in: it stands for the time since the one before. None (nothing was read) stands for no use."""
        if share is not None:
            self.used_milli_ms += share.busy_milli * max(0, at_ms - self.at_ms)
            self.peak_memory_mib = max(self.peak_memory_mib, share.memory_mib)
        self.at_ms = max(self.at_ms, at_ms)
