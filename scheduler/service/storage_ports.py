"""The part of the ``Store`` port that tells who holds what in the artifact store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.domain.holdings import HoldingKey, HoldingRecord


@dataclass(frozen=True, slots=True)
class HoldingQuery:
    """What an institution holds; empty fields do not filter. ``user`` and ``projects``: that user's, and those of these projects.

    The newest first, or the largest (``by_size``); ``after`` is the page's cursor, the last one of the page before.
    ``before_ms``: held since before then.
    """

    institution: str
    project: str = ""
    user: str = ""
    projects: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    job_ids: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    """Ids of arrays, whose tasks are meant; with ``job_ids``, either."""
    digests: tuple[str, ...] = ()
    before_ms: int = 0
    by_size: bool = False
    after: tuple[int, str, int, str] | None = None
    """Its ``since_ms`` or ``size_bytes``, project, kind and item."""
    limit: int = 100


class HoldingStore(Protocol):
    """Reads of holdings; ``Store.commit`` writes them."""

    def list_holdings(self, query: HoldingQuery) -> list[HoldingRecord]:
        """A page of what an institution holds."""
        ...

    def find_holdings(self, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
        """Whatever an institution, or (None) anybody, holds under these digests."""
        ...

    def get_holdings(self, keys: Sequence[HoldingKey]) -> list[HoldingRecord]:
        """Those of these keys that there are, in any order."""
        ...

    def unmeasured_holdings(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones whose size is not known, by key."""
        ...

    def holdings_after(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next ones of everybody, by key."""
        ...
