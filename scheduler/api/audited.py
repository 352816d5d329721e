"""What of each method is audited: the one table. A test fails for a method without a row.

Whatever a row says, every refusal is recorded: by the table of permissions, by scope, and of unknown callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from google.protobuf.message import Message

MAX_TARGET = 200


class Kind(Enum):
    """What is recorded beside refusals."""

    CHANGE = 1
    """Each change, in its own transaction, and each call that fails."""
    FOREIGN = 2
    """What concerns another user's job."""
    NOTHING = 3
    """It changes nothing, or (of jobs) events tell of it."""


class Row(NamedTuple):
    """``target``: the fields of a request that name what it is about, for calls that are refused or fail; joined by "/"."""

    kind: Kind
    target: str = ""


_CHANGE, _FOREIGN, _NOTHING = Kind.CHANGE, Kind.FOREIGN, Kind.NOTHING

AUDITED: Mapping[str, Row] = {
    "suanli.v1.JobService/SubmitJobs": Row(_NOTHING),
    "suanli.v1.JobService/GetJob": Row(_NOTHING, "job_id"),
    "suanli.v1.JobService/ListJobs": Row(_NOTHING, "filter.institution"),
    "suanli.v1.JobService/WatchJobs": Row(_NOTHING, "institution"),
    "suanli.v1.JobService/ExplainJob": Row(_NOTHING, "job_id"),
    "suanli.v1.JobService/CancelJobs": Row(_FOREIGN, "job_ids"),
    "suanli.v1.JobService/TailLogs": Row(_FOREIGN, "job_id"),
    "suanli.v1.JobService/ListResults": Row(_NOTHING, "job_id"),
    "suanli.v1.JobService/DownloadResult": Row(_FOREIGN, "job_id"),
    "suanli.v1.JobService/FindMissingBlobs": Row(_NOTHING),
    "suanli.v1.JobService/UploadBlob": Row(_NOTHING),
    "suanli.v1.JobService/ListAlgorithms": Row(_NOTHING),
    "suanli.v1.RegionService/Connect": Row(_NOTHING),
    # It makes nothing that the platform keeps; the log tells of it.
    "suanli.v1.RegionService/RenewCertificate": Row(_NOTHING),
    "suanli.v1.RegionService/EnrolAgent": Row(_CHANGE, "region"),
    "suanli.v1.AdminService/PutInstitution": Row(_CHANGE, "institution.id"),
    "suanli.v1.AdminService/ListInstitutions": Row(_NOTHING),
    "suanli.v1.AdminService/PutProject": Row(_CHANGE, "project.institution/project.id"),
    "suanli.v1.AdminService/ListProjects": Row(_NOTHING, "institution"),
    "suanli.v1.AdminService/PutUser": Row(_CHANGE, "user.id"),
    "suanli.v1.AdminService/ListUsers": Row(_NOTHING, "institution"),
    "suanli.v1.AdminService/CreateApiKey": Row(_CHANGE, "user"),
    "suanli.v1.AdminService/ListApiKeys": Row(_NOTHING, "user"),
    "suanli.v1.AdminService/RevokeApiKey": Row(_CHANGE, "prefix"),
    "suanli.v1.AdminService/SetQuota": Row(_CHANGE, "quota.institution/quota.project"),
    "suanli.v1.AdminService/ListQuotas": Row(_NOTHING, "institution"),
    "suanli.v1.AdminService/GetPolicy": Row(_NOTHING),
    "suanli.v1.AdminService/ListPolicyVersions": Row(_NOTHING),
    "suanli.v1.AdminService/ListPolicyPresets": Row(_NOTHING),
    "suanli.v1.AdminService/PutPolicy": Row(_CHANGE),
    "suanli.v1.AdminService/CreateEnrolmentToken": Row(_CHANGE, "region"),
    "suanli.v1.AdminService/ListRegions": Row(_NOTHING),
    "suanli.v1.AdminService/ListPools": Row(_NOTHING),
    "suanli.v1.AdminService/ListNodes": Row(_NOTHING),
    "suanli.v1.AdminService/DrainNode": Row(_CHANGE, "region/node"),
    "suanli.v1.AdminService/WhoAmI": Row(_NOTHING),
    "suanli.v1.AdminService/GetLoginMethods": Row(_NOTHING),
    "suanli.v1.UsageService/GetUsage": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/ListLedger": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/StreamLedger": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/ExportUsage": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/GetStatement": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/VerifyLedger": Row(_NOTHING),
    "suanli.v1.UsageService/CorrectLedger": Row(_CHANGE, "sequence"),
    "suanli.v1.UsageService/CloseMonth": Row(_CHANGE, "month"),
    "suanli.v1.UsageService/ListMonths": Row(_NOTHING),
    "suanli.v1.UsageService/PutPriceList": Row(_CHANGE),
    "suanli.v1.UsageService/GetPriceList": Row(_NOTHING),
    "suanli.v1.UsageService/ListPriceLists": Row(_NOTHING),
    "suanli.v1.UsageService/EstimateCost": Row(_NOTHING),
    "suanli.v1.UsageService/PutBudget": Row(_CHANGE, "budget.id"),
    "suanli.v1.UsageService/ListBudgets": Row(_NOTHING, "institution"),
    "suanli.v1.UsageService/ListBudgetNotices": Row(_NOTHING, "institution"),
    "suanli.v1.ArtifactService/ListArtifacts": Row(_NOTHING, "filter.institution"),
    "suanli.v1.ArtifactService/DeleteArtifacts": Row(_CHANGE, "filter.institution/filter.job_ids"),
    "suanli.v1.ArtifactService/GetStorage": Row(_NOTHING, "institution"),
    "suanli.v1.DataService/PutDataSet": Row(_CHANGE, "data_set.name"),
    "suanli.v1.DataService/ListDataSets": Row(_NOTHING, "name"),
    "suanli.v1.DataService/GetDataSet": Row(_NOTHING, "name"),
    "suanli.v1.DataService/WithdrawDataSet": Row(_CHANGE, "name/version"),
    "suanli.v1.DataService/RequestGrant": Row(_CHANGE, "grant.data_set"),
    "suanli.v1.DataService/DecideGrant": Row(_CHANGE, "id"),
    "suanli.v1.DataService/RevokeGrant": Row(_CHANGE, "id"),
    "suanli.v1.DataService/ListGrants": Row(_NOTHING, "data_set"),
    "suanli.v1.DataService/CheckAccess": Row(_NOTHING),
    "suanli.v1.DataService/GetLineage": Row(_NOTHING, "job_id"),
    "suanli.v1.AuditService/ListAudit": Row(_NOTHING, "institution"),
    "suanli.v1.AuditService/StreamAudit": Row(_NOTHING, "institution"),
    "suanli.v1.AuditService/VerifyAudit": Row(_NOTHING),
    "suanli.v1.AuditService/GetAuditKey": Row(_NOTHING),
}


def target_of(row: Row, request: object) -> str:
    """What a request is about, as far as it says; without what is not to be printed, and bounded."""
    if not row.target or not isinstance(request, Message):
        return ""
    found = "/".join(_named(request, path) for path in row.target.split("/"))
    return "".join(letter if letter.isprintable() else "?" for letter in found)[:MAX_TARGET].strip("/")


def _named(message: Message, path: str) -> str:
    value: object = message
    for name in path.split("."):
        value = getattr(value, name)
    if isinstance(value, str | int):
        return str(value)
    return ",".join(str(each) for each in value[:3])  # type: ignore[index]
