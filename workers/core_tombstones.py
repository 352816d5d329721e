"""Attempts that are over, remembered for as long as a late copy of their launch could still arrive."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Container

from workers.core_types import AttemptName, AttemptRecord, Durable, ForgetAttempt, PutAttempt

ORPHAN_LIFE_MS = 3_600_000
ORPHANS_MAX = 10_000
TOMBSTONES_MAX = 200_000
"""A floor that stands still must not fill the disk; a launch this many launches late does not exist."""


class Tombstones:
    """Finished attempts, durable until their launch is settled (its number is below the floor).

    A stop that came before its launch leaves one whose launch's number is not known. On a real stream the launch cannot follow
    it, and an hour is far more than any delay, so such orphans go by age (and the oldest above 10,000).
    """

    def __init__(self) -> None:
        self._by_name: dict[AttemptName, AttemptRecord] = {}
        self._by_launch: list[tuple[int, AttemptName]] = []
        self._orphans: OrderedDict[AttemptName, int] = OrderedDict()

    def __contains__(self, name: AttemptName) -> bool:
        return name in self._by_name

    def load(self, record: AttemptRecord) -> None:
        """Remember one that the spool holds already."""
        name = (record.job_id, record.attempt)
        self._by_name[name] = record
        if record.launch_seq:
            heapq.heappush(self._by_launch, (record.launch_seq, name))
        else:
            self._orphans[name] = record.made_ms

    def add(self, name: AttemptName, lease_epoch: int, launch_seq: int, now_ms: int, durable: list[Durable]) -> None:
        """Remember an attempt that is over; ``launch_seq`` 0: its launch never came."""
        record = AttemptRecord(name[0], name[1], lease_epoch, launch_seq, True, now_ms)
        durable.append(PutAttempt(record))
        self.load(record)

    def launch_seen(self, name: AttemptName, launch_seq: int, durable: list[Durable]) -> None:
        """The late launch of an orphan has come: from now on its number says how long to remember it."""
        old = self._by_name[name]
        if not old.launch_seq:
            del self._orphans[name]
            self.add(name, old.lease_epoch, launch_seq, old.made_ms, durable)

    def settle(self, floor: int, keep: Container[AttemptName], durable: list[Durable]) -> None:
        """Forget those whose launch is below the floor, or too many, except ``keep`` (their end is not acknowledged)."""
        kept: list[tuple[int, AttemptName]] = []
        while self._by_launch and (self._by_launch[0][0] < floor or len(self._by_launch) > TOMBSTONES_MAX):
            entry = heapq.heappop(self._by_launch)
            if entry[1] in keep:
                kept.append(entry)
            else:
                self._forget(entry[1], durable)
        for entry in kept:
            heapq.heappush(self._by_launch, entry)

    def expire(self, now_ms: int, durable: list[Durable]) -> None:
        """Forget orphans that are old or too many."""
        while self._orphans:
            name, made_ms = next(iter(self._orphans.items()))
            if now_ms - made_ms < ORPHAN_LIFE_MS and len(self._orphans) <= ORPHANS_MAX:
                return
            del self._orphans[name]
            self._forget(name, durable)

    def _forget(self, name: AttemptName, durable: list[Durable]) -> None:
        if self._by_name.pop(name, None) is not None:
            durable.append(ForgetAttempt(*name))
