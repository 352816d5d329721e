"""The executor's record of one rank, and the verdict on how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path

from workers.executor import procfs, ray_job, staging
from workers.executor.gpu_meter import GpuTotals
from workers.executor.types import AttemptInfo, AttemptKey, AttemptState, Exited, ExitReason, Launch, Usage

_NEAR_MS = 5_000


def now_ms() -> int:
    """Return the wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclasses.dataclass(slots=True)
class Attempt:
    """One rank from its launch until it is forgotten."""

    launch: Launch
    number: int
    folder: Path
    state: AttemptState = AttemptState.PREPARING
    spawned: bool = False
    pid: int | None = None
    started_ms: int = 0
    memory_mib: int = 0
    peak_mib: int = 0
    cpu_ms: int = 0
    gpu: GpuTotals = dataclasses.field(default_factory=lambda: GpuTotals(0))
    holes: list[tuple[int, int]] = dataclasses.field(default_factory=lambda: [(0, 0), (0, 0)])
    verdict: tuple[ExitReason, str] | None = None
    """Set when we end it: why, and the sentence."""
    timers: list[asyncio.TimerHandle] = dataclasses.field(default_factory=list)
    kill_at: float = float("inf")
    preparing: asyncio.Task[None] | None = None
    resources: contextlib.AsyncExitStack | None = None
    checkpoint: tuple[staging.Signature, str | None] = ((), None)
    """What the checkpoint folder held when it was stored last, and as what."""
    checkpointed_ms: int = 0
    exited: Exited | None = None
    uid: int | None = None
    """The user id of its own that it runs as; None: the executor's."""

    @property
    def key(self) -> AttemptKey:
        """What names it."""
        return self.launch.key

    def cancel_timers(self) -> None:
        """Forget the deadlines: there is nothing left to end."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def info(self) -> AttemptInfo:
        """Return what the outside may know."""
        usage = self.exited.usage if self.exited else self.usage()
        key = self.key
        return AttemptInfo(key.job_id, key.attempt, key.rank, self.state, self.pid, self.started_ms, usage, self.exited)

    def usage(self) -> Usage:
        """Return what the samples have seen so far."""
        return Usage(self.cpu_ms, self.peak_mib, self.memory_mib, self.gpu.used_milli_ms, self.gpu.peak_memory_mib)

    def end(
        self,
        reason: ExitReason,
        message: str,
        *,
        status: int | None = None,
        ended_ms: int = 0,
        cpu_ms: int = 0,
        peak_kib: int = 0,
    ) -> Exited:
        """Return the last event, without what the artifact store will add."""
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        signum = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
        return Exited(
            job_id=self.key.job_id,
            attempt=self.key.attempt,
            rank=self.key.rank,
            reason=reason,
            exit_code=code,
            signal=signal_name(signum) if signum else None,
            message=ray_job.said(self.launch, self.folder, code) or message,
            started_ms=self.started_ms,
            ended_ms=ended_ms or now_ms(),
            # The kernel's account is exact but for children that nobody waited for, which only the samples have seen.
            usage=dataclasses.replace(
                self.usage(),
                cpu_ms=max(self.cpu_ms, cpu_ms),
                peak_memory_mib=max(self.peak_mib, -(-peak_kib // 1024)),
                memory_mib=0,
            ),
        )


def signal_name(number: int) -> str:
    """Return a name such as SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class Shortage:
    """Notices when the kernel kills processes for lack of memory, whosesoever they are."""

    def __init__(self) -> None:
        self._kills = procfs.oom_kills()
        self._seen_ms = 0

    def is_near(self) -> bool:
        """Whether it has done so moments ago."""
        count = procfs.oom_kills()
        if count > self._kills:
            self._kills, self._seen_ms = count, now_ms()
        return now_ms() - self._seen_ms < _NEAR_MS


def judge(status: int, *, kernel_was_short: bool, fenced: bool = False) -> tuple[ExitReason, str]:
    """Return why a process that nobody told to end has ended, and a sentence.

    ``kernel_was_short``: the kernel has killed some process for lack of memory moments ago. A shell reports the
    SIGKILL of its child as exit code 137, so that is taken for the same. ``fenced``: it was one of the attempt's own.
    """
    if fenced and kernel_was_short:
        return (
            ExitReason.OUT_OF_MEMORY,
            "it needed more memory than its limit, or than the node has: the kernel killed it",
        )
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if kernel_was_short and (killed or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGKILL)):
        return ExitReason.OUT_OF_MEMORY, "the node ran out of memory and its kernel killed the process"
    if os.WIFSIGNALED(status):
        return ExitReason.SIGNALLED, f"the process died of {signal_name(os.WTERMSIG(status))}"
    code = os.WEXITSTATUS(status)
    return ExitReason.EXITED, "finished" if code == 0 else f"the command ended with exit code {code}"


def data_limit(launch: Launch) -> int:
    """Return RLIMIT_DATA in bytes: a backstop for what grows faster than it is sampled; 0 is none.

    Generous, because address space is not memory: PyTorch's threads and arenas reserve far more than they touch.
    None with GPUs, whose drivers map their memory into the process.
    """
    if not launch.memory_mib or launch.gpu_indices:
        return 0
    return (4 * launch.memory_mib + 4096) << 20
