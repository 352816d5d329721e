"""How hard a simulated world is on what runs in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """Probabilities per message, per commit or per job, and mean times between faults in ms (0: never)."""

    drop: float = 0.03
    duplicate: float = 0.03
    reorder: float = 0.1
    max_delay_ms: int = 400
    crash_in_commit: float = 0.002
    store_failure: float = 0.003
    control_crash_ms: int = 60_000
    agent_crash_ms: int = 60_000
    node_crash_ms: int = 120_000
    disconnect_ms: int = 30_000
    partition_ms: int = 40_000
    freeze_ms: int = 60_000
    spool_loss: float = 0.05
    """Of an agent's crashes: its disk is lost too."""
    evict_ms: int = 15_000
    """No fault: an attempt is told to make room for a waiting job, whatever the planner thinks."""


NO_FAULTS = Faults(0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
