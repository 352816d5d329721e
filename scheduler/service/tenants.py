"""Institutions, projects, users, keys, quotas, regions and nodes: what administrators change."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b32encode
from dataclasses import replace

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from scheduler.domain.records import (
    ApiKeyRecord,
    EnrolmentRecord,
    InstitutionRecord,
    ProjectRecord,
    QuotaRecord,
    UserRecord,
)
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.types import UNLIMITED
from scheduler.service.auditing import tell
from scheduler.service.contract import AS_IT_WAS
from scheduler.service.model import Node, Region, Tenant
from scheduler.service.people import NO_LIMITS, KeyLimits
from scheduler.service.state import State
from scheduler.service.submitting import stop_attempt

DEFAULT_PROJECT = "default"
DEFAULT_WEIGHT = 1000
ROLE_OPERATOR, ROLE_AGENT = 4, 5
"""The values of ``suanli.v1.Role`` the service itself gives out."""
USE_WRITTEN_EVERY_MS = 3_600_000
_KEY = re.compile(r"suanli_([a-z2-7]{13})_([a-z2-7]{52})")
_PREFIX_BYTES, _SECRET_BYTES = 8, 32


# --- institutions, projects, users --------------------------------------------------------------------------------------


def put_institution(state: State, record: InstitutionRecord) -> InstitutionRecord:
    """Create or change an institution; a new one gets the project "default"."""
    before = state.institutions.get(record.institution)
    record = record._replace(
        create_ms=before.create_ms if before else state.now(), weight=record.weight or DEFAULT_WEIGHT
    )
    state.record.institutions.append(record)
    add_institution(state, record)
    if before is None:
        _keep_project(state, ProjectRecord(record.institution, DEFAULT_PROJECT, "", DEFAULT_WEIGHT, state.now()))
    state.round_needed = True
    tell(state, "PutInstitution", record.institution, record.institution, before, record)
    return record


def add_institution(state: State, record: InstitutionRecord) -> None:
    """Make an institution known in memory."""
    state.institutions[record.institution] = record
    tenant = state.tenants.setdefault((record.institution, ""), Tenant(record.weight))
    tenant.weight, tenant.home_region = record.weight, record.home_region
    state.show_tenant(record.institution, "")


def put_project(state: State, record: ProjectRecord) -> ProjectRecord:
    """Create or change a project."""
    require_institution(state, record.institution, "project.institution")
    before = state.projects.get((record.institution, record.project))
    record = record._replace(
        create_ms=before.create_ms if before else state.now(), weight=record.weight or DEFAULT_WEIGHT
    )
    _keep_project(state, record)
    state.round_needed = True
    tell(state, "PutProject", f"{record.institution}/{record.project}", record.institution, before, record)
    return record


def _keep_project(state: State, record: ProjectRecord) -> None:
    state.record.projects.append(record)
    add_project(state, record)


def add_project(state: State, record: ProjectRecord) -> None:
    """Make a project known in memory."""
    key = (record.institution, record.project)
    state.projects[key] = record
    state.tenants.setdefault(key, Tenant(record.weight)).weight = record.weight
    state.show_tenant(*key)


def put_user(state: State, record: UserRecord) -> UserRecord:
    """Create or change a user; the role takes effect for the user's keys at once."""
    if record.institution:
        require_institution(state, record.institution, "user.institution")
    for project in sorted(record.leads):
        if (record.institution, project) not in state.projects:
            raise NotFound(
                f'Institution "{record.institution}" has no project "{project}"; create it first.',
                reason="PROJECT_NOT_FOUND",
                field="user.projects",
            )
    before = state.users.get(record.user)
    if before is not None and before.institution != record.institution:
        raise FailedPrecondition(
            f'User "{record.user}" belongs to "{before.institution or "the platform"}"; create another user instead.',
            reason="USER_INSTITUTION_FIXED",
            field="user.institution",
        )
    record = record._replace(create_ms=before.create_ms if before else state.now())
    state.record.users.append(record)
    state.users[record.user] = record
    tell(state, "PutUser", record.user, record.institution, before, record)
    return record


def require_institution(state: State, institution: str, field: str) -> None:
    """Raise ``NotFound`` unless the institution exists."""
    if institution not in state.institutions:
        raise NotFound(
            f'There is no institution "{institution}"; create it first.', reason="INSTITUTION_NOT_FOUND", field=field
        )


# --- keys ---------------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=").lower()


def _hash(secret: str) -> bytes:
    # The secret has 256 random bits, so a plain hash keeps it as well as a slow one would.
    return hashlib.sha256(secret.encode()).digest()


def create_api_key(
    state: State, user: str, title: str, expire_ms: int, limits: KeyLimits = NO_LIMITS
) -> tuple[ApiKeyRecord, str]:
    """A new key and its full text, which is kept nowhere."""
    record, key = _new_api_key(state, user, title, expire_ms, limits=limits)
    tell(state, "CreateApiKey", record.prefix, record.institution, None, record)
    return record, key


def _new_api_key(
    state: State,
    user: str,
    title: str,
    expire_ms: int,
    *,
    role: int = 0,
    region: str = "",
    limits: KeyLimits = NO_LIMITS,
) -> tuple[ApiKeyRecord, str]:
    """``role`` and ``region`` are given for agents only."""
    record_user = state.users.get(user)
    if record_user is None and role != ROLE_AGENT:
        raise NotFound(f'There is no user "{user}"; create the user first.', reason="USER_NOT_FOUND", field="user")
    if expire_ms and expire_ms <= state.now():
        raise InvalidArgument("expire_time_ms is in the past.", field="expire_time_ms")
    prefix, secret = _text(state.ids.token(_PREFIX_BYTES)), _text(state.ids.token(_SECRET_BYTES))
    institution = record_user.institution if record_user else ""
    if limits.project and (institution, limits.project) not in state.projects:
        raise NotFound(
            f'The institution of user "{user}" has no project "{limits.project}".',
            reason="PROJECT_NOT_FOUND",
            field="project",
        )
    record = ApiKeyRecord(
        prefix,
        _hash(secret),
        user,
        institution,
        role or (record_user.role if record_user else 0),
        region,
        title,
        state.now(),
        expire_ms,
        0,
        limits.role,
        limits.project,
        int(limits.read_only),
    )
    state.record.api_keys.append(record)
    state.api_keys[prefix] = record
    return record, f"suanli_{prefix}_{secret}"


def adopt_api_key(state: State, user: str, title: str, key: str) -> ApiKeyRecord:
    """Make a key that was drawn elsewhere ("suanli_<prefix>_<secret>") one of this user's."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise InvalidArgument("This is not the text of an API key; `suanli key generate` prints one.", field="key")
    owner = state.users.get(user)
    if owner is None:
        raise NotFound(f'There is no user "{user}"; create the user first.', reason="USER_NOT_FOUND", field="user")
    record = ApiKeyRecord(match[1], _hash(match[2]), user, owner.institution, owner.role, "", title, state.now(), 0, 0)
    state.record.api_keys.append(record)
    state.api_keys[record.prefix] = record
    tell(state, "AdoptApiKey", record.prefix, record.institution, None, record)
    return record


def authenticate(state: State, key: str) -> ApiKeyRecord:
    """The live record of a key, with the user's present role; raises ``Unauthenticated``."""
    match = _KEY.fullmatch(key)
    record = state.api_keys.get(match[1]) if match else None
    # Compare in any case, so that the time taken does not tell whether the prefix is known.
    right = hmac.compare_digest(_hash(match[2] if match else ""), record.secret_hash if record else b"\0" * 32)
    if record is None or not right:
        raise Unauthenticated(
            "The API key is not known; check it, or ask an administrator for a new one.", reason="KEY_UNKNOWN"
        )
    if record.revoked:
        raise Unauthenticated("The API key was revoked; ask an administrator for a new one.", reason="KEY_REVOKED")
    if record.expire_ms and record.expire_ms <= state.now():
        raise Unauthenticated("The API key has expired; ask an administrator for a new one.", reason="KEY_EXPIRED")
    if record.role == ROLE_AGENT:
        _note_use(state, record)
        return record
    user = state.users.get(record.user)
    if user is None or user.disabled:
        raise Unauthenticated("The key's user is disabled; ask an administrator.", reason="USER_DISABLED")
    _note_use(state, record)
    return record._replace(role=user.role, institution=user.institution)


def _note_use(state: State, record: ApiKeyRecord) -> None:
    """Remember that a key is in use; on disk once an hour, with whatever is written next."""
    now = state.key_uses[record.prefix] = state.now()
    if now - record.last_used_ms >= USE_WRITTEN_EVERY_MS:
        record = record._replace(last_used_ms=now)
        state.record.api_keys.append(record)
        state.api_keys[record.prefix] = record


def revoke_api_key(state: State, prefix: str) -> ApiKeyRecord:
    """Revoke a key at once. Idempotent."""
    record = state.api_keys.get(prefix)
    if record is None:
        raise NotFound(f'There is no API key "{prefix}".', reason="KEY_NOT_FOUND", field="prefix")
    before, record = record, record._replace(revoked=1)
    state.record.api_keys.append(record)
    state.api_keys[prefix] = record
    tell(state, "RevokeApiKey", prefix, record.institution, before, record)
    return record


def create_enrolment_token(state: State, region: str, ttl_ms: int) -> tuple[str, int]:
    """A single-use token for one agent of the region, which is created when it is new."""
    ensure_region(state, region)
    token = _text(state.ids.token(_SECRET_BYTES))
    now = state.now()
    record = EnrolmentRecord(_hash(token), region, now, now + ttl_ms, 0)
    state.record.enrolments.append(record)
    state.enrolments[record.token_hash] = record
    tell(state, "CreateEnrolmentToken", region, after=record)
    return f"suanli-enrol-{token}", record.expire_ms


def enrol_agent(state: State, token: str, region: str, agent_name: str) -> str:
    """Use up a token and make the agent's key."""
    record = state.enrolments.get(_hash(token.removeprefix("suanli-enrol-")))
    if record is None or record.used_ms or record.expire_ms <= state.now() or record.region != region:
        raise Unauthenticated(
            f'The enrolment token is unknown, used, expired or not for region "{region}"; '
            "ask an operator for a new one (`suanli region enrol-token`).",
            reason="TOKEN_INVALID",
        )
    record = record._replace(used_ms=state.now())
    state.record.enrolments.append(record)
    state.enrolments[record.token_hash] = record
    made, key = _new_api_key(state, f"agent:{region}", agent_name, 0, role=ROLE_AGENT, region=region)
    tell(state, "EnrolAgent", region, after=made)
    return key


# --- quotas, regions, nodes ---------------------------------------------------------------------------------------------


def set_quota(state: State, record: QuotaRecord) -> QuotaRecord:
    """Replace a quota. What runs goes on; nothing new starts above it. ``stored_mib`` may be ``AS_IT_WAS``."""
    require_institution(state, record.institution, "quota.institution")
    if record.project and (record.institution, record.project) not in state.projects:
        raise NotFound(
            f'Institution "{record.institution}" has no project "{record.project}".',
            reason="PROJECT_NOT_FOUND",
            field="quota.project",
        )
    before = state.quotas.get((record.institution, record.project))
    if record.stored_mib == AS_IT_WAS:
        record = record._replace(stored_mib=before.stored_mib if before else -1)
    state.record.quotas.append(record)
    add_quota(state, record)
    state.round_needed = True
    target = f"{record.institution}/{record.project}" if record.project else record.institution
    tell(state, "SetQuota", target, record.institution, before, record)
    return record


def add_quota(state: State, record: QuotaRecord) -> None:
    """Make a quota known in memory."""
    key = (record.institution, record.project)
    state.quotas[key] = record
    tenant = state.tenants[key]
    limits = zip((record.cpu_milli, record.memory_mib, record.gpu_milli), UNLIMITED, strict=True)
    tenant.quota = Resources(*(limit if limit >= 0 else none for limit, none in limits))
    tenant.max_live_jobs = record.pending_jobs
    state.show_tenant(*key)


def ensure_region(state: State, region: str) -> Region:
    """The region, created when it is new."""
    found = state.regions.get(region)
    if found is None:
        found = state.regions[region] = Region(region, state.now())
        state.touch_region(found)
    return found


def find_node(state: State, region: str, name: str) -> Node:
    """A node by id or by name; raises ``NotFound``."""
    found = state.nodes.get((region, name))
    if found is not None:
        return found
    for node in state.nodes.values():
        if node.view.region == region and node.view.name == name:
            return node
    raise NotFound(
        f'Region "{region}" has no node "{name}"; `suanli nodes` lists them.', reason="NODE_NOT_FOUND", field="node"
    )


def drain_node(state: State, node: Node, draining: bool, evict: bool, actor: str) -> None:
    """Close a node to new work or open it again; ``evict`` also stops what runs there, to be queued again."""
    before = {"draining": node.view.draining}
    evicted = sorted(node.attempts) if draining and evict else []
    node.view = replace(node.view, draining=draining)
    state.show_node(node)
    state.touch_node(node)
    state.round_needed = True
    for launch_seq in evicted:
        job = state.attempts[launch_seq].job
        stop_attempt(state, job, AttemptOutcome.PREEMPTED, f"Node {node.view.name} is being drained by {actor}.")
    after = {"draining": draining, "evicted": len(evicted)}
    tell(state, "DrainNode", f"{node.view.region}/{node.view.name}", "", before, after)
