"""Why a job waits, as protocol messages."""

from __future__ import annotations

from collections.abc import Mapping

from protos.suanli.v1 import common_pb2, jobs_pb2
from scheduler.planning.explanation import Blocker, ExpectedStart, Remedy
from scheduler.planning.types import Reservation
from scheduler.planning.what_if import Change
from scheduler.service.contract import JobExplanation


def explanation_to_proto(explained: JobExplanation) -> jobs_pb2.ExplainJobResponse:
    """Why a job waits."""
    explanation = explained.explanation
    message = jobs_pb2.ExplainJobResponse(
        job_id=explained.job.job_id if explained.job else "",
        state=explained.job.state if explained.job else common_pb2.JOB_STATE_UNSPECIFIED,  # type: ignore[arg-type]
        code=explanation.code,
        message=explanation.message,
        position=explanation.position,
        pools=[
            jobs_pb2.PoolExplanation(
                pool=str(reason.pool),
                code=reason.code,
                message=reason.message,
                nodes_total=reason.nodes_total,
                nodes_fit_now=reason.nodes_fit_now,
                nodes_fit_empty=reason.nodes_fit_empty,
                nodes_lacking=dict(reason.nodes_lacking),
            )
            for reason in explanation.pools
        ],
        waiting_for=explained.waiting_for,
        position_is_exact=explanation.position_is_exact,
        blockers=[_blocker(blocker, explained.job_ids) for blocker in explanation.blockers],
        remedies=[_remedy(remedy) for remedy in explanation.remedies],
        expected_start=_expected(explanation.expected),
    )
    if explanation.reservation is not None:
        message.reservation.CopyFrom(_reservation(explanation.reservation))
    return message


def _blocker(blocker: Blocker, job_ids: Mapping[int, str]) -> jobs_pb2.Blocker:
    numbers = dict(blocker.numbers)
    job_no = numbers.pop("for_job_no", 0)
    return jobs_pb2.Blocker(code=blocker.code, message=blocker.message, numbers=numbers, job_id=job_ids.get(job_no, ""))


def _remedy(remedy: Remedy) -> jobs_pb2.Remedy:
    return jobs_pb2.Remedy(
        code=remedy.code,
        message=remedy.message,
        change=change_to_proto(remedy.change) if remedy.change is not None else None,
        pool=str(remedy.pool) if remedy.pool is not None else "",
        starts_now=remedy.now,
    )


def _expected(expected: ExpectedStart) -> jobs_pb2.ExpectedStart:
    return jobs_pb2.ExpectedStart(
        at_ms=expected.at_ms,
        earliest_ms=expected.earliest_ms,
        latest_ms=expected.latest_ms,
        confidence=expected.confidence,
        basis=expected.basis,
        message=expected.message,
    )


def _reservation(reservation: Reservation) -> jobs_pb2.StartReservation:
    return jobs_pb2.StartReservation(
        pool=f"{reservation.region}/{reservation.pool}",
        accelerator=reservation.accelerator,
        node_ids=reservation.nodes,
        start_time_ms=reservation.start_ms,
    )


def change_to_proto(change: Change) -> jobs_pb2.JobChange:
    """What a job would ask for instead."""
    message = jobs_pb2.JobChange()
    for name in ("cpu_milli", "memory_mib", "gpu_milli", "replicas", "max_runtime_ms", "preemptible"):
        value = getattr(change, name)
        if value is not None:
            setattr(message, name, value)
    for name in ("accelerators", "required_regions", "pools"):
        names = getattr(change, name)
        if names is not None:
            getattr(message, name).CopyFrom(jobs_pb2.NameList(names=names))
    if change.priority is not None:
        message.priority_class = int(change.priority)  # type: ignore[assignment]
    if change.pack is not None or change.pack_required is not None:
        message.topology.CopyFrom(jobs_pb2.Topology(level=change.pack or "", required=bool(change.pack_required)))
    return message
