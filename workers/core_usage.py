"""What attempts have used, as the agent core adds it up: of a gang, times are summed and peaks are those of its largest rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protos.suanli.v1 import regions_pb2 as pb
from workers.executor import types as ex

MAX_ATTEMPTS_PER_MESSAGE = 4_096
"""An attempt takes some 80 bytes, so this stays well below the 4 MiB that gRPC takes by default."""


@dataclass(frozen=True, slots=True)
class Used:
    """Totals from the start on; none ever goes back. 1000 of ``gpu_used_milli_ms`` is one GPU busy for 1 ms."""

    cpu_ms: int = 0
    peak_memory_mib: int = 0
    gpu_used_milli_ms: int = 0
    gpu_peak_memory_mib: int = 0

    def at_least(self, other: Used) -> Used:
        """The greater of each figure: words about the same process that came in any order."""
        return Used(
            max(self.cpu_ms, other.cpu_ms),
            max(self.peak_memory_mib, other.peak_memory_mib),
            max(self.gpu_used_milli_ms, other.gpu_used_milli_ms),
            max(self.gpu_peak_memory_mib, other.gpu_peak_memory_mib),
        )


NOTHING_USED = Used()


def used_of(usage: ex.Usage) -> Used:
    """What an executor says. One that was started by an agent of an earlier release says nothing of GPUs."""
    return Used(
        usage.cpu_ms,
        usage.peak_memory_mib,
        getattr(usage, "gpu_used_milli_ms", 0),
        getattr(usage, "gpu_peak_memory_mib", 0),
    )


def together(ranks: Iterable[Used]) -> Used:
    """What the ranks of an attempt used: times summed, peaks of the largest rank."""
    all_ranks = list(ranks)
    return Used(
        sum(one.cpu_ms for one in all_ranks),
        max(one.peak_memory_mib for one in all_ranks),
        sum(one.gpu_used_milli_ms for one in all_ranks),
        max(one.gpu_peak_memory_mib for one in all_ranks),
    )


def usage_reports(attempts: Sequence[pb.AttemptUsage]) -> list[pb.UsageReport]:
    """The messages that say this."""
    return [
        pb.UsageReport(attempts=attempts[at : at + MAX_ATTEMPTS_PER_MESSAGE])
        for at in range(0, len(attempts), MAX_ATTEMPTS_PER_MESSAGE)
    ]
