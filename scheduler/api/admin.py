"""AdminService: tenants, quotas, regions and nodes. ``identity`` and ``policies`` have the rest of it."""

from __future__ import annotations

from protos.suanli.v1 import admin_pb2
from scheduler.api.paging import page_of, page_size, question
from scheduler.api.permissions import Role, Scope
from scheduler.api.visibility import Caller, institution_scope, require_led
from scheduler.domain.errors import PermissionDenied
from scheduler.domain.records import QuotaRecord
from scheduler.service.contract import AS_IT_WAS, Service
from scheduler.wire import admin as wire
from scheduler.wire import check

DEFAULT_TOKEN_TTL_MS = 3_600_000
MIN_TOKEN_TTL_MS = 60_000
MAX_TOKEN_TTL_MS = 2_592_000_000


class AdminApi:
    """The methods of AdminService that are in no other module."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # --- tenants ----------------------------------------------------------------------------------------------------

    async def put_institution(
        self, request: admin_pb2.PutInstitutionRequest, caller: Caller
    ) -> admin_pb2.PutInstitutionResponse:
        """Create or change an institution."""
        record = wire.institution_from_proto(request.institution)
        put = await self._service.put_institution(record, caller.user)
        return admin_pb2.PutInstitutionResponse(institution=wire.institution_to_proto(put))

    async def list_institutions(
        self, request: admin_pb2.ListInstitutionsRequest, caller: Caller
    ) -> admin_pb2.ListInstitutionsResponse:
        """Those the caller may see, by id."""
        own = institution_scope(caller, "", "institution")
        records = [r for r in await self._service.list_institutions() if not own or r.institution == own]
        page, token = page_of(
            records,
            lambda r: (r.institution,),
            page_size(request.page_size),
            request.page_token,
            question("ListInstitutions", own),
        )
        return admin_pb2.ListInstitutionsResponse(
            institutions=[wire.institution_to_proto(r) for r in page], next_page_token=token
        )

    async def put_project(self, request: admin_pb2.PutProjectRequest, caller: Caller) -> admin_pb2.PutProjectResponse:
        """Create or change a project."""
        record = wire.project_from_proto(request.project)
        institution_scope(caller, record.institution, "project.institution")
        return admin_pb2.PutProjectResponse(
            project=wire.project_to_proto(await self._service.put_project(record, caller.user))
        )

    async def list_projects(
        self, request: admin_pb2.ListProjectsRequest, caller: Caller
    ) -> admin_pb2.ListProjectsResponse:
        """Of one institution, or of all the caller may see."""
        institution = institution_scope(caller, request.institution, "institution")
        page, token = page_of(
            await self._service.list_projects(institution),
            lambda r: (r.institution, r.project),
            page_size(request.page_size),
            request.page_token,
            question("ListProjects", institution),
        )
        return admin_pb2.ListProjectsResponse(projects=[wire.project_to_proto(r) for r in page], next_page_token=token)

    async def put_user(self, request: admin_pb2.PutUserRequest, caller: Caller) -> admin_pb2.PutUserResponse:
        """Create or change a user. An institution's admin manages the people of the own institution only."""
        record = wire.user_from_proto(request.user)
        if caller.scope is not Scope.ANY:
            if record.role == Role.OPERATOR or not record.institution:
                raise PermissionDenied(
                    "user.role: only an operator makes operators and other users of the platform itself.",
                    reason="ROLE_NOT_ALLOWED",
                    field="user.role",
                )
            institution_scope(caller, record.institution, "user.institution")
            await self._refuse_foreign_user(record.user, caller)
        return admin_pb2.PutUserResponse(user=wire.user_to_proto(await self._service.put_user(record, caller.user)))

    async def _refuse_foreign_user(self, user: str, caller: Caller) -> None:
        """Users' ids are unique on the platform: one that is taken elsewhere is refused without saying by whom."""
        for other in await self._service.list_users(""):
            if other.user == user and other.institution != caller.institution:
                raise PermissionDenied(
                    f"user.id: {user!r} cannot be used in your institution; choose another id.",
                    reason="USER_ID_TAKEN",
                    field="user.id",
                )

    async def list_users(self, request: admin_pb2.ListUsersRequest, caller: Caller) -> admin_pb2.ListUsersResponse:
        """Of one institution, or of all the caller may see."""
        institution = institution_scope(caller, request.institution, "institution")
        page, token = page_of(
            await self._service.list_users(institution),
            lambda r: (r.user,),
            page_size(request.page_size),
            request.page_token,
            question("ListUsers", institution),
        )
        return admin_pb2.ListUsersResponse(users=[wire.user_to_proto(r) for r in page], next_page_token=token)

    # --- quotas -----------------------------------------------------------------------------------------------------

    async def set_quota(self, request: admin_pb2.SetQuotaRequest, caller: Caller) -> admin_pb2.SetQuotaResponse:
        """Replace a quota. An institution's own limit is the operator's to set; its admin sets those of its projects."""
        record = wire.quota_from_proto(request.quota)
        institution_scope(caller, record.institution, "quota.institution")
        if caller.scope is not Scope.ANY and not record.project:
            raise PermissionDenied(
                "quota.project: the limit of a whole institution is set by an operator; name a project.",
                reason="ROLE_NOT_ALLOWED",
                field="quota.project",
            )
        require_led(caller, [record.project], "quota.project")
        if caller.scope is Scope.PROJECT:
            await self._refuse_wider(record)
        put = await self._service.set_quota(record, caller.user)
        return admin_pb2.SetQuotaResponse(quota=wire.quota_to_proto(put))

    async def _refuse_wider(self, record: QuotaRecord) -> None:
        """``PermissionDenied`` when a limit is above the present one: a project's share of its institution is the admin's to widen."""
        of_institution = await self._service.list_quotas(record.institution)
        before = next((each.record for each in of_institution if each.record.project == record.project), None)
        for name in ("cpu_milli", "memory_mib", "gpu_milli", "pending_jobs", "stored_mib"):
            limit, present = getattr(record, name), -1 if before is None else getattr(before, name)
            if present >= 0 and limit != AS_IT_WAS and not 0 <= limit <= present:
                raise PermissionDenied(
                    f"quota.{name}: whoever leads a project may lower its limits only (now {present:,}); ask an admin.",
                    reason="QUOTA_OF_INSTITUTION",
                    field=f"quota.{name}",
                )

    async def list_quotas(self, request: admin_pb2.ListQuotasRequest, caller: Caller) -> admin_pb2.ListQuotasResponse:
        """With what is held under each."""
        institution = institution_scope(caller, request.institution, "institution")
        page, token = page_of(
            await self._service.list_quotas(institution),
            lambda s: (s.record.institution, s.record.project),
            page_size(request.page_size),
            request.page_token,
            question("ListQuotas", institution),
        )
        return admin_pb2.ListQuotasResponse(quotas=[wire.quota_status_to_proto(s) for s in page], next_page_token=token)

    # --- regions and nodes ------------------------------------------------------------------------------------------

    async def create_enrolment_token(
        self, request: admin_pb2.CreateEnrolmentTokenRequest, caller: Caller
    ) -> admin_pb2.CreateEnrolmentTokenResponse:
        """A token with which one agent may enrol."""
        region = check.slug(request.region, "region", "a region's id")
        ttl_ms = check.integer(
            request.ttl_ms or DEFAULT_TOKEN_TTL_MS,
            MIN_TOKEN_TTL_MS,
            MAX_TOKEN_TTL_MS,
            "ttl_ms",
            "ms (a minute to 30 days)",
        )
        token, expire_ms = await self._service.create_enrolment_token(region, ttl_ms, caller.user)
        return admin_pb2.CreateEnrolmentTokenResponse(token=token, expire_time_ms=expire_ms)

    async def list_regions(
        self, request: admin_pb2.ListRegionsRequest, caller: Caller
    ) -> admin_pb2.ListRegionsResponse:
        """All regions."""
        del caller
        page, token = page_of(
            await self._service.list_regions(),
            lambda s: (s.record.region,),
            page_size(request.page_size),
            request.page_token,
            question("ListRegions"),
        )
        return admin_pb2.ListRegionsResponse(regions=[wire.region_to_proto(s) for s in page], next_page_token=token)

    async def list_pools(self, request: admin_pb2.ListPoolsRequest, caller: Caller) -> admin_pb2.ListPoolsResponse:
        """Of one region or of all."""
        del caller
        region = check.optional_slug(request.region, "region", "a region's id")
        page, token = page_of(
            await self._service.list_pools(region),
            lambda s: (s.key.region, s.key.pool),
            page_size(request.page_size),
            request.page_token,
            question("ListPools", region),
        )
        return admin_pb2.ListPoolsResponse(pools=[wire.pool_to_proto(s) for s in page], next_page_token=token)

    async def list_nodes(self, request: admin_pb2.ListNodesRequest, caller: Caller) -> admin_pb2.ListNodesResponse:
        """Of one region or pool, or of all."""
        del caller
        region = check.optional_slug(request.region, "region", "a region's id")
        pool = check.optional_slug(request.pool, "pool", "a pool's id")
        page, token = page_of(
            await self._service.list_nodes(region, pool),
            lambda s: (s.view.region, s.view.pool, s.view.name, s.view.node_id),
            page_size(request.page_size),
            request.page_token,
            question("ListNodes", region, pool),
        )
        return admin_pb2.ListNodesResponse(nodes=[wire.node_to_proto(s) for s in page], next_page_token=token)

    async def drain_node(self, request: admin_pb2.DrainNodeRequest, caller: Caller) -> admin_pb2.DrainNodeResponse:
        """Close a node to new work, or open it again."""
        check.slug(request.region, "region", "a region's id")
        check.text(request.node, 253, "node")
        if request.evict and not request.draining:
            check.invalid("evict", "it goes with draining only.")
        status = await self._service.drain_node(
            request.region, request.node, request.draining, request.evict, caller.user
        )
        return admin_pb2.DrainNodeResponse(node=wire.node_to_proto(status))
