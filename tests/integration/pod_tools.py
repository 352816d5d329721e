"""Help for tests of jobs in pods: a fake cluster, or the real one of ``SUANLI_TEST_KUBECONFIG``.

A real cluster must have its one node on this machine, for executor and pods share a folder; its pods need ``SUANLI_TEST_IMAGE``
with this very Python at this very path, and ``SUANLI_TEST_RUNTIME_CLASS`` (default: the cluster's own runtime).
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tests.integration.executor_tools import Run, config
from tests.support.kubernetes import NAMESPACE, FakeKubernetes
from workers.executor.isolation import Isolation, Network, PodSettings, Tier
from workers.executor.pod_executor import PodExecutor
from workers.executor.types import Launch, Refused, Stream

REAL = os.environ.get("SUANLI_TEST_KUBECONFIG", "")
SETTINGS = PodSettings(start_timeout_ms=20_000)


class InPods(PodExecutor):
    """Runs everything in pods."""

    isolation = Isolation(Tier.POD, Network.GANGS, disk_mib=0, pod=SETTINGS)

    async def launch(self, launches: Iterable[Launch]) -> tuple[Refused, ...]:
        return await super().launch(dataclasses.replace(one, isolation=self.isolation) for one in launches)


async def log(run: Run, stream: Stream = Stream.STDOUT, job_id: str = "job", rank: int = 0) -> bytes:
    text, offset = b"", 0
    while True:
        chunk = await run.executor.read_log(job_id, 1, rank, stream, offset, 1 << 20)
        text, offset = text + chunk.data, chunk.next_offset
        if not chunk.data:
            return text


async def executor_in(folder: Path, settings: PodSettings = SETTINGS) -> InPods:
    """An executor that has found out that it can have pods."""
    executor = InPods(config(folder))
    await executor.start()
    problem = await executor.pod_problem(settings)
    assert problem == ""
    return executor
