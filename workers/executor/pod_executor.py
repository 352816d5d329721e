"""A node's executor whose jobs may run in pods of their own: everything else is as ``NodeExecutor`` does it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from workers.executor.attempt import Attempt
from workers.executor.config import ExecutorConfig
from workers.executor.gpu_probe import GpuProbe
from workers.executor.isolation import PodSettings, Tier
from workers.executor.node_executor import NodeExecutor
from workers.executor.packages import Install
from workers.executor.pod_host import HostError
from workers.executor.pods import Pods
from workers.executor.sandbox import Sandbox
from workers.executor.types import AttemptState, ExitReason, Launch


class _Walls(Sandbox):
    """The sandbox, and pods where a launch asks for one."""

    def __init__(self, root: Path, masked: tuple[str, ...], pods: Pods) -> None:
        super().__init__(root, masked)
        self._pods = pods

    def problem_with(self, launch: Launch) -> str | None:
        if launch.isolation.tier is Tier.POD:
            return self._pods.problem_with(launch)
        return super().problem_with(launch)

    def uid_for(self, launch: Launch, number: int) -> int | None:
        if launch.isolation.tier is Tier.POD:
            return self._uid(number) if self._own_uids else None
        return super().uid_for(launch, number)

    def installer(self, launch: Launch) -> Install | None:
        if launch.isolation.tier is Tier.POD:
            return self._pods.installer(launch)
        return super().installer(launch)


class PodExecutor(NodeExecutor):
    """Where a launch's tier is ``pod``, what the warden starts stands for a pod: it begins later and must be asked to die."""

    def __init__(self, config: ExecutorConfig, probe: GpuProbe | None = None) -> None:
        super().__init__(config, probe)
        self._pods = Pods(self._root, self._on_pod_started)
        self._runners: dict[int, int] = {}
        """Their process ids by the attempt's number."""
        self._sandbox = _Walls(self._root, config.masked, self._pods)

    async def start(self) -> None:
        """Take over the folder and delete the pods that an earlier run has left."""
        await super().start()
        await self._pods.start()

    async def close(self) -> None:
        """Kill every process, delete every pod, and free the folder."""
        await super().close()
        await self._pods.close()

    async def pod_problem(self, settings: PodSettings) -> str:
        """Try whether jobs can have such pods here; return why not as a part of a sentence, or nothing."""
        return await self._pods.problem(settings)

    @staticmethod
    def _in_pod(attempt: Attempt) -> bool:
        return attempt.launch.isolation.tier is Tier.POD

    def _spawn(self, attempt: Attempt, env: dict[str, str]) -> None:
        if not self._in_pod(attempt):
            super()._spawn(attempt, env)
            return
        if self._link is None:
            raise AssertionError("spawn without a warden")
        try:
            spec = self._pods.spec(attempt, env)
        except (OSError, HostError) as error:
            message = f"the job's pod could not be prepared: {error}"
            self._end(attempt, attempt.end(ExitReason.ENVIRONMENT_FAILED, message))
            return
        attempt.spawned = True
        self._link.spawn(attempt.number, spec)

    def _signal(self, number: int, signum: int) -> None:
        attempt = self._by_number.get(number)
        if attempt is not None and self._in_pod(attempt) and signum == signal.SIGKILL:
            # The runner is not what shall die: it sees to the pod's end and tells when nothing runs any more.
            signum = signal.SIGUSR1
        super()._signal(number, signum)

    def on_started(self, number: int, pid: int, at_ms: int) -> None:
        """The command runs; of a pod this is the runner only."""
        if self._in_pod(self._by_number[number]):
            self._runners[number] = pid
        else:
            super().on_started(number, pid, at_ms)

    def _on_pod_started(self, number: int, at_ms: int) -> None:
        attempt = self._by_number.get(number)
        if attempt is not None and not attempt.started_ms:
            super().on_started(number, self._runners.get(number, 0), at_ms)

    def on_exited(self, number: int, status: int, started_ms: int, ended_ms: int, cpu_ms: int, peak_kib: int) -> None:
        """Nothing of the process lives; of a pod: its runner has ended."""
        attempt = self._by_number[number]
        if self._in_pod(attempt):
            self._task(self._pod_ended(attempt, ended_ms))
        else:
            super().on_exited(number, status, started_ms, ended_ms, cpu_ms, peak_kib)

    async def _pod_ended(self, attempt: Attempt, ended_ms: int) -> None:
        outcome = await self._pods.outcome(attempt.number)
        if outcome.started_ms:
            # The news may come later than the end.
            self._on_pod_started(attempt.number, outcome.started_ms)
        self._runners.pop(attempt.number, None)
        reason, message = attempt.verdict or (outcome.reason, outcome.message)
        ended = attempt.end(
            reason,
            message,
            status=outcome.status,
            ended_ms=ended_ms,
            cpu_ms=outcome.cpu_ms,
            peak_kib=outcome.peak_kib,
        )
        if reason is ExitReason.SPAWN_FAILED:
            self._end(attempt, ended)
        else:
            self._collect(attempt, ended)

    async def _replace_warden(self) -> None:
        """With the warden all runners have died: their pods must be gone before the jobs are said to be."""
        in_pods = [one for one in self._live.values() if self._in_pod(one) and one.spawned]
        living = [one for one in in_pods if one.state is not AttemptState.STORING]
        await asyncio.gather(*(self._pods.outcome(one.number) for one in living))
        await super()._replace_warden()

    async def _sample(self, running: list[Attempt]) -> None:
        # What a runner uses is not what its job uses; that is told at the end.
        await super()._sample([one for one in running if not self._in_pod(one)])
