"""What a credential may: what its user may, within what the credential itself is limited to. The narrower of the two, for every method.

A method that stands in none of the tables below is closed to a credential that is limited so.
"""

from __future__ import annotations

from typing import NamedTuple

from protos.suanli.v1 import admin_pb2
from scheduler.api.permissions import Role, Scope, scope_of
from scheduler.domain.errors import PermissionDenied

API_KEY, TOKEN = admin_pb2.CREDENTIAL_KIND_API_KEY, admin_pb2.CREDENTIAL_KIND_TOKEN

_JOB_READS = frozenset(
    f"suanli.v1.JobService/{name}"
    for name in (
        "GetJob",
        "ListJobs",
        "WatchJobs",
        "ExplainJob",
        "TailLogs",
        "ListResults",
        "DownloadResult",
        "ListAlgorithms",
    )
)
_PLACES = frozenset(
    f"suanli.v1.AdminService/{name}"
    for name in (
        "ListRegions",
        "ListPools",
        "ListNodes",
        "GetPolicy",
        "ListPolicyVersions",
        "ListPolicyPresets",
        "WhoAmI",
    )
)
READS = (
    _JOB_READS
    | _PLACES
    | frozenset(
        f"suanli.v1.{name}"
        for name in (
            "AdminService/ListInstitutions",
            "AdminService/ListProjects",
            "AdminService/ListUsers",
            "AdminService/ListApiKeys",
            "AdminService/ListQuotas",
            "ArtifactService/ListArtifacts",
            "ArtifactService/GetStorage",
            "UsageService/GetUsage",
            "UsageService/GetPriceList",
            "UsageService/ListPriceLists",
            "UsageService/EstimateCost",
            "UsageService/ListLedger",
            "UsageService/StreamLedger",
            "UsageService/ExportUsage",
            "UsageService/GetStatement",
            "UsageService/VerifyLedger",
            "UsageService/ListMonths",
            "UsageService/ListBudgets",
            "UsageService/ListBudgetNotices",
            "DataService/ListDataSets",
            "DataService/GetDataSet",
            "DataService/ListGrants",
            "DataService/CheckAccess",
            "DataService/GetLineage",
        )
    )
)
"""Open to a credential that only reads."""
OF_ONE_PROJECT = (
    _JOB_READS
    | _PLACES
    | frozenset(
        f"suanli.v1.{name}"
        for name in (
            "JobService/SubmitJobs",
            "JobService/CancelJobs",
            "JobService/FindMissingBlobs",
            "JobService/UploadBlob",
            "ArtifactService/ListArtifacts",
            "ArtifactService/DeleteArtifacts",
            "UsageService/GetPriceList",
            "UsageService/ListPriceLists",
            "DataService/GetLineage",
        )
    )
)
"""Open to a credential of one project: what tells of no project, and what keeps to the caller's."""


class Credential(NamedTuple):
    """Who somebody is, by what, until when (0: until it is revoked), and what it is limited to.

    ``role`` is the user's. ``roles`` limit it to what one of them may; None: they do not. ``name`` is a key's prefix or a token's
    issuer. ``region`` is an agent's.
    """

    user: str = ""
    institution: str = ""
    role: int = 0
    region: str = ""
    kind: int = 0
    name: str = ""
    expire_ms: int = 0
    roles: tuple[int, ...] | None = None
    project: str = ""
    read_only: bool = False


def scope_within(method: str, credential: Credential) -> Scope:
    """The scope in which a credential may call a method; raises ``PermissionDenied``."""
    name = method.rpartition("/")[2]
    scope = scope_of(method, credential.role, credential.institution)
    if scope is None:
        role = Role(credential.role).name.lower() if credential.role in set(Role) else "unknown"
        raise PermissionDenied(f"Your role ({role}) does not allow {name}.", reason="ROLE_NOT_ALLOWED")
    if credential.roles is not None:
        scopes = [scope_of(method, role, credential.institution) for role in credential.roles]
        widest = max((one for one in scopes if one is not None), default=None)
        if widest is None:
            said = ", ".join(Role(role).name.lower() for role in credential.roles) or "none"
            raise PermissionDenied(
                f"Your key or token is limited to roles ({said}) that do not allow {name}.",
                reason="CREDENTIAL_ROLE_LIMIT",
            )
        scope = min(scope, widest)
    if credential.read_only and method not in READS:
        raise PermissionDenied(f"Your key only reads; it does not allow {name}.", reason="CREDENTIAL_READ_ONLY")
    if credential.project and method not in OF_ONE_PROJECT:
        raise PermissionDenied(
            f"Your key or token is for project {credential.project!r} only; it does not allow {name}.",
            reason="CREDENTIAL_PROJECT_LIMIT",
        )
    return scope


def role_for_new_key(caller: Credential, asked: int) -> int:
    """The role that a new key is limited to: none but one that the caller's own credential is limited to, where it is.

    Else a limited credential could make itself an unlimited one. 0: no limit. Raises ``PermissionDenied``.
    """
    if caller.roles is None or asked in caller.roles:
        return asked
    if not asked and len(caller.roles) == 1:
        return caller.roles[0]
    said = ", ".join(Role(role).name.lower() for role in caller.roles)
    raise PermissionDenied(
        f"limit_role: your own key or token is limited to {said}; name one of these.",
        reason="CREDENTIAL_ROLE_LIMIT",
        field="limit_role",
    )
