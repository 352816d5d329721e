"""What is audited: each change leaves its record and each refusal its own, no secret is in any, and all show when the log was touched."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from protos.suanli.v1 import (
    admin_pb2,
    artifacts_pb2,
    audit_pb2,
    budgets_pb2,
    common_pb2,
    data_pb2,
    jobs_pb2,
    prices_pb2,
    regions_pb2,
    usage_pb2,
)
from scheduler.api.audited import AUDITED, MAX_TARGET, Kind, Row, target_of
from scheduler.api.metrics import gauge_families
from scheduler.api.permissions import Role
from scheduler.api.serving import SERVICES
from scheduler.domain.audit import AuditOutcome
from scheduler.domain.chain import chained
from scheduler.service.ports import AuditQuery
from tests.support.api import Agent, Api, Client
from tests.unit.api.test_api_accounting import FAR_MS, HOURS, a_record
from tests.unit.api.test_api_tenancy import failure

METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
PRICES = "currency: CNY\nrates:\n  - {cpu_core_hour: 0.1}\n"
ALLOWED, REFUSED, FAILED = AuditOutcome
Record = audit_pb2.AuditRecord


async def audit(api: Api, user: str = "op", **values: Any) -> list[Record]:
    """Oldest first, without the preparations of the test's own platform."""
    response = await api[user].audit.ListAudit(audit_pb2.ListAuditRequest(**values))
    return [each for each in reversed(response.records) if each.actor != "system"]


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(AUDITED) == set(METHODS)
    names = [name.rpartition("/")[2] for name in AUDITED]
    assert len(names) == len(set(names)), "actions go by the names of methods alone"


@pytest.mark.parametrize("name", AUDITED)
def test_a_rows_target_is_in_the_request(name: str) -> None:
    request = message_factory.GetMessageClass(METHODS[name].input_type)()
    assert isinstance(target_of(AUDITED[name], request), str)


def test_a_target_is_bounded_and_printable() -> None:
    request = admin_pb2.RevokeApiKeyRequest(prefix="a\0b\n" + "x" * 5_000)
    shown = target_of(Row(Kind.CHANGE, "prefix"), request)
    assert (shown[:5], len(shown)) == ("a?b?x", MAX_TARGET)
    jobs = jobs_pb2.CancelJobsRequest(job_ids=["j1", "j2", "j3", "j4"])
    assert target_of(AUDITED["suanli.v1.JobService/CancelJobs"], jobs) == "j1,j2,j3"


# --- changes ----------------------------------------------------------------------------------------------------------

Call = Callable[[Api, Client], Awaitable[Any]]


async def _revoke(api: Api, op: Client) -> Any:
    _, key = await api.control_plane.create_api_key("ada", "", 0, "test")
    return await op.admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(prefix=key.split("_")[1]))


async def _correct(api: Api, op: Client) -> Any:
    record = await a_record(api)
    return await op.usage.CorrectLedger(usage_pb2.CorrectLedgerRequest(sequence=record.sequence, reason="twice"))


async def _drain(api: Api, op: Client) -> Any:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    return await op.admin.DrainNode(admin_pb2.DrainNodeRequest(region="east", node="n1", draining=True, evict=True))


async def _enrol(api: Api, op: Client) -> Any:
    token, _ = await api.control_plane.create_enrolment_token("west", 60_000, "test")
    request = regions_pb2.EnrolAgentRequest(token=token, region="west", agent_name="a")
    return await api["anonymous"].regions.EnrolAgent(request)


async def _put_data(api: Api, op: Client) -> Any:
    one = data_pb2.DataSet(name="census", version="1", institution="uni-a", classification=2, home_region="east")
    return await op.data.PutDataSet(data_pb2.PutDataSetRequest(data_set=one))


async def _request_grant(api: Api, op: Client) -> Any:
    await _put_data(api, op)
    asked = data_pb2.Grant(data_set="census", institution="uni-b", purpose="p")
    return await op.data.RequestGrant(data_pb2.RequestGrantRequest(grant=asked, reason="why"))


async def _decide_grant(api: Api, op: Client) -> Any:
    await _put_data(api, op)
    asked = data_pb2.RequestGrantRequest(grant=data_pb2.Grant(data_set="census", purpose="p"), reason="why")
    made = await api["ada"].data.RequestGrant(asked)
    return await op.data.DecideGrant(data_pb2.DecideGrantRequest(id=made.grant.id, approve=True))


async def _revoke_grant(api: Api, op: Client) -> Any:
    made = await _decide_grant(api, op)
    return await op.data.RevokeGrant(data_pb2.RevokeGrantRequest(id=made.grant.id, reason="over"))


async def _withdraw(api: Api, op: Client) -> Any:
    await _put_data(api, op)
    return await op.data.WithdrawDataSet(data_pb2.WithdrawDataSetRequest(name="census", version="1", reason="over"))


async def _delete_artifacts(api: Api, op: Client) -> Any:
    digest = await api["ada"].upload(b"abc")
    chosen = artifacts_pb2.ArtifactFilter(institution="uni-a", digests=[digest])
    return await op.artifacts.DeleteArtifacts(artifacts_pb2.DeleteArtifactsRequest(filter=chosen, reason="r"))


CHANGES: dict[str, tuple[Call, str, str]] = {
    "PutInstitution": (
        lambda api, op: op.admin.PutInstitution(
            admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="uni-c", title="C"))
        ),
        "uni-c",
        "uni-c",
    ),
    "PutProject": (
        lambda api, op: op.admin.PutProject(
            admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution="uni-a", id="nlp"))
        ),
        "uni-a/nlp",
        "uni-a",
    ),
    "PutUser": (
        lambda api, op: op.admin.PutUser(
            admin_pb2.PutUserRequest(user=admin_pb2.User(id="new", institution="uni-a", role=int(Role.RESEARCHER)))
        ),
        "new",
        "uni-a",
    ),
    "CreateApiKey": (
        lambda api, op: op.admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(user="ada", title="t")),
        "",
        "uni-a",
    ),
    "RevokeApiKey": (_revoke, "", "uni-a"),
    "SetQuota": (
        lambda api, op: op.admin.SetQuota(
            admin_pb2.SetQuotaRequest(quota=admin_pb2.Quota(institution="uni-a", project="default", cpu_milli=5))
        ),
        "uni-a/default",
        "uni-a",
    ),
    "PutPolicy": (
        lambda api, op: op.admin.PutPolicy(admin_pb2.PutPolicyRequest(document_yaml="preset: fair\n", comment="why")),
        "1",
        "",
    ),
    "CreateEnrolmentToken": (
        lambda api, op: op.admin.CreateEnrolmentToken(admin_pb2.CreateEnrolmentTokenRequest(region="east")),
        "east",
        "",
    ),
    "EnrolAgent": (_enrol, "west", ""),
    "DrainNode": (_drain, "east/node-one", ""),
    "PutPriceList": (
        lambda api, op: op.usage.PutPriceList(prices_pb2.PutPriceListRequest(document=PRICES, comment="why")),
        "1",
        "",
    ),
    "PutBudget": (
        lambda api, op: op.usage.PutBudget(
            budgets_pb2.PutBudgetRequest(
                budget=budgets_pb2.Budget(id="term", institution="uni-a", unit=HOURS, amount=5, to_ms=FAR_MS)
            )
        ),
        "term",
        "uni-a",
    ),
    "PutDataSet": (_put_data, "census@1", "uni-a"),
    "WithdrawDataSet": (_withdraw, "census@1", "uni-a"),
    # On behalf of whose data it is.
    "RequestGrant": (_request_grant, "", "uni-a"),
    "DecideGrant": (_decide_grant, "", "uni-a"),
    "RevokeGrant": (_revoke_grant, "", "uni-a"),
    "DeleteArtifacts": (_delete_artifacts, "uni-a", "uni-a"),
    "CorrectLedger": (_correct, "1", "uni-a"),
    "CloseMonth": (lambda api, op: op.usage.CloseMonth(usage_pb2.CloseMonthRequest(month="2020-01")), "2020-01", ""),
}


def test_every_change_is_tried() -> None:
    assert set(CHANGES) == {name.rpartition("/")[2] for name, row in AUDITED.items() if row.kind is Kind.CHANGE}


@pytest.mark.parametrize("action", CHANGES)
async def test_a_change_leaves_exactly_its_record_without_secrets(api: Api, action: str) -> None:
    call, target, on_behalf_of = CHANGES[action]
    answer = await call(api, api["op"])
    found = await audit(api, action=action)
    record = found[-1]
    assert len([each for each in found if each.actor == record.actor]) == 1
    actor, prefix = ("op", api["op"].key.split("_")[1]) if action != "EnrolAgent" else ("", "")
    assert (record.actor, record.key_prefix, record.peer) == (actor, prefix, "127.0.0.1")
    assert (record.outcome, record.calls, record.on_behalf_of) == (ALLOWED, 1, on_behalf_of)
    assert record.target == target or (not target and record.target)
    assert json.loads(record.after_json)
    await no_secret(api, str(answer))


async def no_secret(api: Api, *answers: str) -> None:
    """Neither the keys of the people, nor what was answered, nor any hash of theirs is in the log."""
    state = api.control_plane.engine.state
    secrets = [client.key.split("_")[2] for client in api.clients.values() if client.key]
    secrets += [each.secret_hash.hex() for each in state.api_keys.values()]
    secrets += [each.hex() for each in state.enrolments]
    for answer in answers:
        secrets += [
            word for word in answer.replace('"', " ").replace("_", " ").replace("-", " ").split() if len(word) == 52
        ]
    text = str(await api.control_plane.list_audit(AuditQuery()))
    assert not [secret for secret in secrets if secret in text]


async def test_before_and_after_are_told(api: Api) -> None:
    for cpu in (5, 7):
        quota = admin_pb2.Quota(institution="uni-a", project="default", cpu_milli=cpu)
        await api["ann"].admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))
    first, second = await audit(api, actor="ann")
    assert (first.before_json, json.loads(first.after_json)["cpu_milli"]) == ("", 5)
    assert [json.loads(each)["cpu_milli"] for each in (second.before_json, second.after_json)] == [5, 7]
    assert (second.role, second.institution) == (Role.INSTITUTION_ADMIN, "uni-a")


async def test_what_is_only_checked_or_changes_nothing_leaves_none(api: Api) -> None:
    checked = admin_pb2.PutPolicyRequest(document_yaml="preset: fair\n", validate_only=True)
    await api["op"].admin.PutPolicy(checked)
    for _ in range(2):
        await api["op"].usage.CloseMonth(usage_pb2.CloseMonthRequest(month="2020-01"))
    assert [each.action for each in await audit(api)] == ["CloseMonth"]


async def test_a_change_that_fails_is_told(api: Api) -> None:
    user = admin_pb2.User(id="x", institution="nowhere", role=int(Role.RESEARCHER))
    assert (await failure(api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user)))).code().name == "NOT_FOUND"
    (record,) = await audit(api)
    assert (record.action, record.target, record.outcome) == ("PutUser", "x", FAILED)
    assert (record.reason, record.before_json, record.after_json) == ("INSTITUTION_NOT_FOUND", "", "")


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_refusals_by_role_scope_and_tenancy_are_told(api: Api) -> None:
    job_id = await api["ada"].submit()
    await failure(api["ada"].usage.CloseMonth(usage_pb2.CloseMonthRequest(month="2020-01")))
    await failure(api["ben"].admin.ListUsers(admin_pb2.ListUsersRequest(institution="uni-a")))
    await failure(api["bob"].jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id)))
    await failure(api["abe"].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[job_id])))
    stream = api["abe"].jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=job_id))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    # Nothing is there, so nothing is hidden.
    await failure(api["bob"].jobs.GetJob(jobs_pb2.GetJobRequest(job_id="junknown")))
    found = [(each.actor, each.action, each.target, each.reason) for each in await audit(api, outcome=REFUSED)]
    assert found == [
        ("ada", "CloseMonth", "", "ROLE_NOT_ALLOWED"),
        ("ben", "ListUsers", "uni-a", "OTHER_INSTITUTION"),
        ("bob", "GetJob", job_id, "JOB_NOT_FOUND"),
        ("abe", "CancelJobs", job_id, "NOT_YOUR_JOB"),
        ("abe", "TailLogs", job_id, "NOT_YOUR_JOB"),
    ]


async def test_a_flood_of_refusals_is_few_records(api: Api) -> None:
    for _ in range(30):
        await failure(api["ada"].admin.PutInstitution(admin_pb2.PutInstitutionRequest()))
        await failure(api["anonymous"].admin.WhoAmI(admin_pb2.WhoAmIRequest()))
    stranger = Client(api.address, "suanli_" + "a" * 13 + "_" + "b" * 52)
    await failure(stranger.jobs.GetJob(jobs_pb2.GetJobRequest(job_id="j1")))
    await stranger.channel.close()
    assert {each.actor for each in await audit(api)} == {"ada"}, "the first of a known caller is told at once"
    api.control_plane.keep_audit(at_once=True)
    found = await audit(api)
    assert {(each.actor, each.peer, each.reason) for each in found} == {
        ("", "127.0.0.1", "NO_API_KEY"),
        ("ada", "127.0.0.1", "ROLE_NOT_ALLOWED"),
    }
    assert [each.calls for each in found if not each.actor] == [31], "one for each peer and minute"
    calls = [each.calls for each in found if each.actor]
    assert (sum(calls), len(calls) <= 2) == (30, True)


# --- what is somebody else's -------------------------------------------------------------------------------------------


async def test_who_cancels_or_reads_anothers_job_is_told(api: Api, tmp_path: Path) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    done = await api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "out.txt").write_bytes(b"result")
    waiting = await api["ada"].submit(resources=common_pb2.Resources(cpu_milli=7_900))
    for user in ("ada", "ann"):
        stream = api[user].jobs.TailLogs(jobs_pb2.TailLogsRequest(job_id=done, stream=jobs_pb2.LOG_STREAM_STDOUT))
        request = (await agent.take("log_request")).log_request
        await agent.log(request, 0, b"x", end=True)
        assert (await stream.read()).data == b"x"
    await agent.finished(launch, results=api.store.put_folder(folder))
    for user in ("ada", "op"):
        asked = jobs_pb2.DownloadResultRequest(job_id=done, path="out.txt")
        assert [part.data async for part in api[user].jobs.DownloadResult(asked)] == [b"result"]
    for user in ("ann", "ada"):
        await api[user].jobs.CancelJobs(jobs_pb2.CancelJobsRequest(job_ids=[waiting], reason="too dear"))
    found = [(each.actor, each.action, each.target, each.on_behalf_of, each.reason) for each in await audit(api)]
    assert found[1:] == [
        ("ann", "TailLogs", done, "uni-a", ""),
        ("op", "DownloadResult", done, "uni-a", ""),
        ("ann", "CancelJobs", waiting, "uni-a", "too dear"),
    ]
    assert found[0][1] == "EnrolAgent"


# --- reading and checking ----------------------------------------------------------------------------------------------


async def test_an_institutions_admin_reads_what_concerns_it(api: Api) -> None:
    for institution in ("uni-a", "uni-b"):
        quota = admin_pb2.Quota(institution=institution, cpu_milli=5)
        await api["op"].admin.SetQuota(admin_pb2.SetQuotaRequest(quota=quota))
    await failure(api["bob"].usage.CloseMonth(usage_pb2.CloseMonthRequest(month="2020-01")))
    await failure(api["ada"].usage.CloseMonth(usage_pb2.CloseMonthRequest(month="2020-01")))
    for user, own in (("ann", {("op", "uni-a"), ("ada", "")}), ("ben", {("op", "uni-b"), ("bob", "")})):
        assert {(each.actor, each.on_behalf_of) for each in await audit(api, user)} == own
        streamed = [part async for part in api[user].audit.StreamAudit(audit_pb2.StreamAuditRequest())]
        records = [each for part in streamed for each in part.records if each.actor != "system"]
        assert {(each.actor, each.on_behalf_of) for each in records} == own
        assert not [head for part in streamed for head in part.heads]
    assert (await failure(audit(api, "ann", institution="uni-b"))).code().name == "PERMISSION_DENIED"
    for user in ("ada", "fay", "fin", "anonymous"):
        assert (await failure(audit(api, user))).code().name in ("PERMISSION_DENIED", "UNAUTHENTICATED")


async def test_lists_are_paged_and_filtered(api: Api) -> None:
    for number in range(5):
        await api["op"].admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(user="ada", title=str(number)))
    request = audit_pb2.ListAuditRequest(actor="op", action="CreateApiKey", page_size=2)
    seen: list[str] = []
    for _ in range(3):
        response = await api["op"].audit.ListAudit(request)
        seen += [json.loads(each.after_json)["title"] for each in response.records]
        request.page_token = response.next_page_token
    assert (seen, request.page_token) == (["4", "3", "2", "1", "0"], "")
    for wrong, field in (
        ({"outcome": 9}, "outcome"),
        ({"from_ms": 5, "to_ms": 5}, "to_ms"),
        ({"from_ms": -1}, "from_ms"),
        ({"actor": "\0"}, "actor"),
        ({"institution": "A B"}, "institution"),
        ({"page_size": 1001}, "page_size"),
    ):
        error = await failure(audit(api, **wrong))
        assert (error.code().name, field in (error.details() or "")) == ("INVALID_ARGUMENT", True)


async def verified(api: Api, **values: Any) -> audit_pb2.VerifyAuditResponse:
    parts = [part async for part in api["op"].audit.VerifyAudit(audit_pb2.VerifyAuditRequest(**values))]
    assert parts[-1].done
    return parts[-1]


async def test_the_log_is_verified_with_its_signed_heads(api: Api) -> None:
    api.control_plane.keep_audit(at_once=True)
    key = await api["op"].audit.GetAuditKey(audit_pb2.GetAuditKeyRequest())
    assert (len(key.public_key), key.newest_head.public_key) == (32, key.public_key)
    await api["op"].admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(user="ada"))
    head = key.newest_head
    whole = await verified(api, head_sequence=head.sequence, head_hash=head.hash)
    assert (list(whole.faults), whole.head_sequence, whole.heads > 0) == ([], head.sequence + 1, True)
    shown = {
        family.name: family.samples[0].value for family in gauge_families(api.control_plane.gauges()) if family.samples
    }
    assert (shown["suanli_audit_last_sequence"], shown["suanli_audit_chain_ok"]) == (whole.head_sequence, 1)
    assert list((await verified(api, from_sequence=3)).faults) == []
    wrong = await verified(api, head_sequence=head.sequence, head_hash=bytes(32))
    assert [(each.sequence, each.code) for each in wrong.faults] == [(head.sequence, "HEAD_DIFFERS")]
    for values in ({"head_sequence": 5}, {"head_hash": b"x"}, {"from_sequence": -1}):
        assert (await failure(verified(api, **values))).code().name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("how", "first", "code"),
    [
        ("change", 3, "CHAIN_BROKEN"),
        ("delete", 3, "RECORD_MISSING"),
        ("swap", 3, "CHAIN_BROKEN"),
        ("cut", 3, "RECORD_MISSING"),
    ],
)
async def test_whatever_is_done_to_the_log_is_named(api: Api, how: str, first: int, code: str) -> None:
    api.control_plane.keep_audit(at_once=True)
    await audit(api)
    store: Any = api.control_plane._store
    table = store._tables["audit"]
    if how == "change":
        table[3,] = table[3,]._replace(actor="nobody")
    elif how == "delete":
        del table[3,]
    elif how == "swap":
        table[3,], table[4,] = table[4,]._replace(sequence=3), table[3,]._replace(sequence=4)
    else:
        for number in [key for key in table if key[0] >= first]:
            del table[number]
    found = await verified(api)
    assert (found.faults[0].sequence, found.faults[0].code) == (first, code)
    shown = {
        family.name: family.samples[0].value for family in gauge_families(api.control_plane.gauges()) if family.samples
    }
    assert shown["suanli_audit_chain_ok"] == 0
    parts = [part async for part in api["op"].audit.StreamAudit(audit_pb2.StreamAuditRequest())]
    assert sum(len(part.heads) for part in parts) == len(store._tables["audit_heads"])


async def test_a_record_that_no_head_covers_yet_is_compared_with_the_leaders_memory(api: Api) -> None:
    api.control_plane.keep_audit(at_once=True)
    await api["op"].admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(user="ada"))
    store: Any = api.control_plane._store
    table = store._tables["audit"]
    last = max(table)
    before = table[last[0] - 1,]
    table[last] = chained(before.hash, table[last]._replace(actor="nobody"))
    found = await verified(api)
    assert [(each.sequence, each.code) for each in found.faults] == [(last[0], "HEAD_DIFFERS")]
