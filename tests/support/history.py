"""Made-up histories in the form of ``suanli simulate export``: ``python -m tests.support.history FOLDER [JOBS [DAYS [GPU_NODES]]]``.

Three institutions of unequal weight and habits share two regions. What "happened" is what the engine makes of it under the
preset ``fair``, with some seconds for every start, so that a simulation has something to be measured against.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.tables import FORMAT, JOBS, MANIFEST, NODES, TENANTS, write_table
from scheduler.simulation.workload import DAY_MS, Scenario, SimJob, SimTenant
from scheduler.simulation.world import Simulation

FROM_MS = 1_790_812_800_000  # 2026-10-01T00:00Z
HOUR_MS = 3_600_000
JOB_COLUMNS = [
    "job_id",
    "institution",
    "project",
    "user",
    "name",
    "state",
    "submit_ms",
    "eligible_ms",
    "start_ms",
    "end_ms",
    "runtime_ms",
    "attempts",
    "evictions",
    "cpu_milli",
    "memory_mib",
    "gpu_milli",
    "replicas",
    "accelerators",
    "preferred_regions",
    "required_regions",
    "pools",
    "node_selector",
    "data_sets",
    "pack",
    "pack_required",
    "priority",
    "preemptible",
    "limit_ms",
    "grace_ms",
    "checkpoints",
    "region",
    "pool",
    "accelerator",
]
NODE_COLUMNS = [
    "region",
    "node",
    "name",
    "pool",
    "accelerator",
    "cpu_milli",
    "memory_mib",
    "gpu_milli",
    "labels",
    "up",
    "draining",
]
TENANT_COLUMNS = [
    "institution",
    "project",
    "weight",
    "home_region",
    "cpu_milli",
    "memory_mib",
    "gpu_milli",
    "pending_jobs",
]
TENANTS_MADE = (
    SimTenant("hua-uni", weight=2000, home_region="east"),
    SimTenant("min-edu", weight=1000, home_region="west", quota=Resources(-1, -1, 24_000)),
    SimTenant("school-net", weight=1000, home_region="west"),
)


def fleet(gpu_nodes: int) -> dict[str, tuple[NodeReport, ...]]:
    """Nodes of eight A100s in the east, of four L40S in the west, and a few without GPUs in both."""

    def some(region: str, pool: str, count: int, capacity: Resources, accelerator: str = "") -> list[NodeReport]:
        names = (f"{region}-{pool}-{number}" for number in range(1, count + 1))
        return [NodeReport(name, name, pool, accelerator, capacity) for name in names]

    half = max(1, gpu_nodes // 2)
    big, small, cpus = (
        Resources(128_000, 1_048_576, 8000),
        Resources(64_000, 262_144, 4000),
        Resources(64_000, 262_144, 0),
    )
    return {
        "east": tuple(
            some("east", "gpu-a100", half, big, "NVIDIA-A100") + some("east", "cpu", max(1, half // 2), cpus)
        ),
        "west": tuple(
            some("west", "gpu-l40s", half, small, "NVIDIA-L40S") + some("west", "cpu", max(1, half // 2), cpus)
        ),
    }


def jobs(count: int, days: int, seed: int, load: float, gpus: int) -> list[SimJob]:
    """Jobs that come by day rather than by night, with runtimes spread over three orders of magnitude."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        institution = chance.choices(("hua-uni", "min-edu", "school-net"), (5, 3, 2))[0]
        hour = min(23.99, max(0.0, chance.gauss(13.5, 4.0)))
        submit_ms = FROM_MS + chance.randrange(days) * DAY_MS + int(hour * HOUR_MS)
        on_cpu = chance.random() < 0.3
        gpu = 0 if on_cpu else chance.choices((250, 1000, 2000, 4000, 8000), (4, 12, 6, 3, 1))[0]
        replicas = chance.choice((1, 1, 1, 2)) if gpu >= 4000 else 1
        request = Resources(4000 if on_cpu else max(2000, gpu * 4), 8192 if on_cpu else max(4096, gpu * 16), gpu)
        runtime_ms = min(9 * HOUR_MS, int(chance.lognormvariate(0, 1.3) * 1_200_000))
        limit_ms = min(7 * DAY_MS, max(600_000, int(runtime_ms * chance.choice((1.2, 2, 4)))))
        made.append(
            SimJob(
                submit_ms,
                institution,
                Shape(request, replicas, accelerators=("NVIDIA-A100",) if gpu == 8000 else ()),
                runtime_ms,
                name=chance.choice(("train", "sweep", "irt", "grade")),
                project=chance.choice(("default", "thesis")),
                user=f"{institution}-{chance.randrange(6)}",
                limit_ms=limit_ms,
                priority=chance.choices((PriorityClass.NORMAL, PriorityClass.HIGH, PriorityClass.LOW), (8, 1, 1))[0],
                preemptible=chance.random() < 0.4,
                succeeds=chance.random() < 0.93,
            )
        )
    # Runtimes are stretched so that the GPUs are asked for to the part ``load`` of the window.
    asked = sum(each.runtime_ms * each.shape.total.gpu_milli for each in made)
    stretch = load * gpus * days * DAY_MS / asked
    made = [
        replace(each, runtime_ms=int(each.runtime_ms * stretch) + 1000, limit_ms=int(each.limit_ms * stretch) + 60_000)
        for each in made
    ]
    return sorted(made, key=lambda each: each.submit_ms)


def write(folder: Path, count: int = 600, days: int = 14, gpu_nodes: int = 6, load: float = 0.8, seed: int = 7) -> None:
    """Make a history and leave it in ``folder``."""
    regions = fleet(gpu_nodes)
    gpus = sum(node.capacity.gpu_milli for nodes in regions.values() for node in nodes)
    given = jobs(count, days, seed, load, gpus)
    outcome = Simulation(Scenario(given, regions, TENANTS_MADE), PRESETS["fair"]).run()
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed + 1)
    rows = []
    for number, each in enumerate(outcome.jobs):
        job, shape = each.job, each.job.shape
        late_ms = chance.randrange(1000, 9000)
        start_ms, end_ms = each.start_ms + late_ms, each.end_ms + late_ms
        state = "SUCCEEDED" if job.succeeds else "FAILED"
        rows.append(
            (
                *(
                    f"j{number:06d}",
                    job.institution,
                    job.project,
                    job.user,
                    job.name,
                    state,
                    job.submit_ms,
                    job.submit_ms,
                ),
                *(start_ms, end_ms, each.held_ms, each.evictions + 1, each.evictions, *shape.request, shape.replicas),
                *(";".join(shape.accelerators), "", "", "", "{}", "", "", 0, job.priority.name, int(job.preemptible)),
                *(job.limit_ms, 30_000, 1, each.region, "", ""),
            )
        )
    write_table(folder / JOBS, JOB_COLUMNS, rows)
    nodes = [
        (region, node.node_id, node.name, node.pool, node.accelerator, *node.capacity, "{}", 1, 0)
        for region, of_region in regions.items()
        for node in of_region
    ]
    write_table(folder / NODES, NODE_COLUMNS, nodes)
    tenants = [
        (each.institution, each.project, each.weight, each.home_region, *(each.quota or (-1, -1, -1)), -1)
        for each in TENANTS_MADE
    ]
    write_table(folder / TENANTS, TENANT_COLUMNS, tenants)
    manifest = {
        "format": FORMAT,
        "version": "0.1.0",
        "from_ms": FROM_MS,
        "to_ms": FROM_MS + days * DAY_MS,
        "time_zone": "UTC",
        "counts": {"jobs": len(rows), "nodes": len(nodes), "tenants": len(tenants)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
