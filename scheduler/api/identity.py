"""AdminService: API keys, how callers become known, and as whom."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from protos.suanli.v1 import admin_pb2
from scheduler.api.limits import role_for_new_key
from scheduler.api.paging import page_of, page_size, question
from scheduler.api.permissions import Role, Scope
from scheduler.api.visibility import Caller, institution_scope
from scheduler.domain.errors import NotFound
from scheduler.identity.issuers import Oidc
from scheduler.service.contract import Service
from scheduler.service.people import KeyLimits
from scheduler.wire import admin as wire
from scheduler.wire import check

_LIMIT_ROLES = frozenset({0, *Role}) - {Role.AGENT}


def server_version() -> str:
    """This installation's version."""
    try:
        return version("suanli")
    except PackageNotFoundError:
        return "0+unknown"


class IdentityApi:
    """Keys, and who the caller is."""

    def __init__(self, service: Service, oidc: Oidc) -> None:
        self._service = service
        self._version = server_version()
        self._logins = [
            admin_pb2.OidcLogin(
                issuer=issuer.issuer,
                client_id=issuer.client_id,
                audience=issuer.audience,
                scopes=issuer.scopes,
                title=issuer.title,
            )
            for issuer in oidc.issuers
            if issuer.client_id
        ]

    async def get_login_methods(
        self, request: admin_pb2.GetLoginMethodsRequest, caller: Caller
    ) -> admin_pb2.GetLoginMethodsResponse:
        """The issuers with a client for the command line."""
        del request, caller
        return admin_pb2.GetLoginMethodsResponse(oidc=self._logins)

    async def who_am_i(self, request: admin_pb2.WhoAmIRequest, caller: Caller) -> admin_pb2.WhoAmIResponse:
        """Who the caller is, by what and until when."""
        del request
        credential = caller.credential
        return admin_pb2.WhoAmIResponse(
            user=caller.user,
            institution=caller.institution,
            role=caller.role,  # type: ignore[arg-type]
            server_version=self._version,
            credential=credential.kind,  # type: ignore[arg-type]
            credential_name=credential.name,
            expire_time_ms=credential.expire_ms,
            limit_roles=credential.roles or (),  # type: ignore[arg-type]
            limited_to_roles=credential.roles is not None,
            project=credential.project,
            read_only=credential.read_only,
        )

    async def create_api_key(
        self, request: admin_pb2.CreateApiKeyRequest, caller: Caller
    ) -> admin_pb2.CreateApiKeyResponse:
        """A key for a user: oneself, one of the own institution, or any."""
        user = check.slug(request.user or caller.user, "user", "a user's id")
        check.text(request.title, wire.MAX_TITLE, "title")
        check.integer(request.expire_time_ms, 0, wire.MAX_TIME_MS, "expire_time_ms", "ms since 1970")
        check.optional_slug(request.project, "project", "a project's id")
        if request.limit_role not in _LIMIT_ROLES:
            check.invalid("limit_role", "give researcher, institution-admin, finance or operator, or leave it out.")
        await self._check_user(user, caller)
        limits = KeyLimits(role_for_new_key(caller.credential, request.limit_role), request.project, request.read_only)
        record, secret = await self._service.create_api_key(
            user, request.title, request.expire_time_ms, caller.user, limits
        )
        return admin_pb2.CreateApiKeyResponse(key=wire.api_key_to_proto(record), secret=secret)

    async def _check_user(self, user: str, caller: Caller) -> None:
        if caller.scope is Scope.ANY or user == caller.user:
            return
        if caller.scope is Scope.INSTITUTION:
            users = await self._service.list_users(caller.institution)
            if any(r.user == user and r.institution == caller.institution for r in users):
                return
        raise NotFound(f"user: there is no user {user!r} that you manage.", reason="USER_NOT_FOUND", field="user")

    async def list_api_keys(
        self, request: admin_pb2.ListApiKeysRequest, caller: Caller
    ) -> admin_pb2.ListApiKeysResponse:
        """Keys by prefix; a caller who manages nobody sees the own ones."""
        check.optional_slug(request.user, "user", "a user's id")
        institution = institution_scope(caller, request.institution, "institution")
        user = request.user
        if caller.scope is Scope.OWN:
            user = user or caller.user
            await self._check_user(user, caller)
        page, token = page_of(
            await self._service.list_api_keys(institution, user),
            lambda r: (r.prefix,),
            page_size(request.page_size),
            request.page_token,
            question("ListApiKeys", institution, user),
        )
        return admin_pb2.ListApiKeysResponse(keys=[wire.api_key_to_proto(r) for r in page], next_page_token=token)

    async def revoke_api_key(
        self, request: admin_pb2.RevokeApiKeyRequest, caller: Caller
    ) -> admin_pb2.RevokeApiKeyResponse:
        """End a key."""
        check.text(request.prefix, 64, "prefix")
        if caller.scope is not Scope.ANY:
            user = caller.user if caller.scope is Scope.OWN else ""
            keys = await self._service.list_api_keys(caller.institution, user)
            if not any(r.prefix == request.prefix and r.institution == caller.institution for r in keys):
                raise NotFound(
                    f"prefix: there is no key {check.shown(request.prefix)} that you manage.",
                    reason="KEY_NOT_FOUND",
                    field="prefix",
                )
        record = await self._service.revoke_api_key(request.prefix, caller.user)
        return admin_pb2.RevokeApiKeyResponse(key=wire.api_key_to_proto(record))
