"""The agent's own certificate, with the real control plane: made when it enrols, shown, renewed, replaced when it has run out."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import yaml

from tests.integration.agent_tools import Running, eventually
from tests.support.api import Api, running_api
from tests.support.certificates import certificates, loaded, tls_of, uris
from workers.agent_link import SetupError
from workers.spool import MemorySpool


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path / "api", tls=tls_of(certificates(tmp_path / "tls"))) as api:
        yield api


async def write_token(api: Api, folder: Path) -> None:
    token, _ = await api.control_plane.create_enrolment_token("east", 60_000, "test")
    (folder / "token").write_text(token)


async def configured(api: Api, folder: Path, **keys: str) -> Path:
    """An agent's configuration, with a token."""
    await write_token(api, folder)
    document = {
        "region": "east",
        "control_plane": api.address,
        "agents_address": api.agents_address,
        "tls_ca": "tls/ca.pem",
        "token_file": "token",
        "state_dir": "state",
        "artifacts_url": "artifacts",
        **keys,
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(document))
    return folder / "agent.yaml"


async def online(api: Api) -> bool:
    return any(region.online for region in await api.control_plane.list_regions())


async def end(running: Running, api: Api) -> None:
    """Stop the agent, and wait until the control plane knows."""
    await running.stop()
    async with asyncio.timeout(60):
        while await online(api):  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(0.02)


async def until_online(api: Api) -> None:
    async with asyncio.timeout(60):
        while not await online(api):  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(0.02)


def put_certificate(folder: Path, *, days_ago: int) -> int:
    """Give the agent a certificate of its own that was made so long ago; gives its number."""
    files = certificates(folder / "tls", "east", days_ago=days_ago)
    cert, key = files.agent("east")
    (folder / "state/agent.pem").write_bytes(key.read_bytes() + cert.read_bytes())
    return loaded(cert).serial_number


async def test_it_enrols_with_a_key_of_its_own_and_comes_back_with_it(api: Api, tmp_path: Path) -> None:
    config = await configured(api, tmp_path)
    first = b""
    for _ in range(2):
        running = Running(config, MemorySpool("s"))
        await until_online(api)
        await end(running, api)
        own = tmp_path / "state/agent.pem"
        assert {path.stat().st_mode & 0o777 for path in (own, tmp_path / "state/credential")} == {0o600}
        assert uris(loaded(own)) == ["suanli://region/east"]
        assert first in {b"", own.read_bytes()}
        first = own.read_bytes()


async def test_it_renews_before_the_end_and_dials_with_the_new_one(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes | None] = []

    def credentials(root: bytes, key: bytes | None, chain: bytes | None) -> grpc.ChannelCredentials:
        shown.append(chain)
        return real(root, key, chain)

    real = grpc.ssl_channel_credentials
    monkeypatch.setattr(grpc, "ssl_channel_credentials", credentials)
    config = await configured(api, tmp_path)
    running = Running(config, MemorySpool("s"))
    await until_online(api)
    await end(running, api)
    old = put_certificate(tmp_path, days_ago=61)

    running = Running(config, MemorySpool("s"))
    own = tmp_path / "state/agent.pem"
    await eventually(lambda: loaded(own).serial_number != old)

    renewed = loaded(own)
    assert renewed.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=89)
    assert uris(renewed) == ["suanli://region/east"]
    assert own.stat().st_mode & 0o777 == 0o600
    await until_online(api)
    running.agent._link.hang_up("the test wants a new connection")
    await eventually(lambda: shown[-1] == own.read_bytes())
    await until_online(api)
    assert loaded(shown[-2] or b"").serial_number == old
    await end(running, api)


async def test_one_with_enough_time_left_is_kept(api: Api, tmp_path: Path) -> None:
    config = await configured(api, tmp_path)
    running = Running(config, MemorySpool("s"))
    await until_online(api)
    await end(running, api)
    kept = put_certificate(tmp_path, days_ago=58)
    running = Running(config, MemorySpool("s"))
    await until_online(api)
    await end(running, api)
    assert loaded(tmp_path / "state/agent.pem").serial_number == kept


async def test_one_that_has_run_out_takes_a_new_token(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = await configured(api, tmp_path)
    running = Running(config, MemorySpool("s"))
    await until_online(api)
    await end(running, api)
    (tmp_path / "token").unlink()
    old = put_certificate(tmp_path, days_ago=100)

    running = Running(config, MemorySpool("s"))
    await eventually(lambda: "certificate has expired; give the agent a new token" in caplog.text)
    assert not await online(api)
    await write_token(api, tmp_path)
    await until_online(api)

    assert loaded(tmp_path / "state/agent.pem").serial_number != old
    await end(running, api)


async def test_one_that_is_brought_is_shown_and_neither_asked_for_nor_renewed(api: Api, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls", "east", days_ago=70)
    cert, key = files.agent("east")
    before = cert.read_bytes()
    config = await configured(api, tmp_path, tls_cert=str(cert), tls_key=str(key))
    running = Running(config, MemorySpool("s"))
    await until_online(api)
    await end(running, api)
    assert not (tmp_path / "state/agent.pem").exists()
    assert cert.read_bytes() == before


async def test_where_nobody_signs_it_ends_with_a_sentence_and_keeps_the_token_good(tmp_path: Path) -> None:
    tls = tls_of(certificates(tmp_path / "tls"), sign=False)
    async with running_api(tmp_path / "api", tls=tls) as api:
        config = await configured(api, tmp_path)
        with pytest.raises(SetupError, match="tls_cert and tls_key"):
            await Running(config, MemorySpool("s")).task
        assert not (tmp_path / "state/credential").exists()
        await api.control_plane.enrol_agent((tmp_path / "token").read_text(), "east", "test")
