"""Researchers: they submit, lose answers and submit again, cancel, and remember what was acknowledged."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from protos.suanli.v1 import jobs_pb2
from scheduler.domain.errors import SuanliError
from scheduler.service.contract import Submission

if TYPE_CHECKING:
    from tests.simulation.world import World

INSTITUTIONS = ("beishan", "minglan")


class Clients:
    """Sends what a seed says, until told to stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernel = world.kernel
        self.active = True
        self.acknowledged: dict[str, list[str]] = {}
        """By request_id, the job ids of the first acknowledgement."""
        self.cancelled: set[str] = set()
        self.refused = 0
        self._count = 0

    def start(self) -> None:
        """Begin to submit and to cancel."""
        self._submit_more()
        self._cancel_more()

    def _submit_more(self) -> None:
        if not self.active:
            return
        self._count += 1
        specs = self._batch()
        request_id = f"r{self._count}"
        self._submit(request_id, specs)
        for _ in range(self.kernel.between(0, 2)):
            self.kernel.after(self.kernel.between(1, 20_000), lambda: self._submit(request_id, specs))
        self.kernel.after(self.kernel.between(10, 3_000), self._submit_more)

    def _batch(self) -> list[jobs_pb2.JobSpec]:
        specs = [self._spec() for _ in range(self.kernel.between(1, 4))]
        for index in range(1, len(specs)):
            if self.kernel.chance(0.3):
                dependency = specs[index].dependencies.add()
                dependency.batch_index = self.kernel.between(0, index - 1)
                dependency.condition = self.kernel.rng.choice([1, 2])
        known = [job_id for ids in self.acknowledged.values() for job_id in ids]
        if known and self.kernel.chance(0.2):
            dependency = specs[0].dependencies.add()
            dependency.job_id, dependency.condition = self.kernel.rng.choice(known), 2
        return specs

    def _spec(self) -> jobs_pb2.JobSpec:
        kernel = self.kernel
        spec = jobs_pb2.JobSpec(institution=kernel.rng.choice(INSTITUTIONS), name="simulated")
        spec.command.argv.append("true")
        spec.resources.cpu_milli = kernel.rng.choice([500, 1000, 2000])
        spec.resources.memory_mib = kernel.rng.choice([64, 512, 1024])
        spec.environment["SIM_RUNTIME_MS"] = str(kernel.rng.choice([0, 5, 500, 3_000, 20_000, 60_000]))
        spec.environment["SIM_EXIT"] = "1" if kernel.chance(0.1) else "0"
        spec.grace_period_ms = kernel.rng.choice([0, 500, 2_000])
        if kernel.chance(0.25):
            spec.resources.gpu_milli = kernel.rng.choice([250, 500, 1000, 2000])
        if kernel.chance(0.15):
            spec.replicas = kernel.between(2, 4)
        if kernel.chance(0.1):
            spec.array.size = kernel.between(1, 12)
            spec.array.max_parallel = kernel.rng.choice([0, 1, 3])
        if kernel.chance(0.3):
            spec.retry.max_retries = kernel.between(1, 3)
            spec.retry.backoff_ms = kernel.rng.choice([0, 700])
            spec.environment["SIM_FLAKY"] = "0.5"
        if kernel.chance(0.5):
            spec.partition_policy = jobs_pb2.PARTITION_POLICY_MOVE
        spec.preemptible = kernel.chance(0.5)
        if kernel.chance(0.2):
            spec.preferred_regions.append(kernel.rng.choice(["east", "west"]))
        return spec

    def _submit(self, request_id: str, specs: list[jobs_pb2.JobSpec]) -> None:
        control = self.world.control
        engine = control.engine
        if engine is None:
            if self.active or request_id not in self.acknowledged:
                self.kernel.after(2_000, lambda: self._submit(request_id, specs))
            return
        codec = self.world.codec
        read = [codec.read(spec, field=f"jobs[{i}]", institution="") for i, spec in enumerate(specs)]
        body = hashlib.sha256(b"".join(spec.encoded for spec in read)).digest()
        submission = Submission("researcher", read, request_id, body)
        known = {d.job_id for spec in read for d in spec.dependencies if d.batch_index < 0}
        ended = {record.job_id: record for record in self.world.store.get_jobs(sorted(known))}
        try:
            earlier = engine.find_request(submission)
            if earlier is None and not engine.state.requests_complete:
                earlier = self.world.store.find_request("researcher", request_id)
            if earlier is not None:
                control.changed(lambda: self._acknowledge_earlier(request_id))
                return
            ids = engine.submit(submission, ended)
        except SuanliError as error:
            if error.reason not in ("NEVER_FITS", "QUOTA_NEVER_FITS", "DEPENDENCY_NOT_FOUND"):
                raise
            self.refused += 1
            return
        control.changed(lambda: self._acknowledge(request_id, ids))

    def _acknowledge_earlier(self, request_id: str) -> None:
        record = self.world.store.find_request("researcher", request_id)
        assert record is not None, "an acknowledged request_id is not in the store"
        jobs = self.world.store.jobs_by_number(record.first_job_no, record.job_count)
        self._acknowledge(request_id, [job.job_id for job in jobs])

    def _acknowledge(self, request_id: str, ids: list[str]) -> None:
        first = self.acknowledged.setdefault(request_id, ids)
        assert first == ids, f"{request_id} was answered with {first} and then with {ids}"

    def _cancel_more(self) -> None:
        if not self.active:
            return
        engine = self.world.control.engine
        if engine is not None and engine.state.jobs:
            job_id = self.kernel.rng.choice(sorted(engine.state.jobs))
            engine.cancel([job_id], "researcher", "changed my mind")
            self.world.control.changed(lambda: self.cancelled.add(job_id))
        self.kernel.after(self.kernel.between(2_000, 15_000), self._cancel_more)
