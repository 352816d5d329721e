"""What a queued job costs in the control plane's memory: `python -m benchmarks.queue_memory`.

Submits jobs to an engine without nodes, in batches, and compares the process's resident memory before and after. The specs are made
first: they are shared by all jobs that ask for the same, and do not count. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from pathlib import Path

from protos.suanli.v1 import jobs_pb2
from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.records import InstitutionRecord, ProjectRecord
from scheduler.domain.spec import JobSpec
from scheduler.planning.policy import PRESETS, Policy
from scheduler.service import tenants
from scheduler.service.contract import Submission
from scheduler.service.engine import Engine
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.state import Settings
from scheduler.wire.spec import SpecCodec

PAGE_BYTES = 4096
BATCH = 100
SHAPES = 300
INSTITUTIONS = 100


class _NoAlgorithms:
    """The jobs are commands."""

    def resolve(self, name: str, version: str, parameters_json: str, field: str) -> ResolvedAlgorithm:
        raise AssertionError(name)


def no_algorithms() -> _NoAlgorithms:
    """A catalogue that is never asked."""
    return _NoAlgorithms()


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def make_specs(codec: SpecCodec, projects: int, chance: random.Random) -> list[list[JobSpec]]:
    """Three specs for each project, out of a few hundred different requests."""
    requests = [
        {
            "cpu_milli": 1000 * chance.randint(1, 32),
            "memory_mib": 1024 * chance.randint(1, 64),
            "gpu_milli": chance.choice([0, 250, 500, 1000, 2000, 4000, 8000]),
        }
        for _ in range(SHAPES)
    ]
    made = []
    for number in range(projects):
        of_project = []
        for _ in range(3):
            message = jobs_pb2.JobSpec(
                institution=f"inst-{number % INSTITUTIONS}",
                project=f"project-{number}",
                name=f"train-{chance.randint(1, 5)}",
                command=jobs_pb2.Command(argv=["python", "train.py"]),
                resources=chance.choice(requests),
                max_runtime_ms=3_600_000 * chance.randint(1, 72),
            )
            of_project.append(codec.read(message, field="jobs[0]", institution=""))
        made.append(of_project)
    return made


def queued(engine: Engine, specs: list[list[JobSpec]], jobs: int, chance: random.Random) -> None:
    """Submit ``jobs`` jobs, ``BATCH`` of one user and project at a time."""
    for _ in range(jobs // BATCH):
        number = chance.randrange(len(specs))
        batch = [chance.choice(specs[number]) for _ in range(BATCH)]
        engine.submit(Submission(f"user-{number}", batch, "", b"", False), {})
        engine.take_turn()


def measure(jobs: int = 1_000_000, projects: int = 10_000, policy: Policy = PRESETS["suanli"]) -> dict[str, float]:
    """The bytes that each queued job takes, and how many were submitted in a second."""
    chance = random.Random(1)
    codec = SpecCodec(no_algorithms())
    engine = Engine(WallClock(), RandomIds(), codec, policy, Settings())
    for number in range(INSTITUTIONS):
        tenants.put_institution(engine.state, InstitutionRecord(f"inst-{number}", "", 1000, "", 0))
    for number in range(projects):
        tenants.put_project(
            engine.state, ProjectRecord(f"inst-{number % INSTITUTIONS}", f"project-{number}", "", 1000, 0)
        )
    engine.take_turn()
    specs = make_specs(codec, projects, chance)
    gc.collect()
    before = resident_bytes()
    begin = time.perf_counter()
    queued(engine, specs, jobs, chance)
    took = time.perf_counter() - begin
    gc.collect()
    grown = resident_bytes() - before
    total = engine.state.queue.size_total
    return {
        "jobs": total,
        "bytes_per_queued_job": round(grown / total, 1),
        "submitted_per_s": round(total / took),
        "lines": len(engine.state.queue.groups()),
    }


def main() -> None:
    """Parse the arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--projects", type=int, default=10_000)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.jobs, asked.projects)))


if __name__ == "__main__":
    main()
