"""What is asked of holdings, answered from memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

from scheduler.domain.holdings import HoldingKey, HoldingRecord
from scheduler.service.storage_ports import HoldingQuery


class MemoryHoldings:
    """A part of ``MemoryStore``."""

    _lock: threading.RLock
    _tables: dict[str, dict[tuple[Any, ...], Any]]

    def _check_reachable(self) -> None:
        raise NotImplementedError

    def _rows(self) -> list[HoldingRecord]:
        with self._lock:
            self._check_reachable()
            return sorted(self._tables["holdings"].values())

    def _holdings_of(self, job_ids: Collection[str]) -> list[HoldingRecord]:
        return [row for row in self._rows() if row.job_id in job_ids]

    def list_holdings(self, query: HoldingQuery) -> list[HoldingRecord]:
        """A page of what an institution holds."""

        def place(row: HoldingRecord) -> tuple[int, str, int, str]:
            return (row.size_bytes if query.by_size else row.since_ms, row.project, row.kind, row.item)

        found = [
            row
            for row in self._rows()
            if row.institution == query.institution
            and query.project in ("", row.project)
            and (query.user in ("", row.user) or row.project in query.projects)
            and (not query.kinds or row.kind in query.kinds)
            and (
                not (query.job_ids or query.arrays)
                or row.job_id in query.job_ids
                or row.job_id.rpartition(".")[0] in query.arrays
            )
            and (not query.digests or row.digest in query.digests)
            and (not query.before_ms or row.since_ms < query.before_ms)
            and (query.after is None or place(row) < query.after)
        ]
        return sorted(found, key=place, reverse=True)[: query.limit]

    def find_holdings(self, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
        """Whatever an institution, or (None) anybody, holds under these digests."""
        asked = frozenset(digests)
        return [row for row in self._rows() if row.digest in asked and institution in (None, row.institution)]

    def get_holdings(self, keys: Sequence[HoldingKey]) -> list[HoldingRecord]:
        """Those of these keys that there are."""
        with self._lock:
            self._check_reachable()
            table = self._tables["holdings"]
            return [table[key] for key in dict.fromkeys(keys) if key in table]

    def unmeasured_holdings(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones whose size is not known, by key."""
        return [row for row in self._rows() if row.size_bytes < 0 and (after is None or row.key > after)][:limit]

    def holdings_after(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones of everybody, by key."""
        return [row for row in self._rows() if after is None or row.key > after][:limit]
