"""What a node enforces between the jobs on it, as its agent says by a label."""

from __future__ import annotations

from collections.abc import Iterable

ISOLATION_LABEL = "suanli.io/isolation"
"""The label by which an agent reports the tier that jobs on a node get; it replaces one of that name from anywhere else."""
ENFORCED = frozenset({"sandbox", "pod"})
"""The tiers in which no job reaches what is another's, whatever it tries."""
PROCESS = "process"
"""The tier of jobs that run as plain processes of one user."""


def tier_of(labels: Iterable[tuple[str, str]]) -> str:
    """The tier of a node with these labels; empty when nobody has said, as old agents do not."""
    return next((value for name, value in labels if name == ISOLATION_LABEL), "")


def is_enforced(labels: Iterable[tuple[str, str]]) -> bool:
    """Whether a node with these labels keeps jobs apart."""
    return tier_of(labels) in ENFORCED
