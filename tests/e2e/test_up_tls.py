"""The certificates of ``up``: everything speaks TLS, they are renewed while it runs, and older state folders get them."""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.suanli.v1 import admin_pb2, admin_pb2_grpc
from suanli import Client
from tests.e2e.tools import pids, running, status, suanli
from tests.support.certificates import certificates, loaded, trusting

OPTIONS = ("--regions", "east", "--cpus-per-region", "1", "--memory-per-region", "2048")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tls") / "state"
    with running(folder, *OPTIONS):
        yield folder


def refusal(address: str, key: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call of the holder of a key ends."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).WhoAmI
        try:
            call(admin_pb2.WhoAmIRequest(), metadata=(("authorization", f"Bearer {key}"),), timeout=30)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def runs_a_job(state: Path) -> bool:
    with Client(state_dir=state) as client:
        return client.submit(command=["true"]).wait(timeout=60).succeeded


def test_people_need_the_authority_and_agents_their_certificate(state: Path) -> None:
    up = json.loads((state / "up.json").read_text())
    files = certificates(state / "tls", "east")
    admin, agent = ((state / name).read_text().strip() for name in ("admin.key", "regions/east/credential"))
    assert up["ca"] == str(files.ca)
    assert refusal(up["address"], admin, None) is grpc.StatusCode.UNAVAILABLE
    assert refusal(up["address"], admin, trusting(files)) is grpc.StatusCode.OK
    assert refusal(up["address"], agent, trusting(files)) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(up["agents"], agent, trusting(files)) is grpc.StatusCode.UNAVAILABLE
    assert refusal(up["agents"], agent, trusting(files, "east")) is grpc.StatusCode.OK
    assert {path.stat().st_mode & 0o777 for path in (state / "tls").glob("*.key")} == {0o600}
    assert runs_a_job(state)


def test_a_second_up_renews_what_runs_out_and_restarts_nothing(state: Path) -> None:
    host, _, port = status(state)["address"].rpartition(":")
    tls, before = state / "tls", pids(state)
    for path in (*tls.glob("server.*"), *tls.glob("agent-*")):
        path.unlink()
    old = certificates(tls, "east", days_ago=70)
    ageing = {loaded(path).serial_number for path in (old.server, old.agent("east")[0])}

    assert "already" in suanli("up", "--state-dir", str(state)).stderr

    assert pids(state) == before
    assert not ageing & {loaded(path).serial_number for path in (old.server, old.agent("east")[0])}
    shown = loaded(ssl.get_server_certificate((host, int(port))))
    assert shown.serial_number == loaded(old.server).serial_number
    assert runs_a_job(state)


def test_a_state_folder_without_certificates_gets_them(state: Path) -> None:
    suanli("down", "--state-dir", str(state))
    shutil.rmtree(state / "tls")
    suanli("up", "--state-dir", str(state))
    assert "online" in str(status(state)["parts"])
    assert runs_a_job(state)
