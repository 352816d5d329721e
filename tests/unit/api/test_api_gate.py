"""The gate: keys, roles, messages, failures."""

import logging
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.suanli.v1 import admin_pb2, jobs_pb2
from scheduler.api import permissions
from scheduler.api.errors import CODES, code_of
from scheduler.api.permissions import PERMISSIONS, PLATFORM_AUDIT, PLATFORM_FINANCE, PUBLIC, Role, Scope, scope_of
from scheduler.api.serving import SERVICES, require_loopback
from scheduler.api.tls import ConfigurationError
from scheduler.domain import errors
from tests.support.api import Api, Client, info_of, running_api

METHODS = [(service.full_name, method) for service in SERVICES for method in service.methods]
USER_OF = {
    Role.RESEARCHER: "ada",
    Role.PROJECT_LEAD: "lea",
    Role.INSTITUTION_ADMIN: "ann",
    Role.FINANCE: "fay",
    Role.OPERATOR: "op",
    Role.AUDITOR: "aud",
    Role.STEWARD: "sam",
}
Code = grpc.StatusCode


def raw(client: Client, service: str, method: str, streams_in: bool, streams_out: bool):
    kind = {
        (False, False): client.channel.unary_unary,
        (False, True): client.channel.unary_stream,
        (True, False): client.channel.stream_unary,
        (True, True): client.channel.stream_stream,
    }[streams_in, streams_out]
    return kind(f"/{service}/{method}")


async def status(client: Client, service: str, method, body: bytes = b"") -> grpc.aio.AioRpcError | None:
    """Call with these bytes; how it failed, or None."""
    call = raw(client, service, method.name, method.client_streaming, method.server_streaming)
    try:
        if method.client_streaming:
            running = call(iter([body]), metadata=client.metadata, timeout=2)
        else:
            running = call(body, metadata=client.metadata, timeout=2)
        if method.server_streaming:
            async for _ in running:
                return None
        else:
            await running
    except grpc.aio.AioRpcError as error:
        return error
    return None


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    served = {f"{service}/{method.name}" for service, method in METHODS}
    assert served == set(PERMISSIONS) | PUBLIC
    assert set(PERMISSIONS) & PUBLIC == set()
    assert set(PERMISSIONS) >= PLATFORM_FINANCE | PLATFORM_AUDIT


def test_an_auditor_is_given_nothing_that_changes_anything() -> None:
    reads = (
        "Get",
        "List",
        "Watch",
        "Explain",
        "Tail",
        "Download",
        "Stream",
        "Export",
        "Estimate",
        "Verify",
        "Check",
        "WhoAmI",
    )
    for method, row in PERMISSIONS.items():
        if Role.AUDITOR in row or method in PLATFORM_AUDIT:
            assert method.rpartition("/")[2].startswith(reads), method


def test_the_services_are_all_those_of_the_contract() -> None:
    root = Path(permissions.__file__).parents[2] / "protos" / "suanli" / "v1"
    named = {
        line.split()[1]
        for path in root.glob("*.proto")
        for line in path.read_text().splitlines()
        if line[:8] == "service "
    }
    assert {service.name for service in SERVICES} == named


def test_one_of_no_institution_reads_all_only_where_it_is_said() -> None:
    for method in PERMISSIONS:
        expected = Scope.ANY if method in PLATFORM_FINANCE else PERMISSIONS[method].get(Role.FINANCE)
        assert scope_of(method, Role.FINANCE, "") == expected
        for role in (Role.RESEARCHER, Role.PROJECT_LEAD, Role.INSTITUTION_ADMIN):
            assert scope_of(method, role, "") not in (Scope.PROJECT, Scope.INSTITUTION)
        audited = PERMISSIONS[method].get(Role.AUDITOR)
        of_all = audited is Scope.INSTITUTION or method in PLATFORM_AUDIT
        assert scope_of(method, Role.AUDITOR, "") == (Scope.ANY if of_all else audited)
    assert scope_of("suanli.v1.JobService/Unheard", Role.OPERATOR, "") is None
    assert scope_of("suanli.v1.JobService/GetJob", 99, "uni-a") is None


async def test_each_role_gets_through_where_the_table_says_and_nowhere_else(api: Api) -> None:
    for service, method in METHODS:
        name = f"{service}/{method.name}"
        if name in PUBLIC:
            continue
        for role, user in USER_OF.items():
            error = await status(api[user], service, method)
            refused = error is not None and error.code() is Code.PERMISSION_DENIED
            assert refused == (role not in PERMISSIONS[name]), (name, role, error)
            if refused:
                assert info_of(error).reason == "ROLE_NOT_ALLOWED"


async def test_without_a_key_only_the_public_methods_answer(api: Api) -> None:
    for service, method in METHODS:
        error = await status(api["anonymous"], service, method)
        reason = info_of(error).reason if error is not None else ""
        assert (reason == "NO_API_KEY") == (f"{service}/{method.name}" not in PUBLIC), (method.name, reason)


@pytest.mark.parametrize(
    "header", ["", "Basic abc", "Bearer", "Bearer suanli_x", "Bearer suanli_aaaaaaaaaaaaa_" + "a" * 52, "Bearer ~~~"]
)
async def test_a_wrong_key_is_no_key(api: Api, header: str) -> None:
    call = api["anonymous"].channel.unary_unary("/suanli.v1.AdminService/WhoAmI")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=(("authorization", header),), timeout=10)
    assert caught.value.code() is Code.UNAUTHENTICATED


async def test_a_revoked_key_ends(api: Api) -> None:
    key = await api["ada"].admin.CreateApiKey(admin_pb2.CreateApiKeyRequest())
    second = Client(api.address, key.secret)
    assert (await second.admin.WhoAmI(admin_pb2.WhoAmIRequest())).user == "ada"
    await api["ada"].admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(prefix=key.key.prefix))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.admin.WhoAmI(admin_pb2.WhoAmIRequest())
    assert caught.value.code() is Code.UNAUTHENTICATED
    await second.channel.close()


@pytest.mark.parametrize(("body", "words"), [(b"\n\x02\xff\xfe", "UTF-8"), (b"\n\x7f", "damaged")])
async def test_a_message_that_is_none_is_the_callers_fault(api: Api, body: bytes, words: str) -> None:
    for service, name in (("JobService", "GetJob"), ("JobService", "TailLogs"), ("JobService", "UploadBlob")):
        method = next(m for s, m in METHODS if s.endswith(service) and m.name == name)
        error = await status(api["ada"], f"suanli.v1.{service}", method, body)
        assert error is not None
        assert error.code() is Code.INVALID_ARGUMENT, name
        assert words in error.details()
        assert info_of(error).domain == "suanli"


async def test_a_huge_message_is_refused_and_the_connection_lives(api: Api) -> None:
    call = api["ada"].channel.unary_unary("/suanli.v1.JobService/SubmitJobs")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * (17 << 20), metadata=api["ada"].metadata, timeout=20)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert "16777216" in caught.value.details()
    assert await api["ada"].submit()


async def test_a_defect_shows_a_number_and_hides_the_rest(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(api.control_plane, "explain", broken)
    job_id = await api["ada"].submit()
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
        await api["ada"].jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job_id=job_id))
    assert caught.value.code() is Code.INTERNAL
    assert "hunter2" not in caught.value.details()
    incident = info_of(caught.value).metadata["incident"]
    assert incident in caught.value.details()
    assert any(incident in r.getMessage() and "hunter2" in str(r.exc_info) for r in caplog.records)


async def test_an_error_names_its_field(api: Api) -> None:
    spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"]))
    bad = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["true"]), replicas=-1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api["ada"].jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[spec, bad]))
    assert caught.value.code() is Code.INVALID_ARGUMENT
    info = info_of(caught.value)
    assert (info.reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "jobs[1].replicas")


def test_every_error_has_a_code() -> None:
    def below(kind: type[errors.SuanliError]) -> set[type[errors.SuanliError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(errors.SuanliError) - {errors.SuanliError} == set(CODES)

    class Special(errors.NotFound):
        pass

    assert code_of(Special("x")) is Code.NOT_FOUND


async def test_health_and_reflection_need_no_key(api: Api) -> None:
    channel = api["anonymous"].channel
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", "suanli.v1.JobService"):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=10)
    async for response in stream:
        names = {service.name for service in response.list_services_response.service}
        assert {service.full_name for service in SERVICES} <= names
        break


async def test_a_standby_says_so_and_refuses(api: Api) -> None:
    await api.server.serving(False)
    check = health_pb2_grpc.HealthStub(api["ada"].channel).Check
    answer = await check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
    assert caught.value.code() is Code.UNAVAILABLE
    assert info_of(caught.value).reason == "NOT_LEADER"


async def rest_of(stream) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_open_streams_end_with_the_server_and_say_why(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        stream = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
        await stream.read()
        await api.server.stop(5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(stream)
        assert caught.value.code() is Code.UNAVAILABLE
        assert info_of(caught.value).reason == "SHUTTING_DOWN"


async def test_a_caller_that_hangs_up_leaves_nothing_behind(api: Api) -> None:
    stream = api["ada"].jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
    await stream.read()
    sample = ("suanli_rpc_open_streams", {"method": "suanli.v1.JobService/WatchJobs"})
    assert api.metrics.registry.get_sample_value(*sample) == 1
    stream.cancel()
    for _ in range(1000):
        if api.metrics.registry.get_sample_value(*sample) == 0:
            return
        await api["ada"].admin.WhoAmI(admin_pb2.WhoAmIRequest())
    raise AssertionError("the stream is still open")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_plaintext_stays_on_this_machine(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tls\.cert"):
        require_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_the_loopback_needs_no_certificate(host: str) -> None:
    require_loopback(host)
