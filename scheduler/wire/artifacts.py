"""Stored artifacts, between messages and values."""

from __future__ import annotations

from protos.suanli.v1 import artifacts_pb2
from scheduler.domain.holdings import HoldingKind, HoldingRecord
from scheduler.service.storage_contract import ProjectStorage
from scheduler.wire import check

MAX_NAMED = 1_000
_MIB = 1 << 20


def artifact_to_proto(record: HoldingRecord) -> artifacts_pb2.Artifact:
    """One that is held."""
    attempt = record.item.rpartition("/")[2] if record.kind == HoldingKind.LOG else "0"
    return artifacts_pb2.Artifact(
        institution=record.institution,
        project=record.project,
        kind=artifacts_pb2.ArtifactKind.ValueType(record.kind),
        digest=record.digest,
        job_id=record.job_id,
        attempt=int(attempt),
        user=record.user,
        size_bytes=record.size_bytes,
        store_time_ms=record.since_ms,
    )


def checked_filter(message: artifacts_pb2.ArtifactFilter) -> artifacts_pb2.ArtifactFilter:
    """The filter, if every field of it is right."""
    check.optional_slug(message.institution, "filter.institution", "an institution's id")
    check.optional_slug(message.project, "filter.project", "a project's id")
    check.optional_slug(message.user, "filter.user", "a user's id")
    for index, kind in enumerate(message.kinds):
        if kind not in list(map(int, HoldingKind)):
            check.invalid(f"filter.kinds[{index}]", "give UPLOAD, RESULT, CHECKPOINT or LOG.")
    check.count(len(message.job_ids), MAX_NAMED, "filter.job_ids", "jobs")
    check.count(len(message.digests), MAX_NAMED, "filter.digests", "digests")
    for index, job_id in enumerate(message.job_ids):
        check.job_id(job_id, f"filter.job_ids[{index}]")
    for index, digest in enumerate(message.digests):
        check.digest(digest, f"filter.digests[{index}]")
    check.integer(message.stored_before_ms, 0, 1 << 62, "filter.stored_before_ms", "ms")
    return message


def storage_to_proto(storage: ProjectStorage) -> artifacts_pb2.Storage:
    """What a project has stored."""
    return artifacts_pb2.Storage(
        institution=storage.institution,
        project=storage.project,
        items=storage.items,
        size_bytes=storage.size_bytes,
        limit_mib=-1 if storage.limit_bytes < 0 else storage.limit_bytes // _MIB,
    )
