"""How a command reaches the control plane: one link for its run, and failures as sentences with an exit code."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import click
from google.protobuf.message import Message

from protos.suanli.v1 import admin_pb2, jobs_pb2
from suanli.aio import AsyncClient
from suanli.cli import exits
from suanli.cli.human import safe
from suanli.errors import SuanliError

P = ParamSpec("P")
PAGE = 1_000
PATIENCE_S = 10.0
"""How long calls are tried again while nobody answers: a person waits for it."""
_STUBS = {
    "JobService": "jobs",
    "AdminService": "admin",
    "UsageService": "usage",
    "ArtifactService": "artifacts",
    "AuditService": "audit",
    "DataService": "data",
}


class Failure(click.ClickException):
    """A sentence on stderr and an exit code."""

    def __init__(self, message: str, exit_code: int = exits.FAILED) -> None:
        super().__init__(safe(message))
        self.exit_code = exit_code  # type: ignore[misc] # click reads it from the instance as well


@dataclass(frozen=True)
class Session:
    """The global options, as given; None for those that were not."""

    address: str | None
    api_key: str | None
    ca: str | None
    state_dir: str | None

    def client(self) -> AsyncClient:
        """A client of the control plane that these options, the environment or files name; raises ``SuanliError``."""
        return AsyncClient(self.address, self.api_key, state_dir=self.state_dir, ca=self.ca, patience_s=PATIENCE_S)


def session() -> Session:
    """The global options of the command that runs."""
    found = click.get_current_context().find_object(Session)
    assert found is not None, "the group makes it"
    return found


def _say_wait(seconds: float, error: SuanliError) -> None:
    """Tell why nothing happens; of what is over in a moment, nothing."""
    if seconds >= 1:
        click.echo(safe(f"Waiting for {seconds:.0f} s, as the control plane asks: {error.message}"), err=True)


class Link:
    """The calls a command makes. Methods go by their names, as in ``call("JobService/GetJob", request)``."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.connection = client.connection
        self.connection.on_wait = _say_wait

    def _method(self, name: str) -> Any:
        service, _, method = name.partition("/")
        return getattr(getattr(self.connection, _STUBS[service]), method)

    async def call(self, method: str, request: Message, *, idempotent: bool = True) -> Any:
        """Call a method that answers once; one that may be repeated is, for a while, when nobody answers."""
        return await self.connection.call(self._method(method), request, idempotent=idempotent)

    def stream(self, method: str, ask: Callable[[], Message]) -> AsyncGenerator[Any, None]:
        """Read a stream, opened again as ``ask`` says whenever the control plane goes away."""
        return self.connection.resume(self._method(method), ask)

    async def watch(self, request: jobs_pb2.WatchJobsRequest) -> AsyncGenerator[jobs_pb2.WatchJobsResponse, None]:
        """Events as they happen, without gap or repeat, also while the control plane restarts."""
        position = request.after_sequence

        def ask() -> jobs_pb2.WatchJobsRequest:
            again = jobs_pb2.WatchJobsRequest()
            again.CopyFrom(request)
            again.after_sequence = position
            return again

        async with aclosing(self.stream("JobService/WatchJobs", ask)) as responses:
            async for response in responses:
                yield response
                position = response.sequence

    async def job(self, job_id: str) -> jobs_pb2.Job:
        """A job as it is now."""
        job: jobs_pb2.Job = (await self.call("JobService/GetJob", jobs_pb2.GetJobRequest(job_id=job_id))).job
        return job


def connected(function: Callable[Concatenate[Link, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a command of a coroutine function whose first argument is the link to the control plane."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        async def run() -> None:
            async with session().client() as client:
                await function(Link(client), *args, **kwargs)

        try:
            asyncio.run(run())
        except SuanliError as error:
            raise failure_of(error) from error

    return command


def failure_of(error: SuanliError) -> Failure:
    """The sentence and the exit code of an error of the SDK."""
    return Failure(error.message, error.exit_code)


async def pages(link: Link, method: str, request: Message, field: str, limit: int = 0) -> AsyncIterator[Any]:
    """All items of a listing, page by page; at most ``limit`` when that is not 0."""
    ask: Any = type(request)()
    ask.CopyFrom(request)
    given = 0
    while True:
        ask.page_size = min(PAGE, limit - given) if limit else PAGE
        response = await link.call(method, ask)
        for item in getattr(response, field):
            yield item
            given += 1
        if not response.next_page_token or (limit and given >= limit):
            return
        ask.page_token = response.next_page_token


async def listed(link: Link, method: str, request: Message, field: str, limit: int = 0) -> list[Any]:
    """``pages`` as a list."""
    return [item async for item in pages(link, method, request, field, limit)]


async def who_am_i(link: Link) -> admin_pb2.WhoAmIResponse:
    """Who the key makes the caller."""
    answer: admin_pb2.WhoAmIResponse = await link.call("AdminService/WhoAmI", admin_pb2.WhoAmIRequest())
    return answer


async def own_institution(link: Link, given: str) -> str:
    """``given``, or the caller's institution; a ``Failure`` when there is neither."""
    institution = given or (await who_am_i(link)).institution
    if not institution:
        raise Failure("You belong to the platform, not to an institution; say which one is meant.", exits.USAGE)
    return institution
