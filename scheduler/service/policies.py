"""Putting a policy: a new version of it in the store, and the one that planning goes by from the next round on."""

from __future__ import annotations

from scheduler.domain.errors import FailedPrecondition, Internal, SuanliError
from scheduler.domain.records import PolicyRecord
from scheduler.domain.resources import ZERO
from scheduler.planning.policy_text import effective_of, read_effective
from scheduler.planning.policy_warnings import warnings
from scheduler.service.auditing import tell
from scheduler.service.contract import PolicyDraft
from scheduler.service.state import State


def put_policy(state: State, draft: PolicyDraft, author: str) -> PolicyRecord:
    """The next version, in force at once; with ``validate_only``, what it would be, with version 0.

    ``FailedPrecondition`` (POLICY_CHANGED) when ``expected_version`` is not the newest. The same document put again by the same
    author with the same comment is that version: the call may be repeated when its answer was lost.
    """
    newest = state.policy_record
    record = PolicyRecord(0, draft.document, draft.text.effective, draft.comment, author, state.now())
    if newest is not None and _is_repeated(newest, record, draft.expected_version) and not draft.validate_only:
        return newest
    version = 0 if newest is None else newest.version
    if draft.expected_version not in (0, version):
        raise FailedPrecondition(
            f"The policy is at version {version} by now, not at {draft.expected_version}; look at what has changed "
            "(`suanli policy history`) and put it again.",
            reason="POLICY_CHANGED",
            field="expected_version",
            metadata={"version": str(version)},
        )
    if draft.validate_only:
        return record
    record = record._replace(version=version + 1)
    state.record.policies.append(record)
    state.policy_record = record
    state.use_policy(draft.text.policy)
    tell(state, "PutPolicy", str(record.version), "", newest, record, draft.comment)
    return record


def _is_repeated(newest: PolicyRecord, record: PolicyRecord, expected_version: int) -> bool:
    same = (newest.document, newest.effective, newest.comment, newest.author) == record[1:5]
    return same and expected_version in (0, newest.version - 1, newest.version)


def use_stored(state: State, record: PolicyRecord) -> None:
    """Take over the stored policy. ``Internal`` when this release cannot read what an earlier one accepted."""
    try:
        policy = read_effective(record.effective)
    except (SuanliError, ValueError) as error:
        raise Internal(
            f"The stored policy, version {record.version}, cannot be read by this release: {error}",
            reason="POLICY_UNREADABLE",
        ) from error
    state.policy_record = record
    state.use_policy(policy)


def active_policy(state: State) -> PolicyRecord:
    """The policy in force; version 0 and no document when none was ever put."""
    return state.policy_record or PolicyRecord(0, "", effective_of(state.base_policy), "", "", 0)


def warnings_of(state: State, draft: PolicyDraft) -> list[str]:
    """What is probably not meant, on the platform as it is now."""
    pools = {}
    for key, nodes in state.pools.items():
        total = ZERO
        for node in nodes.values():
            total = total.plus(node.capacity)
        pools[str(key)] = total
    accelerators = {node.accelerator for nodes in state.pools.values() for node in nodes.values()}
    unisolated = {str(key) for key, nodes in state.pools.items() if not any(node.isolated for node in nodes.values())}
    return warnings(draft.text.policy, state.institutions, pools, accelerators, unisolated)
