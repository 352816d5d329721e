"""Limits on callers, as the gate and the uploads apply them: whoever meets one is told which, and when to come again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic_ns
from typing import Protocol

from scheduler.api.permissions import Role
from scheduler.api.visibility import Caller
from scheduler.domain.errors import ResourceExhausted
from scheduler.domain.holdings import HoldingKind
from scheduler.governance.limits import Limiter, Limits, Refusal
from scheduler.service.contract import Service
from scheduler.service.storage_ports import HoldingQuery

# Calls that read or compute much for each answer.
HEAVY = frozenset(
    {
        "suanli.v1.JobService/ExplainJob",
        "suanli.v1.AdminService/PutPolicy",
        "suanli.v1.AuditService/StreamAudit",
        "suanli.v1.AuditService/VerifyAudit",
        "suanli.v1.UsageService/GetUsage",
        "suanli.v1.UsageService/PutPriceList",
        "suanli.v1.UsageService/EstimateCost",
        "suanli.v1.UsageService/ListLedger",
        "suanli.v1.UsageService/StreamLedger",
        "suanli.v1.UsageService/ExportUsage",
        "suanli.v1.UsageService/GetStatement",
        "suanli.v1.UsageService/VerifyLedger",
        "suanli.v1.UsageService/CorrectLedger",
        "suanli.v1.UsageService/CloseMonth",
        "suanli.v1.UsageService/ListMonths",
    }
)
RATE_LIMITED = "RATE_LIMITED"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_PAGE = 1_000
_UPLOAD = "suanli.v1.JobService/UploadBlob"


class LimitObserver(Protocol):
    """Counts refusals."""

    def limited(self, method: str, limit: str) -> None:
        """A call has met a limit."""
        ...


class Limiting:
    """The limits of one server. Agents have none: a region's reports must never wait for somebody's rate."""

    def __init__(self, limits: Limits, observer: LimitObserver, clock: Callable[[], int] = monotonic_ns) -> None:
        self._limiter = Limiter(limits)
        self._observer = observer
        self._clock = clock
        self.unary_deadline_s = limits.unary_deadline_ms / 1000 if limits.unary_deadline_ms else None
        """For calls that bring no deadline of their own; None: there is none."""

    def enter(self, method: str, caller: Caller, streams: bool) -> None:
        """Count a call, which ``leave`` ends when it ``streams``. ``ResourceExhausted`` when it may not be made now."""
        if caller.role == Role.AGENT or not caller.user:
            return
        refusal = self._limiter.call(caller.user, caller.institution, method in HEAVY, self._clock())
        if refusal is None and streams:
            refusal = self._limiter.open_stream(caller.user, caller.institution)
        if refusal is not None:
            raise self._refused(method, refusal)

    def leave(self, caller: Caller) -> None:
        """A stream has ended that ``enter`` let in."""
        if caller.role != Role.AGENT and caller.user:
            self._limiter.close_stream(caller.user, caller.institution)

    def upload(self, caller: Caller, size: int) -> None:
        """Count bytes that are uploaded. ``ResourceExhausted`` when they may not be now."""
        refusal = self._limiter.upload(caller.user, caller.institution, size, self._clock())
        if refusal is not None:
            raise self._refused(_UPLOAD, refusal)

    async def remember_uploads(self, service: Service, now_ms: int) -> None:
        """Count what was uploaded in the last day, before this process began to count. To the hour, the later end of it."""
        by_hour: dict[tuple[int, str, str], int] = {}
        for institution in ["", *(each.institution for each in await service.list_institutions())]:
            query = HoldingQuery(institution, kinds=(int(HoldingKind.UPLOAD),), limit=_PAGE)
            while page := await service.list_holdings(query):
                for row in page:
                    if row.since_ms > now_ms - DAY_MS:
                        key = (row.since_ms // HOUR_MS, row.user, institution)
                        by_hour[key] = by_hour.get(key, 0) + row.counted_bytes
                last = page[-1]
                if last.since_ms <= now_ms - DAY_MS:
                    break
                query = replace(query, after=(last.since_ms, last.project, last.kind, last.item))
        for (hour, user, institution), size in sorted(by_hour.items()):
            age_ms = max(0, now_ms - (hour + 1) * HOUR_MS)
            self._limiter.remember_upload(user, institution, size, self._clock() - age_ms * 1_000_000)

    def _refused(self, method: str, refusal: Refusal) -> ResourceExhausted:
        self._observer.limited(method, refusal.limit)
        whose = "Your institution" if refusal.limit.startswith("institution") else "You"
        if refusal.limit.endswith("streams"):
            has = "has" if whose != "You" else "have"
            sentence = f"{whose} {has} as many streams open as one may; end some, then try again."
        else:
            has = "has" if whose != "You" else "have"
            what = "uploaded as much" if "upload" in refusal.limit else "made as many calls"
            sentence = f"{whose} {has} {what} as one may in such a time; try again in {_span(refusal.retry_ms)}."
        return ResourceExhausted(
            sentence, reason="RATE_LIMITED", retry_ms=refusal.retry_ms, metadata={"limit": refusal.limit}
        )


def _span(ms: int) -> str:
    if ms < 10_000:
        return f"{max(1, ms):,} ms"
    return f"{ms // 1000:,} s" if ms < 3_600_000 else f"{ms // 3_600_000} h"
