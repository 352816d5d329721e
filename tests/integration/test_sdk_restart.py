"""A program that waits does not notice that the control plane was killed and came back."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import suanli
from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2

DEADLINE_S = 60.0


class ControlPlane:
    """A server process on one port and one database, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{one.getsockname()[1]}"
        self._ready, self._config, self._log = folder / "ready.json", folder / "server.yaml", folder / "log"
        self.key_file = folder / "admin.key"
        settings = {
            "listen": self.address,
            "metrics_listen": "",
            "state_dir": str(folder / "state"),
            "bootstrap_admin_key_file": str(self.key_file),
            "ready_file": str(self._ready),
        }
        self._config.write_text(yaml.safe_dump(settings))

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.server", "--config", str(self._config)], stderr=log
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._ready.exists():
            assert self.process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.02)
        assert json.loads(self._ready.read_text())["listen"] == self.address

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait(DEADLINE_S) == -signal.SIGKILL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlPlane]:
    server = ControlPlane(tmp_path)
    server.start()
    yield server
    server.kill()


async def test_waiting_watching_and_submitting_go_on_over_a_restart(server: ControlPlane) -> None:
    async with (
        suanli.AsyncClient(server.address, server.key_file.read_text().strip()) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        admin = client.connection.admin
        await admin.PutInstitution(admin_pb2.PutInstitutionRequest(institution=admin_pb2.Institution(id="uni")))
        job = await client.submit(command=["true"], institution="uni")
        seen: list[jobs_pb2.JobEvent] = []
        begun = asyncio.Event()

        async def watch() -> None:
            async for event in client.watch(after_sequence=0, job_ids=[job.id]):
                seen.append(event)
                begun.set()
                if event.state == common_pb2.JOB_STATE_CANCELLED:
                    return

        watching, waiting = asyncio.create_task(watch()), asyncio.create_task(job.wait())
        await begun.wait()
        server.kill()
        submitting = asyncio.create_task(client.submit(command=["true"], institution="uni", name="meanwhile"))
        # While nobody answers, all three are at it.
        done, _ = await asyncio.wait([watching, waiting, submitting], timeout=0.5)
        assert not done
        await asyncio.to_thread(server.start)
        late = await submitting
        assert (await late.status()).name == "meanwhile"
        assert await job.cancel()
        assert (await waiting).state == "CANCELLED"
        await watching
        sequences = [event.sequence for event in seen]
        assert sequences == sorted(set(sequences))
        assert [info.id async for info in client.jobs(institution="uni")] == [late.id, job.id]
