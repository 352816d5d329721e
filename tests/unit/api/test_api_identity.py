"""Tokens beside keys: whose they are, what they may, and when they end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2
from scheduler.identity.issuers import Claims, Issuer, Oidc
from tests.support.api import Api, Client, info_of, running_api
from tests.support.oidc import AUDIENCE, issuing, jwk, token

Code = grpc.StatusCode
NOW = int(time.time())


class World:
    """An API that trusts three issuers: of uni-a, of uni-b with new users and roles, and of the platform."""

    def __init__(self, api: Api, a: str, b: str, p: str) -> None:
        self.api, self.a, self.b, self.p = api, a, b, p

    def client(self, text: str) -> Client:
        return self.api.clients.setdefault(text, Client(self.api.address, text))


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str, str]]:
    with ExitStack() as stack:
        a, b, p = (stack.enter_context(issuing([jwk(name)])) for name in ("k1", "k2", "k3"))
        yield a, b, p


@pytest.fixture
async def world(tmp_path: Path, urls: tuple[str, str, str]) -> AsyncIterator[World]:
    a, b, p = urls
    oidc = Oidc(
        (
            Issuer(a, AUDIENCE, "suanli-cli", "Uni A", institutions=("uni-a",), clock_skew_s=0),
            Issuer(
                b, AUDIENCE, institutions=("uni-b",), provision=True, claims=Claims(roles="roles", project="project")
            ),
            Issuer(p, AUDIENCE, platform_users=True, claims=Claims(roles="roles")),
        )
    )
    async with running_api(tmp_path, oidc=oidc) as api:
        yield World(api, a, b, p)


async def who(client: Client) -> admin_pb2.WhoAmIResponse:
    return await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def reason(call: Any) -> str:
    return str(info_of(await refusal(call)).reason)


def b_token(
    world: World, user: str = "bob", roles: Any = ("researcher",), project: str = "default", **claims: Any
) -> str:
    return token(world.b, key="k2", sub=user, roles=list(roles), project=project, **claims)


async def test_a_token_is_taken_and_said_for_what_it_is(world: World) -> None:
    client = world.client(token(world.a))
    said = await who(client)
    assert (said.user, said.institution, said.role) == ("ada", "uni-a", common_pb2.ROLE_RESEARCHER)
    assert (said.credential, said.credential_name) == (admin_pb2.CREDENTIAL_KIND_TOKEN, world.a)
    assert NOW * 1000 < said.expire_time_ms <= (int(time.time()) + 600) * 1000
    assert await client.submit()
    keyed = await who(world.api["ada"])
    assert (keyed.credential, keyed.expire_time_ms) == (admin_pb2.CREDENTIAL_KIND_API_KEY, 0)


async def test_anybody_is_told_where_to_log_in(world: World) -> None:
    response = await world.api["anonymous"].admin.GetLoginMethods(admin_pb2.GetLoginMethodsRequest())
    assert [(one.issuer, one.client_id, one.title) for one in response.oidc] == [(world.a, "suanli-cli", "Uni A")]


async def test_without_issuers_a_token_is_no_key(api: Api) -> None:
    client = Client(api.address, token("https://a.example"))
    assert await reason(who(client)) == "KEY_UNKNOWN"
    await client.channel.close()


@pytest.mark.parametrize("user", ["bob", "op", "fin", "nobody"])
async def test_an_issuer_cannot_be_a_user_it_does_not_speak_for(world: World, user: str) -> None:
    error = await refusal(who(world.client(token(world.a, sub=user))))
    assert (error.code(), info_of(error).reason) == (Code.UNAUTHENTICATED, "USER_UNKNOWN")


async def test_an_issuer_of_the_platform_speaks_for_its_users_only(world: World) -> None:
    said = await who(world.client(token(world.p, key="k3", sub="op", roles=["operator"])))
    assert (said.user, said.institution, said.role) == ("op", "", common_pb2.ROLE_OPERATOR)
    assert await reason(who(world.client(token(world.p, key="k3", sub="ada", roles=["operator"])))) == "USER_UNKNOWN"


async def test_a_new_user_is_a_researcher_whatever_the_token_says(world: World) -> None:
    client = world.client(b_token(world, "new", ["operator", "institution-admin", "researcher"], name="New One"))
    said = await who(client)
    assert (said.user, said.institution, said.role) == ("new", "uni-b", common_pb2.ROLE_RESEARCHER)
    assert await client.submit()
    assert await reason(client.admin.PutInstitution(admin_pb2.PutInstitutionRequest())) == "ROLE_NOT_ALLOWED"
    users = (await world.api["op"].admin.ListUsers(admin_pb2.ListUsersRequest(institution="uni-b"))).users
    assert [(u.title, u.role) for u in users if u.id == "new"] == [("New One", common_pb2.ROLE_RESEARCHER)]


async def test_where_users_are_not_made_a_stranger_stays_one(world: World) -> None:
    assert await reason(who(world.client(token(world.a, sub="new")))) == "USER_UNKNOWN"
    users = (await world.api["op"].admin.ListUsers(admin_pb2.ListUsersRequest())).users
    assert "new" not in {user.id for user in users}


async def test_an_issuer_that_makes_users_takes_none_of_another(world: World) -> None:
    assert await reason(who(world.client(b_token(world, "ada")))) == "USER_UNKNOWN"
    assert (await who(world.api["ada"])).institution == "uni-a"


async def test_a_token_grants_the_lower_of_its_roles_and_the_users(world: World) -> None:
    put = admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution="uni-b", id="lab"))
    for user, roles in (("ben", ["researcher"]), ("ben", []), ("bob", ["institution-admin"]), ("bob", ["operator"])):
        client = world.client(token(world.p, key="k3", sub=user, roles=roles))
        assert await reason(client.admin.PutProject(put)) == "USER_UNKNOWN"
    operator = world.client(token(world.p, key="k3", sub="op", roles=["finance", "operator"]))
    assert (await operator.admin.PutProject(put)).project.id == "lab"
    for roles in (["researcher"], ["finance"], [], ["unheard-of"]):
        limited = world.client(token(world.p, key="k3", sub="op", roles=roles, jti=str(roles)))
        assert await reason(limited.admin.PutProject(put)) == "CREDENTIAL_ROLE_LIMIT"


async def test_a_token_of_a_project_keeps_to_it(world: World) -> None:
    client = world.client(b_token(world))
    mine = await client.submit()
    assert (await client.job(mine)).spec.project == "default"
    await world.api["op"].admin.PutProject(
        admin_pb2.PutProjectRequest(project=admin_pb2.Project(institution="uni-b", id="lab"))
    )
    other = await world.api["bob"].submit(project="lab")
    assert await reason(client.job(other)) == "JOB_NOT_FOUND"


async def test_a_disabled_user_is_out_at_once_with_a_token_that_is_known(world: World) -> None:
    client = world.client(token(world.a))
    assert await who(client)
    user = admin_pb2.User(id="ada", institution="uni-a", role=common_pb2.ROLE_RESEARCHER, disabled=True)
    await world.api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user))
    assert await reason(who(client)) == "USER_DISABLED"
    user.disabled = False
    await world.api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user))
    assert (await who(client)).user == "ada"


async def rest_of(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def end_of(stream: Any) -> grpc.aio.AioRpcError:
    return await refusal(rest_of(stream))


def watching(client: Client) -> Any:
    return client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))


async def test_an_open_stream_ends_with_its_token(world: World) -> None:
    stream = watching(world.client(token(world.a, exp=int(time.time()) + 2)))
    await stream.read()
    error = await end_of(stream)
    assert (error.code(), info_of(error).reason) == (Code.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_an_open_stream_ends_with_its_user(world: World) -> None:
    streams = [watching(world.client(token(world.a))), watching(world.api["ada"])]
    other = watching(world.api["abe"])
    for stream in (*streams, other):
        await stream.read()
    user = admin_pb2.User(id="ada", institution="uni-a", role=common_pb2.ROLE_RESEARCHER, disabled=True)
    await world.api["op"].admin.PutUser(admin_pb2.PutUserRequest(user=user))
    for stream in streams:
        error = await end_of(stream)
        assert (error.code(), info_of(error).reason) == (Code.UNAUTHENTICATED, "USER_DISABLED")
    job_id = await world.api["abe"].submit()
    assert (await other.read()).events[0].job_id == job_id
    other.cancel()
