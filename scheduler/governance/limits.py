"""How much of the server one caller, and one institution together, may take up: rates of calls and of bytes, open streams.

Rates are kept by the generic cell rate algorithm (ITU-T I.371, virtual scheduling), which equals a token bucket and needs one
integer a caller: the instant at which its bucket will be full again. Whoever's bucket is full is not kept at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
_SWEPT_AT = 10_000
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What is allowed. 0 anywhere: no limit. ``ValueError`` names a setting that is out of range."""

    user_calls_per_s: int = 2_000
    """Calls of one user, in the long run."""
    user_calls_burst: int = 40_000
    """Calls that a user who has been silent may make at once."""
    institution_calls_per_s: int = 5_000
    """Calls of all users of one institution."""
    institution_calls_burst: int = 100_000
    """At once, after a silence."""
    user_heavy_calls_per_s: int = 50
    """Calls that read much for each answer: usage, statements, exports, the ledger, its check, forecasts, simulated changes."""
    user_heavy_calls_burst: int = 1_000
    """At once, after a silence."""
    institution_heavy_calls_per_s: int = 100
    """Of all users of one institution."""
    institution_heavy_calls_burst: int = 2_000
    """At once, after a silence."""
    user_streams: int = 256
    """Streams (watches, logs, downloads, uploads, exports) that one user may have open."""
    institution_streams: int = 2_048
    """Of all users of one institution."""
    user_upload_mib_per_s: int = 1_024
    """Bytes that one user uploads, in the long run; ten times as many at once."""
    user_upload_mib_per_day: int = 512 * 1024
    """In any 24 hours after a silence. After a restart of the server, what is still held of it counts."""
    institution_upload_mib_per_day: int = 4 * 1024 * 1024
    """Of all users of one institution."""
    unary_deadline_ms: int = 60_000
    """How long a call that gives no deadline of its own may take; streams have none."""
    pending_jobs_per_project: int = 5_000_000
    """Unfinished jobs, tasks of arrays included, of a project without a quota of its own. A platform holds ten million in all."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1 << 40:
                raise ValueError(f"{field.name}: {value} is out of range; give 0 (no limit) to {1 << 40:,}.")
            if field.name.endswith("per_s") and value > SECOND_NS:
                raise ValueError(f"{field.name}: {value} is out of range; give 0 (no limit) to {SECOND_NS:,}.")
            if field.name.endswith("burst") and not value and getattr(self, field.name.replace("burst", "per_s")):
                raise ValueError(f"{field.name}: give at least 1, or no limit of the rate at all.")


class Refusal(NamedTuple):
    """What a caller has met: the name of the limit, and after how long the same may pass (0: when something else ends)."""

    limit: str
    retry_ms: int


class Rate:
    """A limit of so much a second, each key by itself. All amounts of one ``Rate`` are of one unit."""

    def __init__(self, name: str, amount: int, per_ns: int, burst: int) -> None:
        self.name = name
        self._amount, self._per_ns = amount, per_ns
        # The time in which a whole bucket is filled again.
        self._window_ns = per_ns * burst // amount if amount else 0
        self._full_at: dict[str, int] = {}
        self._sweep_at = _SWEPT_AT

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_ns(self, key: str, units: int, now_ns: int) -> int:
        """How long until ``units`` may pass; 0: now. More than a whole bucket may pass when the bucket is full."""
        if not self._amount:
            return 0
        full_at = self._full_at.get(key, 0)
        if full_at <= now_ns:
            return 0
        return max(0, min(full_at, full_at + units * self._per_ns // self._amount - self._window_ns) - now_ns)

    def take(self, key: str, units: int, now_ns: int) -> None:
        """Count ``units`` that have passed."""
        if not self._amount:
            return
        self._full_at[key] = max(now_ns, self._full_at.get(key, now_ns)) + units * self._per_ns // self._amount
        if len(self._full_at) > self._sweep_at:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now_ns}
            # So that a sweep costs no more than the calls that led to it.
            self._sweep_at = max(_SWEPT_AT, 2 * len(self._full_at))


class Limiter:
    """All limits of one server. Callers of no institution are the platform's, and are limited each by themselves only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._calls, self._heavy = (
            (
                Rate("user_calls", limits.user_calls_per_s, SECOND_NS, limits.user_calls_burst),
                Rate("institution_calls", limits.institution_calls_per_s, SECOND_NS, limits.institution_calls_burst),
            ),
            (
                Rate("user_heavy_calls", limits.user_heavy_calls_per_s, SECOND_NS, limits.user_heavy_calls_burst),
                Rate(
                    "institution_heavy_calls",
                    limits.institution_heavy_calls_per_s,
                    SECOND_NS,
                    limits.institution_heavy_calls_burst,
                ),
            ),
        )
        per_s, per_day = limits.user_upload_mib_per_s * MIB, limits.user_upload_mib_per_day * MIB
        of_all = limits.institution_upload_mib_per_day * MIB
        self._upload_rate = Rate("user_upload_rate", per_s, SECOND_NS, 10 * per_s)
        self._upload_day = Rate("user_upload_day", per_day, DAY_NS, per_day)
        self._upload_day_of_all = Rate("institution_upload_day", of_all, DAY_NS, of_all)
        self._streams: dict[tuple[str, str], int] = {}

    def call(self, user: str, institution: str, heavy: bool, now_ns: int) -> Refusal | None:
        """Count a call, or say why it may not be made; then it is not counted."""
        of_user, of_all = self._heavy if heavy else self._calls
        wait_ns = of_user.wait_ns(user, 1, now_ns)
        if wait_ns:
            return _refusal(of_user, wait_ns)
        if institution:
            wait_ns = of_all.wait_ns(institution, 1, now_ns)
            if wait_ns:
                return _refusal(of_all, wait_ns)
            of_all.take(institution, 1, now_ns)
        of_user.take(user, 1, now_ns)
        return None

    def upload(self, user: str, institution: str, size: int, now_ns: int) -> Refusal | None:
        """Count bytes that a user sends, or say why they may not be; then they are not counted."""
        rates = [(self._upload_rate, user), (self._upload_day, user)]
        if institution:
            rates.append((self._upload_day_of_all, institution))
        for rate, key in rates:
            wait_ns = rate.wait_ns(key, size, now_ns)
            if wait_ns:
                return _refusal(rate, wait_ns)
        for rate, key in rates:
            rate.take(key, size, now_ns)
        return None

    def remember_upload(self, user: str, institution: str, size: int, at_ns: int) -> None:
        """Count, for the day only, bytes that were sent at an instant that has passed. Oldest first."""
        self._upload_day.take(user, size, at_ns)
        if institution:
            self._upload_day_of_all.take(institution, size, at_ns)

    def open_stream(self, user: str, institution: str) -> Refusal | None:
        """Count a stream, which ``close_stream`` then ends; or say why it may not be opened."""
        kept = self._kept(user, institution)
        for key, limit, name in kept:
            if limit and self._streams.get(key, 0) >= limit:
                return Refusal(name, 0)
        for key, _, _ in kept:
            self._streams[key] = self._streams.get(key, 0) + 1
        return None

    def close_stream(self, user: str, institution: str) -> None:
        """A stream that was counted has ended."""
        for key, _, _ in self._kept(user, institution):
            left = self._streams.pop(key) - 1
            if left:
                self._streams[key] = left

    def _kept(self, user: str, institution: str) -> Iterable[tuple[tuple[str, str], int, str]]:
        found = [(("user", user), self.limits.user_streams, "user_streams")]
        if institution:
            found.append((("institution", institution), self.limits.institution_streams, "institution_streams"))
        return found


def _refusal(rate: Rate, wait_ns: int) -> Refusal:
    return Refusal(rate.name, -(-wait_ns // 1_000_000))
