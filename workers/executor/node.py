"""What the node is: processors, memory, GPUs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import os
import socket

from workers.executor.types import GpuInfo, NodeInfo


@dataclasses.dataclass(frozen=True, slots=True)
class NodeOverrides:
    """What is to be taken for granted instead of being measured; None and "" mean measure."""

    cpu_milli: int | None = None
    memory_mib: int | None = None
    gpus: int | None = None
    """Number of logical GPUs when NVML finds none."""
    accelerator_type: str = ""
    address: str = "127.0.0.1"


def describe(boot_id: str, overrides: NodeOverrides, limits: tuple[str, ...] = ()) -> NodeInfo:
    """Return the node's capacity, as declared, else as measured; ``limits`` are those that its kernel keeps."""
    gpus = physical_gpus()
    if overrides.gpus is not None:
        gpus = gpus[: overrides.gpus]
        name = overrides.accelerator_type
        gpus += tuple(GpuInfo(index, name) for index in range(len(gpus), overrides.gpus))
    return NodeInfo(
        hostname=socket.gethostname(),
        boot_id=boot_id,
        cpu_milli=overrides.cpu_milli if overrides.cpu_milli is not None else len(os.sched_getaffinity(0)) * 1000,
        memory_mib=overrides.memory_mib if overrides.memory_mib is not None else total_memory_mib(),
        gpus=gpus,
        accelerator_type=overrides.accelerator_type or (gpus[0].name if gpus else ""),
        address=overrides.address,
        limits=limits,
    )


class FreePorts:
    """Finds TCP ports that nothing listens on; the same one does not come twice in a row."""

    def __init__(self) -> None:
        self._given: collections.deque[int] = collections.deque(maxlen=256)

    def find(self) -> int:
        """Return one."""
        while True:
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = int(probe.getsockname()[1])
            if port not in self._given:
                self._given.append(port)
                return port


def total_memory_mib() -> int:
    """Return the machine's memory in MiB, or its container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            total = min(total, int(file.read()))
    return total >> 20


def physical_gpus() -> tuple[GpuInfo, ...]:
    """Return the GPUs that NVML sees; none where there is no NVML."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            memory_mib = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20
            found.append(GpuInfo(index, name if isinstance(name, str) else name.decode(), memory_mib))
        return tuple(found)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
