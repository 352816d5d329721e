"""Fifty histories under faults, each from one seed. A failing one is replayed with `python -m tests.simulation SEED`."""

from __future__ import annotations

import os

import pytest

from tests.simulation.faults import NO_FAULTS, Faults
from tests.simulation.world import World

BUSY_MS = 90_000
SEEDS = int(os.environ.get("SUANLI_SIM_SEEDS", "30"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_invariants_hold_under_faults(seed: int) -> None:
    world = World(seed, Faults())
    try:
        world.run(BUSY_MS)
    except Exception as error:
        error.add_note(f"replay with: python -m tests.simulation {seed}")
        raise
    assert world.clients.acknowledged, "the seed did nothing"


def test_without_faults_nothing_is_ever_tried_twice() -> None:
    world = World(1_000, NO_FAULTS)
    world.run(BUSY_MS)
    assert all(record.losses == 0 for record in world.store.jobs_by_number(1, 1_000_000))


def test_one_seed_is_one_history() -> None:
    def history() -> tuple[object, ...]:
        world = World(7, Faults())
        world.run(30_000)
        return (world.kernel.steps, world.kernel.now_ms(), world.store.jobs_by_number(1, 1_000_000))

    assert history() == history()
