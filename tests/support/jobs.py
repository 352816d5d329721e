"""What tests of the whole platform ask of jobs: programs that keep a diary, waiting for their ends, and exact usage."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.suanli.v1 import common_pb2, jobs_pb2, usage_pb2
from tests.support.api import Client
from tests.support.platform import alive, eventually

ENDED = {
    common_pb2.JOB_STATE_SUCCEEDED,
    common_pb2.JOB_STATE_FAILED,
    common_pb2.JOB_STATE_CANCELLED,
    common_pb2.JOB_STATE_TIMED_OUT,
}

# Writes who it is and when, again and again until it may go, so that its last line tells when it was killed.
_DIARY = """
import os, pathlib, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
env = os.environ
me = f"{env['SUANLI_JOB_ID']} {env['SUANLI_ATTEMPT']} {env['RANK']} {os.getpid()}"
def say(what):
    os.write(file, f"{me} {what} {time.monotonic_ns()}\\n".encode())
say("start")
go = pathlib.Path(sys.argv[2])
while not go.exists():
    say("beat")
    time.sleep(0.02)
say("stop")
"""


@dataclass(frozen=True)
class Run:
    """One process of a job, as its diary tells."""

    job_id: str
    attempt: int
    rank: int
    pid: int
    first_ns: int
    last_ns: int
    stopped: bool


class Diary:
    """A file outside the platform in which processes of jobs say when they live."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "diary"
        self.path.touch()

    def argv(self, go: str = "go") -> list[str]:
        """The command of a job that lives until ``let_go(go)``."""
        return [sys.executable, "-S", "-c", _DIARY, str(self.path), str(self.folder / go)]

    def let_go(self, go: str = "go") -> None:
        """Let the jobs that wait for this end."""
        (self.folder / go).touch()

    def runs(self, *job_ids: str) -> list[Run]:
        """All processes that these jobs (default: all) ever had, by their beginnings."""
        lines: dict[tuple[str, int, int, int], list[tuple[str, int]]] = defaultdict(list)
        text = self.path.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            job_id, attempt, rank, pid, what, at_ns = line.split()
            lines[job_id, int(attempt), int(rank), int(pid)].append((what, int(at_ns)))
        found = [
            Run(*key, said[0][1], said[-1][1], said[-1][0] == "stop")
            for key, said in lines.items()
            if not job_ids or key[0] in job_ids
        ]
        return sorted(found, key=lambda run: run.first_ns)

    async def started(self, job_id: str, attempt: int = 1, ranks: int = 1) -> list[Run]:
        """Wait until all ranks of an attempt have begun."""

        def begun() -> list[Run]:
            found = [run for run in self.runs(job_id) if run.attempt == attempt]
            return found if len(found) >= ranks else []

        runs: list[Run] = await eventually(begun, f"attempt {attempt} of {job_id} does not begin")
        return runs

    def assert_never_twice(self) -> None:
        """No rank of an attempt ran twice, and no attempt began while a process of an earlier one still lived."""
        by_job: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs():
            by_job[run.job_id].append(run)
        for runs in by_job.values():
            names = [(run.attempt, run.rank) for run in runs]
            assert len(names) == len(set(names)), runs
            for run in runs:
                later = [other for other in runs if other.attempt > run.attempt]
                assert all(other.first_ns > run.last_ns for other in later), runs
                assert not later or not alive(run.pid), runs


def spec(argv: Sequence[str], **changes: Any) -> jobs_pb2.JobSpec:
    """A small job."""
    message = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=argv), grace_period_ms=2_000)
    message.resources.cpu_milli, message.resources.memory_mib = 100, 256
    message.MergeFrom(jobs_pb2.JobSpec(**changes))
    return message


async def submit(client: Client, *specs: jobs_pb2.JobSpec, request_id: str = "") -> list[str]:
    """Submit them in one call."""
    request = jobs_pb2.SubmitJobsRequest(jobs=specs, request_id=request_id)
    return list((await client.jobs.SubmitJobs(request)).job_ids)


async def in_state(client: Client, job_id: str, state: common_pb2.JobState.ValueType) -> jobs_pb2.Job:
    """Wait until a job is in a state."""

    async def look() -> jobs_pb2.Job | None:
        job = await client.job(job_id)
        assert job.state == state or job.state not in ENDED, job
        return job if job.state == state else None

    job: jobs_pb2.Job = await eventually(look, f"{job_id} does not come to {common_pb2.JobState.Name(state)}")
    return job


async def ended(client: Client, *job_ids: str) -> list[jobs_pb2.Job]:
    """Wait until all have ended, however."""
    jobs = []
    for job_id in job_ids:

        async def look(job_id: str = job_id) -> jobs_pb2.Job | None:
            job = await client.job(job_id)
            return job if job.state in ENDED else None

        jobs.append(await eventually(look, f"{job_id} does not end"))
    return jobs


async def assert_usage_exact(client: Client, job_ids: Iterable[str]) -> None:
    """The ledger holds, for each attempt of these ended jobs, exactly its time from grant to release, and nothing else."""
    for job_id in job_ids:
        job = await client.job(job_id)
        records = (await client.usage.ListLedger(usage_pb2.ListLedgerRequest(job_id=job_id))).records
        asked = job.spec.resources
        held: dict[int, tuple[int, int]] = {}
        for record in records:
            amounts = (record.cpu_milli, record.memory_mib, record.gpu_milli)
            assert amounts == tuple(
                each * job.spec.replicas for each in (asked.cpu_milli, asked.memory_mib, asked.gpu_milli)
            )
            first, last = held.get(record.attempt, (record.start_ms, record.start_ms))
            assert record.start_ms == last, "segments of an attempt follow one another without a gap"
            held[record.attempt] = (first, record.end_ms)
        assert held == {a.number: (a.grant_time_ms, a.end_time_ms) for a in job.attempts}, job
        for earlier, later in zip(job.attempts, job.attempts[1:], strict=False):
            assert earlier.end_time_ms <= later.grant_time_ms, job


async def assert_sums_agree(client: Client) -> None:
    """The usage shown is the sum of the ledger's intervals."""
    records = []
    request = usage_pb2.ListLedgerRequest(page_size=10_000)
    while True:
        page = await client.usage.ListLedger(request)
        records += page.records
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    total = (await client.usage.GetUsage(usage_pb2.GetUsageRequest())).total
    assert int(total.cpu_milli_ms) == sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in records)
    assert int(total.memory_mib_ms) == sum(r.memory_mib * (r.end_ms - r.start_ms) for r in records)
    assert total.attempts == len({(r.job_id, r.attempt) for r in records})
    assert total.segments == len(records)
