"""How long the attempts that may be moved elsewhere (partition_policy MOVE) may go on without a word of the control plane."""

from __future__ import annotations

import json
from collections import OrderedDict

from workers.core_types import Durable, PutMeta, SpoolState

_META = "lease"
_REPORTS_REMEMBERED = 256


class LeaseWatch:
    """Holds the newest lease's end on the monotonic clock.

    The end counts from when the report that the lease answers was *sent*, so however late the lease arrives, the control plane
    counts from a later instant. It is kept in the spool for an agent that is started again on the same machine, whose
    monotonic clock goes on; on another machine (or after a reboot) it counts as over.
    """

    def __init__(self, state: SpoolState, machine: str) -> None:
        self._machine = machine
        self._sent: OrderedDict[int, int] = OrderedDict()
        self._until_mono_ms: int | None = None
        self._ttl_ms = 0
        self.floor = 0
        if _META in state.meta:
            kept = json.loads(state.meta[_META])
            self.floor = kept["floor"]
            if kept["machine"] == machine:
                self._until_mono_ms = kept["until_mono_ms"]
                self._ttl_ms = kept["ttl_ms"]

    def report_sent(self, report_seq: int, mono_ms: int) -> None:
        """A report is about to be sent."""
        self._sent[report_seq] = mono_ms
        while len(self._sent) > _REPORTS_REMEMBERED:
            self._sent.popitem(last=False)

    def renew(self, report_seq: int, ttl_ms: int, launch_floor: int, durable: list[Durable]) -> None:
        """Take in a lease."""
        sent_mono_ms = self._sent.get(report_seq)
        if sent_mono_ms is not None and sent_mono_ms + ttl_ms > (self._until_mono_ms or 0):
            self._until_mono_ms = sent_mono_ms + ttl_ms
            self._ttl_ms = ttl_ms
        self.floor = max(self.floor, launch_floor)
        kept = {
            "machine": self._machine,
            "until_mono_ms": self._until_mono_ms or 0,
            "ttl_ms": self._ttl_ms,
            "floor": self.floor,
        }
        durable.append(PutMeta(_META, json.dumps(kept)))

    def left_ms(self, mono_ms: int) -> int:
        """How long processes may live from now; a tenth of the lease is kept for killing them."""
        return max(0, (self._until_mono_ms or 0) - self._ttl_ms // 10 - mono_ms)

    def grace_left(self, grace_ms: int, mono_ms: int) -> int | None:
        """None while an attempt may go on; else how much of its grace fits in before the lease ends.

        At most a third of the lease is kept for the grace (or a job with a long grace could never run on a short lease) and a
        tenth for the killing itself.
        """
        if self._until_mono_ms is None:
            return 0
        kill_at = self._until_mono_ms - self._ttl_ms // 10
        if mono_ms < kill_at - min(grace_ms, self._ttl_ms // 3):
            return None
        return max(0, min(grace_ms, kill_at - mono_ms))
