"""Measuring what running attempts use: process trees and GPUs are looked at, the figures are kept with the attempts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from workers.executor import procfs
from workers.executor.attempt import Attempt
from workers.executor.gpu_meter import Holding, share_of
from workers.executor.gpu_probe import GpuProbe, GpuReading, open_probe
from workers.executor.types import AttemptState, Usage, Used


def steady_ms() -> int:
    """Return milliseconds on a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


class Sampler:
    """Takes samples and hands out what has been used so far, at most every ``tell_interval_ms``.

    GPUs are read in a thread of their own that nobody waits for: a driver that hangs costs their figures and nothing else.
    Without a probe, NVML is looked for when the first job with GPUs runs.
    """

    def __init__(self, tell_interval_ms: int, probe: GpuProbe | None = None) -> None:
        self._tell_interval_ms = tell_interval_ms
        self._told_ms = steady_ms() - tell_interval_ms
        self._probe = probe
        self._threads = concurrent.futures.ThreadPoolExecutor(1, "suanli-trees")
        self._gpu_threads = concurrent.futures.ThreadPoolExecutor(1, "suanli-gpus")
        self._reading: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Take no more samples; a driver that does not answer is not waited for."""
        if self._reading is not None:
            self._reading.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._gpu_threads.shutdown(wait=False, cancel_futures=True)

    async def sample(self, running: Sequence[Attempt], parent: int) -> None:
        """Look at the trees of ``running``, children of ``parent``, and begin to read their GPUs."""
        roots = {one.pid: (str(one.folder), one.launch.memory_mib) for one in running if one.pid is not None}
        loop = asyncio.get_running_loop()
        trees, known = await loop.run_in_executor(self._threads, procfs.use_of_trees, roots, parent)
        holdings: list[tuple[Attempt, Holding]] = []
        for one in running:
            if not _measurable(one) or one.pid is None:
                continue
            tree = trees[one.pid]
            one.memory_mib = tree.memory_mib
            one.peak_mib = max(one.peak_mib, tree.memory_mib)
            one.cpu_ms = max(one.cpu_ms, tree.cpu_ms)
            if one.launch.gpu_indices:
                whole = not 0 < one.launch.gpu_milli < 1000
                holdings.append((one, Holding(one.launch.gpu_indices, whole, tree.pids)))
        if holdings and (self._reading is None or self._reading.done()):
            self._reading = asyncio.create_task(self._read_gpus(holdings, known))

    async def _read_gpus(self, holdings: list[tuple[Attempt, Holding]], known: Collection[int]) -> None:
        indexes = sorted({index for _, holding in holdings for index in holding.gpus})
        loop = asyncio.get_running_loop()
        readings = await loop.run_in_executor(self._gpu_threads, self._read, indexes)
        at_ms = steady_ms()
        for attempt, holding in holdings:
            if _measurable(attempt):
                attempt.gpu.add(share_of(holding, readings, known), at_ms)

    def _read(self, indexes: Iterable[int]) -> Mapping[int, GpuReading | None]:
        if self._probe is None:
            self._probe = open_probe()
        return {index: self._probe.read(index) for index in indexes}

    def wait_s(self) -> float:
        """Return how long it is until there may be something to tell; 0 when that time has come."""
        return max(0, self._told_ms + self._tell_interval_ms - steady_ms()) / 1000

    def tell(self, live: Iterable[Attempt]) -> tuple[Used, ...]:
        """Return what has been used so far by those of which anything is known, if it is time to say so."""
        if self.wait_s():
            return ()
        self._told_ms = steady_ms()
        figures = ((one.key, one.usage()) for one in live if one.pid is not None)
        return tuple(Used(key.job_id, key.attempt, key.rank, usage) for key, usage in figures if usage != Usage())


def _measurable(attempt: Attempt) -> bool:
    """Whether its end has not been told yet."""
    return attempt.state is not AttemptState.STORING and attempt.exited is None
