"""Changes of the register of data sets: versions, grants, and what follows from them for jobs."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.errors import (
    FailedPrecondition,
    Hidden,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from scheduler.governance.data import DataSet, Grant, GrantStatus
from scheduler.service.auditing import tell
from scheduler.service.governance import data_set_record, grant_record
from scheduler.service.governing import look_again
from scheduler.service.state import State

MAX_DATA_SETS = 10_000
MAX_GRANTS = 100_000
MAX_REQUESTED = 1_000
"""Grants that an institution may have asked for at once."""


def find_data_set(state: State, institution: str, reference: str, field: str) -> DataSet:
    """What a name or "name@version" stands for, as far as an institution ("": the platform) may know; else ``NotFound``."""
    register = state.governance.register
    data_set = register.resolve(reference)
    if data_set is None or (institution and not register.knows(institution, data_set)):
        kind = NotFound if data_set is None else Hidden
        raise kind(
            f'There is no data set "{reference}"; `suanli data list` shows those you may know of.',
            reason="DATA_SET_NOT_FOUND",
            field=field,
        )
    return data_set


def _check_keeper(institution: str, data_set: DataSet, field: str) -> None:
    """``PermissionDenied`` unless the caller, who may know of it, is of the owner's stewards ("": of the platform's)."""
    if institution not in ("", data_set.institution):
        raise PermissionDenied(
            f'Data set "{data_set.name}" is {data_set.institution}\'s; ask its steward, {data_set.steward}.',
            reason="OTHER_INSTITUTION",
            field=field,
        )


def put_data_set(state: State, data_set: DataSet, author: str, institution: str) -> DataSet:
    """A new version, or new terms of one. The owner of a name and the content of a version never change.

    ``institution``: whose stewards put it; "": the platform's.
    """
    register = state.governance.register
    _check_tenants(state, data_set.institution, "", "data_set")
    others = register.versions(data_set.name)
    if others and others[0].institution != data_set.institution:
        raise PermissionDenied(
            f'data_set.name: "{data_set.name}" cannot be used in {data_set.institution}; choose another name.',
            reason="DATA_SET_NAME_TAKEN",
            field="data_set.name",
        )
    _check_keeper(institution, data_set, "data_set.institution")
    steward = state.users.get(data_set.steward)
    if steward is None or steward.institution not in ("", data_set.institution):
        raise NotFound(
            f'There is no user "{data_set.steward}" in {data_set.institution} who could be the steward.',
            reason="USER_NOT_FOUND",
            field="data_set.steward",
        )
    before = register.data_sets.get((data_set.name, data_set.version))
    if before is None and len(register.data_sets) >= MAX_DATA_SETS:
        raise ResourceExhausted(
            f"There are {MAX_DATA_SETS:,} versions of data sets already.", reason="TOO_MANY_DATA_SETS", field="data_set"
        )
    if before is not None:
        _check_fixed(before, data_set)
    create_ms = before.create_ms if before else state.now()
    data_set = replace(data_set, author=author, create_ms=create_ms)
    _put(state, data_set, "PutDataSet", before)
    return data_set


def _check_fixed(before: DataSet, data_set: DataSet) -> None:
    if before.withdrawn_ms:
        raise FailedPrecondition(
            f'"{before.reference}" has been withdrawn; register another version.',
            reason="DATA_SET_WITHDRAWN",
            field="data_set.version",
        )
    if before.content_hash not in ("", data_set.content_hash):
        raise FailedPrecondition(
            f'The content of "{before.reference}" cannot be changed; register another version.',
            reason="DATA_SET_FIXED",
            field="data_set.content_hash",
        )


def _put(state: State, data_set: DataSet, action: str, before: DataSet | None, reason: str = "") -> None:
    record = data_set_record(data_set)
    state.governance.register.put(data_set)
    state.record.data_sets.append(record)
    known = None if before is None else data_set_record(before)
    tell(state, action, data_set.reference, data_set.institution, known, record, reason)
    # Planning sees the register through the policy.
    state.use_policy(state.base_policy)
    look_again(state)


def withdraw(state: State, name: str, version: str, reason: str, author: str, institution: str) -> DataSet:
    """Nobody may use a version any more. Idempotent; there is no way back."""
    data_set = find_data_set(state, institution, f"{name}@{version}", "version")
    _check_keeper(institution, data_set, "name")
    if not data_set.withdrawn_ms:
        before, words = data_set, f"{reason} ({author})"
        data_set = replace(data_set, withdrawn_ms=state.now(), withdrawn_reason=words)
        _put(state, data_set, "WithdrawDataSet", before, reason)
    return data_set


def request_grant(state: State, asked: Grant, requester: str, institution: str) -> Grant:
    """Ask for a grant; ``institution`` is the caller's, "" for the platform. An equal request that is open is that one."""
    register = state.governance.register
    data_set = find_data_set(state, institution, asked.data_set, "grant.data_set")
    if institution not in ("", asked.institution, data_set.institution):
        raise PermissionDenied(
            f"grant.institution: you may ask for {institution} only.",
            reason="OTHER_INSTITUTION",
            field="grant.institution",
        )
    _check_tenants(state, asked.institution, asked.project, "grant")
    now = state.now()
    asked = replace(
        asked,
        status=GrantStatus.REQUESTED,
        requester=requester,
        request_ms=now,
    )
    if asked.to_ms and asked.to_ms <= max(asked.from_ms, now):
        raise InvalidArgument(
            "grant.to_ms: it ends before it begins, or has ended; give a later instant.", field="grant.to_ms"
        )
    own = [each for each in register.grants.values() if each.institution == asked.institution]
    waiting = [each for each in own if each.status is GrantStatus.REQUESTED]
    for each in waiting:
        if replace(each, grant="", request_ms=now) == asked:
            return each
    if len(waiting) >= MAX_REQUESTED or len(register.grants) >= MAX_GRANTS:
        raise ResourceExhausted(
            f"{asked.institution} has asked for {len(waiting):,} grants, or the platform has its most already.",
            reason="TOO_MANY_GRANTS",
            field="grant",
        )
    return _put_grant(state, replace(asked, grant=state.ids.job_id(now)), "RequestGrant", asked.request_reason)


def _put_grant(state: State, grant: Grant, action: str, reason: str) -> Grant:
    register, record = state.governance.register, grant_record(grant)
    before = register.grants.get(grant.grant)
    register.put_grant(grant)
    state.record.grants.append(record)
    owner = register.versions(grant.data_set)[-1].institution
    tell(state, action, grant.grant, owner, grant_record(before) if before else None, record, reason)
    if grant.status is not GrantStatus.REQUESTED:
        look_again(state)
    return grant


def _kept_grant(state: State, name: str, institution: str) -> tuple[Grant, DataSet]:
    """A grant that the caller decides on, with a version of its data set."""
    register = state.governance.register
    grant = register.grants.get(name)
    versions = register.versions(grant.data_set) if grant is not None else ()
    if grant is None or not versions or institution not in ("", grant.institution, versions[-1].institution):
        kind = NotFound if grant is None else Hidden
        raise kind(
            f'There is no grant "{name}"; `suanli grant list` shows those you may know of.',
            reason="GRANT_NOT_FOUND",
            field="id",
        )
    _check_keeper(institution, versions[-1], "id")
    return grant, versions[-1]


def decide_grant(state: State, name: str, approve: bool, reason: str, decider: str, institution: str) -> Grant:
    """Approve or refuse what was requested. Nobody decides on an own request. Repeating a decision does no harm."""
    grant, data_set = _kept_grant(state, name, institution)
    status = GrantStatus.APPROVED if approve else GrantStatus.REFUSED
    if (grant.status, grant.decider) == (status, decider):
        return grant
    if grant.status is not GrantStatus.REQUESTED:
        raise FailedPrecondition(
            f"Grant {name} is {grant.status.name.lower()} already.", reason="GRANT_DECIDED", field="id"
        )
    if approve and grant.requester == decider:
        raise PermissionDenied(
            f"You have asked for grant {name} yourself; another steward of {data_set.institution}, or an operator, decides.",
            reason="OWN_REQUEST",
            field="id",
        )
    decided = replace(grant, status=status, decider=decider, decision_reason=reason, decide_ms=state.now())
    return _put_grant(state, decided, "DecideGrant", reason)


def revoke_grant(state: State, name: str, reason: str, revoker: str, institution: str) -> Grant:
    """Take a grant back; jobs that used it are held or stopped at once. Idempotent."""
    grant, _ = _kept_grant(state, name, institution)
    if grant.status is GrantStatus.REVOKED:
        return grant
    if grant.status is not GrantStatus.APPROVED:
        raise FailedPrecondition(
            f"Grant {name} is {grant.status.name.lower()}; only one that was approved can be revoked.",
            reason="GRANT_NOT_APPROVED",
            field="id",
        )
    revoked = replace(grant, status=GrantStatus.REVOKED, revoker=revoker, revoke_reason=reason, revoke_ms=state.now())
    return _put_grant(state, revoked, "RevokeGrant", reason)


def _check_tenants(state: State, institution: str, project: str, field: str) -> None:
    if institution not in state.institutions:
        raise NotFound(
            f'There is no institution "{institution}".', reason="INSTITUTION_NOT_FOUND", field=f"{field}.institution"
        )
    if project and (institution, project) not in state.projects:
        raise NotFound(
            f'Institution "{institution}" has no project "{project}".',
            reason="PROJECT_NOT_FOUND",
            field=f"{field}.project",
        )
