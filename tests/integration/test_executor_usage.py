"""What real processes use, as their executor tells it while they run and at their end; GPUs are declared and read by a fake."""

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.executor_tools import DEADLINE_S, Run, alive, config, eventually, python
from workers.executor import procfs
from workers.executor.gpu_probe import GpuProbe, GpuReading
from workers.executor.node_executor import NodeExecutor
from workers.executor.types import ExitReason, Launch, Usage

BUSY = "import sys\nwhile True: pass"
IDLE = "import sys, time; time.sleep(600)"


class DeclaredGpus:
    """Says of each process that carries a marker that it keeps GPU 0 so busy and holds so much of its memory."""

    def __init__(self, **uses: tuple[int, int]) -> None:
        self.uses = uses

    def read(self, index: int) -> GpuReading | None:
        if index != 0:
            return None
        found = {pid: use for marker, use in self.uses.items() for pid in alive(marker)}
        busy = {pid: milli for pid, (milli, _) in found.items()}
        return GpuReading(sum(busy.values()), busy, {pid: memory for pid, (_, memory) in found.items()})


class HangingGpus:
    """A driver that never answers (until it is let go of)."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()

    def read(self, index: int) -> GpuReading | None:
        self.asked.set()
        self.answer.wait(DEADLINE_S)
        return None


Start = Callable[..., Awaitable[Run]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[NodeExecutor] = []

    async def begin(probe: GpuProbe | None = None) -> Run:
        executor = NodeExecutor(config(tmp_path, tell_interval_ms=100), probe)
        started.append(executor)
        await executor.start()
        return Run(executor)

    yield begin
    for executor in started:
        await executor.close()


async def told(run: Run, wanted: Callable[[Usage], bool], job_id: str = "job") -> Usage:
    """Poll until the executor tells usage of a job for which something holds; it must never go back meanwhile."""
    last = Usage()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            polled = await run.executor.poll(run.cursor, DEADLINE_S)
            run.cursor = polled.cursor
            run.events += polled.events
            for one in polled.used:
                if one.job_id == job_id:
                    assert one.usage.cpu_ms >= last.cpu_ms
                    assert one.usage.gpu_used_milli_ms >= last.gpu_used_milli_ms
                    last = one.usage
                    if wanted(last):
                        return last


def marked(script: str, marker: str, job_id: str = "job", **fields: object) -> Launch:
    launch = python(script, job_id, **fields)
    return Launch(**{name: getattr(launch, name) for name in launch.__slots__} | {"argv": (*launch.argv, marker)})


async def test_cpu_time_is_told_while_a_job_runs_and_never_less_at_its_end(start: Start) -> None:
    run = await start()
    await run.executor.launch([python(BUSY)])
    running = await told(run, lambda usage: usage.cpu_ms >= 300)
    assert running.memory_mib > 0
    assert (running.gpu_used_milli_ms, running.gpu_peak_memory_mib) == (0, 0)
    await run.executor.stop("job", 1, 0)
    ended = (await run.exited()).usage
    assert ended.cpu_ms >= running.cpu_ms
    assert ended.memory_mib == 0


async def test_cpu_time_of_children_that_have_ended_stays_in_the_account(start: Start, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-S', '-c',"
        " 'import time\\nwhile time.process_time() < 0.7: pass'], check=True)\n"
        "assert time.process_time() < 0.4\n"
        "time.sleep(600)"
    )
    run = await start()
    marker = uuid.uuid4().hex
    await run.executor.launch([marked(script, marker)])
    await told(run, lambda usage: usage.cpu_ms >= 600)
    (pid,) = alive(marker)

    def tree() -> procfs.Tree:
        trees, known = procfs.use_of_trees({pid: (str(tmp_path), 0)}, os.getpid())
        assert {pid, os.getpid()} <= set(known)
        return trees[pid]

    await eventually(lambda: tree().pids == {pid}, "its child has ended")
    assert tree().cpu_ms >= 600


async def test_jobs_that_share_a_gpu_are_each_told_their_own_use(start: Start) -> None:
    names = {job_id: uuid.uuid4().hex for job_id in ("a", "b", "none", "other")}
    uses = {"a": (600, 3000), "b": (150, 500), "none": (1000, 9000), "other": (1000, 9000)}
    run = await start(DeclaredGpus(**{names[job_id]: use for job_id, use in uses.items()}))
    share = {"gpu_indices": (0,), "gpu_milli": 500}
    await run.executor.launch(
        [
            marked(IDLE, names["a"], "a", **share),
            marked(IDLE, names["b"], "b", **share),
            # What a job does on a GPU that it does not hold is not set against what it holds.
            marked(IDLE, names["none"], "none"),
            marked(IDLE, names["other"], "other", gpu_indices=(1,), gpu_milli=1000),
        ]
    )
    for job_id in ("a", "b"):
        await told(run, lambda usage: usage.gpu_used_milli_ms > 0, job_id)
    for job_id in names:
        await run.executor.stop(job_id, 1, 0)
    ends = {job_id: await run.exited(job_id) for job_id in names}
    held = {job_id: end.ended_ms - end.started_ms for job_id, end in ends.items()}
    peaks = {job_id: end.usage.gpu_peak_memory_mib for job_id, end in ends.items()}
    assert peaks == {"a": 3000, "b": 500, "none": 0, "other": 0}
    assert 0 < ends["a"].usage.gpu_used_milli_ms <= 600 * (held["a"] + 50)
    assert 0 < ends["b"].usage.gpu_used_milli_ms <= 150 * (held["b"] + 50)
    assert (ends["none"].usage.gpu_used_milli_ms, ends["other"].usage.gpu_used_milli_ms) == (0, 0)
    assert ends["a"].usage.gpu_used_milli_ms % 600 == 0
    assert ends["b"].usage.gpu_used_milli_ms % 150 == 0


async def test_where_the_driver_tells_nothing_by_process_only_a_whole_gpu_has_a_figure(start: Start) -> None:
    class Silent:
        def read(self, index: int) -> GpuReading | None:
            return GpuReading(100)

    run = await start(Silent())
    whole = python(IDLE, "whole", gpu_indices=(0,), gpu_milli=1000)
    await run.executor.launch([whole, python(IDLE, "share", gpu_indices=(1,), gpu_milli=999)])
    await told(run, lambda usage: usage.gpu_used_milli_ms > 0, "whole")
    await run.executor.stop("share", 1, 0)
    assert (await run.exited("share")).usage.gpu_used_milli_ms == 0


async def test_the_use_of_a_jobs_children_is_the_jobs(start: Start) -> None:
    marker = uuid.uuid4().hex
    run = await start(DeclaredGpus(**{marker: (1000, 700)}))
    script = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(600)', '{marker}'])"
    )
    await run.executor.launch([python(script, gpu_indices=(0, 1), gpu_milli=2000)])
    usage = await told(run, lambda usage: usage.gpu_used_milli_ms > 0)
    assert usage.gpu_peak_memory_mib == 700


async def test_a_driver_that_hangs_costs_its_figures_and_nothing_else(start: Start) -> None:
    gpus = HangingGpus()
    run = await start(gpus)
    try:
        # The memory is taken only once the driver has been asked and does not answer.
        script = "import sys, time, os\nwhile not os.path.exists('go'): time.sleep(0.02)\nx = b'x' * (300 << 20)\ntime.sleep(600)"
        await run.executor.launch([python(script, memory_mib=100, gpu_indices=(0,), gpu_milli=1000)])
        await eventually(gpus.asked.is_set, "the driver is asked")
        (info,) = await run.executor.attempts()
        assert info.pid is not None
        open(f"/proc/{info.pid}/cwd/go", "w").close()  # noqa: ASYNC230 - an empty file
        ended = await run.exited()
    finally:
        gpus.answer.set()
    assert ended.reason is ExitReason.OUT_OF_MEMORY
    assert (ended.usage.gpu_used_milli_ms, ended.usage.gpu_peak_memory_mib) == (0, 0)
    assert ended.usage.peak_memory_mib > 100
