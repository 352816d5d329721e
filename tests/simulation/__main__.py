"""Replay seeds: `python -m tests.simulation SEED [SEED …]`, or many of them: `python -m tests.simulation --soak COUNT`."""

from __future__ import annotations

import argparse

from tests.simulation.faults import Faults
from tests.simulation.test_seeds import BUSY_MS
from tests.simulation.world import World


def main() -> None:
    """Run each seed to its end or its failure."""
    parser = argparse.ArgumentParser(description="Replay simulated histories of the whole platform.")
    parser.add_argument("seeds", nargs="*", type=int, help="seeds to replay")
    parser.add_argument("--soak", type=int, default=0, help="run this many seeds from 1,000 on, ten times as long each")
    arguments = parser.parse_args()
    runs = [(seed, BUSY_MS) for seed in arguments.seeds]
    runs += [(1_000 + number, 10 * BUSY_MS) for number in range(arguments.soak)]
    for seed, busy_ms in runs:
        world = World(seed, Faults())
        world.run(busy_ms)
        jobs = sum(len(ids) for ids in world.clients.acknowledged.values())
        print(
            f"seed {seed}: {jobs} submissions acknowledged, {world.kernel.steps} steps, all invariants held", flush=True
        )


if __name__ == "__main__":
    main()
