"""The store's records of jobs as protocol messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from protos.suanli.v1 import jobs_pb2
from scheduler.domain.records import AttemptRecord, EventRecord, JobRecord
from scheduler.domain.states import JobState
from scheduler.service.ports import JobQuery
from scheduler.wire import check
from scheduler.wire.spec import SpecCodec

MAX_STATES = 16
MAX_LABELS = 64


def job_to_proto(record: JobRecord, codec: SpecCodec) -> jobs_pb2.Job:
    """A job without its attempts."""
    job = jobs_pb2.Job(
        id=record.job_id,
        spec=codec.message(record.spec),
        state=record.state,  # type: ignore[arg-type]
        reason=record.reason,
        message=record.message,
        user=record.user,
        submit_time_ms=record.submit_ms,
        start_time_ms=record.start_ms,
        end_time_ms=record.end_ms,
        attempt=record.attempt,
        region=record.region,
        pool=record.pool,
        exit_code=record.exit_code,
        exit_signal=record.exit_signal,
        results=record.results,
        checkpoint=record.checkpoint,
        cancel_requested=bool(record.cancel_requested),
        sequence=record.sequence,
        array_id=record.array_id,
        array_index=record.array_index,
        failures=record.failures,
    )
    if record.array_size:
        job.array.CopyFrom(_array_status(record))
    return job


def _array_status(record: JobRecord) -> jobs_pb2.ArrayStatus:
    # Tasks cancelled before their start are counted as cancelled, though array_next has not passed them.
    ended = record.array_succeeded + record.array_failed + record.array_cancelled
    open_tasks = record.array_size - ended
    pending = min(record.array_size - record.array_next, open_tasks)
    return jobs_pb2.ArrayStatus(
        size=record.array_size,
        pending=pending,
        active=open_tasks - pending,
        succeeded=record.array_succeeded,
        failed=record.array_failed,
        cancelled=record.array_cancelled,
    )


def attempt_to_proto(record: AttemptRecord, node_names: Mapping[tuple[str, str], str]) -> jobs_pb2.Attempt:
    """An attempt; ``node_names`` maps (region, node id) to names, for the nodes that are still known."""
    replicas = [
        jobs_pb2.ReplicaPlacement(
            rank=rank,
            node_id=node_id,
            node_name=node_names.get((record.region, node_id), ""),
            gpu_indexes=gpus,
        )
        for rank, (node_id, gpus) in enumerate(json.loads(record.placement))
    ]
    return jobs_pb2.Attempt(
        number=record.attempt,
        region=record.region,
        pool=record.pool,
        accelerator=record.accelerator,
        replicas=replicas,
        grant_time_ms=record.grant_ms,
        start_time_ms=record.start_ms,
        end_time_ms=record.end_ms,
        outcome=record.outcome,  # type: ignore[arg-type]
        exit_code=record.exit_code,
        exit_signal=record.exit_signal,
        message=record.message,
        cpu_used_ms=record.cpu_used_ms,
        peak_memory_mib=record.peak_memory_mib,
        logs=record.logs,
    )


def event_to_proto(record: EventRecord) -> jobs_pb2.JobEvent:
    """Something that happened to a job."""
    return jobs_pb2.JobEvent(
        sequence=record.sequence,
        job_id=record.job_id,
        array_id=record.array_id,
        institution=record.institution,
        project=record.project,
        time_ms=record.time_ms,
        kind=record.kind,
        state=record.state,  # type: ignore[arg-type]
        attempt=record.attempt,
        region=record.region,
        pool=record.pool,
        reason=record.reason,
        message=record.message,
    )


def query_from_proto(message: jobs_pb2.JobFilter) -> JobQuery:
    """The filter, checked; the caller's scope, the cursor and the limit are still to be set."""
    path = "filter"
    check.optional_slug(message.institution, f"{path}.institution", "an institution's id")
    check.optional_slug(message.project, f"{path}.project", "a project's id")
    check.optional_slug(message.user, f"{path}.user", "a user's id")
    check.optional_slug(message.region, f"{path}.region", "a region's id")
    check.text(message.name, 128, f"{path}.name")
    if message.array_id:
        check.job_id(message.array_id, f"{path}.array_id")
    _check_states(message.states)
    check.count(len(message.labels), MAX_LABELS, f"{path}.labels", "labels")
    for bound in ("submitted_from_ms", "submitted_to_ms"):
        check.integer(getattr(message, bound), 0, (1 << 62), f"{path}.{bound}", "ms since 1970")
    return JobQuery(
        institution=message.institution,
        project=message.project,
        user=message.user,
        states=tuple(sorted({int(state) for state in message.states})),
        name=message.name,
        array_id=message.array_id,
        region=message.region,
        submitted_from_ms=message.submitted_from_ms,
        submitted_to_ms=message.submitted_to_ms,
    )


def _check_states(states: Sequence[int]) -> None:
    check.count(len(states), MAX_STATES, "filter.states", "states")
    for index, state in enumerate(states):
        check.integer(int(state), int(JobState.HELD), int(JobState.TIMED_OUT), f"filter.states[{index}]")
