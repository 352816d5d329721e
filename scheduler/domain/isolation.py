"""What a node enforces between the jobs on it, as its agent says by a label."""

from __future__ import annotations

from collections.abc import Iterable

ISOLATION_LABEL = "suanli.io/isolation"
"""The label by which an agent reports the tier that jobs on a node get; it replaces one of that name from anywhere else."""
ENFORCED = frozenset({"sandbox", "pod"})
"""The tiers in which no job reaches what is another's, whatever it tries."""


def is_enforced(labels: Iterable[tuple[str, str]]) -> bool:
    """Whether a node with these labels keeps jobs apart."""
    # Old agents say nothing, which is no promise.
    return any(name == ISOLATION_LABEL and value in ENFORCED for name, value in labels)
