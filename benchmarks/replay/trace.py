"""Queue traces: the jobs file, the cluster it is replayed on, and what a replay says of each job.

The form of the file is that of ``../shared/traces/philly-muri``: a CSV with ``job_id, num_gpu, submit_s, service_s``, and where known
``resched_overhead_s`` (the progress a job loses when it is rescheduled), ``model_name``, ``institution`` and ``home_region``.
Times are seconds, in floating point as in the file: a replay by the published protocol has to give the published figures.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_JOBS = 2_000_000
NEEDED = ("job_id", "num_gpu", "submit_s", "service_s")
TENANCY = ("institution", "home_region")


class BadInput(Exception):
    """The command line or a file cannot be used; the message is one line for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row: a gang of ``num_gpu`` GPUs that runs ``service_s``. ``institution`` and ``home_region`` are "" where the file has none."""

    job_id: str
    num_gpu: int
    submit_s: float
    service_s: float
    overhead_s: float = 0.0
    name: str = ""
    institution: str = ""
    home_region: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Regions that are alike: ``nodes`` nodes of ``gpus_per_node`` GPUs in each. A gang never spans regions."""

    nodes: int
    gpus_per_node: int
    regions: tuple[str, ...] = ("",)

    @property
    def region_gpus(self) -> int:
        """The GPUs of one region."""
        return self.nodes * self.gpus_per_node

    def nodes_for(self, num_gpu: int) -> int:
        """How many whole nodes a gang takes; 0 for one that shares a node (all its GPUs stand on one)."""
        return 0 if num_gpu <= self.gpus_per_node else -(-num_gpu // self.gpus_per_node)

    def check(self, jobs: Iterable[Job]) -> None:
        """BadInput for the first gang that an empty region cannot hold."""
        for job in jobs:
            if self.nodes_for(job.num_gpu) > self.nodes:
                raise BadInput(
                    f"job {job.job_id} can never start: it asks for {job.num_gpu} GPUs together, a region has "
                    f"{self.nodes} nodes of {self.gpus_per_node}"
                )


@dataclass(slots=True)
class Outcome:
    """What a replay did with a job: when it ended, how long it held its GPUs, how often it was stopped before its end."""

    job: Job
    end_s: float = math.nan
    held_s: float = 0.0
    preemptions: int = 0

    @property
    def jct_s(self) -> float:
        """From submission to completion."""
        return self.end_s - self.job.submit_s

    @property
    def queue_s(self) -> float:
        """The part of it in which the job held nothing, before its first start or after a preemption."""
        return max(0.0, self.jct_s - self.held_s)


def _number(row: Mapping[str, str], line: int, column: str, least: float) -> float:
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise BadInput(f"line {line}: {column} must be a number of at least {least:g}, not {text[:40]!r}")
    return value


def _job(row: Mapping[str, str], line: int) -> Job:
    if None in row or None in row.values():
        raise BadInput(f"line {line}: not as many values as the header has columns")
    num_gpu = _number(row, line, "num_gpu", 1)
    if num_gpu != int(num_gpu):
        raise BadInput(f"line {line}: num_gpu must be whole, not {row['num_gpu'][:40]!r}")
    tenancy = {column: row.get(column, "").strip() for column in TENANCY}
    for column, value in tenancy.items():
        if column in row and not value:
            raise BadInput(f"line {line}: {column} is empty")
    job_id = row["job_id"].strip()
    if not job_id:
        raise BadInput(f"line {line}: job_id is empty")
    return Job(
        job_id,
        int(num_gpu),
        _number(row, line, "submit_s", 0),
        _number(row, line, "service_s", 0),
        _number(row, line, "resched_overhead_s", 0) if "resched_overhead_s" in row else 0.0,
        row.get("model_name", "").strip(),
        **tenancy,
    )


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a file (``.gz``: compressed), in its order; BadInput when it is not of the form.

    Job ids must be unique within an institution.
    """
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [column for column in NEEDED if column not in columns]
            if missing:
                raise BadInput(f"{path}: no column {missing[0]}")
            if (TENANCY[0] in columns) != (TENANCY[1] in columns):
                raise BadInput(f"{path}: institution and home_region go together")
            jobs, seen = [], set()
            for row in reader:
                job = _job(row, reader.line_num)
                if (key := (job.institution, job.job_id)) in seen:
                    raise BadInput(f"{path}: line {reader.line_num}: job_id {job.job_id} is not the first of this id")
                seen.add(key)
                jobs.append(job)
                if len(jobs) > MAX_JOBS:
                    raise BadInput(f"{path}: more than {MAX_JOBS} jobs")
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not jobs:
        raise BadInput(f"{path}: no jobs")
    return jobs


def metrics(outcomes: list[Outcome], gpus: int) -> dict[str, float | int]:
    """The figures of a replay on ``gpus`` GPUs; p99 is the sorted value at index int(0.99 n), as in the protocol.

    ``utilisation`` is the GPU time held, over all GPUs from 0 until the last completion. For one institution ``gpus`` are those of its home
    region, so that what it borrowed can bring it above 1.
    """
    count = len(outcomes)
    jct = sorted(outcome.jct_s for outcome in outcomes)
    queue = sorted(outcome.queue_s for outcome in outcomes)
    makespan = max(outcome.end_s for outcome in outcomes)
    held = math.fsum(outcome.held_s * outcome.job.num_gpu for outcome in outcomes)
    return {
        "avg_jct_s": round(math.fsum(jct) / count, 1),
        "median_jct_s": round((jct[(count - 1) // 2] + jct[count // 2]) / 2, 1),
        "p99_jct_s": round(jct[int(0.99 * count)], 1),
        "avg_queue_s": round(math.fsum(queue) / count, 1),
        "p99_queue_s": round(queue[int(0.99 * count)], 1),
        "makespan_s": round(makespan, 1),
        "utilisation": round(held / (gpus * makespan), 4) if makespan else 0.0,
        "preemptions": sum(outcome.preemptions for outcome in outcomes),
    }
