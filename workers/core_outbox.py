"""The agent's events on their way to the control plane: numbered, kept until acknowledged, resent in order (go-back-N)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import KeysView

from protos.suanli.v1 import regions_pb2 as pb
from workers.core_types import AppendEvent, AttemptName, DropEvents, Durable, ResetEvents, SpoolState

MAX_EVENTS_PER_MESSAGE = 256
"""With messages of at most 2,000 characters this stays well below the 4 MiB that gRPC takes by default."""
MAX_EVENTS_IN_FLIGHT = 8_192


class Outbox:
    """Numbers events, remembers which are not acknowledged, and says what to send next.

    It asks for durable writes through the list given to each call and never sends what is not in that list or older. At most
    three events of an attempt are in it at once (start, one checkpoint, end), so it is bounded by the attempts.
    """

    def __init__(self, state: SpoolState) -> None:
        self._events: deque[pb.AttemptEvent] = deque()
        for kept in state.events:
            self._events.append(pb.AttemptEvent.FromString(kept.payload))
        self._acked_seq = state.acked_seq
        self._last_seq = self._events[-1].seq if self._events else state.acked_seq
        self._sent_seq = self._acked_seq
        self._progress_mono_ms = 0
        self._ending: dict[AttemptName, pb.AttemptRef] = {}
        for event in self._events:
            self._note_end(event)

    @property
    def last_seq(self) -> int:
        """The newest event's number; 0: none ever."""
        return self._last_seq

    def ending(self) -> list[pb.AttemptRef]:
        """The attempts whose end is not acknowledged yet."""
        return list(self._ending.values())

    def ending_names(self) -> KeysView[AttemptName]:
        """The same by name."""
        return self._ending.keys()

    @property
    def unacknowledged(self) -> int:
        """How many events are kept here."""
        return len(self._events)

    def checkpoints(self) -> dict[AttemptName, int]:
        """The number of the checkpoint event, for the attempts that have one here."""
        return {(e.job_id, e.attempt): e.seq for e in self._events if e.WhichOneof("event") == "checkpointed"}

    def append(self, event: pb.AttemptEvent, durable: list[Durable]) -> int:
        """Number an event and put it at the end; its number."""
        self._last_seq += 1
        event.seq = self._last_seq
        self._events.append(event)
        self._note_end(event)
        durable.append(AppendEvent(event.seq, event.SerializeToString()))
        return event.seq

    def acknowledge(self, seq: int, mono_ms: int, durable: list[Durable]) -> list[pb.AttemptEvent]:
        """Drop the events up to ``seq``, unless it is one that was never sent; those dropped."""
        if not self._acked_seq < seq <= self._last_seq:
            return []
        dropped: list[pb.AttemptEvent] = []
        while self._events and self._events[0].seq <= seq:
            event = self._events.popleft()
            if event.WhichOneof("event") == "finished":
                self._ending.pop((event.job_id, event.attempt), None)
            dropped.append(event)
        self._acked_seq = seq
        self._sent_seq = max(self._sent_seq, seq)
        self._progress_mono_ms = mono_ms
        durable.append(DropEvents(seq))
        return dropped

    def welcome(self, acked_seq: int, mono_ms: int, durable: list[Durable]) -> list[pb.AttemptEvent]:
        """A new session begins: what is acknowledged goes, everything else is sent again.

        A number that cannot be (above all of ours, or below what was acknowledged to us) means that one of the two databases
        was restored from an old copy. Our events then get new numbers, those the control plane waits for.
        """
        if not self._acked_seq <= acked_seq <= self._last_seq:
            events = list(self._events)
            self._events.clear()
            durable.append(ResetEvents(acked_seq))
            self._acked_seq = self._last_seq = acked_seq
            for event in events:
                self.append(event, durable)
        dropped = self.acknowledge(acked_seq, mono_ms, durable)
        self.rewind(mono_ms)
        return dropped

    def rewind(self, mono_ms: int) -> None:
        """Send all again from the first unacknowledged one."""
        self._sent_seq = self._acked_seq
        self._progress_mono_ms = mono_ms

    def to_send(self, mono_ms: int, resend_after_ms: int) -> list[list[pb.AttemptEvent]]:
        """The events to send now, in messages; those sent before come again when nothing was acknowledged for a while."""
        if self._sent_seq > self._acked_seq and mono_ms - self._progress_mono_ms >= resend_after_ms:
            self.rewind(mono_ms)
        if self._sent_seq == self._acked_seq:
            self._progress_mono_ms = mono_ms
        until = min(self._last_seq, self._acked_seq + MAX_EVENTS_IN_FLIGHT)
        if until <= self._sent_seq or not self._events:
            return []
        # Numbers are consecutive, so a number is a place.
        first = self._sent_seq + 1 - self._events[0].seq
        count = until - self._sent_seq
        batch = list(itertools.islice(self._events, first, first + count))
        self._sent_seq = until
        return [batch[at : at + MAX_EVENTS_PER_MESSAGE] for at in range(0, count, MAX_EVENTS_PER_MESSAGE)]

    def _note_end(self, event: pb.AttemptEvent) -> None:
        if event.WhichOneof("event") == "finished":
            ref = pb.AttemptRef(job_id=event.job_id, attempt=event.attempt, lease_epoch=event.lease_epoch)
            self._ending[(event.job_id, event.attempt)] = ref
