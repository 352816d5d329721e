"""Asking the driver how busy GPUs are, and by whom: a small port, NVML behind it, and nothing where there is no NVML.

A probe never raises: what the driver does not tell is None, and each kind of failure of each GPU is logged once.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)

_WINDOW_US = 1_000_000
"""The driver samples processes a few times a second at most: a look back of this length always finds the newest sample."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuReading:
    """What the driver says of one GPU now; None is what it does not tell.

    Process ids are those the driver knows: in a container with process ids of its own they are not the container's.
    """

    busy_milli: int | None = None
    """Share of the last sample period in which some kernel ran, in thousandths, whosever it was."""
    process_busy_milli: Mapping[int, int] | None = None
    """The same by process; one that did nothing is left out."""
    process_memory_mib: Mapping[int, int] | None = None
    """Device memory held by each process that has a context on the GPU."""


class GpuProbe(Protocol):
    """Reads GPUs by the driver's numbers. May block for as long as the driver does; never raises."""

    def read(self, index: int) -> GpuReading | None:
        """Return what there is to say of a GPU now; None when there is nothing (no such device)."""
        ...


class NoProbe:
    """Knows of no GPU: there is no NVML, or the GPUs are declared and not real."""

    def read(self, index: int) -> GpuReading | None:
        """Return None."""
        return None


class NvmlProbe:
    """Reads through ``nvml``, the module ``pynvml`` of nvidia-ml-py or one that is as good; ``nvmlInit`` has been called.

    A GPU in MIG mode has no utilisation that NVML would tell (neither its own nor by process), so its readings hold
    memory at most.
    """

    def __init__(self, nvml: Any, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._nvml = nvml
        self._now_us = now_us
        self._handles: dict[int, Any] = {}
        self._told: set[tuple[int, str]] = set()

    def read(self, index: int) -> GpuReading | None:
        """Return what NVML says of the GPU of that number; None when it has none such."""
        if index not in self._handles:
            handle = self._ask(
                index, "nvmlDeviceGetHandleByIndex", lambda: self._nvml.nvmlDeviceGetHandleByIndex(index)
            )
            if handle is None:
                return None
            self._handles[index] = handle
        handle = self._handles[index]
        return GpuReading(
            self._ask(index, "nvmlDeviceGetUtilizationRates", lambda: self._busy(handle)),
            self._ask(index, "nvmlDeviceGetProcessUtilization", lambda: self._busy_by_process(handle)),
            self._ask(index, "nvmlDeviceGetComputeRunningProcesses", lambda: self._memory_by_process(handle)),
        )

    def _ask(self, index: int, what: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:  # of NVML, or of a driver too old to have the function: no job may suffer from it
            if (index, what) not in self._told:
                self._told.add((index, what))
                _log.warning(
                    "GPU %d: %s does not answer, so what jobs use there is not all known: %s", index, what, error
                )
            return None

    def _busy(self, handle: Any) -> int:
        return min(1000, 10 * int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    def _busy_by_process(self, handle: Any) -> dict[int, int]:
        since_us = self._now_us() - _WINDOW_US
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except self._nvml.NVMLError as error:
            # No sample in the window, which is to say that nothing ran, comes as one of these two.
            if error.value in (self._nvml.NVML_ERROR_NOT_FOUND, self._nvml.NVML_SUCCESS):
                return {}
            raise
        # Where the driver has fewer samples than it has room for, the rest is filled with whatever was there.
        sound = [one for one in samples if one.pid and one.timeStamp >= since_us and one.smUtil <= 100]
        return {one.pid: 10 * int(one.smUtil) for one in sorted(sound, key=lambda one: int(one.timeStamp))}

    def _memory_by_process(self, handle: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            # The driver may know the process and not its memory. In MIG mode one process may be listed per instance.
            if process.usedGpuMemory is not None:
                found[process.pid] = found.get(process.pid, 0) + (int(process.usedGpuMemory) >> 20)
        return found


def open_probe() -> GpuProbe:
    """Return the probe of this machine: NVML where it is installed and there is a driver, else none."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return NoProbe()
    except Exception as error:  # NVMLError is a class of the module that may be missing
        _log.info("no GPU is measured on this node: %s", error)
        return NoProbe()
    return NvmlProbe(nvml)
