"""The executor of one node: takes launches, watches over the processes, and tells what became of them."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import os
import signal
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import artifacts
from workers.executor import environment, logfile, node, procfs, ray_job, staging
from workers.executor.attempt import Attempt, Shortage, data_limit, judge, now_ms
from workers.executor.config import ExecutorConfig
from workers.executor.disk import DiskWatch
from workers.executor.events import EventLog
from workers.executor.folders import Folders
from workers.executor.gpu_meter import GpuTotals
from workers.executor.gpu_probe import GpuProbe
from workers.executor.lease import EXPIRED, NodeLease
from workers.executor.packages import PackageEnvironments, PackagesError
from workers.executor.sampling import Sampler, steady_ms
from workers.executor.sandbox import Sandbox, hand_over
from workers.executor.types import (
    AttemptInfo,
    AttemptKey,
    AttemptState,
    Checkpointed,
    Cursor,
    ExecutorError,
    Exited,
    ExitReason,
    Launch,
    LogChunk,
    NodeInfo,
    Polled,
    Refused,
    Started,
    Stream,
    UnknownAttemptError,
)
from workers.executor.warden_link import WardenLink

T = TypeVar("T")

_MAX_LOG_READ = 4 << 20
_STORE_TRIES = 3
_YOUNG_MS = 500
"""Processes younger than this are not looked at: most jobs that short never need to be."""


class NodeExecutor:
    """Runs processes of jobs. All methods belong to one event loop; ``start`` first, ``close`` last.

    ``probe`` reads GPUs; without one, NVML is looked for when the first job with GPUs runs.
    """

    def __init__(self, config: ExecutorConfig, probe: GpuProbe | None = None) -> None:
        self._config = config
        self._sampler = Sampler(config.tell_interval_ms, probe)
        self._root = Path(config.root).resolve()
        self._folders = Folders(self._root)
        self._sandbox = Sandbox(self._root, config.masked)
        self._disk = DiskWatch(self._on_disk_full)
        self._boot_id = uuid.uuid4().hex
        self._events = EventLog(self._boot_id)
        self._live: dict[AttemptKey, Attempt] = {}
        self._by_number: dict[int, Attempt] = {}
        self._ended: collections.OrderedDict[AttemptKey, Attempt] = collections.OrderedDict()
        self._with_logs: collections.OrderedDict[AttemptKey, Path] = collections.OrderedDict()
        self._tombstones: collections.OrderedDict[tuple[str, int, int | None], None] = collections.OrderedDict()
        self._numbers = 0
        self._lease = NodeLease()
        self._link: WardenLink | None = None
        self._warden_ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = concurrent.futures.ThreadPoolExecutor(4, "suanli-staging")
        # Large uploads must not keep memory limits from being enforced or logs from being read.
        self._quick_threads = concurrent.futures.ThreadPoolExecutor(2, "suanli-quick")
        self._lock_fd = -1
        self._shortage = Shortage()
        self._ports = node.FreePorts()

    # --- life of the executor -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over the folder: kill what an earlier run left there, then be ready for launches.

        Raises ExecutorError when another executor works in the same folder.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise ExecutorError(f"another executor works in {self._root}") from None
        await self._thread(procfs.kill_marked, str(self._folders.attempts))
        await self._thread(self._folders.clear)
        await self._thread(self._sandbox.prepare)
        self._store = await self._thread(artifacts.ArtifactStore, self._config.artifact_url, self._root / "scratch")
        self._cache = artifacts.FileCache(self._root / "cache", self._config.cache_bytes)
        self._packages = PackageEnvironments(self._root / "envs", pip_arguments=self._config.pip_arguments)
        await self._start_warden()
        self._task(self._watch())

    async def close(self) -> None:
        """Kill every process and free the folder. No events come from this."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.close()
        for attempt in self._live.values():
            attempt.cancel_timers()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._quick_threads.shutdown(wait=True, cancel_futures=True)
        self._sampler.close()
        self._disk.close()
        await asyncio.to_thread(self._sandbox.groups.close)
        os.close(self._lock_fd)

    def info(self) -> NodeInfo:
        """Describe the node."""
        return node.describe(self._boot_id, self._config.node, self._sandbox.groups.limits)

    @property
    def sandbox_problem(self) -> str:
        """Why this node has no sandbox for jobs; empty when it has one."""
        return self._sandbox.problem

    def free_port(self) -> int:
        """Return a TCP port that nothing listens on now; the same one does not come twice in a row."""
        return self._ports.find()

    # --- requests -------------------------------------------------------------------------------------------------

    async def launch(self, launches: Iterable[Launch]) -> tuple[Refused, ...]:
        """Start processes. One that is known already, alive or ended, is left alone: launching twice is harmless.

        Returns those not taken on (too much at once, or stopped before they came). Every other one ends in an Exited
        event; where that was acknowledged by an agent that has forgotten it since (its disk was lost), it is told again.
        """
        refused = []
        for launch in launches:
            key = launch.key
            if launch.lease_ms:
                self._lease.extend(launch.lease_ms)
            known = self._live.get(key) or self._ended.get(key)
            if known is not None:
                self._tell_again(known)
                continue
            if any((key.job_id, key.attempt, rank) in self._tombstones for rank in (None, key.rank)):
                refused.append(Refused(key, "the attempt was stopped before it was launched"))
            elif len(self._live) >= self._config.max_live or len(self._events) >= self._config.max_events:
                refused.append(Refused(key, "the node's executor has too much to do"))
            else:
                self._begin(launch)
        return tuple(refused)

    def _tell_again(self, known: Attempt) -> None:
        key = known.key
        if len(self._events) >= self._config.max_events:
            return
        if known.exited is not None:
            self._events.add(known.exited)
        elif known.pid is not None:
            self._events.add(Started(key.job_id, key.attempt, key.rank, known.pid, known.started_ms))

    async def stop(
        self, job_id: str, attempt: int, grace_ms: int, reason: str = "stopped on request", rank: int | None = None
    ) -> None:
        """End one rank of an attempt, or all on this node: SIGTERM to all processes, SIGKILL after ``grace_ms``.

        Each ends in an Exited event with reason STOPPED. One not known yet will be refused if it ever comes.
        """
        if rank is None:
            ranks = [one for key, one in self._live.items() if (key.job_id, key.attempt) == (job_id, attempt)]
        else:
            known = self._live.get(AttemptKey(job_id, attempt, rank))
            ranks = [known] if known is not None else []
        if not ranks:
            self._tombstones[job_id, attempt, rank] = None
            while len(self._tombstones) > self._config.keep_ended:
                self._tombstones.popitem(last=False)
        for one in ranks:
            self._terminate(one, ExitReason.STOPPED, reason, grace_ms)

    async def renew(self, lease_ms: int) -> None:
        """Let attempts that run under a lease go on for so long from now; an agent that has died renews nothing."""
        self._lease.renew(lease_ms)

    async def poll(self, cursor: Cursor | None, timeout_s: float) -> Polled:
        """Return events after ``cursor`` and acknowledge those before it; waits up to ``timeout_s`` for one.

        It comes back earlier, perhaps without any, when it is time to tell what those alive have used.
        """
        polled = await self._events.poll(cursor, min(timeout_s, self._sampler.wait_s()) if self._live else timeout_s)
        self._forget_old()
        return dataclasses.replace(polled, used=self._sampler.tell(self._live.values()))

    async def attempts(self) -> tuple[AttemptInfo, ...]:
        """Return all attempts that are alive and those that ended last."""
        return tuple(one.info() for one in (*self._live.values(), *self._ended.values()))

    async def read_log(self, job_id: str, attempt: int, rank: int, stream: Stream, offset: int, limit: int) -> LogChunk:
        """Return up to ``limit`` bytes (4 MiB at most) of a log, an offset below 0 from its end; UnknownAttemptError."""
        key = AttemptKey(job_id, attempt, rank)
        found = self._live.get(key) or self._ended.get(key)
        if found is None or (found.exited and found.exited.logs_manifest and key not in self._with_logs):
            raise UnknownAttemptError(f"this node has no logs of job {job_id}, attempt {attempt}, rank {rank}")
        ended = found.state in {AttemptState.STORING, AttemptState.ENDED}
        path, hole = str(found.folder / f"{stream.value}.log"), found.holes[stream is Stream.STDERR]
        limit = max(1, min(limit, _MAX_LOG_READ))
        data, following = await self._quick(logfile.read, path, hole, offset, limit)
        return LogChunk(data, following, ended and not data)

    # --- life of an attempt ---------------------------------------------------------------------------------------

    def _begin(self, launch: Launch) -> None:
        self._numbers += 1
        attempt = Attempt(launch, self._numbers, self._folders.of(launch.key))
        self._live[launch.key] = self._by_number[attempt.number] = attempt
        attempt.uid = self._sandbox.uid_for(launch, attempt.number)
        problem = environment.problem_with(launch) or self._sandbox.problem_with(launch)
        if problem is not None:
            self._end(attempt, attempt.end(ExitReason.SPAWN_FAILED, problem))
        elif launch.needs_preparing or self._link is None:
            attempt.preparing = self._task(self._prepare(attempt))
        else:
            try:
                self._folders.make(attempt.folder)
                staging.furnish(attempt.folder, launch)
                hand_over(attempt.folder, attempt.uid, deep=False)
            except (OSError, ValueError) as error:
                message = f"the job's folder could not be made: {error}"
                self._end(attempt, attempt.end(ExitReason.ENVIRONMENT_FAILED, message))
            else:
                self._spawn(attempt, environment.build(launch, attempt.folder))

    async def _prepare(self, attempt: Attempt) -> None:
        launch = attempt.launch
        attempt.resources = contextlib.AsyncExitStack()
        try:
            await self._thread(self._folders.make, attempt.folder)
            await self._thread(staging.furnish, attempt.folder, launch)
            await self._thread(staging.fill, attempt.folder, launch, self._store, self._cache)
            checkpoint = await self._thread(staging.signature, attempt.folder / "checkpoint")
            attempt.checkpoint = (checkpoint, launch.checkpoint_artifact)
            await self._thread(hand_over, attempt.folder, attempt.uid, True)
            env = environment.build(launch, attempt.folder)
            if launch.packages:
                having = self._packages.python(launch.packages, self._sandbox.installer(launch))
                python = await attempt.resources.enter_async_context(having)
                env = environment.build(launch, attempt.folder, python)
            await self._warden_ready.wait()
        except (artifacts.ArtifactError, PackagesError, OSError, ValueError) as error:
            message = f"the job's folder and packages could not be made ready: {error}"
            self._end(attempt, attempt.end(ExitReason.ENVIRONMENT_FAILED, message))
        except asyncio.CancelledError:
            if attempt.verdict is None:
                raise
            self._end(attempt, attempt.end(*attempt.verdict))
        else:
            self._spawn(attempt, env)

    def _spawn(self, attempt: Attempt, env: dict[str, str]) -> None:
        launch, folder = attempt.launch, str(attempt.folder)
        if self._link is None:
            raise AssertionError("spawn without a warden")
        attempt.spawned = True
        spec = {
            "argv": launch.argv,
            "env": env,
            "cwd": f"{folder}/work",
            "stdout": f"{folder}/stdout.log",
            "stderr": f"{folder}/stderr.log",
            "log_limit": launch.log_limit_bytes,
            "data_limit": data_limit(launch),
            "front": ray_job.front(launch, folder, env, self._sandbox.wraps(launch)),
        }
        if self._sandbox.wraps(launch):
            spec["sandbox"] = self._sandbox.spec(launch, folder, attempt.number, env)
        self._link.spawn(attempt.number, spec)

    def _terminate(self, attempt: Attempt, reason: ExitReason, message: str, grace_ms: int) -> None:
        loop = asyncio.get_running_loop()
        if attempt.verdict is None:
            attempt.verdict = (reason, message)
        if attempt.state is AttemptState.STORING:
            return
        attempt.state = AttemptState.STOPPING
        if not attempt.spawned:
            if attempt.preparing is not None:
                attempt.preparing.cancel()
            return
        first = attempt.kill_at == float("inf")
        kill_at = loop.time() + max(0, grace_ms) / 1000
        if kill_at < attempt.kill_at:
            attempt.kill_at = kill_at
            attempt.timers.append(loop.call_at(kill_at, self._signal, attempt.number, signal.SIGKILL))
        if first and grace_ms > 0:
            self._signal(attempt.number, signal.SIGTERM)

    def _signal(self, number: int, signum: int) -> None:
        if self._link is not None and number in self._by_number:
            self._link.signal(number, signum)
            if signum == signal.SIGKILL:
                self._sandbox.groups.kill(number)

    # --- what the warden reports ----------------------------------------------------------------------------------

    def on_started(self, number: int, pid: int, at_ms: int) -> None:
        """The command runs: tell, and set its deadline."""
        attempt = self._by_number[number]
        attempt.pid, attempt.started_ms, attempt.checkpointed_ms = pid, at_ms, at_ms
        attempt.gpu = GpuTotals(steady_ms())
        if attempt.state is AttemptState.PREPARING:
            attempt.state = AttemptState.RUNNING
        key, launch = attempt.key, attempt.launch
        if launch.max_runtime_ms:
            message = f"it ran for longer than its limit of {launch.max_runtime_ms / 1000:g} s"
            timer = asyncio.get_running_loop().call_later(
                launch.max_runtime_ms / 1000,
                lambda: self._terminate(attempt, ExitReason.TIMED_OUT, message, launch.grace_ms),
            )
            attempt.timers.append(timer)
        self._events.add(Started(key.job_id, key.attempt, key.rank, pid, at_ms))

    def on_failed(self, number: int, text: str) -> None:
        """The command could not be run."""
        attempt = self._by_number[number]
        self._end(attempt, attempt.end(ExitReason.SPAWN_FAILED, text))

    def on_hole(self, number: int, stream: int, start: int, end: int) -> None:
        """Part of a log was left out."""
        self._by_number[number].holes[stream] = (start, end)

    def on_exited(self, number: int, status: int, started_ms: int, ended_ms: int, cpu_ms: int, peak_kib: int) -> None:
        """Nothing of the process lives: decide why it ended, and collect what it left."""
        attempt = self._by_number[number]
        fenced = self._sandbox.groups.out_of_memory(number)
        short = status != 0 and (self._shortage.is_near() if fenced is None else fenced)
        reason, message = attempt.verdict or judge(status, kernel_was_short=short, fenced=bool(fenced))
        ended = attempt.end(reason, message, status=status, ended_ms=ended_ms, cpu_ms=cpu_ms, peak_kib=peak_kib)
        self._collect(attempt, ended)

    def _on_warden_lost(self) -> None:
        self._link = None
        self._warden_ready.clear()
        self._task(self._replace_warden())

    async def _replace_warden(self) -> None:
        await self._thread(procfs.kill_marked, str(self._folders.attempts))
        for attempt in [one for one in self._live.values() if one.spawned and one.state is not AttemptState.STORING]:
            message = "the node's process supervisor died, and the process with it"
            self._collect(attempt, attempt.end(ExitReason.LOST, message))
        await self._start_warden()

    async def _start_warden(self) -> None:
        self._link = await WardenLink.start(self, self._on_warden_lost, self._sandbox.groups.parents)
        self._warden_ready.set()

    # --- after the end --------------------------------------------------------------------------------------------

    def _collect(self, attempt: Attempt, ended: Exited) -> None:
        attempt.cancel_timers()
        attempt.state = AttemptState.STORING
        if self._folders.take_back(attempt.folder, attempt.uid):
            kept = attempt.checkpoint[1] if attempt.checkpoint[0] == () else None
            self._end(attempt, dataclasses.replace(ended, checkpoint_manifest=kept))
        else:
            self._task(self._store_left(attempt, ended))

    async def _store_left(self, attempt: Attempt, ended: Exited) -> None:
        holes = (attempt.holes[0], attempt.holes[1])
        for left in reversed(range(_STORE_TRIES)):
            try:
                got = await self._thread(
                    staging.collect, attempt.folder, attempt.launch, self._store, holes, attempt.checkpoint
                )
            except Exception as error:  # whatever a store's driver raises; the job's end must be told all the same
                if left:
                    await asyncio.sleep(self._config.store_retry_ms / 1000)
                    continue
                reason = ExitReason.ENVIRONMENT_FAILED if ended.succeeded else ended.reason
                message = f"{ended.message}; what it left could not be stored: {str(error)[:500] or repr(error)}"
                ended = dataclasses.replace(ended, reason=reason, message=message)
            else:
                ended = dataclasses.replace(
                    ended,
                    message="; ".join((ended.message, *got.notes))[:4000],
                    results_manifest=got.results,
                    checkpoint_manifest=got.checkpoint,
                    logs_manifest=got.logs,
                )
                await self._thread(staging.clear, attempt.folder)
            break
        self._with_logs[attempt.key] = attempt.folder
        self._end(attempt, ended)

    def _end(self, attempt: Attempt, ended: Exited) -> None:
        attempt.state, attempt.exited, attempt.memory_mib = AttemptState.ENDED, ended, 0
        attempt.cancel_timers()
        self._live.pop(attempt.key, None)
        self._by_number.pop(attempt.number, None)
        self._ended[attempt.key] = attempt
        if attempt.spawned:
            self._sandbox.groups.forget(attempt.number)
        self._events.add(ended)
        if attempt.resources is not None:
            self._task(attempt.resources.aclose())
        if not attempt.spawned or ended.reason is ExitReason.SPAWN_FAILED:
            self._task(self._thread(staging.discard, attempt.folder))

    def _forget_old(self) -> None:
        while len(self._ended) > self._config.keep_ended + len(self._events):
            self._ended.popitem(last=False)
        while len(self._with_logs) > self._config.keep_logs:
            _, folder = self._with_logs.popitem(last=False)
            self._task(self._thread(staging.discard, folder))

    # --- watching -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        pause_s = self._config.sample_interval_ms / 1000
        while True:
            await asyncio.sleep(pause_s)
            for one, left_ms in self._lease.expiring(self._live.values()):
                self._terminate(one, ExitReason.LOST, EXPIRED, left_ms)
            now = now_ms()
            running = [
                one
                for one in self._live.values()
                if one.pid is not None and one.state is not AttemptState.STORING and now - one.started_ms > _YOUNG_MS
            ]
            if not running:
                continue
            begin = time.monotonic()
            self._disk.look(running)
            await self._sample(running)
            # On a node with thousands of processes a look takes long: then it is taken less often.
            pause_s = max(self._config.sample_interval_ms / 1000, 10 * (time.monotonic() - begin))
            if self._config.checkpoint_interval_ms:
                for one in running:
                    if one.key.rank == 0 and now - one.checkpointed_ms >= self._config.checkpoint_interval_ms:
                        one.checkpointed_ms = now
                        self._task(self._snapshot(one))

    async def _sample(self, running: list[Attempt]) -> None:
        if self._link is None:
            return
        await self._sampler.sample(running, self._link.pid)
        for one in running:
            if one.state is AttemptState.STORING or one.exited is not None:
                continue
            limit = one.launch.memory_mib
            if limit and one.memory_mib > limit and one.verdict is None:
                message = f"used {one.memory_mib} MiB of {limit} MiB"
                self._terminate(one, ExitReason.OUT_OF_MEMORY, message, 0)

    def _on_disk_full(self, attempt: Attempt, used_mib: int) -> None:
        if attempt.verdict is None:
            limit_mib = attempt.launch.isolation.disk_mib
            message = f"kept {used_mib} MiB on the node's disk, where its pool allows {limit_mib} MiB"
            self._terminate(attempt, ExitReason.OUT_OF_DISK, message, 0)

    async def _snapshot(self, attempt: Attempt) -> None:
        """Store a checkpoint while the job runs, if it has changed and is not being written right now."""
        folder = attempt.folder / "checkpoint"
        before = await self._thread(staging.signature, folder)
        if not before or before == attempt.checkpoint[0]:
            return
        stored = await self._thread(self._store.put_tree, artifacts.Part(folder))
        same = before == await self._thread(staging.signature, folder)
        if stored.ref is None or not same or attempt.state is not AttemptState.RUNNING:
            return
        attempt.checkpoint = (before, stored.ref)
        key = attempt.key
        self._events.add(Checkpointed(key.job_id, key.attempt, key.rank, stored.ref, now_ms()))

    async def _thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _quick(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._quick_threads, function, *arguments)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
