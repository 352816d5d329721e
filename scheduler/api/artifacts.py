"""ArtifactService: what is kept in the artifact store, and deleting it."""

from __future__ import annotations

from dataclasses import replace

from protos.suanli.v1 import artifacts_pb2
from scheduler.api.artifact_access import ArtifactAccess
from scheduler.api.paging import decode_token, encode_token, page_of, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller, institution_scope, project_scope, visible_jobs
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.holdings import HoldingRecord
from scheduler.service.contract import Service
from scheduler.service.storage_ports import HoldingQuery
from scheduler.wire import check
from scheduler.wire.artifacts import artifact_to_proto, checked_filter, storage_to_proto

DELETED_AT_ONCE = 1_000
_Place = tuple[int, str, int, str]


class ArtifactApi:
    """All methods of ArtifactService."""

    def __init__(self, service: Service, access: ArtifactAccess) -> None:
        self._service = service
        self._access = access

    async def list_artifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, caller: Caller
    ) -> artifacts_pb2.ListArtifactsResponse:
        """A page, the newest or the largest first."""
        size = page_size(request.page_size)
        if request.order not in artifacts_pb2.ArtifactOrder.values():
            check.invalid("order", "give NEWEST or LARGEST.")
        query = await self._query(request.filter, caller)
        query = replace(query, by_size=request.order == artifacts_pb2.ARTIFACT_ORDER_LARGEST)
        asked = question("ListArtifacts", query)
        query = replace(query, after=_place(decode_token(request.page_token, asked)), limit=size + 1)
        found = await self._service.list_holdings(query)
        token = encode_token(_cursor(found[size - 1], query), asked) if len(found) > size else ""
        return artifacts_pb2.ListArtifactsResponse(
            artifacts=[artifact_to_proto(record) for record in found[:size]], next_page_token=token
        )

    async def delete_artifacts(
        self, request: artifacts_pb2.DeleteArtifactsRequest, caller: Caller
    ) -> artifacts_pb2.DeleteArtifactsResponse:
        """Delete a part of what matches."""
        check.text(request.reason, 1_000, "reason")
        asked_for = request.filter
        if not (asked_for.kinds or asked_for.job_ids or asked_for.digests or asked_for.stored_before_ms):
            check.invalid("filter", "say what to delete: kinds, job_ids, digests or stored_before_ms.")
        query = await self._query(asked_for, caller)
        asked = question("DeleteArtifacts", query, request.validate_only)
        query = replace(query, after=_place(decode_token(request.page_token, asked)), limit=DELETED_AT_ONCE)
        deletion = await self._service.delete_holdings(
            query, await self._access.needed_files(), request.reason, request.validate_only
        )
        token = "" if deletion.after is None else encode_token(_cursor(deletion.after, query), asked)
        return artifacts_pb2.DeleteArtifactsResponse(
            items=deletion.items, size_bytes=deletion.size_bytes, kept=deletion.kept, next_page_token=token
        )

    async def get_storage(
        self, request: artifacts_pb2.GetStorageRequest, caller: Caller
    ) -> artifacts_pb2.GetStorageResponse:
        """By institution and project."""
        institution = institution_scope(caller, request.institution, "institution")
        page, token = page_of(
            self._service.storage_of(institution),
            lambda each: (each.institution, each.project),
            page_size(request.page_size),
            request.page_token,
            question("GetStorage", institution),
        )
        return artifacts_pb2.GetStorageResponse(
            storage=[storage_to_proto(each) for each in page], next_page_token=token
        )

    async def _query(self, message: artifacts_pb2.ArtifactFilter, caller: Caller) -> HoldingQuery:
        """What may be seen of what is asked for."""
        checked_filter(message)
        institution = institution_scope(caller, message.institution, "filter.institution")
        project = project_scope(caller, message.project, "filter.project")
        ids = tuple(dict.fromkeys(message.job_ids))
        jobs = await visible_jobs(self._service, caller, ids, "filter.job_ids") if ids else []
        if not institution and jobs:
            institution = jobs[0].institution
        if not institution:
            raise InvalidArgument(
                "filter.institution: say whose, or name jobs.", reason="NO_INSTITUTION", field="filter.institution"
            )
        own = caller.scope in (Scope.OWN, Scope.PROJECT)
        user = message.user
        projects: tuple[str, ...] = ()
        if own and message.user in ("", caller.user):
            user = caller.user
            projects = tuple(sorted(caller.leads)) if not message.user else ()
        elif own and project not in caller.leads:
            # Another user's are a lead's to see in the projects that it leads.
            check.invalid("filter.user", "name one of the projects that you lead, too, or ask for your own.")
        return HoldingQuery(
            institution,
            project,
            user,
            projects,
            tuple(sorted({int(kind) for kind in message.kinds})),
            tuple(job.job_id for job in jobs if not job.array_size),
            tuple(job.job_id for job in jobs if job.array_size),
            tuple(sorted(set(message.digests))),
            message.stored_before_ms,
        )


def _cursor(record: HoldingRecord, query: HoldingQuery) -> str:
    value = record.size_bytes if query.by_size else record.since_ms
    return "\x1f".join((str(value), record.project, str(record.kind), record.item))


def _place(cursor: str) -> _Place | None:
    """Where a page goes on. A token is sealed, but anybody can seal one."""
    if not cursor:
        return None
    parts = cursor.split("\x1f")
    try:
        value, project, kind, item = parts
        return _bounded(int(value)), project, _bounded(int(kind)), item
    except ValueError:
        raise InvalidArgument(
            "page_token: it is not one that this list returned; pass next_page_token unchanged.",
            reason="PAGE_TOKEN",
            field="page_token",
        ) from None


def _bounded(number: int) -> int:
    if not -1 <= number < 1 << 63:
        raise ValueError(number)
    return number
