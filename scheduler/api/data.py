"""DataService: data sets, grants, decisions and lineage; and the rule for taking results out."""

from __future__ import annotations

from protos.suanli.v1 import data_pb2
from scheduler.api.paging import decode_token, encode_token, page_of, page_size, question
from scheduler.api.permissions import Role, Scope
from scheduler.api.visibility import Caller, other_institution, visible_jobs
from scheduler.domain.errors import PermissionDenied
from scheduler.domain.records import JobRecord
from scheduler.service.contract import Service
from scheduler.wire import check
from scheduler.wire import data as wire
from scheduler.wire.spec import SpecCodec


async def require_export(service: Service, caller: Caller, record: JobRecord) -> None:
    """``PermissionDenied`` unless the caller may take a job's results and logs out.

    What sensitive data went into needs a grant to export it, or is for its stewards. Stewards see nothing but what their data
    went into.
    """
    if caller.role == Role.OPERATOR:
        return
    outputs = await service.outputs_of(record)
    if caller.role == Role.STEWARD:
        own = [each for each in outputs.inputs if caller.scope is Scope.ANY or each.institution == caller.institution]
        if own and all(each in own for each in outputs.not_exportable):
            return
        raise PermissionDenied(
            f"Job {record.job_id} read no data of yours, or sensitive data of others as well.",
            reason="NOT_YOUR_DATA",
            field="job_id",
        )
    if outputs.not_exportable:
        data = ", ".join(each.reference for each in outputs.not_exportable[:5])
        people = ", ".join(sorted({each.steward for each in outputs.not_exportable})[:5])
        raise PermissionDenied(
            f"Job {record.job_id} read sensitive data ({data}): its results and logs are given out under a grant to export "
            f"only. Ask {people} for one (`suanli grant request --action export`).",
            reason="RESULTS_NOT_EXPORTABLE",
            field="job_id",
            metadata={"data_sets": data, "stewards": people},
        )


class DataApi:
    """All methods of DataService."""

    def __init__(self, service: Service, codec: SpecCodec) -> None:
        self._service = service
        self._codec = codec

    # --- data sets ----------------------------------------------------------------------------------------------------

    async def put_data_set(self, request: data_pb2.PutDataSetRequest, caller: Caller) -> data_pb2.PutDataSetResponse:
        """Register a version, or change its terms."""
        given = data_pb2.DataSet()
        given.CopyFrom(request.data_set)
        given.institution = given.institution or caller.institution
        given.steward = given.steward or caller.user
        data_set = wire.data_set_from_proto(given)
        if caller.scope is not Scope.ANY and data_set.institution != caller.institution:
            raise other_institution("data_set.institution", caller.institution)
        put = await self._service.put_data_set(data_set, caller.user, _scope(caller))
        return data_pb2.PutDataSetResponse(data_set=wire.data_set_to_proto(put))

    async def list_data_sets(
        self, request: data_pb2.ListDataSetsRequest, caller: Caller
    ) -> data_pb2.ListDataSetsResponse:
        """Those that the caller may know of."""
        if request.name:
            wire.name(request.name, "name")
        found = [
            each
            for each in await self._service.list_data_sets(_scope(caller))
            if request.name in ("", each.name) and (request.include_withdrawn or not each.withdrawn_ms)
        ]
        page, token = page_of(
            found,
            lambda each: (each.name, each.version),
            page_size(request.page_size),
            request.page_token,
            question("ListDataSets", request.name, request.include_withdrawn),
        )
        return data_pb2.ListDataSetsResponse(
            data_sets=[wire.data_set_to_proto(each) for each in page], next_page_token=token
        )

    async def get_data_set(self, request: data_pb2.GetDataSetRequest, caller: Caller) -> data_pb2.GetDataSetResponse:
        """One version, or the newest."""
        reference = wire.name(request.name, "name")
        if request.version:
            reference += f"@{wire.version(request.version, 'version')}"
        found = await self._service.get_data_set(reference, _scope(caller))
        return data_pb2.GetDataSetResponse(data_set=wire.data_set_to_proto(found))

    async def withdraw_data_set(
        self, request: data_pb2.WithdrawDataSetRequest, caller: Caller
    ) -> data_pb2.WithdrawDataSetResponse:
        """End the use of a version for good."""
        name, version = wire.name(request.name, "name"), wire.version(request.version, "version")
        why = wire.reason(request.reason, "reason")
        found = await self._service.withdraw_data_set(name, version, why, caller.user, _scope(caller))
        return data_pb2.WithdrawDataSetResponse(data_set=wire.data_set_to_proto(found))

    # --- grants -------------------------------------------------------------------------------------------------------

    async def request_grant(
        self, request: data_pb2.RequestGrantRequest, caller: Caller
    ) -> data_pb2.RequestGrantResponse:
        """Ask for a grant."""
        asked = wire.request_from_proto(request.grant, request.reason, caller.institution)
        if caller.scope is not Scope.ANY and caller.role != Role.STEWARD and asked.institution != caller.institution:
            raise other_institution("grant.institution", caller.institution)
        grant = await self._service.request_grant(asked, caller.user, _scope(caller))
        return data_pb2.RequestGrantResponse(grant=wire.grant_to_proto(grant))

    async def decide_grant(self, request: data_pb2.DecideGrantRequest, caller: Caller) -> data_pb2.DecideGrantResponse:
        """Approve or refuse."""
        name = wire.grant_id(request.id, "id")
        why = wire.reason(request.reason, "reason", required=not request.approve)
        grant = await self._service.decide_grant(name, request.approve, why, caller.user, _scope(caller))
        return data_pb2.DecideGrantResponse(grant=wire.grant_to_proto(grant))

    async def revoke_grant(self, request: data_pb2.RevokeGrantRequest, caller: Caller) -> data_pb2.RevokeGrantResponse:
        """Take a grant back."""
        name, why = wire.grant_id(request.id, "id"), wire.reason(request.reason, "reason")
        grant = await self._service.revoke_grant(name, why, caller.user, _scope(caller))
        return data_pb2.RevokeGrantResponse(grant=wire.grant_to_proto(grant))

    async def list_grants(self, request: data_pb2.ListGrantsRequest, caller: Caller) -> data_pb2.ListGrantsResponse:
        """Those of the own institution and of its data sets, newest first."""
        data_set = wire.name(request.data_set, "data_set") if request.data_set else ""
        statuses, size = frozenset(map(int, request.statuses)), page_size(request.page_size)
        asked = question("ListGrants", data_set, sorted(statuses))
        before = decode_token(request.page_token, asked)
        found = [
            each
            for each in await self._service.list_grants(_scope(caller), data_set)
            if (not statuses or int(each.status) in statuses) and (not before or (_age(each.grant) < _age(before)))
        ]
        found.sort(key=lambda each: _age(each.grant), reverse=True)
        token = encode_token(found[size - 1].grant, asked) if len(found) > size else ""
        return data_pb2.ListGrantsResponse(
            grants=[wire.grant_to_proto(each) for each in found[:size]], next_page_token=token
        )

    # --- decisions and lineage ----------------------------------------------------------------------------------------

    async def check_access(self, request: data_pb2.CheckAccessRequest, caller: Caller) -> data_pb2.CheckAccessResponse:
        """What would be decided of a job now."""
        spec = self._codec.read(request.spec, field="spec", institution=caller.institution)
        if caller.scope is not Scope.ANY and spec.institution != caller.institution:
            raise other_institution("spec.institution", caller.institution)
        return wire.access_to_proto(await self._service.check_access(spec))

    async def get_lineage(self, request: data_pb2.GetLineageRequest, caller: Caller) -> data_pb2.GetLineageResponse:
        """What a job read and made."""
        check.job_id(request.job_id, "job_id")
        record = (await visible_jobs(self._service, caller, [request.job_id], "job_id"))[0]
        outputs = await self._service.outputs_of(record)
        return wire.lineage_to_proto(outputs, await self._service.lineage(record), record.results)


def _scope(caller: Caller) -> str:
    """The institution on whose behalf a caller acts; "" is the platform."""
    return "" if caller.scope is Scope.ANY else caller.institution


def _age(grant: str) -> tuple[int, str]:
    """Ids rise with time, and may grow longer."""
    return len(grant), grant
