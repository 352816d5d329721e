"""The scheduling policy: records and protocol messages."""

from __future__ import annotations

from protos.suanli.v1 import admin_pb2
from scheduler.domain.document_text import yaml_of
from scheduler.domain.records import PolicyRecord
from scheduler.planning.policy import PRESETS
from scheduler.planning.policy_document import PRESET_NOTES
from scheduler.planning.policy_text import effective_of, read_policy
from scheduler.service.contract import PolicyDraft
from scheduler.wire import check

MAX_COMMENT = 1000
MAX_VERSION = (1 << 63) - 1


def draft_from_proto(request: admin_pb2.PutPolicyRequest) -> PolicyDraft:
    """A checked policy. Reading a large document takes a while: call it in a thread."""
    return PolicyDraft(
        request.document_yaml,
        read_policy(request.document_yaml),
        check.text(request.comment, MAX_COMMENT, "comment"),
        check.integer(request.expected_version, 0, MAX_VERSION, "expected_version"),
        request.validate_only,
    )


def policy_to_proto(record: PolicyRecord) -> admin_pb2.Policy:
    """A version with both its texts."""
    return admin_pb2.Policy(
        version=record.version,
        document_yaml=record.document,
        effective_yaml=yaml_of(record.effective),
        comment=record.comment,
        author=record.author,
        create_time_ms=record.create_ms,
    )


def version_to_proto(record: PolicyRecord) -> admin_pb2.PolicyVersion:
    """A version without its texts."""
    return admin_pb2.PolicyVersion(
        version=record.version, comment=record.comment, author=record.author, create_time_ms=record.create_ms
    )


def presets() -> list[admin_pb2.PolicyPreset]:
    """All of them."""
    return [
        admin_pb2.PolicyPreset(
            name=name, description=PRESET_NOTES[name], effective_yaml=yaml_of(effective_of(PRESETS[name]))
        )
        for name in PRESETS
    ]
