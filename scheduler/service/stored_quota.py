"""Quotas on what is kept in the artifact store.

They bind what comes in: uploads, and submissions. What a job that was accepted leaves behind is always kept, even above the quota,
because to lose the results of days for a few bytes would be worse (docs/decisions/0012-quota-on-stored-artifacts.md).
"""

from __future__ import annotations

from scheduler.domain.errors import ResourceExhausted
from scheduler.service.state import State
from scheduler.service.storage_contract import ProjectStorage

MIB = 1 << 20


def limit_of(state: State, institution: str, project: str) -> int:
    """In bytes; -1: no limit. ``project`` is empty for the institution as a whole."""
    quota = state.quotas.get((institution, project))
    return -1 if quota is None or quota.stored_mib < 0 else quota.stored_mib * MIB


def stored_bytes(state: State, institution: str, project: str) -> int:
    """What is kept for a project, or for all of an institution's."""
    if not project:
        return state.storage.of_institutions.get(institution, 0)
    found = state.storage.sums.get((institution, project))
    return 0 if found is None else found.size_bytes


def take_in(state: State, institution: str, project: str, more: int) -> None:
    """Keep room for ``more`` bytes of an upload, until ``give_back``. ``ResourceExhausted`` where there is none."""
    incoming = state.storage.incoming
    for part in ("", project):
        limit = limit_of(state, institution, part)
        if limit < 0:
            continue
        arriving = sum(size for key, size in incoming.items() if key[0] == institution and part in ("", key[1]))
        used = stored_bytes(state, institution, part)
        if used + arriving + more > limit:
            raise _full(institution, part, used, limit, "so this upload does not fit")
    incoming[institution, project] = incoming.get((institution, project), 0) + more


def give_back(state: State, institution: str, project: str, size: int) -> None:
    """An upload has ended, well or not: what is kept of it counts as stored by now."""
    incoming = state.storage.incoming
    left = incoming.get((institution, project), 0) - size
    if left > 0:
        incoming[institution, project] = left
    else:
        incoming.pop((institution, project), None)


def check_may_submit(state: State, institution: str, project: str, field: str) -> None:
    """``ResourceExhausted`` while more is stored than the quota: every job leaves at least its logs."""
    for part in ("", project):
        limit, used = limit_of(state, institution, part), stored_bytes(state, institution, part)
        if 0 <= limit < used:
            raise _full(institution, part, used, limit, "so no job is accepted", field)


def storage_of(state: State, institution: str) -> list[ProjectStorage]:
    """Of an institution, or ("") of all: each project that has stored something or has a quota, and before it the sum of all."""
    keys = state.storage.sums.keys() | {key for key, quota in state.quotas.items() if quota.stored_mib >= 0}
    asked = {key for key in keys if institution in ("", key[0])}
    items: dict[tuple[str, str], int] = {}
    for key in asked:
        row = state.storage.sums.get(key)
        for part in {key, (key[0], "")}:
            items[part] = items.get(part, 0) + (row.items if row else 0)
    return [ProjectStorage(*key, items[key], stored_bytes(state, *key), limit_of(state, *key)) for key in sorted(items)]


def _full(institution: str, project: str, used: int, limit: int, so: str, field: str = "") -> ResourceExhausted:
    name = f'project "{project}"' if project else f'institution "{institution}"'
    asked = "an admin of your institution" if project else "an operator"
    return ResourceExhausted(
        f"The quota of {name} on stored artifacts is {limit // MIB:,} MiB, {used / MIB:,.1f} MiB of it are used, {so}: delete what is "
        f"not needed (`suanli artifacts list --sort size`, `suanli artifacts delete`), or ask {asked} for more.",
        reason="QUOTA_STORED",
        field=field,
        metadata={
            "quota": f"{institution}/{project}" if project else institution,
            "limit_bytes": str(limit),
            "used_bytes": str(used),
        },
    )
