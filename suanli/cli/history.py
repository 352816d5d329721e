"""What happened on the platform, as the tables that a simulation reads.

``scheduler/simulation/tables.py`` reads what is written here; ``docs/howto/simulate.md`` lists the columns. Everything is fetched as the
caller, so that the history holds what the caller may see.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, usage_pb2
from suanli.cli import exits, human
from suanli.cli.follow import jobs_of
from suanli.cli.output import short_name
from suanli.cli.runtime import Failure, Link, listed, pages

FORMAT = 1
MANIFEST, JOBS, NODES, TENANTS = "manifest.json", "jobs.csv", "nodes.csv", "tenants.csv"
POLICY = "policy.yaml"
JOB_COLUMNS = (
    *("job_id", "institution", "project", "user", "name", "state", "submit_ms", "eligible_ms", "start_ms", "end_ms"),
    *("runtime_ms", "attempts", "evictions", "cpu_milli", "memory_mib", "gpu_milli", "replicas", "accelerators"),
    *("preferred_regions", "required_regions", "pools", "node_selector", "data_sets", "pack", "pack_required"),
    *("priority", "preemptible"),
    *("limit_ms", "grace_ms", "checkpoints", "region", "pool", "accelerator"),
)
NODE_COLUMNS = (
    *("region", "node", "name", "pool", "accelerator", "cpu_milli", "memory_mib", "gpu_milli"),
    *("labels", "up", "draining"),
)
TENANT_COLUMNS = (
    *("institution", "project", "weight", "home_region"),
    *("cpu_milli", "memory_mib", "gpu_milli", "pending_jobs"),
)
_FILES = {"jobs": (JOBS, JOB_COLUMNS), "nodes": (NODES, NODE_COLUMNS), "tenants": (TENANTS, TENANT_COLUMNS)}
_NO_LIMIT = -1
_GRACE_MS = 30_000
_JOBS_AT_ONCE = 500
_PREEMPTED = common_pb2.ATTEMPT_OUTCOME_PREEMPTED
_RUNNING = (common_pb2.JOB_STATE_STARTING, common_pb2.JOB_STATE_RUNNING)
Tell = Callable[[str], None]


@dataclass(slots=True)
class Held:
    """What the ledger says of a job: how long it held an allocation from the window's beginning on, and when first.

    ``attempts`` maps an attempt to how it ended.
    """

    ms: int = 0
    first_ms: int = 0
    accelerator: str = ""
    attempts: dict[int, int] = field(default_factory=dict)

    def add(self, number: int, start_ms: int, end_ms: int, accelerator: str, outcome: int, from_ms: int) -> None:
        """Count a segment, or an attempt that still runs, with its part from ``from_ms`` on."""
        self.ms += max(0, end_ms - max(start_ms, from_ms))
        self.first_ms = min(self.first_ms or start_ms, start_ms)
        self.accelerator = accelerator or self.accelerator
        self.attempts[number] = outcome


@dataclass(frozen=True, slots=True)
class Exported:
    """The history of [from_ms, to_ms) as rows of its tables, as it was known at ``at_ms``, and the policy in force then."""

    from_ms: int
    to_ms: int
    at_ms: int
    policy: admin_pb2.Policy
    tables: dict[str, list[list[object]]]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        return {name: len(rows) for name, rows in self.tables.items()}


def check_folder(folder: Path) -> None:
    """Raise ``Failure`` unless the folder is new, empty or holds an older export."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise Failure(f"{folder} holds something other than an export; choose another folder.", exits.USAGE)


async def fetched(link: Link, from_ms: int, to_ms: int, tell: Tell) -> Exported:
    """Fetch the history of [from_ms, to_ms), or up to now where that is earlier. Raises ``Failure`` for a window that is none."""
    now = human.now_ms()
    to_ms = min(to_ms, now)
    if to_ms <= from_ms:
        raise Failure("The window ends before it begins, or lies in the future; see --from and --to.", exits.USAGE)
    jobs, held = await _jobs(link, from_ms, to_ms, now, tell)
    tell(f"{len(jobs):,} jobs; nodes and tenants")
    nodes = await listed(link, "AdminService/ListNodes", admin_pb2.ListNodesRequest(), "nodes")
    ends = {job.id: job.end_time_ms for job in jobs}
    tables = {
        "jobs": [_job_row(job, held.get(job.id, Held()), ends) for job in jobs],
        "nodes": [_node_row(node) for node in nodes],
        "tenants": await _tenants(link),
    }
    policy = (await link.call("AdminService/GetPolicy", admin_pb2.GetPolicyRequest())).policy
    return Exported(from_ms, to_ms, now, policy, tables)


def write(exported: Exported, folder: Path) -> None:
    """Write the tables. The manifest is taken away first and comes back last, so that a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, (file, columns) in _FILES.items():
        _write(folder / file, columns, exported.tables[name])
    (folder / POLICY).write_text(exported.policy.effective_yaml, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "version": metadata.version("suanli"),
        "from_ms": exported.from_ms,
        "to_ms": exported.to_ms,
        "time_zone": "UTC",
        "exported_ms": exported.at_ms,
        "policy_version": exported.policy.version,
        "counts": exported.counts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


async def _jobs(
    link: Link, from_ms: int, to_ms: int, now: int, tell: Tell
) -> tuple[list[jobs_pb2.Job], dict[str, Held]]:
    """The jobs submitted in the window and those from before that held something in it, with what they held."""
    jobs: dict[str, jobs_pb2.Job] = {}

    async def collect(asked: jobs_pb2.JobFilter) -> None:
        async for job in pages(link, "JobService/ListJobs", jobs_pb2.ListJobsRequest(filter=asked), "jobs"):
            # An array's tasks are listed one by one as they start; those that never started never ran.
            if not job.HasField("array"):
                jobs[job.id] = job
                if len(jobs) % 1000 == 0:
                    tell(f"{len(jobs):,} jobs")

    await collect(jobs_pb2.JobFilter(submitted_from_ms=from_ms, submitted_to_ms=to_ms))
    await collect(jobs_pb2.JobFilter(submitted_to_ms=from_ms, states=_RUNNING))
    held: dict[str, Held] = defaultdict(Held)
    records = 0
    # To the open end: a job of the window may have gone on after it.
    asked = usage_pb2.ListLedgerRequest(from_ms=from_ms)
    async for record in pages(link, "UsageService/ListLedger", asked, "records"):
        if record.start_ms < to_ms or record.job_id in jobs:
            held[record.job_id].add(
                record.attempt, record.start_ms, record.end_ms, record.accelerator, record.outcome, from_ms
            )
        records += 1
        if records % 1000 == 0:
            tell(f"{len(jobs):,} jobs, {records:,} records of the ledger")
    earlier = [job_id for job_id in held if job_id not in jobs]
    running = [job.id for job in jobs.values() if job.state in _RUNNING]
    more = [*earlier, *running]
    for start in range(0, len(more), _JOBS_AT_ONCE):
        tell(f"{start:,} of {len(more):,} jobs from before the window or still running")
        # With their attempts, which a listing leaves out; what still runs is not in the ledger yet.
        for job in await jobs_of(link, more[start : start + _JOBS_AT_ONCE]):
            jobs[job.id] = job
            _add_attempts(held[job.id], job, from_ms, now)
    return sorted(jobs.values(), key=lambda job: (job.submit_time_ms, job.id)), held


def _add_attempts(held: Held, job: jobs_pb2.Job, from_ms: int, now: int) -> None:
    """Count the attempts that the ledger's records of the window do not tell of: one that still runs, with what it has held so far."""
    for attempt in job.attempts:
        if attempt.number not in held.attempts:
            end_ms = attempt.end_time_ms or now
            held.add(attempt.number, attempt.grant_time_ms, end_ms, attempt.accelerator, attempt.outcome, from_ms)


def _job_row(job: jobs_pb2.Job, held: Held, ends: dict[str, int]) -> list[object]:
    spec = job.spec
    # With dependencies, a job is ready when the last of them has ended, as far as they are of the same window.
    ready = [ends.get(one.job_id, 0) for one in spec.dependencies]
    start_ms = job.start_time_ms or held.first_ms
    eligible_ms = max(job.submit_time_ms, *ready) if ready else job.submit_time_ms
    eligible_ms = min(eligible_ms, held.first_ms) if held.first_ms >= job.submit_time_ms else eligible_ms
    return [
        job.id,
        spec.institution,
        spec.project,
        job.user,
        spec.name,
        short_name(common_pb2.JobState.DESCRIPTOR, job.state),
        job.submit_time_ms,
        eligible_ms,
        start_ms,
        job.end_time_ms,
        held.ms,
        len(held.attempts),
        sum(outcome == _PREEMPTED for outcome in held.attempts.values()),
        spec.resources.cpu_milli,
        spec.resources.memory_mib,
        spec.resources.gpu_milli,
        max(1, spec.replicas),
        ";".join(spec.accelerators),
        ";".join(spec.preferred_regions),
        ";".join(spec.required_regions),
        ";".join(spec.pools),
        _object(spec.node_selector),
        ";".join(spec.data_sets),
        spec.topology.level,
        int(spec.topology.required),
        short_name(common_pb2.PriorityClass.DESCRIPTOR, spec.priority_class) or "NORMAL",
        int(spec.preemptible),
        spec.max_runtime_ms,
        spec.grace_period_ms if spec.HasField("grace_period_ms") else _GRACE_MS,
        int(bool(job.checkpoint)),
        job.region,
        job.pool,
        held.accelerator,
    ]


def _node_row(status: admin_pb2.NodeStatus) -> list[object]:
    node, capacity = status.node, status.node.capacity
    return [
        status.region,
        node.id,
        node.name,
        node.pool,
        node.accelerator,
        capacity.cpu_milli,
        capacity.memory_mib,
        capacity.gpu_milli,
        _object(node.labels),
        int(status.up),
        int(status.draining),
    ]


async def _tenants(link: Link) -> list[list[object]]:
    """Weights, home regions and quotas of all institutions and projects that the caller may see."""
    institutions = await listed(
        link, "AdminService/ListInstitutions", admin_pb2.ListInstitutionsRequest(), "institutions"
    )
    projects = await listed(link, "AdminService/ListProjects", admin_pb2.ListProjectsRequest(), "projects")
    quotas = {
        (one.institution, one.project): (one.cpu_milli, one.memory_mib, one.gpu_milli, one.pending_jobs)
        for one in await listed(link, "AdminService/ListQuotas", admin_pb2.ListQuotasRequest(), "quotas")
    }
    whose: list[tuple[Any, str, str]] = [(one, "", one.home_region) for one in institutions]
    whose += [(one, one.id, "") for one in projects]
    rows: list[list[object]] = []
    for one, project, home in whose:
        institution = one.institution if project else one.id
        quota = quotas.get((institution, project), (_NO_LIMIT,) * 4)
        rows.append([institution, project, one.weight or 1000, home, *quota])
    return rows


def _object(pairs: Any) -> str:
    return json.dumps({key: pairs[key] for key in sorted(pairs)}, ensure_ascii=False)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
