"""`ps --watch`: a table that stays up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import click
from rich.live import Live
from rich.text import Text

from protos.suanli.v1 import jobs_pb2
from suanli.cli.output import Column, Output, build_table
from suanli.cli.runtime import Link

_TICK_S = 1.0
"""Ages and durations are written anew so often, also when nothing happens."""


async def show_live(
    link: Link,
    load: Callable[[], Awaitable[list[jobs_pb2.Job]]],
    columns: Callable[[], list[Column[jobs_pb2.Job]]],
    asked: jobs_pb2.JobFilter,
    out: Output,
) -> None:
    """Show jobs until Ctrl-C: loaded again when something has happened, at most once a second."""
    console = out.console
    if out.form != "table" or not console.is_terminal:
        raise click.UsageError(
            "--watch draws a table on a terminal; 'suanli watch -o json' streams events to programs."
        )
    news = asyncio.Event()
    news.set()

    async def listen() -> None:
        request = jobs_pb2.WatchJobsRequest(after_sequence=-1, institution=asked.institution, project=asked.project)
        async with aclosing(link.watch(request)) as responses:
            async for _ in responses:
                news.set()

    listener = asyncio.ensure_future(listen())
    try:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            jobs: list[jobs_pb2.Job] = []
            while not listener.done():
                if news.is_set():
                    news.clear()
                    jobs = await load()
                table = build_table(jobs[: max(1, console.height - 3)], columns(), console.width)
                live.update(table if jobs else Text("There is no such job yet."), refresh=True)
                await asyncio.wait([listener], timeout=_TICK_S)
        await listener
    finally:
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([listener])
