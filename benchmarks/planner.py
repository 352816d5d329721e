"""How fast the planner plans a full platform: `python -m benchmarks.planner --jobs 1000000 --nodes 10000`.

Fills the live engine (the server's own, without its store) with nodes of eight GPUs and with jobs of 10,000 projects in 100
institutions, then plans. The first round has no bound on its starts and fills the fleet. Then, again and again, some attempts end, as
many jobs are submitted, and a round of the usual bound follows. Timed is planning; applying its decisions is told beside it. The last
line of the output is JSON; times are of the wall clock, those with ``cpu`` of this process's processor time, which other programs on
the machine disturb less.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field, replace

from benchmarks.queue_memory import INSTITUTIONS, make_specs, no_algorithms, queued, resident_bytes
from scheduler.domain.agent import Finished, Hello, NodeReport, StateReport
from scheduler.domain.records import InstitutionRecord, ProjectRecord
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.plan import Planner
from scheduler.planning.policy import PRESETS, Policy
from scheduler.planning.types import Plan, Snapshot
from scheduler.planning.warming import warm_up
from scheduler.service import tenants
from scheduler.service.ending import end_attempt
from scheduler.service.engine import Engine
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.state import Settings
from scheduler.wire.spec import SpecCodec

REGIONS = ("east", "west")
ACCELERATORS = ("A100", "H20", "T4", "V100")
NODE = Resources(96_000, 786_432, 8_000)
FOREVER_MS = 1 << 50


@dataclass
class TimedPlanner(Planner):
    """The planner, with a watch."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    made: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        super().__init__()

    def plan(self, snapshot: Snapshot, policy: Policy, now_ms: int) -> Plan:
        """One round, timed."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.made = super().plan(snapshot, policy, now_ms)
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)
        return self.made


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def build(nodes: int, projects: int, policy: Policy) -> tuple[Engine, TimedPlanner]:
    """An engine with tenants and connected regions, and its planner."""
    settings = Settings(lease_ttl_ms=FOREVER_MS, heartbeat_interval_ms=FOREVER_MS)
    engine = Engine(WallClock(), RandomIds(), SpecCodec(no_algorithms()), policy, settings)
    state = engine.state
    planner = state.planner = TimedPlanner()
    for number in range(INSTITUTIONS):
        home = REGIONS[number % len(REGIONS)]
        tenants.put_institution(state, InstitutionRecord(f"inst-{number}", "", 1000, home, 0))
    for number in range(projects):
        tenants.put_project(state, ProjectRecord(f"inst-{number % INSTITUTIONS}", f"project-{number}", "", 1000, 0))
    for at, region in enumerate(REGIONS):
        tenants.ensure_region(state, region)
        reports = []
        for number in range(at, nodes, len(REGIONS)):
            kind = ACCELERATORS[number // len(REGIONS) % len(ACCELERATORS)]
            labels = (("rack", f"r{number // 64}"),)
            reports.append(NodeReport(f"n{number:06d}", f"n{number}", f"gpu-{kind.lower()}", kind, NODE, labels))
        session = engine.open_session()
        engine.receive(region, session, Hello(region, "boot", "spool", ""))
        engine.receive(region, session, StateReport(1, 0, tuple(reports), ()))
    engine.take_turn()
    return engine, planner


def end_some(engine: Engine, count: int, chance: random.Random) -> None:
    """Let some attempts end, each as if its agent had said so."""
    state = engine.state
    for launch_seq in chance.sample(sorted(state.attempts), min(count, len(state.attempts))):
        end_attempt(state, state.attempts[launch_seq], Finished(AttemptOutcome.SUCCEEDED), state.now())


def measure(jobs: int, nodes: int, projects: int, rounds: int, ends: int, policy: Policy) -> dict[str, float]:
    """All figures."""
    chance = random.Random(1)
    warm_up()
    engine, planner = build(nodes, projects, replace(policy, max_starts_per_round=1 << 40))
    state = engine.state
    specs = make_specs(SpecCodec(no_algorithms()), projects, chance)
    gc.collect()
    before = resident_bytes()
    queued(engine, specs, jobs, chance)
    gc.collect()
    waiting = state.queue.size_total
    bytes_each = (resident_bytes() - before) / waiting
    gc.freeze()
    say(f"{waiting:,} jobs wait in {len(state.queue.groups()):,} lines; {nodes:,} nodes with {nodes * 8:,} GPUs")
    begin = time.perf_counter()
    engine.round()
    applied_s = time.perf_counter() - begin - planner.wall_s[0]
    starts = len(planner.made.starts)
    say(f"first round: {starts:,} starts planned in {planner.wall_s[0]:.2f} s, applied in {applied_s:.2f} s")
    engine.take_turn()
    state.use_policy(policy)
    engine.round()
    engine.take_turn()
    gc.collect()
    gc.freeze()
    planner.wall_s, planner.cpu_s, first = [], [], (planner.wall_s[0], planner.cpu_s[0])
    started = []
    for _ in range(rounds):
        end_some(engine, ends, chance)
        queued(engine, specs, ends, chance)
        state.round_needed = True
        engine.round()
        started.append(len(planner.made.starts))
        engine.take_turn()
    return {
        "jobs": waiting,
        "nodes": nodes,
        "lines": len(state.queue.groups()),
        "first_round_s": round(first[0], 3),
        "first_round_cpu_s": round(first[1], 3),
        "first_round_starts": starts,
        "first_round_apply_s": round(applied_s, 3),
        "steady_round_ms": round(statistics.median(planner.wall_s) * 1000, 2),
        "steady_round_cpu_ms": round(statistics.median(planner.cpu_s) * 1000, 2),
        "steady_round_max_ms": round(max(planner.wall_s) * 1000, 2),
        "steady_round_starts": statistics.median(started),
        "placements_per_s": round(starts / first[0]),
        "placements_per_cpu_s": round(starts / first[1]),
        "bytes_per_queued_job": round(bytes_each, 1),
    }


def main() -> None:
    """Parse the arguments and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs that wait")
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes of eight GPUs")
    parser.add_argument("--projects", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30, help="steady rounds")
    parser.add_argument("--ends", type=int, default=300, help="attempts that end before each steady round")
    parser.add_argument("--policy", choices=sorted(PRESETS), default="suanli")
    asked = parser.parse_args()
    figures = measure(asked.jobs, asked.nodes, asked.projects, asked.rounds, asked.ends, PRESETS[asked.policy])
    print(json.dumps({"policy": asked.policy, **figures}))


if __name__ == "__main__":
    main()
