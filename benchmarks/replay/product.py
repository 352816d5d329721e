"""The product's own policies in the queue replay: its engine, planner and predictor on a virtual clock (``scheduler.simulation``).

All jobs are preemptible and have no limit worth the name, as the trace has none; a job that is stopped has lost its
``overhead_s`` of progress when it runs again. An undisturbed job loses nothing. Where there are institutions, ``suanli`` and ``fair``
guarantee each its home region (a part of it, where several share one).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.replay.trace import Cluster, Job, Outcome
from scheduler.domain.agent import NodeReport
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import PRESETS, Guarantee, Policy
from scheduler.planning.runtimes import RuntimeModel
from scheduler.simulation.workload import Scenario, SimJob, SimTenant
from scheduler.simulation.world import Simulation

POOL = "gpu"
GUARANTEEING = ("fair", "suanli")
NO_LIMIT_MS = 1 << 42
PLAN_AGAIN_MS = 1_800_000
ONE = "one"
"""The institution and the region of a trace that names none."""


def replay(jobs: list[Job], cluster: Cluster, policy: str, *, learned: bool) -> list[Outcome]:
    """Replay; one outcome for each job, in their order. ``learned``: runtimes are predicted from the jobs that have ended."""
    scenario = Scenario(
        [_sim_job(job, cluster) for job in jobs],
        {region or ONE: _nodes(region or ONE, cluster) for region in cluster.regions},
        [SimTenant(name, home_region=region) for name, region in _homes(jobs)],
    )
    guaranteed = _guarantees(jobs, cluster) if policy in GUARANTEEING else ()
    chosen: Policy = replace(PRESETS[policy], guarantees=guaranteed)
    if learned:
        # What is expected of a running job changes while it goes on.
        simulation = Simulation(scenario, chosen, RuntimeModel(), round_every_ms=PLAN_AGAIN_MS)
    else:
        simulation = Simulation(scenario, chosen, known_runtimes=True)
    played = simulation.run()
    return [
        Outcome(job, each.end_ms / 1000, each.held_ms / 1000, each.evictions)
        for job, each in zip(jobs, played.jobs, strict=True)
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _sim_job(job: Job, cluster: Cluster) -> SimJob:
    whole_nodes = cluster.nodes_for(job.num_gpu)
    per_replica = cluster.gpus_per_node if whole_nodes else job.num_gpu
    return SimJob(
        submit_ms=_ms(job.submit_s),
        institution=job.institution or ONE,
        shape=Shape(Resources(0, 0, per_replica * GPU_UNIT), max(1, whole_nodes)),
        runtime_ms=max(1, _ms(job.service_s)),
        name=job.name or "job",
        limit_ms=NO_LIMIT_MS,
        restart_cost_ms=_ms(job.overhead_s),
    )


def _nodes(region: str, cluster: Cluster) -> tuple[NodeReport, ...]:
    capacity = Resources(0, 0, cluster.gpus_per_node * GPU_UNIT)
    names = [f"{region}-{number:05d}" for number in range(cluster.nodes)]
    return tuple(NodeReport(name, name, POOL, "GPU", capacity) for name in names)


def _homes(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    return sorted({(job.institution or ONE, job.home_region or ONE) for job in jobs})


def _guarantees(jobs: Iterable[Job], cluster: Cluster) -> tuple[Guarantee, ...]:
    homes = [(name, region) for name, region in _homes(jobs) if name != ONE]
    sharing = [region for _, region in homes]
    return tuple(
        Guarantee(
            name,
            f"{region}/{POOL}",
            Resources(0, 0, cluster.region_gpus * GPU_UNIT // sharing.count(region)),
            None,
            None,
        )
        for name, region in homes
    )
