"""Which stored artifacts are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from protos.suanli.v1 import artifacts_pb2
from suanli.errors import InvalidArgument

KINDS = {
    name.removeprefix("ARTIFACT_KIND_").lower(): number
    for name, number in artifacts_pb2.ArtifactKind.items()
    if number != artifacts_pb2.ARTIFACT_KIND_UNSPECIFIED
}
"""By their names: upload, result, checkpoint, log."""


class ArtifactChoice(TypedDict, total=False):
    """Those of an institution (default: the caller's), a project, a user; of these kinds (``KINDS``), jobs (an array stands for its tasks),
    digests; stored before an instant."""

    institution: str
    project: str
    user: str
    kinds: Sequence[str]
    job_ids: Sequence[str]
    digests: Sequence[str]
    stored_before_ms: int


class Deleted(NamedTuple):
    """How many were deleted, their sizes, and how many were kept because unfinished jobs need them."""

    items: int
    size_bytes: int
    kept: int


def filter_of(choice: Mapping[str, Any]) -> artifacts_pb2.ArtifactFilter:
    """The filter of a call. Raises InvalidArgument for a kind that is none."""
    given = dict(choice)
    kinds = given.pop("kinds", ())
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidArgument(f"kinds: {kind!r} is none of {', '.join(KINDS)}.", field="kinds")
    return artifacts_pb2.ArtifactFilter(kinds=[KINDS[kind] for kind in kinds], **given)
