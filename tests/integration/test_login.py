"""Logging in at a real OpenID provider, by the command line and by a program."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result

import suanli
from protos.suanli.v1 import admin_pb2, common_pb2
from scheduler.domain.records import UserRecord
from scheduler.identity import keys
from scheduler.identity.issuers import Claims, Issuer, Oidc
from suanli.cli import login
from suanli.sign_in.issuer import DeviceCode
from suanli.sign_in.logins import find_login, replace_login
from tests.support.api import Api, Client, info_of, running_api
from tests.support.nanoidp import CLIENT, ROBOT, NanoIdp, running_nanoidp
from tests.unit.cli.tools import invoke


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NanoIdp]:
    with running_nanoidp(tmp_path_factory.mktemp("idp"), refresh_token_rotation=True) as running:
        yield running


@pytest.fixture
async def api(idp: NanoIdp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    for name in ("ADDRESS", "API_KEY", "CA", "STATE_DIR", "PROFILE"):
        monkeypatch.delenv(f"SUANLI_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    issuer = Issuer(idp.issuer, "suanli", CLIENT, token_types=("JWT",), institutions=("uni-a",))
    async with running_api(tmp_path / "api", oidc=Oidc((issuer,))) as running:
        yield running


@pytest.fixture
def person(idp: NanoIdp, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Who confirms the code that is shown, and how."""
    how = {"user": "ada", "action": "approve"}
    show = login._show

    def confirm(code: DeviceCode) -> None:
        show(code)
        idp.confirm(code.user_code, **how)

    monkeypatch.setattr(login, "_show", confirm)
    return how


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "config" / "suanli" / "logins.json"


async def command(*arguments: str, stdin: str = "", code: int = 0) -> Result:
    result = await asyncio.to_thread(lambda: invoke(*arguments, stdin=stdin))
    assert result.exit_code == code, result.output
    return result


async def test_a_person_logs_in_works_is_renewed_and_logs_out(
    api: Api, idp: NanoIdp, person: dict[str, str], tmp_path: Path
) -> None:
    shown = await command("--address", api.address, "login")
    assert "You are ada of uni-a, researcher" in shown.output
    path = file_of(tmp_path)
    kept = find_login(path, api.address)
    assert kept is not None
    assert path.stat().st_mode & 0o777 == 0o600
    for secret in (kept.access_token, kept.refresh_token):
        assert secret
        assert secret not in shown.output
        assert secret not in repr(kept)
    said = json.loads((await command("whoami", "-o", "json")).stdout)
    assert (said["credential"], said["credential_name"]) == ("TOKEN", idp.issuer)
    assert "by itself" in (await command("whoami")).stdout
    # Two commands at once find a token that ends in a moment: one renews it, for both.
    replace_login(path, kept.__class__(**{**kept.__dict__, "expire_ms": time.time_ns() // 1_000_000 + 5_000}))
    await asyncio.gather(command("whoami"), command("whoami"))
    renewed = find_login(path, api.address)
    assert renewed is not None
    assert renewed.access_token != kept.access_token
    assert renewed.refresh_token != kept.refresh_token
    async with suanli.AsyncClient() as client:
        assert (await client.submit(command=["true"])).id
    await command("logout")
    assert find_login(path) is None
    assert (
        idp.post("/token", grant_type="refresh_token", client_id=CLIENT, refresh_token=renewed.refresh_token)[0] == 400
    )
    await command("whoami", code=2)


async def test_an_id_token_and_a_refresh_token_are_no_access_tokens(api: Api, idp: NanoIdp) -> None:
    _, begun = await asyncio.to_thread(
        lambda: idp.post("/device_authorization", client_id=CLIENT, scope="openid offline_access")
    )
    await asyncio.to_thread(lambda: idp.confirm(begun["user_code"]))
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    _, given = await asyncio.to_thread(
        lambda: idp.post("/token", client_id=CLIENT, grant_type=grant, device_code=begun["device_code"])
    )
    assert (await who(api, given["access_token"])).user == "ada"
    for name in ("id_token", "refresh_token"):
        assert await refusal(api, given[name]) == "TOKEN_REFUSED"


@pytest.mark.parametrize(("how", "words"), [({"action": "deny"}, "refused"), ({"user": "eve"}, "no user 'eve'")])
async def test_who_is_refused_keeps_nothing(
    api: Api, person: dict[str, str], tmp_path: Path, how: dict[str, str], words: str
) -> None:
    person.update(how)
    result = await command("--address", api.address, "login", code=4)
    assert words in result.output
    assert find_login(file_of(tmp_path)) is None


async def test_a_key_is_kept_when_it_works(api: Api, tmp_path: Path) -> None:
    await command("--address", api.address, "login", "--key", stdin="suanli_no\n", code=4)
    assert find_login(file_of(tmp_path)) is None
    shown = await command("--address", api.address, "login", "--key", stdin=api["ada"].key + "\n")
    assert api["ada"].key not in shown.output
    assert os.stat(file_of(tmp_path)).st_mode & 0o077 == 0
    assert "API key" in (await command("whoami")).stdout
    await command("logout")
    assert "not logged in" in (await command("logout", code=3)).output


async def who(api: Api, text: str) -> admin_pb2.WhoAmIResponse:
    client = api.clients.setdefault(text, Client(api.address, text))
    return await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())


async def refusal(api: Api, text: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await who(api, text)
    return str(info_of(caught.value).reason)


async def test_a_program_is_a_user_too_and_a_new_key_of_the_provider_is_found(
    idp: NanoIdp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFETCH_MS", 0)
    claims = Claims(user="client_id")
    issuer = Issuer(idp.issuer, "suanli", token_types=("JWT",), institutions=("uni-a",), claims=claims)
    async with running_api(tmp_path / "api", oidc=Oidc((issuer,))) as api:
        robot = UserRecord(ROBOT, "uni-a", "", common_pb2.ROLE_RESEARCHER, 0, 0)
        await api.control_plane.put_user(robot, "test")
        first = await asyncio.to_thread(idp.robot_token)
        assert (await who(api, first)).user == ROBOT
        await asyncio.to_thread(idp.rotate_keys)
        second = await asyncio.to_thread(idp.robot_token)
        assert (await who(api, second)).user == ROBOT
        assert (await who(api, first)).user == ROBOT
        tampered: Any = first.rpartition(".")[0] + "." + second.rpartition(".")[2]
        assert await refusal(api, tampered) == "TOKEN_REFUSED"
