"""The walls between people, agents and the control plane: take one away, and what it stops goes through.

Those around a job are in ``test_defences.py``; that Ray's token is one is tried in ``tests/integration/on_ray/test_ray_gateway.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, regions_pb2
from scheduler.api import gate, permissions, tls
from scheduler.api.permissions import PERMISSIONS, Role, Scope, scope_of
from scheduler.domain.records import EnrolmentRecord
from scheduler.service import tenants
from tests.support.api import PEOPLE, Api, Client, running_api
from tests.support.certificates import certificates, loaded, request, tls_of, trusting, uris
from tests.unit.api.test_permission_matrix import CALLS, INSTITUTIONS, Whose, answer, check, fill

Code = grpc.StatusCode
Patch = pytest.MonkeyPatch


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path) as running:
        yield running


# --- certificates of agents -------------------------------------------------------------------------------------------


def unmatched(patch: Patch) -> None:
    """That certificate and key are for the same region, and that there is a certificate at all."""
    patch.setattr(gate.Gate, "_check_certificate", lambda *_: None)


def unasked(patch: Patch) -> None:
    """That the handshake asks for a certificate."""

    def credentials(self: tls.ReloadingCertificates) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._fetch, False)  # type: ignore[arg-type]

    patch.setattr(tls.ReloadingCertificates, "credentials", credentials)


async def with_the_certificate(folder: Path, shown: str) -> bool:
    """Whether an agent of region east is let in with this region's certificate, or none."""
    files = certificates(folder / "tls", "east", "west")
    async with running_api(folder / "api", tls=tls_of(files)) as api:
        token, _ = await api.control_plane.create_enrolment_token("east", 60_000, "test")
        key = await api.control_plane.enrol_agent(token, "east", "test")
        client = Client(api.agents_address, key, trusting(files, shown))
        try:
            await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())
        except grpc.aio.AioRpcError as error:
            if error.code() in {Code.UNAUTHENTICATED, Code.UNAVAILABLE}:
                return False
            raise
        finally:
            await client.channel.close()
    return True


@pytest.mark.parametrize(
    ("shown", "walls"), [("west", [unmatched]), ("", [unmatched, unasked])], ids=["of another region", "none"]
)
async def test_a_copied_key_is_of_no_use_for_want_of_the_certificate(
    tmp_path: Path, shown: str, walls: list[Callable[[Patch], None]]
) -> None:
    for left in walls:
        with pytest.MonkeyPatch.context() as patch:
            for wall in walls:
                if wall is not left:
                    wall(patch)
            assert not await with_the_certificate(tmp_path / left.__name__, shown), left
    with pytest.MonkeyPatch.context() as patch:
        for wall in walls:
            wall(patch)
        assert await with_the_certificate(tmp_path / "open", shown), "something else stops it as well"


# --- enrolment tokens -------------------------------------------------------------------------------------------------

TOKENS: dict[str, Callable[[EnrolmentRecord, str], EnrolmentRecord]] = {
    "used": lambda record, _: record._replace(used_ms=0),
    "expired": lambda record, _: record._replace(expire_ms=1 << 60),
    "another region's": lambda record, region: record._replace(region=region),
}
"""What is looked at, and what makes it look right."""


def trusted(patch: Patch, looked_at: str) -> None:
    """A look at the token."""
    enrol, mend = tenants.enrol_agent, TOKENS[looked_at]

    def careless(state: Any, token: str, region: str, agent_name: str) -> str:
        for digest, record in list(state.enrolments.items()):
            state.enrolments[digest] = mend(record, region)
        return enrol(state, token, region, agent_name)

    patch.setattr(tenants, "enrol_agent", careless)


@pytest.mark.parametrize("token_is", TOKENS)
async def test_a_token_is_good_for_one_agent_of_one_region_for_a_while(tmp_path: Path, token_is: str) -> None:
    files = certificates(tmp_path / "tls")
    async with running_api(tmp_path / "api", tls=tls_of(files)) as api:
        await api.control_plane.create_enrolment_token("west", 60_000, "test")
        lifetime_ms = -1 if token_is == "expired" else 60_000
        token, _ = await api.control_plane.create_enrolment_token("east", lifetime_ms, "test")
        client = Client(api.address, "", trusting(files))
        region = "west" if token_is == "another region's" else "east"
        wish = regions_pb2.EnrolAgentRequest(token=token, region=region, certificate_request=request()[1])
        if token_is == "used":
            await client.regions.EnrolAgent(wish)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.regions.EnrolAgent(wish)
        assert caught.value.code() is Code.UNAUTHENTICATED
        with pytest.MonkeyPatch.context() as patch:
            trusted(patch, token_is)
            # The attacker has a key and a certificate.
            answer = await client.regions.EnrolAgent(wish)
        assert answer.api_key
        assert uris(loaded(answer.certificate)) == [f"suanli://region/{region}"]
        await client.channel.close()


# --- the table of permissions ------------------------------------------------------------------------------------------


async def test_the_matrix_sees_each_row_that_is_taken_out_of_the_table(api: Api, monkeypatch: Patch) -> None:
    await fill(api)
    for name, row in list(PERMISSIONS.items()):
        if Role.OPERATOR not in row:
            continue
        await check(api, "op", name, Scope.ANY)
        monkeypatch.delitem(permissions.PERMISSIONS, name)  # type: ignore[arg-type]
        with pytest.raises(AssertionError):
            await check(api, "op", name, Scope.ANY)
        monkeypatch.undo()


async def test_the_matrix_sees_each_row_that_lets_a_researcher_into_what_is_not_for_them(
    api: Api, monkeypatch: Patch
) -> None:
    await fill(api)
    institution, role = PEOPLE["ada"]
    tried = 0
    for name, row in list(PERMISSIONS.items()):
        if scope_of(name, role, institution) is not None:
            continue
        tried += 1
        monkeypatch.setitem(permissions.PERMISSIONS, name, {**row, role: Scope.ANY})  # type: ignore[arg-type]
        with pytest.raises(AssertionError):
            await check(api, "ada", name, None)
        monkeypatch.undo()
    assert tried > 20


SAME_FOR_ALL = {
    "WhoAmI": "of the caller alone, whatever the scope",
    "GetAuditKey": "the same for everybody",
    "CheckAccess": "says of an institution that there is no more than of one that there is not",
    "ListBudgetNotices": "nobody's budget has been overrun here",
    "ListDataSets": "kept by who may find a data set, in the register",
    "ListGrants": "kept by whose grants they are, in the register",
}
"""Calls whose scope decides nothing that a caller could see here, and why."""


@pytest.mark.parametrize("user", ["ada", "ann"])
async def test_the_matrix_sees_each_row_whose_scope_is_widened(api: Api, monkeypatch: Patch, user: str) -> None:
    await fill(api)
    institution, role = PEOPLE[user]
    unseen = set()
    for name, row in list(PERMISSIONS.items()):
        scope = scope_of(name, role, institution)
        if scope in (None, Scope.ANY):
            continue
        assert not await tells_of_others(api, user, name, scope), name
        monkeypatch.setitem(permissions.PERMISSIONS, name, {**row, role: Scope.ANY})  # type: ignore[arg-type]
        if not await tells_of_others(api, user, name, scope):
            unseen.add(name.rpartition("/")[2])
        monkeypatch.undo()
    assert unseen <= SAME_FOR_ALL.keys(), unseen - SAME_FOR_ALL.keys()


async def tells_of_others(api: Api, user: str, name: str, scope: Scope) -> bool:
    """Whether the matrix, or a look at what a list shows, finds something wrong."""
    try:
        await check(api, user, name, scope)
    except AssertionError:
        return True
    # The audit log tells that the caller has tried.
    if "/List" not in name or name.endswith("/ListAudit"):
        return False
    found = await answer(api, user, name, type(CALLS[name][1](INSTITUTIONS[Whose.INSTITUTION]))())
    return "uni-b" in found.rest
