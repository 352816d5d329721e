"""The control plane as a process: start, stop, kill, standby, TLS."""

import asyncio
import json
import os
import signal
import stat
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2
from tests.support.api import Client

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]


class Server:
    """One process, its configuration and what it has said."""

    def __init__(self, folder: Path, name: str = "server", **changes: object) -> None:
        self.folder = folder
        self.ready_file = folder / f"{name}.ready"
        self.key_file = folder / "admin.key"
        self.config = folder / f"{name}.yaml"
        settings = {
            "state_dir": str(folder / "state"),
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "ready_file": str(self.ready_file),
            "bootstrap_admin_key_file": str(self.key_file),
        }
        self.config.write_text(yaml.safe_dump(settings | changes))

    async def spawn(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "SUANLI_DATABASE_URL"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "scheduler.server",
            "--config",
            str(self.config),
            cwd=ROOT,
            env=environment,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )

    async def ready(self) -> dict[str, str]:
        async with asyncio.timeout(DEADLINE_S):
            while (addresses := self.written()) is None:
                assert self.process.returncode is None, (await self.said()).decode()
                await asyncio.sleep(0.02)
        return addresses

    def written(self) -> dict[str, str] | None:
        """What the ready file says, unless it is a killed predecessor's."""
        try:
            found = json.loads(self.ready_file.read_text())
        except FileNotFoundError:
            return None
        return found if found["pid"] == self.process.pid else None

    async def said(self) -> bytes:
        assert self.process.stderr is not None
        return await self.process.stderr.read()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            _, self.output = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def server(folder: Path, name: str = "server", **changes: object) -> AsyncIterator[Server]:
    one = Server(folder, name, **changes)
    await one.spawn()
    try:
        yield one
    finally:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.communicate()


async def get(address: str, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_a_kill_loses_no_acknowledged_job_and_a_stop_is_clean(tmp_path: Path) -> None:
    async with server(tmp_path) as first:
        addresses = await first.ready()
        key = first.key_file.read_text().strip()
        assert stat.S_IMODE(first.key_file.stat().st_mode) == 0o600
        client = Client(addresses["listen"], key)
        who = await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())
        assert (who.user, who.role) == ("admin", common_pb2.ROLE_OPERATOR)
        await client.admin.PutInstitution(
            admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="uni-a"))
        )
        algorithm = jobs_pb2.AlgorithmRun(name="irt", parameters_json='{"model": "rasch"}')
        specs = [jobs_pb2.JobSpec(institution="uni-a", algorithm=algorithm, name=f"n{i}") for i in range(50)]
        ids = list((await client.jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=specs))).job_ids)
        before = await client.job(ids[7])
        status, metrics = await get(addresses["metrics_listen"], "/metrics")
        assert status == 200
        assert 'suanli_jobs{institution="uni-a",state="QUEUED"} 50.0' in metrics
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        await client.channel.close()
    # The old leader's lease is still live: the new process waits for it as a standby.
    async with server(tmp_path) as second:
        addresses = await second.ready()
        assert second.key_file.read_text().strip() == key
        client = Client(addresses["listen"], key)
        listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1000))
        assert sorted(job.id for job in listed.jobs) == sorted(ids)
        assert await client.job(ids[7]) == before
        assert json.loads(before.spec.algorithm.parameters_json)["model"] == "rasch"
        watch = client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(after_sequence=0))
        assert len((await watch.read()).events) > 0
        assert await second.end() == 0
        assert b"Traceback" not in second.output
        for line in second.output.splitlines():
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
        await client.channel.close()


async def test_a_standby_takes_over_when_the_leader_stops(tmp_path: Path) -> None:
    async with server(tmp_path) as leader:
        key_file = leader.key_file
        await leader.ready()
        async with server(tmp_path, "standby") as standby:
            port = await port_of(standby)
            channel = grpc.aio.insecure_channel(port)
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not standby.ready_file.exists()
            assert await leader.end() == 0
            addresses = await standby.ready()
            client = Client(addresses["listen"], key_file.read_text().strip())
            assert (await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())).user == "admin"
            assert (await get(addresses["metrics_listen"], "/readyz"))[0] == 200
            await client.channel.close()
            await channel.close()
            assert await standby.end() == 0


async def port_of(one: Server) -> str:
    """Where a standby listens: its log says so."""
    assert one.process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        while line := await one.process.stderr.readline():
            message = str(json.loads(line)["message"])
            if message.startswith("listening on "):
                return message.removeprefix("listening on ")
    raise AssertionError("the server has ended")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"listen": "0.0.0.0:0"}, "tls.cert"),
        ({"lisen": "x"}, "did you mean listen?"),
        ({"algorithms_dir": "/nowhere"}, "manifest.schema.json"),
        ({"database_url": "mysql://x/y"}, "No store for 'mysql'"),
        ({"listen": "0.0.0.0:0", "tls": {"cert": "/nowhere.pem", "key": "/nowhere.pem"}}, "tls.cert: /nowhere.pem"),
    ],
)
async def test_a_configuration_that_cannot_be_served_ends_with_a_sentence(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    async with server(tmp_path, **changes) as one:
        async with asyncio.timeout(DEADLINE_S):
            _, output = await one.process.communicate()
        assert one.process.returncode == 2
        last = output.decode().splitlines()[-1]
        assert last.startswith("suanli control plane: ")
        assert words in last
        assert "Traceback" not in output.decode()


async def test_tls_and_client_certificates(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    async with server(tmp_path, tls=tls | {"client_ca": str(tmp_path / "ca.pem")}, listen="0.0.0.0:0") as one:
        addresses = await one.ready()
        address = addresses["listen"].replace("0.0.0.0", "127.0.0.1")
        key = one.key_file.read_text().strip()
        root = authority.cert_pem.bytes()

        def credentials(issuer: trustme.CA | None) -> grpc.ChannelCredentials:
            if issuer is None:
                return grpc.ssl_channel_credentials(root)
            leaf = issuer.issue_cert("client.example.org")
            return grpc.ssl_channel_credentials(root, leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())

        known = Client(address, key, credentials(authority))
        assert (await known.admin.WhoAmI(admin_pb2.WhoAmIRequest())).user == "admin"
        for other in (credentials(None), credentials(stranger)):
            client = Client(address, key, other)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await client.channel.close()
        plain = Client(address, key)
        with pytest.raises(grpc.aio.AioRpcError):
            await plain.admin.WhoAmI(admin_pb2.WhoAmIRequest())
        await plain.channel.close()
        await known.channel.close()
        assert await one.end() == 0


async def test_the_first_key_is_made_again_when_its_writing_was_cut_off(tmp_path: Path) -> None:
    async with server(tmp_path) as one:
        await one.ready()
        assert await one.end() == 0
    key = one.key_file.read_text()
    one.key_file.unlink()
    async with server(tmp_path) as two:
        await two.ready()
        assert not two.key_file.exists(), "an operator's key exists, so none is made"
        assert await two.end() == 0
    (tmp_path / "admin.key.pending").touch()
    async with server(tmp_path) as three:
        addresses = await three.ready()
        assert three.key_file.read_text() != key
        client = Client(addresses["listen"], three.key_file.read_text().strip())
        assert (await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())).user == "admin"
        await client.channel.close()
        assert await three.end() == 0


async def test_the_first_operator_may_be_given_a_key_instead(tmp_path: Path) -> None:
    given = f"suanli_{'a' * 13}_{'b' * 52}"
    (tmp_path / "admin.key").write_text(f"{given}\n")
    for _ in range(2):
        async with server(tmp_path) as one:
            client = Client((await one.ready())["listen"], given)
            who = await client.admin.WhoAmI(admin_pb2.WhoAmIRequest())
            assert (who.user, who.role) == ("admin", common_pb2.ROLE_OPERATOR)
            keys = await client.admin.ListApiKeys(admin_pb2.ListApiKeysRequest())
            assert len(keys.keys) == 1
            assert one.key_file.read_text().strip() == given
            await client.channel.close()
            assert await one.end() == 0
