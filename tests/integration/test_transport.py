"""TLS as clients and agents meet it: who is refused, and that certificates change while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.suanli.v1 import admin_pb2, regions_pb2
from scheduler.api.permissions import Role
from scheduler.domain.records import UserRecord
from tests.support.api import Api, Client, running_api
from tests.support.certificates import certificates, issued, loaded, request, showing, tls_of, trusting, uris

Code = grpc.StatusCode
WHO = admin_pb2.WhoAmIRequest()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    tls = tls_of(certificates(tmp_path / "tls", "east", "west"))
    async with running_api(tmp_path / "api", tls=tls) as api:
        yield api


async def operator(api: Api) -> str:
    """A key of an operator."""
    await api.control_plane.put_user(UserRecord("op", "", "", int(Role.OPERATOR), 0, 0), "test")
    return (await api.control_plane.create_api_key("op", "", 0, "test"))[1]


async def agent_key(api: Api, region: str = "east") -> str:
    """A key of a region's agent."""
    token, _ = await api.control_plane.create_enrolment_token(region, 60_000, "test")
    return await api.control_plane.enrol_agent(token, region, "test")


async def failure(address: str, key: str, credentials: grpc.ChannelCredentials | None) -> tuple[Code, str]:
    """How a call fails; OK when it does not."""
    client = Client(address, key, credentials)
    try:
        await client.admin.WhoAmI(WHO, timeout=30)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    finally:
        await client.channel.close()
    return Code.OK, ""


async def test_plaintext_and_who_trusts_another_authority_get_nowhere(api: Api, tmp_path: Path) -> None:
    key = await operator(api)
    stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
    assert (await failure(api.address, key, trusting(certificates(tmp_path / "tls"))))[0] is Code.OK
    assert (await failure(api.address, key, None))[0] is Code.UNAVAILABLE
    code, details = await failure(api.address, key, stranger)
    assert (code, "CERTIFICATE_VERIFY_FAILED" in details) == (Code.UNAVAILABLE, True)


async def test_agents_are_let_in_with_the_certificate_of_their_region_only(api: Api, tmp_path: Path) -> None:
    files, key = certificates(tmp_path / "tls"), await agent_key(api)
    assert (await failure(api.agents_address, key, trusting(files, "east")))[0] is Code.OK
    code, details = await failure(api.agents_address, key, trusting(files, "west"))
    assert (code, "for region 'west'" in details) == (Code.UNAUTHENTICATED, True)
    for names in ([x509.DNSName("suanli://region/east")], [x509.UniformResourceIdentifier("spiffe://region/east")]):
        code, details = await failure(api.agents_address, key, issued(files, *names))
        assert (code, "must show a certificate" in details) == (Code.UNAUTHENTICATED, True)
    both = [x509.UniformResourceIdentifier(f"suanli://region/{region}") for region in ("east", "west")]
    assert (await failure(api.agents_address, key, issued(files, *both)))[0] is Code.UNAUTHENTICATED
    code, details = await failure(api.address, key, trusting(files, "east"))
    assert (code, "agents_listen" in details) == (Code.UNAUTHENTICATED, True)


async def test_an_agent_opens_its_stream_with_the_certificate_of_its_region_only(api: Api, tmp_path: Path) -> None:
    files, key = certificates(tmp_path / "tls"), await agent_key(api)
    answers: list[object] = []
    for region in ("east", "west"):
        client = Client(api.agents_address, key, trusting(files, region))
        hello = regions_pb2.Hello(region="east", boot_id="b", spool_id="s", protocol_version=1)
        call = client.regions.Connect(timeout=30)
        await call.write(regions_pb2.ConnectRequest(sent_at_ms=1, hello=hello))
        try:
            answers.append((await call.read()).WhichOneof("message"))
        except grpc.aio.AioRpcError as error:
            answers.append(error.code())
        await client.channel.close()
    assert answers == ["welcome", Code.UNAUTHENTICATED]


async def test_no_expired_and_foreign_certificates_are_refused_in_the_handshake(api: Api, tmp_path: Path) -> None:
    files, key = certificates(tmp_path / "tls"), await agent_key(api)
    foreign = certificates(tmp_path / "foreign", "east")
    cert, private = foreign.agent("east")
    assert (await failure(api.agents_address, key, trusting(files)))[0] is Code.UNAVAILABLE
    unknown = showing(files, private.read_bytes(), cert.read_text())
    assert (await failure(api.agents_address, key, unknown))[0] is Code.UNAVAILABLE
    certificates(tmp_path / "tls", "old", days_ago=89)
    assert (await failure(api.agents_address, await agent_key(api, "old"), trusting(files, "old")))[0] is Code.OK
    certificates(tmp_path / "tls", "older", days_ago=91)
    expired = await failure(api.agents_address, await agent_key(api, "older"), trusting(files, "older"))
    assert expired[0] is Code.UNAVAILABLE


async def test_where_certificates_are_not_needed_a_wrong_one_is_refused_all_the_same(tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls", "east", "west")
    async with running_api(tmp_path / "api", tls=tls_of(files, need=False)) as api:
        key = await agent_key(api)
        assert (await failure(api.address, key, trusting(files)))[0] is Code.OK
        assert (await failure(api.agents_address, key, trusting(files, "east")))[0] is Code.OK
        assert (await failure(api.agents_address, key, trusting(files, "west")))[0] is Code.UNAUTHENTICATED


async def test_certificates_are_read_again_while_a_stream_is_open(tmp_path: Path) -> None:
    """As Kubernetes changes a Secret: by a link to another folder."""
    first, second = certificates(tmp_path / "one", "east"), certificates(tmp_path / "two", "east")
    (tmp_path / "tls").symlink_to("one")
    async with running_api(tmp_path / "api", tls=tls_of(certificates(tmp_path / "tls"))) as api:
        key, agent = await operator(api), await agent_key(api)
        client = Client(api.address, key, trusting(first))
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(tmp_path / "tls")

        assert (await failure(api.address, key, trusting(second)))[0] is Code.OK
        assert (await failure(api.address, key, trusting(first)))[0] is Code.UNAVAILABLE
        # The authorities of agents too.
        assert (await failure(api.agents_address, agent, trusting(second, "east")))[0] is Code.OK
        old = showing(second, first.agent("east")[1].read_bytes(), first.agent("east")[0].read_text())
        assert (await failure(api.agents_address, agent, old))[0] is Code.UNAVAILABLE
        await api.server.serving(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await client.channel.close()


async def test_a_broken_file_changes_nothing_but_the_log(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, other = certificates(tmp_path / "tls"), certificates(tmp_path / "other")
    key = await operator(api)
    expiry = loaded(files.server).not_valid_after_utc.timestamp()
    good = files.server.read_bytes()
    for content in (b"", b"no certificate", other.server.read_bytes()):
        caplog.clear()
        files.server.write_bytes(content)
        for _ in range(2):
            assert (await failure(api.address, key, trusting(files)))[0] is Code.OK
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "those before stay in force" in errors[0].getMessage()
        assert await shown_expiry(api, "server") == expiry
    files.server.unlink()
    assert (await failure(api.address, key, trusting(files)))[0] is Code.OK
    files.server.write_bytes(good)
    # The two files of a renewal, one after the other.
    certificates(tmp_path / "tls").server.unlink()
    certificates(tmp_path / "tls")
    assert (await failure(api.address, key, trusting(files)))[0] is Code.OK
    assert await shown_expiry(api, "server") == loaded(files.server).not_valid_after_utc.timestamp()
    assert await shown_expiry(api, "agent_ca") == loaded(files.ca).not_valid_after_utc.timestamp()


async def shown_expiry(api: Api, certificate: str) -> float:
    """What the metric says."""
    name = f'suanli_tls_certificate_expiry_timestamp_seconds{{certificate="{certificate}"}} '
    lines = (await api.metrics.page(api.control_plane)).decode().splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def test_an_agent_enrols_with_a_request_and_renews_with_its_certificate(api: Api, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls")
    token, _ = await api.control_plane.create_enrolment_token("east", 60_000, "test")
    nobody = Client(api.address, "", trusting(files))
    # What else is asked for counts for nothing.
    private, wish = request(uri="suanli://region/west")
    answer = await nobody.regions.EnrolAgent(
        regions_pb2.EnrolAgentRequest(token=token, region="east", agent_name="a", certificate_request=wish)
    )
    assert uris(loaded(answer.certificate)) == ["suanli://region/east"]
    assert (await failure(api.agents_address, answer.api_key, showing(files, private, answer.certificate)))[
        0
    ] is Code.OK

    agent = Client(api.agents_address, answer.api_key, showing(files, private, answer.certificate))
    next_private, next_wish = request()
    renewed = await agent.regions.RenewCertificate(regions_pb2.RenewCertificateRequest(certificate_request=next_wish))
    later = showing(files, next_private, renewed.certificate)
    assert loaded(renewed.certificate).serial_number != loaded(answer.certificate).serial_number
    assert (await failure(api.agents_address, answer.api_key, later))[0] is Code.OK
    # The key alone gets no certificate.
    bare = Client(api.address, answer.api_key, trusting(files))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare.regions.RenewCertificate(regions_pb2.RenewCertificateRequest(certificate_request=next_wish))
    assert caught.value.code() is Code.UNAUTHENTICATED
    for client in (nobody, agent, bare):
        await client.channel.close()


@pytest.mark.parametrize(("sign", "wish"), [(True, "no request"), (True, "x" * 16_385), (False, "")])
async def test_a_request_that_cannot_be_granted_does_not_cost_the_token(tmp_path: Path, sign: bool, wish: str) -> None:
    files = certificates(tmp_path / "tls")
    async with running_api(tmp_path / "api", tls=tls_of(files, sign=sign)) as api:
        token, _ = await api.control_plane.create_enrolment_token("east", 60_000, "test")
        client = Client(api.address, "", trusting(files))
        enrolment = regions_pb2.EnrolAgentRequest(token=token, region="east", certificate_request=wish or request()[1])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.regions.EnrolAgent(enrolment)
        assert caught.value.code() is (Code.INVALID_ARGUMENT if sign else Code.FAILED_PRECONDITION)
        enrolment.certificate_request = ""
        assert (await client.regions.EnrolAgent(enrolment)).api_key
        await client.channel.close()


async def test_of_many_agents_with_one_token_one_enrols(api: Api, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls")
    token, _ = await api.control_plane.create_enrolment_token("east", 60_000, "test")
    clients = [Client(api.address, "", trusting(files)) for _ in range(8)]
    answers = await asyncio.gather(
        *(
            client.regions.EnrolAgent(
                regions_pb2.EnrolAgentRequest(token=token, region="east", certificate_request=request()[1])
            )
            for client in clients
        ),
        return_exceptions=True,
    )
    enrolled = [one for one in answers if isinstance(one, regions_pb2.EnrolAgentResponse)]
    refused = [one.code() for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert (len(enrolled), refused) == (1, [Code.UNAUTHENTICATED] * 7)
    for client in clients:
        await client.channel.close()
