"""Who may call what, on whose things: the one table. A method without a row is refused, and a test fails.

``Scope`` says on whose: a caller's own, those of the own institution, or any. What a scope means for a method is kept by
``scheduler.api.visibility``; things outside it are as if they were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from protos.suanli.v1 import common_pb2


class Role(IntEnum):
    """What a caller is; the values are those of ``suanli.v1.Role``."""

    RESEARCHER = common_pb2.ROLE_RESEARCHER
    INSTITUTION_ADMIN = common_pb2.ROLE_INSTITUTION_ADMIN
    FINANCE = common_pb2.ROLE_FINANCE
    OPERATOR = common_pb2.ROLE_OPERATOR
    AGENT = common_pb2.ROLE_AGENT
    PROJECT_LEAD = common_pb2.ROLE_PROJECT_LEAD
    AUDITOR = common_pb2.ROLE_AUDITOR
    STEWARD = common_pb2.ROLE_STEWARD


class Scope(IntEnum):
    """On whose things a method may be called."""

    OWN = 1
    PROJECT = 2
    """The own, and those of the projects that the caller leads."""
    INSTITUTION = 3
    ANY = 4


_ROLES = frozenset(int(role) for role in Role)
R, L, A, F = Role.RESEARCHER, Role.PROJECT_LEAD, Role.INSTITUTION_ADMIN, Role.FINANCE
O, G, U, S = Role.OPERATOR, Role.AGENT, Role.AUDITOR, Role.STEWARD  # noqa: E741
OWN, PROJ, INST, ANY = Scope.OWN, Scope.PROJECT, Scope.INSTITUTION, Scope.ANY
_Row = Mapping[Role, Scope]

_SUBMITTERS: _Row = {R: INST, L: INST, A: INST, O: ANY}
_READERS: _Row = {**_SUBMITTERS, U: INST}
# Colleagues see each other's jobs; logs and results may show what only the submitter may read.
_TOUCHERS: _Row = {R: OWN, L: PROJ, A: INST, O: ANY}
_CONTENT: _Row = {**_TOUCHERS, U: INST}
# Stewards see the jobs of their institution, and of those that read its data the logs and results.
_SEERS: _Row = {**_READERS, S: INST}
_OUTPUTS: _Row = {**_CONTENT, S: INST}
_PEOPLE: _Row = {R: INST, L: INST, A: INST, F: INST, O: ANY, U: INST}
_TENANTS: _Row = {**_PEOPLE, S: INST}
_EVERYONE: _Row = {R: ANY, L: ANY, A: ANY, F: ANY, S: ANY, O: ANY, U: ANY}
# An auditor changes nothing, own keys included.
_KEYS: _Row = {R: OWN, L: OWN, A: INST, F: OWN, S: OWN, O: ANY}
_STEWARDS: _Row = {S: INST, O: ANY}
_DATA_USERS: _Row = {R: INST, L: INST, A: INST, S: INST, O: ANY}
_DATA_READERS: _Row = {**_DATA_USERS, U: INST}
_ACCOUNTANTS: _Row = {A: INST, F: INST, O: ANY, U: INST}
_MANAGERS: _Row = {A: INST, O: ANY}
_OPERATORS: _Row = {O: ANY}

PERMISSIONS: Mapping[str, _Row] = {
    "suanli.v1.JobService/SubmitJobs": _SUBMITTERS,
    "suanli.v1.JobService/GetJob": _SEERS,
    "suanli.v1.JobService/ListJobs": _SEERS,
    "suanli.v1.JobService/WatchJobs": _READERS,
    "suanli.v1.JobService/ExplainJob": _READERS,
    "suanli.v1.JobService/CancelJobs": _TOUCHERS,
    "suanli.v1.JobService/TailLogs": _OUTPUTS,
    "suanli.v1.JobService/ListResults": _OUTPUTS,
    "suanli.v1.JobService/DownloadResult": _OUTPUTS,
    # Of the own institution: what others hold is as if it were not there.
    "suanli.v1.JobService/FindMissingBlobs": _SUBMITTERS,
    "suanli.v1.JobService/UploadBlob": _SUBMITTERS,
    "suanli.v1.JobService/ListAlgorithms": _EVERYONE,
    "suanli.v1.RegionService/Connect": {G: OWN},
    "suanli.v1.RegionService/RenewCertificate": {G: OWN},
    "suanli.v1.AdminService/PutInstitution": _OPERATORS,
    "suanli.v1.AdminService/ListInstitutions": _TENANTS,
    "suanli.v1.AdminService/PutProject": _MANAGERS,
    "suanli.v1.AdminService/ListProjects": _TENANTS,
    "suanli.v1.AdminService/PutUser": _MANAGERS,
    "suanli.v1.AdminService/ListUsers": {**_MANAGERS, U: INST},
    "suanli.v1.AdminService/CreateApiKey": _KEYS,
    "suanli.v1.AdminService/ListApiKeys": {**_KEYS, U: INST},
    "suanli.v1.AdminService/RevokeApiKey": _KEYS,
    # A lead tightens what its projects may hold.
    "suanli.v1.AdminService/SetQuota": {**_MANAGERS, L: PROJ},
    "suanli.v1.AdminService/ListQuotas": _PEOPLE,
    # It says who goes first, so whoever submits may read it.
    "suanli.v1.AdminService/GetPolicy": _EVERYONE,
    "suanli.v1.AdminService/ListPolicyVersions": _EVERYONE,
    "suanli.v1.AdminService/ListPolicyPresets": _EVERYONE,
    "suanli.v1.AdminService/PutPolicy": _OPERATORS,
    "suanli.v1.AdminService/CreateEnrolmentToken": _OPERATORS,
    "suanli.v1.AdminService/ListRegions": _EVERYONE,
    "suanli.v1.AdminService/ListPools": _EVERYONE,
    "suanli.v1.AdminService/ListNodes": _EVERYONE,
    "suanli.v1.AdminService/DrainNode": _OPERATORS,
    "suanli.v1.AdminService/WhoAmI": {R: OWN, L: OWN, A: OWN, F: OWN, S: OWN, O: OWN, G: OWN, U: OWN},
    "suanli.v1.UsageService/GetUsage": {R: OWN, L: PROJ, A: INST, F: INST, O: ANY, U: INST},
    # Of the finance officers, those of no institution.
    "suanli.v1.UsageService/PutPriceList": _OPERATORS,
    "suanli.v1.UsageService/GetPriceList": _EVERYONE,
    "suanli.v1.UsageService/ListPriceLists": _EVERYONE,
    "suanli.v1.UsageService/EstimateCost": _READERS,
    "suanli.v1.UsageService/ListLedger": _ACCOUNTANTS,
    "suanli.v1.UsageService/StreamLedger": _ACCOUNTANTS,
    "suanli.v1.UsageService/ExportUsage": _ACCOUNTANTS,
    "suanli.v1.UsageService/GetStatement": _ACCOUNTANTS,
    # It tells of everybody's records. Of the finance officers and auditors, those of no institution.
    "suanli.v1.UsageService/VerifyLedger": _OPERATORS,
    # Of the finance officers, those of no institution.
    "suanli.v1.UsageService/CorrectLedger": _OPERATORS,
    "suanli.v1.UsageService/CloseMonth": _OPERATORS,
    "suanli.v1.UsageService/ListMonths": {A: ANY, F: ANY, O: ANY, U: ANY},
    # An institution's officers limit its projects only, a lead those it leads.
    "suanli.v1.UsageService/PutBudget": {L: PROJ, A: INST, F: INST, O: ANY},
    # Whoever submits may see why a job is held.
    "suanli.v1.UsageService/ListBudgets": _PEOPLE,
    "suanli.v1.UsageService/ListBudgetNotices": _PEOPLE,
    # An institution's admin: what its people did, and what concerns what is its own.
    "suanli.v1.AuditService/ListAudit": {**_MANAGERS, U: INST},
    "suanli.v1.AuditService/StreamAudit": {**_MANAGERS, U: INST},
    "suanli.v1.AuditService/VerifyAudit": _OPERATORS,
    "suanli.v1.AuditService/GetAuditKey": {**_MANAGERS, U: INST},
    "suanli.v1.ArtifactService/ListArtifacts": _CONTENT,
    "suanli.v1.ArtifactService/DeleteArtifacts": _TOUCHERS,
    "suanli.v1.ArtifactService/GetStorage": _PEOPLE,
    "suanli.v1.DataService/PutDataSet": _STEWARDS,
    "suanli.v1.DataService/ListDataSets": _DATA_READERS,
    "suanli.v1.DataService/GetDataSet": _DATA_READERS,
    "suanli.v1.DataService/WithdrawDataSet": _STEWARDS,
    "suanli.v1.DataService/RequestGrant": _DATA_USERS,
    # Nobody on an own request.
    "suanli.v1.DataService/DecideGrant": _STEWARDS,
    "suanli.v1.DataService/RevokeGrant": _STEWARDS,
    "suanli.v1.DataService/ListGrants": _DATA_READERS,
    "suanli.v1.DataService/CheckAccess": _DATA_READERS,
    "suanli.v1.DataService/GetLineage": _DATA_READERS,
}

# These need no key: the first takes a single-use token instead, the second says how to become known.
PUBLIC = frozenset({"suanli.v1.RegionService/EnrolAgent", "suanli.v1.AdminService/GetLoginMethods"})
# A finance officer of no institution is the platform's own: reads every institution's usage and
# quotas, puts prices and budgets, corrects the ledger and closes its months.
PLATFORM_FINANCE = frozenset(
    {
        "suanli.v1.AdminService/ListInstitutions",
        "suanli.v1.AdminService/ListProjects",
        "suanli.v1.AdminService/ListQuotas",
        "suanli.v1.ArtifactService/GetStorage",
        "suanli.v1.UsageService/GetUsage",
        "suanli.v1.UsageService/ListLedger",
        "suanli.v1.UsageService/PutPriceList",
        "suanli.v1.UsageService/StreamLedger",
        "suanli.v1.UsageService/VerifyLedger",
        "suanli.v1.UsageService/ExportUsage",
        "suanli.v1.UsageService/GetStatement",
        "suanli.v1.UsageService/CorrectLedger",
        "suanli.v1.UsageService/CloseMonth",
        "suanli.v1.UsageService/PutBudget",
        "suanli.v1.UsageService/ListBudgets",
        "suanli.v1.UsageService/ListBudgetNotices",
    }
)
# An auditor of no institution is the platform's own: reads whatever an institution's auditor reads, of everyone, and these.
PLATFORM_AUDIT = frozenset({"suanli.v1.AuditService/VerifyAudit", "suanli.v1.UsageService/VerifyLedger"})
# A steward of no institution is the platform's own.
PLATFORM_STEWARD = frozenset(
    {name for name in PERMISSIONS if name.startswith("suanli.v1.DataService/")}
    | {
        "suanli.v1.AdminService/ListInstitutions",
        "suanli.v1.AdminService/ListProjects",
        "suanli.v1.JobService/GetJob",
        "suanli.v1.JobService/ListJobs",
        "suanli.v1.JobService/ListResults",
        "suanli.v1.JobService/DownloadResult",
        "suanli.v1.JobService/TailLogs",
    }
)


def scope_of(method: str, role: int, institution: str) -> Scope | None:
    """The scope in which a role may call a method, or None when it may not."""
    row = PERMISSIONS.get(method)
    if row is None:
        return None
    scope = row.get(Role(role)) if role in _ROLES else None
    if role == Role.FINANCE and not institution and method in PLATFORM_FINANCE:
        return Scope.ANY
    if role == Role.STEWARD and not institution and method in PLATFORM_STEWARD:
        return Scope.ANY
    if role == Role.AUDITOR and not institution and (scope is Scope.INSTITUTION or method in PLATFORM_AUDIT):
        return Scope.ANY
    if scope in (Scope.PROJECT, Scope.INSTITUTION) and not institution:
        return None
    return scope
