"""What is said of a job that waits: the data behind ``suanli why``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.planning.types import PoolKey, Reservation
from scheduler.planning.what_if import Change


@dataclass(frozen=True, slots=True)
class PoolReason:
    """Why one pool does not take a job now; ``code`` as in ``suanli.v1.PoolExplanation``."""

    pool: PoolKey
    code: str
    message: str
    nodes_total: int = 0
    nodes_fit_now: int = 0
    nodes_fit_empty: int = 0
    nodes_lacking: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blocker:
    """One thing that keeps a job from starting. ``code`` as in ``suanli.v1.Blocker``; ``numbers`` by names that say the unit."""

    code: str
    message: str
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing that would let a job start, or start earlier.

    ``change``: what the job would ask for then; None: something else has to happen. ``pool``: where it would start then.
    ``now``: with the change alone, the next round of planning would start it.
    """

    code: str
    message: str
    change: Change | None = None
    pool: PoolKey | None = None
    now: bool = False


@dataclass(frozen=True, slots=True)
class ExpectedStart:
    """When a job will probably start, in ms since 1970.

    ``at_ms`` 0: there is no estimate, and ``message`` says why. ``earliest_ms`` and ``latest_ms`` 0: not known. ``confidence`` is HIGH,
    MEDIUM, LOW or NONE; ``basis`` is PLAN (the next round starts it), PREEMPTION (others are being stopped for it), RESERVATION,
    FORECAST (a replay of the rounds to come), RATE (extrapolated beyond that replay, or from what runs now) or NONE.
    """

    at_ms: int = 0
    earliest_ms: int = 0
    latest_ms: int = 0
    confidence: str = "NONE"
    basis: str = "NONE"
    message: str = ""


NOT_EXPECTED = ExpectedStart()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits; ``code`` as in ``suanli.v1.ExplainJobResponse``.

    ``position``: the places of the queue that are planned before it; ``position_is_exact``: not an estimate. ``blockers``: what keeps it
    from starting, what has to change first at the head. ``reservation``: the place that is kept for it.
    """

    code: str
    message: str
    position: int = 0
    pools: tuple[PoolReason, ...] = ()
    position_is_exact: bool = True
    blockers: tuple[Blocker, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    expected: ExpectedStart = NOT_EXPECTED
    reservation: Reservation | None = None
