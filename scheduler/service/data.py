"""The use cases of data stewards on the live server; ``ControlPlane`` inherits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from scheduler.domain.records import AttemptRecord, JobRecord
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import AttemptOutcome
from scheduler.governance.data import DataSet, Grant
from scheduler.governance.lineage import Run
from scheduler.service import granting, registering
from scheduler.service.data_contract import Access, Outputs
from scheduler.service.engine import Engine
from scheduler.service.state import State

T = TypeVar("T")
_ENDS = {
    AttemptOutcome.SUCCEEDED: "COMPLETE",
    AttemptOutcome.CANCELLED: "ABORT",
    AttemptOutcome.PREEMPTED: "ABORT",
    AttemptOutcome.NODE_LOST: "ABORT",
}


class DataGovernance:
    """The register of data sets, its grants, and what they mean for jobs."""

    engine: Engine

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        raise NotImplementedError

    async def attempts_of(self, job_id: str) -> list[AttemptRecord]:
        """See ``Service.attempts_of``."""
        raise NotImplementedError

    async def put_data_set(self, data_set: DataSet, author: str, institution: str) -> DataSet:
        """See ``Service``."""
        return await self._change(lambda: registering.put_data_set(self.engine.state, data_set, author, institution))

    async def list_data_sets(self, institution: str) -> list[DataSet]:
        """See ``Service``."""
        register = self.engine.state.governance.register

        def read() -> list[DataSet]:
            found = (register.data_sets[key] for key in sorted(register.data_sets))
            return [each for each in found if not institution or register.knows(institution, each)]

        return await self._change(read)

    async def get_data_set(self, reference: str, institution: str) -> DataSet:
        """See ``Service``."""
        return await self._change(lambda: registering.find_data_set(self.engine.state, institution, reference, "name"))

    async def withdraw_data_set(self, name: str, version: str, reason: str, author: str, institution: str) -> DataSet:
        """See ``Service``."""
        state = self.engine.state
        return await self._change(lambda: registering.withdraw(state, name, version, reason, author, institution))

    async def request_grant(self, asked: Grant, requester: str, institution: str) -> Grant:
        """See ``Service``."""
        state = self.engine.state
        return await self._change(lambda: registering.request_grant(state, asked, requester, institution))

    async def decide_grant(self, grant: str, approve: bool, reason: str, decider: str, institution: str) -> Grant:
        """See ``Service``."""
        state = self.engine.state
        return await self._change(lambda: registering.decide_grant(state, grant, approve, reason, decider, institution))

    async def revoke_grant(self, grant: str, reason: str, revoker: str, institution: str) -> Grant:
        """See ``Service``."""
        state = self.engine.state
        return await self._change(lambda: registering.revoke_grant(state, grant, reason, revoker, institution))

    async def list_grants(self, institution: str, data_set: str) -> list[Grant]:
        """See ``Service``."""
        register = self.engine.state.governance.register

        def seen(grant: Grant) -> bool:
            owners = {each.institution for each in register.versions(grant.data_set)}
            return (not institution or institution in (grant.institution, *owners)) and data_set in (
                "",
                grant.data_set,
            )

        return await self._change(lambda: [each for each in register.grants.values() if seen(each)][::-1])

    async def check_access(self, spec: JobSpec) -> Access:
        """See ``Service``."""
        state = self.engine.state
        return await self._change(lambda: _access(state, spec))

    async def outputs_of(self, record: JobRecord) -> Outputs:
        """See ``Service``."""
        state = self.engine.state

        spec = state.codec.decode(record.spec)
        if not spec.data_sets:
            return Outputs([], None, [])

        def read() -> Outputs:
            inputs = granting.inputs_of(state, spec, record.submit_ms, record.end_ms or state.now())
            return Outputs(inputs, granting.highest(inputs), granting.not_exportable(state, spec, inputs))

        return await self._change(read)

    async def lineage(self, record: JobRecord) -> list[Run]:
        """See ``Service``."""
        outputs = await self.outputs_of(record)
        attempts = await self.attempts_of(record.job_id)
        level = outputs.classification.name.lower() if outputs.classification else ""
        return _runs(self.engine.state, record, attempts, level)


def _access(state: State, spec: JobSpec) -> Access:
    decision, pools = granting.access(state, spec)
    now = state.now()
    known = tuple(name for name in spec.data_sets if granting.is_known(state, spec.institution, name))
    inputs = granting.inputs_of(state, replace(spec, data_sets=known), now, now)
    return Access(decision, pools if decision.allowed else [], granting.highest(inputs))


def _runs(state: State, record: JobRecord, attempts: Sequence[AttemptRecord], level: str) -> list[Run]:
    spec = state.codec.decode(record.spec)
    register = state.governance.register
    runs = []
    for attempt in attempts:
        found = (register.resolve(name, attempt.grant_ms) for name in spec.data_sets)
        end = _ENDS.get(AttemptOutcome(attempt.outcome), "FAIL") if attempt.outcome else ""
        runs.append(
            Run(
                job_id=record.job_id,
                attempt=attempt.attempt,
                institution=record.institution,
                project=record.project,
                user=record.user,
                name=record.name,
                purpose=spec.purpose,
                algorithm=spec.workload.algorithm,
                region=attempt.region,
                inputs=tuple(each for each in found if each is not None),
                start_ms=attempt.start_ms,
                end_ms=attempt.end_ms,
                end=end,
                results=record.results if attempt.attempt == record.attempt else "",
                classification=level,
            )
        )
    return runs
