"""Tenants, keys, quotas, regions and nodes: records and protocol messages."""

from __future__ import annotations

from protos.suanli.v1 import admin_pb2, common_pb2, regions_pb2
from scheduler.domain.records import (
    ApiKeyRecord,
    InstitutionRecord,
    ProjectRecord,
    QuotaRecord,
    UserRecord,
)
from scheduler.domain.resources import Resources
from scheduler.service.contract import AS_IT_WAS, NodeStatus, PoolStatus, QuotaStatus, RegionStatus
from scheduler.wire import check

DEFAULT_WEIGHT = 1000
MAX_WEIGHT = 1_000_000
MAX_TITLE = 256
MAX_LED = 64
MAX_PENDING_JOBS = 10_000_000
MAX_QUOTA = 1 << 53
MAX_STORED_MIB = 1 << 40
MAX_TIME_MS = 253_402_300_800_000  # the end of the year 9999


def resources_to_proto(amount: Resources) -> common_pb2.Resources:
    """Amounts of each resource."""
    return common_pb2.Resources(cpu_milli=amount.cpu_milli, memory_mib=amount.memory_mib, gpu_milli=amount.gpu_milli)


def institution_from_proto(message: admin_pb2.Institution) -> InstitutionRecord:
    """A checked institution; its creation time is the service's to say."""
    path = "institution"
    return InstitutionRecord(
        check.slug(message.id, f"{path}.id", "an institution's id"),
        check.text(message.title, MAX_TITLE, f"{path}.title"),
        check.integer(message.weight or DEFAULT_WEIGHT, 1, MAX_WEIGHT, f"{path}.weight"),
        check.optional_slug(message.home_region, f"{path}.home_region", "a region's id"),
        0,
    )


def institution_to_proto(record: InstitutionRecord) -> admin_pb2.Institution:
    """An institution."""
    return admin_pb2.Institution(
        id=record.institution,
        title=record.title,
        weight=record.weight,
        home_region=record.home_region,
        create_time_ms=record.create_ms,
    )


def project_from_proto(message: admin_pb2.Project) -> ProjectRecord:
    """A checked project."""
    path = "project"
    return ProjectRecord(
        check.slug(message.institution, f"{path}.institution", "an institution's id"),
        check.slug(message.id, f"{path}.id", "a project's id"),
        check.text(message.title, MAX_TITLE, f"{path}.title"),
        check.integer(message.weight or DEFAULT_WEIGHT, 1, MAX_WEIGHT, f"{path}.weight"),
        0,
    )


def project_to_proto(record: ProjectRecord) -> admin_pb2.Project:
    """A project."""
    return admin_pb2.Project(
        institution=record.institution,
        id=record.project,
        title=record.title,
        weight=record.weight,
        create_time_ms=record.create_ms,
    )


def user_from_proto(message: admin_pb2.User) -> UserRecord:
    """A checked user. Operators and agents belong to the platform, researchers and their admins to an institution."""
    path = "user"
    check.slug(message.id, f"{path}.id", "a user's id")
    check.optional_slug(message.institution, f"{path}.institution", "an institution's id")
    if message.role not in _USER_ROLES:
        check.invalid(f"{path}.role", f"give {', '.join(sorted(common_pb2.Role.Name(r)[5:] for r in _USER_ROLES))}.")
    if message.role == common_pb2.ROLE_OPERATOR and message.institution:
        check.invalid(f"{path}.institution", "an operator belongs to the platform; leave the institution empty.")
    if message.role in _INSTITUTION_ROLES and not message.institution:
        check.invalid(
            f"{path}.institution",
            "a researcher, a project lead or an institution's admin needs an institution; name it.",
        )
    if message.projects and message.role != common_pb2.ROLE_PROJECT_LEAD:
        check.invalid(f"{path}.projects", "only a project lead leads projects; give that role, or leave them out.")
    check.count(len(message.projects), MAX_LED, f"{path}.projects", "projects")
    led = {
        check.slug(name, f"{path}.projects[{index}]", "a project's id") for index, name in enumerate(message.projects)
    }
    return UserRecord(
        message.id,
        message.institution,
        check.text(message.title, MAX_TITLE, f"{path}.title"),
        int(message.role),
        int(message.disabled),
        0,
        ",".join(sorted(led)),
    )


_INSTITUTION_ROLES = frozenset(
    {common_pb2.ROLE_RESEARCHER, common_pb2.ROLE_PROJECT_LEAD, common_pb2.ROLE_INSTITUTION_ADMIN}
)
_USER_ROLES = _INSTITUTION_ROLES | {
    common_pb2.ROLE_FINANCE,
    common_pb2.ROLE_OPERATOR,
    common_pb2.ROLE_STEWARD,
    common_pb2.ROLE_AUDITOR,
}


def user_to_proto(record: UserRecord) -> admin_pb2.User:
    """A user."""
    return admin_pb2.User(
        id=record.user,
        institution=record.institution,
        title=record.title,
        role=record.role,  # type: ignore[arg-type]
        disabled=bool(record.disabled),
        create_time_ms=record.create_ms,
        projects=sorted(record.leads),
    )


def api_key_to_proto(record: ApiKeyRecord) -> admin_pb2.ApiKey:
    """A key without its secret."""
    return admin_pb2.ApiKey(
        prefix=record.prefix,
        user=record.user,
        institution=record.institution,
        role=record.role,  # type: ignore[arg-type]
        region=record.region,
        create_time_ms=record.create_ms,
        expire_time_ms=record.expire_ms,
        revoked=bool(record.revoked),
        title=record.title,
        limit_role=record.limit_role,  # type: ignore[arg-type]
        project=record.project,
        read_only=bool(record.read_only),
        last_used_time_ms=record.last_used_ms,
    )


def quota_from_proto(message: admin_pb2.Quota) -> QuotaRecord:
    """A checked quota."""
    path = "quota"
    for part in ("cpu_milli", "memory_mib", "gpu_milli"):
        check.integer(getattr(message, part), -1, MAX_QUOTA, f"{path}.{part}", "(-1: no limit)")
    if message.HasField("stored_mib"):
        check.integer(message.stored_mib, -1, MAX_STORED_MIB, f"{path}.stored_mib", "MiB (-1: no limit)")
    check.integer(message.pending_jobs, -1, MAX_PENDING_JOBS, f"{path}.pending_jobs", "jobs (-1: no limit)")
    return QuotaRecord(
        check.slug(message.institution, f"{path}.institution", "an institution's id"),
        check.optional_slug(message.project, f"{path}.project", "a project's id"),
        message.cpu_milli,
        message.memory_mib,
        message.gpu_milli,
        message.pending_jobs,
        message.stored_mib if message.HasField("stored_mib") else AS_IT_WAS,
    )


def quota_to_proto(record: QuotaRecord, in_use: Resources | None = None, stored_bytes: int = 0) -> admin_pb2.Quota:
    """A quota, and what is held under it where that is known."""
    return admin_pb2.Quota(
        institution=record.institution,
        project=record.project,
        cpu_milli=record.cpu_milli,
        memory_mib=record.memory_mib,
        gpu_milli=record.gpu_milli,
        pending_jobs=record.pending_jobs,
        in_use=None if in_use is None else resources_to_proto(in_use),
        stored_mib=record.stored_mib,
        stored_bytes=stored_bytes,
    )


def quota_status_to_proto(status: QuotaStatus) -> admin_pb2.Quota:
    """A quota with what is held under it."""
    return quota_to_proto(status.record, status.in_use, status.stored_bytes)


def region_to_proto(status: RegionStatus) -> admin_pb2.Region:
    """A region and what goes on in it."""
    return admin_pb2.Region(
        id=status.record.region,
        online=status.online,
        last_seen_ms=status.record.last_seen_ms,
        agent_version=status.record.agent_version,
        nodes=status.nodes,
        capacity=resources_to_proto(status.capacity),
        allocated=resources_to_proto(status.allocated),
        active_attempts=status.active_attempts,
    )


def pool_to_proto(status: PoolStatus) -> admin_pb2.Pool:
    """A pool and what is held in it."""
    return admin_pb2.Pool(
        region=status.key.region,
        id=status.key.pool,
        accelerator=status.accelerator,
        nodes=status.nodes,
        nodes_draining=status.nodes_draining,
        nodes_isolated=status.nodes_isolated,
        capacity=resources_to_proto(status.capacity),
        allocated=resources_to_proto(status.allocated),
    )


def node_to_proto(status: NodeStatus) -> admin_pb2.NodeStatus:
    """A node and what is held on it."""
    view = status.view
    return admin_pb2.NodeStatus(
        region=view.region,
        node=regions_pb2.Node(
            id=view.node_id,
            name=view.name,
            pool=view.pool,
            capacity=resources_to_proto(view.capacity),
            accelerator=view.accelerator,
            labels=dict(view.labels),
        ),
        allocated=resources_to_proto(view.capacity.minus(view.free)),
        gpu_allocated_milli=[1000 - free for free in view.gpu_free],
        draining=view.draining,
        up=view.up,
        active_attempts=status.active_attempts,
    )
