"""The program in front of a ray job's command: ``python -m suanli.ray_job.supervisor --python … -- COMMAND``.

On rank 0 it starts the cluster's head, waits for the nodes of all other ranks, runs the command with what lets it in, and ends as the command
ends: with its exit code, or by its signal. On the other ranks it holds a node until rank 0 says that it is over. Signals that it is
sent go to the command; Ray's processes see none, so that a command that is asked to end can still use its cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from suanli.ray_job import meeting
from suanli.ray_job.node import RayNode
from suanli.ray_job.plan import (
    CLUSTER_FAILED,
    NOT_EXECUTABLE,
    NOT_FOUND,
    SAYS,
    RayJobError,
    Settings,
    command_environment,
    node_environment,
    node_start,
    read,
)
from suanli.ray_nodes import LOOPBACK, free_ports, head_options, join_options, start_command

T = TypeVar("T")

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ANY_WORKER_PORT = ("--min-worker-port=0", "--max-worker-port=0")
"""Ray's own range is taken up by other clusters on the node."""


class Ended(Exception):
    """The supervisor is to end now: with an exit code or, below 0, by a signal, as of ``subprocess``."""

    def __init__(self, status: int, sentence: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Supervisor:
    """One rank of a ray job."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._command: asyncio.subprocess.Process | None = None
        self._asked = 0
        """The first signal that came."""
        self._asked_event = asyncio.Event()

    async def run(self) -> tuple[int, str]:
        """Serve until it is over: the status to end with, and a sentence where there is something to say."""
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            token = _prepare(self._settings)
            if self._settings.is_head:
                await self._lead(token)
            else:
                await self._follow(token)
        except Ended as end:
            return end.status, end.sentence
        except RayJobError as error:
            return CLUSTER_FAILED, str(error)
        raise AssertionError("a rank ends by saying how")

    def _on_signal(self, number: int) -> None:
        self._asked = self._asked or number
        self._asked_event.set()
        if self._command is not None:
            _signal_group(self._command.pid, number)

    async def _stopped(self) -> NoReturn:
        await self._asked_event.wait()
        raise Ended(-self._asked)

    # --- rank 0 ---------------------------------------------------------------------------------------------------

    async def _lead(self, token: bytes) -> NoReturn:
        settings = self._settings
        host = meeting.Host(token, settings.world_size)
        node = None
        orderly = False
        try:
            if settings.world_size > 1:
                await host.open(settings.master_host, settings.master_port)
            node, address = await _first(self._start_head(), self._stopped(), _fails(host.lost()))
            host.announce(address)
            await _first(
                host.all_up(settings.join_s), self._stopped(), _fails(host.lost()), _fails(self._node_gone(node))
            )
            status = await self._run_command(address, host, node)
            orderly = True
            raise Ended(status)
        finally:
            # The others are told before the cluster ends: they would take it for a failure.
            await host.close(orderly)
            if node is not None:
                await node.end()

    async def _start_head(self) -> tuple[RayNode, str]:
        settings = self._settings
        where = settings.master_host
        with free_ports(3, where) as ports:
            port, client_port, dashboard_port = ports
        argv = start_command(
            settings.python,
            node_start(settings, where),
            [*head_options(port, client_port, dashboard_port), "--no-monitor", *_ANY_WORKER_PORT],
        )
        environ = node_environment(self._environ, settings.token_path, where)
        return await RayNode.start(argv, environ, settings.start_s), f"{where}:{port}"

    async def _node_gone(self, node: RayNode) -> str:
        return f"the Ray node of rank {self._settings.rank} failed: {await node.gone()}"

    async def _run_command(self, address: str, host: meeting.Host, node: RayNode) -> int:
        """Run the command to its end; its status. Raises RayJobError when the cluster is lost first."""
        settings = self._settings
        environ = command_environment(self._environ, settings.token_path, settings.master_host, address)
        try:
            command = await asyncio.create_subprocess_exec(
                *settings.argv, env=environ, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise Ended(status, f"cannot run {settings.argv[0]!r}: {error.strerror}") from error
        self._command = command
        if self._asked:
            _signal_group(command.pid, self._asked)
        try:
            try:
                return await _first(command.wait(), _fails(host.lost()), _fails(self._node_gone(node)))
            except RayJobError:
                # Perhaps the lost rank tells the platform why, which then ends this one, too, with its grace.
                if settings.world_size > 1 and await self._is_asked_within(settings.hold_s):
                    return await command.wait()
                raise
        finally:
            await _end_command(command)

    async def _is_asked_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked_event.wait()
        return self._asked > 0

    # --- the other ranks ------------------------------------------------------------------------------------------

    async def _follow(self, token: bytes) -> NoReturn:
        settings = self._settings
        calling = meeting.call(settings.master_host, settings.master_port, settings.rank, token, settings.join_s)
        guest = await _first(calling, self._stopped())
        node = None
        try:
            address = await _first(guest.address(), self._stopped())
            node = await _first(self._join(address), self._stopped(), self._left(guest))
            guest.up()
            # From here on a signal is for rank 0 to answer: its command may need this node to end well.
            await _first(self._left(guest), _fails(self._node_gone(node)))
            raise AssertionError("one of the two has raised")
        except RayJobError as error:
            await guest.failed(str(error))
            raise
        finally:
            guest.close()
            if node is not None:
                await node.end()

    async def _join(self, address: str) -> RayNode:
        settings = self._settings
        where = own_address(settings.master_host, settings.master_port)
        options = [*join_options(address), *_ANY_WORKER_PORT]
        argv = start_command(settings.python, node_start(settings, where), options)
        environ = node_environment(self._environ, settings.token_path, where)
        return await RayNode.start(argv, environ, settings.start_s)

    async def _left(self, guest: meeting.Guest) -> NoReturn:
        """Wait until rank 0 hangs up, and end as that asks for."""
        if await guest.over():
            raise Ended(0)
        # How rank 0 ended is for the platform to say: it ends this rank then.
        if await self._is_asked_within(self._settings.hold_s):
            raise Ended(-self._asked)
        raise RayJobError("the Ray head on rank 0 is gone")


def _prepare(settings: Settings) -> bytes:
    """Make Ray's folder; return the token."""
    try:
        token = Path(settings.token_path).read_bytes().strip()
        folder = Path(settings.folder)
        if settings.link_to:
            link_folder(folder.parent, Path(settings.link_to))
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RayJobError(f"Ray's folder cannot be made: {error}") from error
    return token


def link_folder(link: Path, target: Path) -> None:
    """Make ``link``, in a folder of this user alone, a way to ``target``; raises OSError."""
    with contextlib.suppress(FileExistsError):
        link.parent.mkdir(mode=0o700)
    status = os.lstat(link.parent)
    if link.parent.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{link.parent} is not a folder of yours alone")
    target.mkdir(mode=0o700, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def own_address(host: str, port: int) -> str:
    """This machine's address as seen from the way to ``host``. Nothing is sent."""
    if host == LOOPBACK:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


async def _first(wanted: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, NoReturn]) -> T:
    """Return what ``wanted`` gives, unless a guard raises before."""
    main = asyncio.ensure_future(wanted)
    tasks: list[asyncio.Future[Any]] = [main, *map(asyncio.ensure_future, guards)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if main in done:
            return main.result()
        for task in tasks:
            if task in done:
                task.result()
        raise AssertionError("a guard ends by raising")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fails(sentence: Coroutine[Any, Any, str]) -> NoReturn:
    raise RayJobError(await sentence)


async def _end_command(command: asyncio.subprocess.Process, grace_s: float = 5.0) -> None:
    """End a command that outlives its cluster."""
    if command.returncode is not None:
        return
    _signal_group(command.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await command.wait()
            return
    _signal_group(command.pid, signal.SIGKILL)
    await command.wait()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; returns the exit status, or dies of the signal that its command died of."""
    settings = read(sys.argv[1:] if arguments is None else arguments, os.environ)

    async def run() -> tuple[int, str]:
        return await Supervisor(settings, dict(os.environ)).run()

    status, sentence = asyncio.run(run())
    if sentence:
        print(f"{SAYS}{' '.join(sentence.split())}", file=sys.stderr, flush=True)
    if status < 0:
        with contextlib.suppress(OSError):
            # SIGKILL has no other.
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main())
