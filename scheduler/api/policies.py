"""AdminService: the scheduling policy."""

from __future__ import annotations

import asyncio

from protos.suanli.v1 import admin_pb2
from scheduler.api.paging import decode_number, encode_token, page_of, page_size, question
from scheduler.api.visibility import Caller
from scheduler.service.contract import Service
from scheduler.wire import check
from scheduler.wire import policies as wire


class PolicyApi:
    """The methods of AdminService that read and change the policy."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get_policy(self, request: admin_pb2.GetPolicyRequest, caller: Caller) -> admin_pb2.GetPolicyResponse:
        """The one in force, or an older one."""
        del caller
        version = check.integer(request.version, 0, wire.MAX_VERSION, "version")
        record = await self._service.get_policy(version)
        return admin_pb2.GetPolicyResponse(policy=await asyncio.to_thread(wire.policy_to_proto, record))

    async def put_policy(self, request: admin_pb2.PutPolicyRequest, caller: Caller) -> admin_pb2.PutPolicyResponse:
        """Check a policy and put it in force."""
        draft = await asyncio.to_thread(wire.draft_from_proto, request)
        put = await self._service.put_policy(draft, caller.user)
        policy = await asyncio.to_thread(wire.policy_to_proto, put.record)
        return admin_pb2.PutPolicyResponse(policy=policy, warnings=put.warnings)

    async def list_policy_versions(
        self, request: admin_pb2.ListPolicyVersionsRequest, caller: Caller
    ) -> admin_pb2.ListPolicyVersionsResponse:
        """Newest first."""
        del caller
        asked = question("ListPolicyVersions")
        size = page_size(request.page_size)
        records = await self._service.list_policies(decode_number(request.page_token, asked), size + 1)
        page = records[:size]
        token = encode_token(str(page[-1].version), asked) if len(records) > size else ""
        return admin_pb2.ListPolicyVersionsResponse(
            versions=[wire.version_to_proto(record) for record in page], next_page_token=token
        )

    async def list_policy_presets(
        self, request: admin_pb2.ListPolicyPresetsRequest, caller: Caller
    ) -> admin_pb2.ListPolicyPresetsResponse:
        """By name."""
        del caller
        page, token = page_of(
            wire.presets(),
            lambda preset: (preset.name,),
            page_size(request.page_size),
            request.page_token,
            question("ListPolicyPresets"),
        )
        return admin_pb2.ListPolicyPresetsResponse(presets=page, next_page_token=token)
