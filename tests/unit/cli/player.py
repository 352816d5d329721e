"""A platform of its own process: the real API over a store in memory, and an agent that plays jobs.

``python -m tests.unit.cli.player FOLDER`` prints a line of JSON ({"address", "keys": {user: key}}) when it is
ready, and ends when its standard input does. What a job's command says is what becomes of it:

``true`` succeeds, ``exit N`` ends with that code, ``signal N`` by that signal, ``stay`` runs until it is cancelled,
``log TEXT`` writes TEXT to stdout and "warn" to stderr and succeeds, ``leave TEXT`` succeeds with the result ``out/text``,
``fail TEXT`` writes like ``log``, with the attempt's number for ATTEMPT, and fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from protos.suanli.v1 import common_pb2, jobs_pb2, regions_pb2
from scheduler.catalog.artifacts import FileEntry
from scheduler.catalog.catalogue import Catalogue
from tests.support.api import Agent, Api, running_api

BEAT_S = 3.0


class Player(Agent):
    """Starts every launch at once and ends it as its command says."""

    stays_s = None

    def __init__(self, api: Api) -> None:
        super().__init__(api)
        self._logs: dict[tuple[str, int], dict[int, bytes]] = {}
        self._writing = asyncio.Lock()

    async def send(self, **message: Any) -> None:
        """One at a time, as gRPC wants it."""
        async with self._writing:
            await super().send(**message)

    async def beat(self) -> None:
        """Report without end, so that the region stays online."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._report += 1
            await self.send(state=self.state())

    def state(self) -> regions_pb2.StateReport:
        """One node with room, and what runs on it."""
        capacity = common_pb2.Resources(cpu_milli=8000, memory_mib=32768)
        node = regions_pb2.Node(id="n1", name="node-one", pool="cpu", capacity=capacity)
        return regions_pb2.StateReport(
            report_seq=self._report, event_seq=self._seq, nodes=[node], attempts=self._launched
        )

    async def play(self) -> None:
        """Until the stream ends."""
        while True:
            message = self.received.pop(0) if self.received else await self.call.read()
            if message is grpc.aio.EOF:
                return
            kind = message.WhichOneof("message")
            if kind == "launch":
                self._launched.append(_reference(message.launch))
                await self._begin(message.launch)
            elif kind == "stop":
                await self._finish(message.stop, message.stop.outcome)
            elif kind == "log_request":
                await self._answer(message.log_request)

    async def _begin(self, launch: regions_pb2.Launch) -> None:
        word, text = launch.argv[0], " ".join(launch.argv[1:])
        logs = {jobs_pb2.LOG_STREAM_STDOUT: b"", jobs_pb2.LOG_STREAM_STDERR: b""}
        if word in ("log", "fail"):
            text = text.replace("ATTEMPT", str(launch.attempt))
            logs = {jobs_pb2.LOG_STREAM_STDOUT: f"{text}\n".encode(), jobs_pb2.LOG_STREAM_STDERR: b"warn\n"}
        self._logs[launch.job_id, launch.attempt] = logs
        await self.started(launch)
        failed = common_pb2.ATTEMPT_OUTCOME_FAILED
        if word == "exit":
            await self._finish(launch, failed, exit_code=int(text))
        elif word == "fail":
            await self._finish(launch, failed, exit_code=1)
        elif word == "signal":
            await self._finish(launch, failed, exit_signal=int(text))
        elif word != "stay":
            results = self._left(text) if word == "leave" else ""
            await self._finish(launch, common_pb2.ATTEMPT_OUTCOME_SUCCEEDED, results=results)

    def _left(self, text: str) -> str:
        content = text.encode()
        digest = self._api.store.put(content).partition(":")[2]
        files = [{"path": "out/text", "sha256": digest, "size": len(content), "mode": 0o644}]
        return self._api.store.put(json.dumps({"files": files, "version": 1}).encode())

    async def _finish(self, one: regions_pb2.Launch | regions_pb2.Stop, outcome: int, **more: Any) -> None:
        ended = regions_pb2.AttemptFinished(outcome=outcome, **more)  # type: ignore[arg-type]
        await self.event(one, finished=ended)  # type: ignore[arg-type]
        self._launched = [ref for ref in self._launched if ref.job_id != one.job_id]

    async def _answer(self, request: regions_pb2.LogRequest) -> None:
        whole = self._logs.get((request.job_id, request.attempt), {}).get(request.stream, b"")
        start = max(0, len(whole) + request.offset) if request.offset < 0 else request.offset
        await self.log(request, start, whole[start:], end=True)


def read_manifest(api: Api, digest: str) -> tuple[FileEntry, ...]:
    """A folder in the form that clients and agents write."""
    with api.store.open_blob(digest, 0) as stream:
        document = json.load(stream)
    return tuple(FileEntry(one["path"], f"sha256:{one['sha256']}", one["size"]) for one in document["files"])


def _reference(launch: regions_pb2.Launch) -> regions_pb2.AttemptRef:
    return regions_pb2.AttemptRef(job_id=launch.job_id, attempt=launch.attempt, lease_epoch=launch.lease_epoch)


async def _serve(folder: Path) -> None:
    async with running_api(folder, catalogue=Catalogue()) as api:
        api.store.read_manifest = partial(read_manifest, api)  # type: ignore[method-assign]
        player = Player(api)
        await player.enrol()
        await player.connect()
        playing = asyncio.create_task(player.play())
        beating = asyncio.create_task(player.beat())
        keys = {user: client.key for user, client in api.clients.items()}
        print(json.dumps({"address": api.address, "keys": keys}), flush=True)
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait([playing, asyncio.ensure_future(ended)], return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            # It is to last as long as its standard input does; the log then says why it did not.
            raise RuntimeError(f"the agent's stream has ended: {playing.exception() or player.call.details()}")
        for task in (playing, beating):
            task.cancel()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
