"""Jobs through the API: submit, lists, pages, events, usage."""

import asyncio

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, regions_pb2, usage_pb2
from tests.support.api import PEOPLE, Agent, Api, info_of
from tests.unit.api.test_api_tenancy import failure

Code = grpc.StatusCode


def listing(size: int = 0, token: str = "", **filters: object) -> jobs_pb2.ListJobsRequest:
    return jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(**filters), page_size=size, page_token=token)


async def all_pages(api: Api, size: int, **filters: object) -> list[str]:
    names, token = [], ""
    for _ in range(100):
        page = await api["ada"].jobs.ListJobs(listing(size, token, **filters))
        assert len(page.jobs) <= size
        names += [job.spec.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            return names
    raise AssertionError("the list has no end")


async def test_pages_hold_every_job_once_newest_first(api: Api) -> None:
    names = [f"n{i}" for i in range(7)]
    for name in names:
        await api["ada"].submit(name=name)
    for size in (1, 2, 7, 100):
        assert await all_pages(api, size) == names[::-1]


async def test_a_token_is_good_for_its_own_question_only(api: Api) -> None:
    for i in range(4):
        await api["ada"].submit(name=f"n{i}", labels={"k": "v"})
    token = (await api["ada"].jobs.ListJobs(listing(2))).next_page_token
    assert token
    wrong = [
        listing(2, token, name="n0"),
        listing(2, token, labels={"k": "v"}),
        listing(2, token[:-2] + ("AA" if token[-2:] != "AA" else "BB")),
        listing(2, token + "A"),
        listing(2, "x"),
        listing(2, "ü"),
        listing(2, "A" * 5000),
    ]
    for request in wrong:
        error = await failure(api["ada"].jobs.ListJobs(request))
        assert error.code() is Code.INVALID_ARGUMENT
        assert info_of(error).metadata["field"] == "page_token"
    assert (await failure(api["op"].jobs.ListJobs(listing(2, token)))).code() is Code.INVALID_ARGUMENT
    for size in (-1, 1001):
        error = await failure(api["ada"].jobs.ListJobs(listing(size)))
        assert info_of(error).metadata["field"] == "page_size"


async def test_labels_must_all_match(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        await api["ada"].submit(name=f"n{i}", labels={"course": "s" if i % 2 else "t", "n": str(i)})
    assert await all_pages(api, 2, labels={"course": "s"}) == ["n5", "n3", "n1"]
    assert await all_pages(api, 2, labels={"course": "s", "n": "3"}) == ["n3"]
    assert await all_pages(api, 2, labels={"course": "s", "n": "2"}) == []
    monkeypatch.setattr("scheduler.api.jobs._SCAN_PAGE", 1)
    monkeypatch.setattr("scheduler.api.jobs.MAX_SCANNED", 2)
    assert await all_pages(api, 2, labels={"course": "s"}) == ["n5", "n3", "n1"]


async def test_a_page_fits_into_one_message(api: Api) -> None:
    big = {"A": "x" * 120_000}
    for i in range(40):
        await api["ada"].submit(name=f"n{i}", environment=big)
    page = await api["ada"].jobs.ListJobs(listing(1000))
    assert page.ByteSize() < 4 << 20
    assert len(await all_pages(api, 1000)) == 40


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (jobs_pb2.SubmitJobsRequest(), "jobs"),
        (
            jobs_pb2.SubmitJobsRequest(jobs=[jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))], request_id="a b"),
            "request_id",
        ),
        (
            jobs_pb2.SubmitJobsRequest(
                jobs=[jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))], request_id="a" * 129
            ),
            "request_id",
        ),
        (
            jobs_pb2.SubmitJobsRequest(
                jobs=[jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]), working_folder="sha256:" + "0" * 64)]
            ),
            "jobs[0].working_folder",
        ),
    ],
)
async def test_a_faulty_submission_names_what_is_wrong(api: Api, request_: object, field: str) -> None:
    error = await failure(api["ada"].jobs.SubmitJobs(request_))
    assert error.code() is Code.INVALID_ARGUMENT
    assert info_of(error).metadata["field"] == field


async def test_too_many_jobs_are_refused(api: Api) -> None:
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))
    error = await failure(api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[spec] * 10_001)))
    assert info_of(error).metadata["field"] == "jobs"


async def test_the_same_request_gives_the_same_jobs(api: Api) -> None:
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]), environment={"A": "1", "B": "2", "C": "3"})
    request = jobs_pb2.SubmitJobsRequest(jobs=[spec] * 3, request_id="r1")
    first = await api["ada"].jobs.SubmitJobs(request)
    assert not first.duplicate
    second = await api["ada"].jobs.SubmitJobs(request)
    assert second.duplicate
    assert list(second.job_ids) == list(first.job_ids)
    error = await failure(api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[spec] * 2, request_id="r1")))
    assert error.code() is Code.ALREADY_EXISTS
    assert len((await api["bob"].jobs.SubmitJobs(request)).job_ids) == 3


async def test_a_check_stores_nothing(api: Api) -> None:
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))
    response = await api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[spec], validate_only=True))
    assert list(response.job_ids) == []
    assert list((await api["ada"].jobs.ListJobs(listing())).jobs) == []


async def test_a_script_must_be_in_the_folder(api: Api) -> None:
    manifest = await api["ada"].upload_folder({"src/train.py": b"abc"})

    def spec(script: str) -> jobs_pb2.SubmitJobsRequest:
        entry = jobs_pb2.PythonEntryPoint(script=script)
        return jobs_pb2.SubmitJobsRequest(jobs=[jobs_pb2.JobSpec(python=entry, working_folder=manifest)])

    assert (await api["ada"].jobs.SubmitJobs(spec("./src/train.py"))).job_ids
    error = await failure(api["ada"].jobs.SubmitJobs(spec("train.py")))
    assert info_of(error).metadata["field"] == "jobs[0].python.script"
    blob = await api["ada"].upload(b"no manifest")
    bad = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]), working_folder=blob)
    error = await failure(api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[bad])))
    assert info_of(error).metadata["field"] == "jobs[0].working_folder"


async def test_dependencies_within_a_batch_are_shown_by_id(api: Api) -> None:
    first = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))
    second = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["b"]), dependencies=[jobs_pb2.Dependency(batch_index=0)])
    ids = (await api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[first, second]))).job_ids
    held = await api["ada"].job(ids[1])
    assert held.state == common_pb2.JOB_STATE_HELD
    assert held.spec.dependencies[0].job_id == ids[0]
    why = await api["ada"].jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job_id=ids[1]))
    assert list(why.waiting_for) == [ids[0]]


async def test_a_watch_goes_on_where_it_ended(api: Api) -> None:
    ids = [await api["ada"].submit(name=f"n{i}") for i in range(3)]
    seen, after = [], 0
    for _ in range(3):
        stream = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=after))
        async with asyncio.timeout(20):
            while True:
                page = await stream.read()
                after = page.sequence
                if page.events:
                    seen += [event.job_id for event in page.events]
                    break
        stream.cancel()
        ids.append(await api["ada"].submit())
    assert seen == ids[: len(seen)]
    assert len(seen) >= 5
    only = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0, job_ids=[ids[1]]))
    page = await only.read()
    assert [event.job_id for event in page.events] == [ids[1]]
    only.cancel()


async def test_every_part_of_a_page_of_events_says_how_far_it_is_complete(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.api.jobs._EVENTS_SENT", 2)
    for _ in range(5):
        await api["ada"].submit()
    stream = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    seen = 0
    while seen < 5:
        page = await stream.read()
        seen += len(page.events)
        assert 1 <= len(page.events) <= 2
        assert page.sequence >= page.events[-1].sequence
        if seen < 5:
            assert page.sequence == page.events[-1].sequence
    stream.cancel()


async def test_a_job_runs_through_the_wire(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job_id = await api["ada"].submit(
        "python", "-V", environment={"X": "1"}, resources=common_pb2.Resources(cpu_milli=2000)
    )
    launch = await agent.launch()
    assert (launch.job_id, launch.attempt, launch.user, launch.pool) == (job_id, 1, "ada", "cpu")
    assert list(launch.argv) == ["python", "-V"]
    assert launch.spec.environment["X"] == "1"
    assert launch.spec.max_runtime_ms == 86_400_000
    await agent.started(launch)
    nodes = (await api["ada"].admin.ListNodes(admin_pb2.ListNodesRequest(region="east"))).nodes
    assert nodes[0].allocated.cpu_milli == 2000
    await agent.finished(launch)
    job = await api["ada"].job(job_id)
    assert job.state == common_pb2.JOB_STATE_SUCCEEDED
    assert [(a.number, a.region, a.pool, a.replicas[0].node_name) for a in job.attempts] == [
        (1, "east", "cpu", "node-one")
    ]
    await the_usage_is_exact(api, job)


async def test_what_an_agent_says_of_use_while_a_job_runs_outlives_an_end_that_says_less(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    job_id = await api["ada"].submit("true")
    launch = await agent.launch()
    await agent.started(launch)
    used = regions_pb2.AttemptUsage(
        job_id=job_id, attempt=launch.attempt, lease_epoch=launch.lease_epoch, cpu_used_ms=4321, peak_memory_mib=77
    )
    await agent.send(usage=regions_pb2.UsageReport(attempts=[used]))
    await agent.finished(launch)
    (attempt,) = (await api["ada"].job(job_id)).attempts
    assert (attempt.cpu_used_ms, attempt.peak_memory_mib) == (4321, 77)


async def the_usage_is_exact(api: Api, job: jobs_pb2.Job) -> None:
    attempt = job.attempts[0]
    held_ms = attempt.end_time_ms - attempt.grant_time_ms
    dimensions = [usage_pb2.USAGE_DIMENSION_USER, usage_pb2.USAGE_DIMENSION_POOL]
    intervals = [(0, 0), (attempt.grant_time_ms, attempt.end_time_ms), (1, 0), (0, attempt.end_time_ms + 1)]
    for from_ms, to_ms in intervals:
        request = usage_pb2.GetUsageRequest(from_ms=from_ms, to_ms=to_ms, group_by=dimensions)
        for user in ("fay", "fin", "op", "ann", "ada"):
            usage = await api[user].usage.GetUsage(request)
            rows = [(list(row.key), row.cpu_milli_ms, row.memory_mib_ms, row.attempts) for row in usage.rows]
            if held_ms or not (from_ms or to_ms):
                assert rows == [(["ada", "cpu"], str(2000 * held_ms), str(1024 * held_ms), 1)], (user, from_ms, to_ms)
    for user in ("abe", "bob", "ben"):
        for from_ms in (0, 1):
            assert list((await api[user].usage.GetUsage(usage_pb2.GetUsageRequest(from_ms=from_ms))).rows) == []
    ledger = await api["fin"].usage.ListLedger(usage_pb2.ListLedgerRequest(job_id=job.id))
    assert [(r.job_id, r.end_ms - r.start_ms, r.cpu_milli) for r in ledger.records] == [(job.id, held_ms, 2000)]
    page = (await api.metrics.page(api.control_plane)).decode()
    labels = 'accelerator="",institution="uni-a",pool="cpu",project="default",region="east"'
    assert f"suanli_usage_cpu_core_seconds_total{{{labels}}} {2000 * held_ms / 1e6}\n" in page.replace(
        'institution="uni-a",project="default",region="east",pool="cpu",accelerator=""', labels
    )
    assert 'institution="uni-b"' in page


async def test_usage_refuses_what_makes_no_sense(api: Api) -> None:
    wrong = [
        (usage_pb2.GetUsageRequest(from_ms=5, to_ms=5), "to_ms"),
        (usage_pb2.GetUsageRequest(from_ms=-1), "from_ms"),
        (usage_pb2.GetUsageRequest(group_by=[99]), "group_by[0]"),
        (usage_pb2.GetUsageRequest(project="A"), "project"),
    ]
    for request, field in wrong:
        error = await failure(api["fin"].usage.GetUsage(request))
        assert info_of(error).metadata["field"] == field
    error = await failure(api["fay"].usage.GetUsage(usage_pb2.GetUsageRequest(institution="uni-b")))
    assert error.code() is Code.PERMISSION_DENIED


async def test_a_newer_session_of_a_region_wins(api: Api) -> None:
    first = Agent(api)
    await first.enrol()
    await first.connect()
    second = Agent(api)
    second.client = first.client
    await second.connect("boot-2")
    assert info_of(await failure(first.call)).reason == "SESSION_ENDED"
    await api["ada"].submit()
    assert (await second.launch()).user == "ada"


async def test_administration_lists_in_pages(api: Api) -> None:
    names, token = [], ""
    for _ in range(10):
        request = admin_pb2.ListUsersRequest(page_size=3, page_token=token)
        page = await api["op"].admin.ListUsers(request)
        names += [user.id for user in page.users]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(PEOPLE)
    await api["op"].admin.SetQuota(
        admin_pb2.SetQuotaRequest(
            quota=admin_pb2.Quota(institution="uni-a", cpu_milli=500, memory_mib=-1, gpu_milli=-1, pending_jobs=-1)
        )
    )
    quotas = (await api["fay"].admin.ListQuotas(admin_pb2.ListQuotasRequest())).quotas
    assert [(q.institution, q.cpu_milli, q.in_use.cpu_milli) for q in quotas] == [("uni-a", 500, 0)]
