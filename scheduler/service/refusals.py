"""What was refused or failed, until it is written: so counted that a flood of calls is a few records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

MINUTE_MS = 60_000
MAX_KEPT = 1_000
"""So many callers and things are told apart in a minute; the rest is counted together."""
MAX_OF_ACTOR = 100
"""So many things that one actor was refused; the rest is counted by what was called and why."""


class Refusal(NamedTuple):
    """The fields of ``AuditRecord`` that say who called what, from where, and what came of it."""

    actor: str
    role: int
    institution: str
    action: str
    target: str
    outcome: int
    reason: str
    peer: str
    key_prefix: str


@dataclass(slots=True)
class _Kept:
    refusal: Refusal
    since_ms: int
    calls: int = 0
    told: bool = False


class Refusals:
    """Of known callers the first of a kind is given at once and its repeats when a minute is over.

    Of unknown callers everything is given when a minute is over, as one for each peer, which shows the first call of it.
    """

    def __init__(self) -> None:
        self._kept: dict[Refusal, _Kept] = {}
        self._of_actor: Counter[str] = Counter()

    def note(self, refusal: Refusal, now_ms: int) -> None:
        """It has happened."""
        key = self._key(refusal)
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= MAX_KEPT:
                key = refusal = Refusal("", 0, "", "", "", refusal.outcome, "TOO_MANY_TO_TELL_APART", "", "")
            kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept(refusal if refusal.actor == "" else key, now_ms)
            self._of_actor[key.actor] += 1
        kept.calls += 1

    def _key(self, refusal: Refusal) -> Refusal:
        if not refusal.actor:
            return Refusal("", 0, "", "", "", refusal.outcome, "", refusal.peer, "")
        if self._of_actor[refusal.actor] >= MAX_OF_ACTOR and refusal not in self._kept:
            return refusal._replace(target="")
        return refusal

    def take(self, now_ms: int, everything: bool = False) -> list[tuple[Refusal, int]]:
        """What is to be written now, each with how many calls it tells of."""
        found = []
        for key, kept in list(self._kept.items()):
            over = everything or now_ms - kept.since_ms >= MINUTE_MS
            if kept.calls and (over or (key.actor and not kept.told)):
                found.append((kept.refusal, kept.calls))
                kept.calls, kept.told = 0, True
            if over:
                del self._kept[key]
                self._of_actor[key.actor] -= 1
        return found
