"""The lease that attempts which may be moved elsewhere run under, as a node keeps it when the agent cannot."""

from __future__ import annotations

import time
from collections.abc import Iterable

from workers.executor.attempt import Attempt

GRACE_MS = 5_000
"""Of the end of a lease, at most so much is given to processes to end by themselves."""
EXPIRED = "nobody renewed the lease it runs under, and the job may be moved to another region"


class NodeLease:
    """One for all leased attempts of a node; it counts on the monotonic clock."""

    def __init__(self) -> None:
        self._until_s = 0.0

    def renew(self, lease_ms: int) -> None:
        """From now on it ends this much later."""
        self._until_s = time.monotonic() + lease_ms / 1000

    def extend(self, lease_ms: int) -> None:
        """It ends no sooner than this much from now."""
        self._until_s = max(self._until_s, time.monotonic() + lease_ms / 1000)

    def expiring(self, attempts: Iterable[Attempt]) -> list[tuple[Attempt, int]]:
        """The leased attempts that must be told to end now, so as to be gone in time, each with its grace in ms."""
        left_ms = int((self._until_s - time.monotonic()) * 1000)
        if left_ms >= GRACE_MS:
            return []
        return [
            (one, max(0, left_ms))
            for one in attempts
            if one.launch.lease_ms and one.verdict is None and left_ms <= min(one.launch.grace_ms, GRACE_MS)
        ]
