"""ExplainJob: what if, before a job is submitted, and what is refused."""

from __future__ import annotations

import pytest

from protos.suanli.v1 import common_pb2, jobs_pb2
from tests.support.api import Api, info_of
from tests.unit.api.test_api_tenancy import failure


def spec(**changes: object) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"]), **changes)  # type: ignore[arg-type]


def asking(**fields: object) -> jobs_pb2.ExplainJobRequest:
    return jobs_pb2.ExplainJobRequest(**fields)  # type: ignore[arg-type]


async def test_a_job_that_waits_is_explained_as_data(api: Api) -> None:
    job = await api["ada"].submit()
    told = await api["ada"].jobs.ExplainJob(asking(job_id=job))
    assert (told.job_id, told.state, told.code) == (job, common_pb2.JOB_STATE_QUEUED, told.blockers[0].code)
    assert told.position_is_exact
    assert told.expected_start.message


async def test_what_if_changes_nothing(api: Api) -> None:
    job = await api["ada"].submit(resources=common_pb2.Resources(memory_mib=4096))
    changed = await api["ada"].jobs.ExplainJob(asking(job_id=job, what_if=jobs_pb2.JobChange(memory_mib=1024)))
    assert changed.job_id == job
    assert (await api["ada"].job(job)).spec.resources.memory_mib == 4096


async def test_a_job_can_be_explained_before_it_is_submitted(api: Api) -> None:
    told = await api["ada"].jobs.ExplainJob(asking(spec=spec()))
    assert (told.job_id, told.state) == ("", common_pb2.JOB_STATE_UNSPECIFIED)
    assert told.code
    listed = await api["ada"].jobs.ListJobs(jobs_pb2.ListJobsRequest())
    assert not listed.jobs


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asking(spec=spec(replicas=-1)), "spec.replicas"),
        (asking(spec=spec(), job_id="j"), "spec"),
        (asking(spec=spec(institution="uni-b")), "spec.institution"),
        (asking(spec=spec(project="nowhere")), "spec.project"),
        (asking(spec=spec(topology=jobs_pb2.Topology(required=True))), "spec.topology.level"),
        (asking(spec=spec(), what_if=jobs_pb2.JobChange(cpu_milli=0)), "what_if.cpu_milli"),
        (asking(spec=spec(), what_if=jobs_pb2.JobChange(gpu_milli=1500)), "what_if.gpu_milli"),
        (asking(spec=spec(), what_if=jobs_pb2.JobChange(replicas=0)), "what_if.replicas"),
        (asking(spec=spec(), what_if=jobs_pb2.JobChange(max_runtime_ms=1)), "what_if.max_runtime_ms"),
        (
            asking(spec=spec(), what_if=jobs_pb2.JobChange(pools=jobs_pb2.NameList(names=["A B"]))),
            "what_if.pools[0]",
        ),
        (
            asking(spec=spec(), what_if=jobs_pb2.JobChange(topology=jobs_pb2.Topology(level="a b"))),
            "what_if.topology.level",
        ),
    ],
)
async def test_a_bad_question_names_the_field(api: Api, request_: jobs_pb2.ExplainJobRequest, field: str) -> None:
    error = await failure(api["ada"].jobs.ExplainJob(request_))
    assert info_of(error).metadata["field"] == field


async def test_what_has_ended_cannot_be_asked_for_instead(api: Api) -> None:
    job = await api["ada"].submit()
    await api["ada"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job]))
    error = await failure(api["ada"].jobs.ExplainJob(asking(job_id=job, what_if=jobs_pb2.JobChange(replicas=2))))
    assert (info_of(error).reason, info_of(error).metadata["field"]) == ("NOT_WAITING", "what_if")
