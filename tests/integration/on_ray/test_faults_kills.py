"""kill -9 of the control plane, of the agent, of both, of a Ray node and of a whole Ray cluster, while jobs run.

Each time: nothing acknowledged is lost, nothing runs twice at once, what can survive does, and usage is exact to the
millisecond. The jobs themselves say when they live, in a file of their own (``tests.support.jobs.Diary``).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from protos.suanli.v1 import common_pb2, jobs_pb2
from tests.support.api import Client
from tests.support.jobs import Diary, assert_sums_agree, assert_usage_exact, ended, in_state, spec, submit
from tests.support.platform import Daemon, Platform, alive, eventually, running_platform

QUEUED, STARTING, RUNNING, SUCCEEDED, CANCELLED = (
    common_pb2.JOB_STATE_QUEUED,
    common_pb2.JOB_STATE_STARTING,
    common_pb2.JOB_STATE_RUNNING,
    common_pb2.JOB_STATE_SUCCEEDED,
    common_pb2.JOB_STATE_CANCELLED,
)
NODE_LOST = common_pb2.ATTEMPT_OUTCOME_NODE_LOST
MOST_OF_A_NODE = {"cpu_milli": 3000, "memory_mib": 256}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("kills"), second="second", lease_ttl_ms=3_000) as platform:
        yield platform


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    client = platform.client("ann")
    yield client
    await client.channel.close()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


class Submitter:
    """Submits without pause, and repeats a call with its request_id until it is answered."""

    def __init__(self, client: Client, argv: list[str]) -> None:
        self._client = client
        self._spec = spec(argv, resources={"cpu_milli": 500})
        self.acknowledged: dict[str, list[str]] = {}
        self.repeated = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            request_id = f"stream-{number}"
            while request_id not in self.acknowledged:
                try:
                    self.acknowledged[request_id] = await submit(self._client, *[self._spec] * 3, request_id=request_id)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise
                    self.repeated += 1
                    await asyncio.sleep(0.02)
            # Not faster than the region's two cores run them.
            await asyncio.sleep(0.05)

    async def until(self, count: int) -> None:
        """Wait for that many more calls to be acknowledged."""
        goal = len(self.acknowledged) + count
        await eventually(lambda: len(self.acknowledged) >= goal, "submissions are not acknowledged")

    async def check(self) -> list[str]:
        """Stop; every id acknowledged is there, and the same call gives it again."""
        self._stop.set()
        for request_id, job_ids in self.acknowledged.items():
            request = jobs_pb2.SubmitJobsRequest(jobs=[self._spec] * 3, request_id=request_id)
            again = await self._client.jobs.SubmitJobs(request)
            assert (again.duplicate, list(again.job_ids)) == (True, job_ids)
        return [job_id for job_ids in self.acknowledged.values() for job_id in job_ids]


async def test_control_plane_and_agent_are_killed_while_jobs_run_and_come(
    platform: Platform, client: Client, diary: Diary, tmp_path: Path
) -> None:
    """Short jobs come and end all the time; each must run once, whatever died while it was on its way."""
    tally = tmp_path / "tally"
    submitter = Submitter(client, ["sh", "-c", f'echo "$SUANLI_JOB_ID $SUANLI_ATTEMPT" >> {tally}'])
    long_jobs = await submit(client, *[spec(diary.argv())] * 2)
    runs = [(await diary.started(job_id))[0] for job_id in long_jobs]
    stream = asyncio.create_task(submitter.run())
    for victims in ([platform.server], [platform.agent], [platform.agent, platform.server]):
        await submitter.until(6)
        repeated = submitter.repeated
        for victim in victims:
            victim.kill()
        if platform.server in victims:
            await cut_off(submitter, repeated)
        else:
            await submitter.until(6)
        assert all(alive(run.pid) for run in runs)
        await start(*victims)
        await submitter.until(6)
    acknowledged = await submitter.check()
    await stream
    assert all(alive(run.pid) for run in runs), "running jobs outlive the control plane and the agent"
    for job_id in long_jobs:
        await in_state(client, job_id, RUNNING)
    diary.let_go()
    jobs = await ended(client, *long_jobs, *acknowledged)
    assert {job.state for job in jobs} == {SUCCEEDED}
    # A launch that the killed agent had taken on and not handed on is lost; what the agent had started is not.
    lost = [attempt for job in jobs for attempt in job.attempts[:-1]]
    assert {(attempt.outcome, attempt.start_time_ms) for attempt in lost} <= {(NODE_LOST, 0)}, lost
    assert {run.pid for run in diary.runs()} == {run.pid for run in runs}
    diary.assert_never_twice()
    lines = tally.read_text().splitlines()
    assert sorted(lines) == sorted(f"{job.id} {job.attempt}" for job in jobs[2:]), "each acknowledged job ran, once"
    listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1000))
    assert {job.id for job in listed.jobs} == {*acknowledged, *long_jobs}, "a repeated call made no other jobs"
    await assert_usage_exact(client, [*long_jobs, *acknowledged])
    await assert_sums_agree(client)


async def cut_off(submitter: Submitter, repeated: int) -> None:
    """Wait until a call has failed."""
    await eventually(lambda: submitter.repeated > repeated, "no call was cut off")


async def start(*daemons: Daemon) -> None:
    """Start them all at once: an agent serves only when it is welcome."""
    await asyncio.gather(*(asyncio.to_thread(daemon.start) for daemon in daemons))


async def test_the_agent_is_killed_while_jobs_run(platform: Platform, client: Client, diary: Diary) -> None:
    names = ("stays", "ends", "cancelled")
    job_ids = await submit(client, *[spec(diary.argv(name), name=name) for name in names])
    runs = [(await diary.started(job_id))[0] for job_id in job_ids]
    for job_id in job_ids:
        await in_state(client, job_id, RUNNING)
    platform.agent.kill()
    assert all(alive(run.pid) for run in runs)
    diary.let_go("ends")
    await eventually(lambda: not alive(runs[1].pid), "a job cannot end without the agent")
    at_most_ms = time.time_ns() // 1_000_000
    await client.jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_ids[2]]))
    meanwhile = await submit(client, spec(diary.argv("meanwhile"), name="meanwhile"))
    assert (await client.job(job_ids[2])).cancel_requested
    await start(platform.agent)
    stopped = (await ended(client, job_ids[2]))[0]
    assert (stopped.state, alive(runs[2].pid)) == (CANCELLED, False)
    await diary.started(meanwhile[0])
    assert alive(runs[0].pid), "a running job outlives the agent"
    diary.let_go("stays")
    diary.let_go("meanwhile")
    jobs = await ended(client, job_ids[0], job_ids[1], *meanwhile)
    assert {(job.state, job.attempt) for job in jobs} == {(SUCCEEDED, 1)}
    # It is metered until it ended and not until the agent was back; here both clocks are one.
    assert jobs[1].attempts[0].end_time_ms <= at_most_ms
    diary.assert_never_twice()
    await assert_usage_exact(client, [*job_ids, *meanwhile])


@pytest.mark.parametrize("first", ["server", "agent"])
async def test_both_are_killed_and_come_back_in_either_order(
    platform: Platform, client: Client, diary: Diary, first: str
) -> None:
    job_ids = await submit(client, spec(diary.argv("stays")), spec(diary.argv("ends")))
    runs = [(await diary.started(job_id))[0] for job_id in job_ids]
    platform.server.kill()
    platform.agent.kill()
    diary.let_go("ends")
    await eventually(lambda: not alive(runs[1].pid), "a job cannot end alone")
    assert alive(runs[0].pid)
    if first == "agent":
        waits = asyncio.create_task(start(platform.agent))
        await eventually(platform.agent.running)
        await start(platform.server)
        await waits
    else:
        await start(platform.server)
        await start(platform.agent)
    assert (await ended(client, job_ids[1]))[0].state == SUCCEEDED
    assert alive(runs[0].pid)
    diary.let_go("stays")
    jobs = await ended(client, *job_ids)
    assert {(job.state, job.attempt) for job in jobs} == {(SUCCEEDED, 1)}
    assert len(diary.runs()) == 2
    diary.assert_never_twice()
    await assert_usage_exact(client, job_ids)


async def test_a_job_that_may_move_is_dead_before_it_is_given_away(
    platform: Platform, client: Client, diary: Diary
) -> None:
    """The agent is killed and does not come back within the lease: nobody is left to renew it, or to stop the job."""
    moves, waits = await submit(
        client,
        spec(diary.argv(), partition_policy=jobs_pb2.PARTITION_POLICY_MOVE, grace_period_ms=300),
        spec(diary.argv(), grace_period_ms=300),
    )
    moving, waiting = (await diary.started(moves))[0], (await diary.started(waits))[0]
    await in_state(client, moves, RUNNING)
    platform.agent.kill()
    given_up = await in_state(client, moves, QUEUED)
    assert not alive(moving.pid), "its process must be gone when the job is queued again"
    assert (given_up.reason, given_up.attempts[0].outcome) == ("NODE_LOST", NODE_LOST)
    assert alive(waiting.pid), "the others wait for the region"
    await start(platform.agent)
    await diary.started(moves, attempt=2)
    diary.let_go()
    jobs = await ended(client, moves, waits)
    assert [(job.state, job.attempt) for job in jobs] == [(SUCCEEDED, 2), (SUCCEEDED, 1)]
    diary.assert_never_twice()
    await assert_usage_exact(client, [moves, waits])


async def test_a_node_is_killed_and_comes_back(platform: Platform, client: Client, diary: Diary) -> None:
    """One job on each node, and a small gang over both; then one node goes."""
    spread = spec(diary.argv(), replicas=2, resources={"cpu_milli": 900, "memory_mib": 128})
    job_ids = await submit(client, *[spec(diary.argv(), resources=MOST_OF_A_NODE)] * 2)
    for job_id in job_ids:
        await diary.started(job_id)
    gang = (await submit(client, spread))[0]
    ranks = await diary.started(gang, ranks=2)
    jobs = {(await client.job(job_id)).attempts[0].replicas[0].node_name: job_id for job_id in job_ids}
    assert set(jobs) == {"east-head", "east-second"}, "each fills a node, so they lie apart"
    survivor, victim = jobs["east-head"], jobs["east-second"]
    killed = diary.runs(victim)
    await asyncio.to_thread(platform.cluster.kill_node, "second")
    await eventually(lambda: not any(alive(run.pid) for run in (*killed, *ranks)), "processes of the lost node live on")
    lost = await in_state(client, victim, QUEUED)
    assert (lost.reason, lost.attempts[0].outcome) == ("NODE_LOST", NODE_LOST)
    assert lost.message
    why = await client.jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job_id=victim))
    assert why.code == "FIT"
    assert [pool.pool for pool in why.pools] == ["east/cpu"]
    assert why.message
    assert (await in_state(client, gang, QUEUED)).attempts[0].outcome == NODE_LOST, "a gang goes whole"
    await asyncio.to_thread(platform.add_node, "second")
    for job_id, count in ((victim, 1), (gang, 2)):
        await diary.started(job_id, attempt=2, ranks=count)
    assert [run.attempt for run in diary.runs(survivor)] == [1]
    diary.let_go()
    done = await ended(client, survivor, victim, gang)
    assert [(job.state, job.attempt, job.failures) for job in done] == [
        (SUCCEEDED, 1, 0),
        (SUCCEEDED, 2, 0),
        (SUCCEEDED, 2, 0),
    ]
    diary.assert_never_twice()
    await assert_usage_exact(client, [survivor, victim, gang])
    await assert_sums_agree(client)


async def test_the_whole_ray_cluster_is_killed_and_another_takes_its_place(
    platform: Platform, client: Client, diary: Diary
) -> None:
    job_id = (await submit(client, spec(diary.argv())))[0]
    run = (await diary.started(job_id))[0]
    await in_state(client, job_id, RUNNING)
    await asyncio.to_thread(platform.cluster.stop)
    await eventually(lambda: not alive(run.pid), "a job outlives its Ray cluster")
    lost = await in_state(client, job_id, QUEUED)
    assert (lost.reason, lost.attempts[0].outcome) == ("NODE_LOST", NODE_LOST)
    await asyncio.to_thread(platform.agent.end)
    await asyncio.to_thread(platform.cluster.start)
    platform.agent.settings["ray_address"] = platform.cluster.address
    platform.agent.environment |= platform.cluster.client_env()
    await start(platform.agent)
    await diary.started(job_id, attempt=2)
    diary.let_go()
    job = (await ended(client, job_id))[0]
    assert (job.state, job.attempt) == (SUCCEEDED, 2)
    diary.assert_never_twice()
    await assert_usage_exact(client, [job_id])
