"""The region agent's process: ``python -m workers.agent --config agent.yaml``.

It runs ``workers.core.AgentCore`` on real clocks, a spool on disk, a stream to the control plane and the nodes of a Ray cluster.
Jobs never depend on it: SIGTERM ends the agent and leaves them running, as does kill -9; the next start finds them again.
SIGUSR1 (or SIGTERM with ``--stop-jobs-on-exit``) stops all jobs first and reports them as lost, so that they are queued again.

Exit status: 0 after a signal; 2 when the configuration or the enrolment is not in order; 1 when something else stopped it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from protos.suanli.v1 import regions_pb2 as pb
from workers.agent_isolation import NodeIsolation
from workers.agent_link import ControlLink, SetupError, write_ready_file
from workers.agent_logs import LogTails
from workers.agent_nodes import NodeGateway, NodeLines
from workers.agent_ray import load_tokens
from workers.config import AgentConfig, ConfigError, load_config
from workers.core import AgentCore
from workers.core_types import (
    AllocatePort,
    CoreConfig,
    Effect,
    HangUp,
    Input,
    MergeResults,
    NodesSettled,
    RenewNode,
    Send,
    StartRank,
    StopAll,
    StopRank,
    Tick,
)
from workers.executor import types as ex
from workers.spool import Spool, SpoolError, SqliteSpool

log = logging.getLogger("workers.agent")

TICK_S = 0.2
MAX_INPUTS_PER_TURN = 2_000
MAX_INBOX = 20_000
FAREWELL_S = 20.0
"""After the grace of the jobs, how long a shutdown waits for their ends and for the control plane to hear of them."""

OpenGateway = Callable[["AgentConfig", str], Awaitable[NodeGateway]]
"""Given the configuration and the URL of the artifacts, find the nodes."""


class Agent:
    """One start of the agent. ``run`` until stopped."""

    def __init__(self, config: AgentConfig, spool: Spool, open_gateway: OpenGateway) -> None:
        self._config = config
        self._spool = spool
        self._open_gateway = open_gateway
        self._core = AgentCore(
            CoreConfig(
                region=config.region,
                boot_id=uuid.uuid4().hex,
                machine=_machine(),
                software_version=_version(),
                pools=config.pools,
                data_dirs=config.data_sets,
            ),
            spool.load(),
        )
        self._inbox: deque[Input] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._link = ControlLink(config, self)
        self._isolation = NodeIsolation(config.isolations, config.pools)
        self._lines: NodeLines | None = None
        self._gateway: NodeGateway | None = None
        self._artifacts_url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ready = False
        self._settled = False
        self._turned = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_jobs = False

    # --- what others tell it --------------------------------------------------------------------------------------

    def feed(self, item: Input) -> None:
        """Something has happened; handled in the next turn."""
        self._inbox.append(item)
        self._news.set()

    async def room(self) -> None:
        """Wait while too much waits to be handled."""
        if len(self._inbox) >= MAX_INBOX:
            self._room.clear()
            await self._room.wait()

    def on_welcome(self, welcome: pb.Welcome) -> None:
        """The control plane has answered: it also knows where artifacts are kept."""
        if welcome.artifacts_url and not self._artifacts_url.done():
            self._artifacts_url.set_result(welcome.artifacts_url)

    def open_logs(self, send: Callable[[pb.ConnectRequest], Awaitable[None]]) -> LogTails | None:
        """Logs for a new connection."""
        if self._gateway is None or self._lines is None:
            return None
        return LogTails(self._gateway, self._lines.places.get, self._is_live, send)

    def stop(self, jobs_too: bool) -> None:
        """End ``run``, with or without the jobs."""
        self._stop_jobs = self._stop_jobs or jobs_too
        self._stop.set()

    def _is_live(self, key: ex.AttemptKey) -> bool:
        return self._core.node_of(key.job_id, key.attempt, key.rank) is not None

    # --- its life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until stopped. Raises what stopped it otherwise."""
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(self._turns()),
            asyncio.create_task(self._link.run()),
            asyncio.create_task(self._nodes()),
        ]
        stop = asyncio.create_task(self._stopped())
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            if self._stop_jobs and not any(task.done() for task in tasks):
                await asyncio.wait([*tasks, asyncio.create_task(self._end_jobs())], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in [*tasks, stop]:
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)

    async def _end_jobs(self) -> None:
        """Stop every job and wait until all have ended and the control plane knows, or that takes too long."""
        grace_ms = self._config.stop_grace_ms
        log.info("stopping %d attempts", self._core.live_attempts)
        self.feed(StopAll(grace_ms, "the region was shut down"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_ms / 1000 + FAREWELL_S):
                while not self._over():
                    await self._turned.wait()
                    self._turned.clear()
        if self._core.live_attempts:
            log.warning("%d attempts have not ended in time", self._core.live_attempts)

    async def _stopped(self) -> None:
        await self._stop.wait()

    def _over(self) -> bool:
        told = not self._core.welcomed or not self._core.unacknowledged_events
        return told and not self._inbox and not self._core.live_attempts

    async def _turns(self) -> None:
        """Feed the core and do what it says."""
        tick_at = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            self._news.clear()
            inputs: list[Input] = []
            while self._inbox and len(inputs) < MAX_INPUTS_PER_TURN:
                inputs.append(self._inbox.popleft())
            if self._inbox:
                self._news.set()
            if len(self._inbox) < MAX_INBOX:
                self._room.set()
            if time.monotonic() >= tick_at:
                inputs.append(Tick())
                tick_at = time.monotonic() + TICK_S
            await self._turn(inputs)

    async def _turn(self, inputs: Sequence[Input]) -> None:
        turn = self._core.handle(inputs, time.time_ns() // 1_000_000, _steady_ms())
        if turn.durable:
            # In a thread: the disk may take its time, and the stream and the logs go on meanwhile.
            await asyncio.to_thread(self._spool.commit, turn.durable)
        for item in inputs:
            if isinstance(item, ex.NodeEvents) and item.cursor is not None and self._gateway is not None:
                self._gateway.acknowledge(item.node_id, item.cursor)
        for effect in turn.effects:
            self._perform(effect)
        self._turned.set()
        if self._settled and self._core.welcomed and not self._ready:
            self._ready = True
            log.info("serving region %s", self._config.region)
            if self._config.ready_file is not None:
                write_ready_file(self._config.ready_file)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self._link.send(message)
            case HangUp(reason):
                self._link.hang_up(reason)
            case StartRank() | StopRank():
                self._known_lines().put(effect)
            case AllocatePort():
                self._known_lines().ask_port(effect)
            case MergeResults():
                self._known_lines().merge(effect)
            case RenewNode():
                self._known_lines().renew(effect)

    def _known_lines(self) -> NodeLines:
        # The core names a node only after its NodeUp, which comes from the gateway.
        assert self._lines is not None
        return self._lines

    async def _nodes(self) -> None:
        """Find the nodes, then bring their events."""
        url = await self._find_artifacts()
        gateway = self._gateway = await self._open_gateway(self._config, url)
        tokens = load_tokens(self._config.state_dir)
        lines = self._lines = NodeLines(gateway, self.feed, url, self._isolation, tokens)
        try:
            while True:
                event = await gateway.next_event()
                if isinstance(event, ex.NodesFound):
                    if self._isolation.refusal:
                        raise SetupError(self._isolation.refusal)
                    self._settled = True
                    self.feed(NodesSettled())
                    continue
                admitted = await self._admitted(gateway, event)
                if admitted is None:
                    continue
                self._note(admitted)
                self.feed(admitted)
                await self.room()
        finally:
            await lines.close()
            await gateway.close()

    async def _admitted(
        self, gateway: NodeGateway, event: ex.NodeUp | ex.NodeDown | ex.NodeEvents | ex.NodeUsed
    ) -> ex.NodeUp | ex.NodeDown | ex.NodeEvents | ex.NodeUsed | None:
        """The event, unless it is of a node that is refused. What an earlier configuration left running there is ended."""
        if isinstance(event, ex.NodeUp):
            admitted = self._isolation.admit(event)
            if admitted is None:
                for name in {(one.job_id, one.attempt) for one in event.attempts if one.exited is None}:
                    await gateway.stop(event.node_id, *name, 0, "its node is refused")
            return admitted
        refused = self._isolation.is_refused(event.node_id)
        if refused and isinstance(event, ex.NodeEvents) and event.cursor is not None:
            gateway.acknowledge(event.node_id, event.cursor)
        if isinstance(event, ex.NodeDown):
            self._isolation.forget(event.node_id)
        return None if refused else event

    def _note(self, event: ex.NodeUp | ex.NodeDown | ex.NodeEvents | ex.NodeUsed) -> None:
        match event:
            case ex.NodeUp():
                log.info("node %s (%s) is up with %d attempts", event.name, event.node_id, len(event.attempts))
                for info in event.attempts:
                    self._known_lines().places.put(ex.AttemptKey(info.job_id, info.attempt, info.rank), event.node_id)
            case ex.NodeDown():
                log.warning("node %s is down: %s", event.node_id, event.message)

    async def _find_artifacts(self) -> str:
        """The URL from the configuration, else the one told by the control plane, now or before."""
        if self._config.artifacts_url:
            return self._config.artifacts_url
        kept = self._config.state_dir / "artifacts_url"
        if kept.exists():
            return kept.read_text().strip()
        url = await self._artifacts_url
        kept.write_text(url + "\n")
        return url


async def open_ray(config: AgentConfig, artifacts_url: str) -> NodeGateway:
    """Reach the nodes of the configured Ray cluster. ``SetupError`` when there is none."""
    # Ray is slow to import and reads the environment when it is.
    from workers.executor.config import ExecutorConfig
    from workers.ray_gateway import GatewayConfig, RayGateway

    executor = ExecutorConfig(
        root=config.node_dir,
        artifact_url=artifacts_url,
        masked=tuple(
            str(path)
            for path in (config.state_dir, config.credential_file, config.token_file, config.tls_key)
            if path is not None
        ),
    )
    gateway = RayGateway(GatewayConfig(address=config.ray_address, executor=executor, pods=config.isolations.pods))
    try:
        await gateway.start()
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise SetupError(f"cannot reach the Ray cluster at {config.ray_address}: {text[0]}") from error
    return gateway


def _steady_ms() -> int:
    # Unlike CLOCK_MONOTONIC it counts the time that the machine sleeps, in which leases run out all the same.
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _machine() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return uuid.uuid4().hex


def _version() -> str:
    try:
        return metadata.version("suanli")
    except metadata.PackageNotFoundError:
        return ""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its time (UTC), level, logger and message, and the traceback of an error."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


async def serve(config: AgentConfig, stop_jobs_on_exit: bool, open_gateway: OpenGateway = open_ray) -> None:
    """Run the agent until a signal."""
    if config.ready_file is not None:
        config.ready_file.unlink(missing_ok=True)
    spool = SqliteSpool(config.state_dir / "spool.db")
    try:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_Impatient())

        def take_signals() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, agent.stop, stop_jobs_on_exit)
            loop.add_signal_handler(signal.SIGUSR1, agent.stop, True)

        async def open_and_take_signals(config: AgentConfig, artifacts_url: str) -> NodeGateway:
            gateway = await open_gateway(config, artifacts_url)
            # Ray has put a handler of its own before ours, which aborts the process three seconds after a SIGTERM.
            take_signals()
            return gateway

        agent = Agent(config, spool, open_and_take_signals)
        take_signals()
        await agent.run()
    finally:
        spool.close()


class _Impatient(ThreadPoolExecutor):
    """Does not wait for its threads: a call of Ray whose cluster is gone may last for minutes."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work."""
        del wait, cancel_futures
        super().shutdown(wait=False, cancel_futures=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.agent", description="The Suanli region agent.")
    parser.add_argument("--config", type=Path, required=True, help="the YAML configuration file")
    parser.add_argument(
        "--stop-jobs-on-exit",
        action="store_true",
        help="stop all jobs of the region on SIGTERM instead of leaving them running",
    )
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        asyncio.run(serve(config, options.stop_jobs_on_exit))
    except (ConfigError, SetupError) as error:
        print(f"suanli agent: {error}", file=sys.stderr)
        return 2
    except SpoolError as error:
        print(f"suanli agent: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stderr.flush()
    # All is closed. Python would wait for the threads that were given up.
    os._exit(status)
