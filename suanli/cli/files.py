"""Fetching the results of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import click

from protos.suanli.v1 import jobs_pb2
from suanli import transfer
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Failure, Link, connected

_COLUMNS: list[Column[jobs_pb2.ResultFile]] = [
    Column("FILE", lambda f: f.path, whole=True),
    Column("SIZE", lambda f: human.size(f.size_bytes), right=True),
    Column("DIGEST", lambda f: f.digest),
]


@click.command()
@click.argument("job")
@click.argument("paths", nargs=-1)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    metavar="FOLDER",
    help="Where to put them. Default: ./suanli-results/JOB.",
)
@click.option("--list", "list_only", is_flag=True, help="Only list the files.")
@output_option
@connected
async def fetch(link: Link, job: str, paths: tuple[str, ...], to: Path | None, list_only: bool, out: Output) -> None:
    """Copy the results of a job here: all of them, or the files and folders named by PATHS.

    Every file is checked against its digest; files that are there already and equal are left alone.
    """
    found = _chosen(await transfer.list_results(link.connection, job), paths)
    if list_only:
        out.listing(found, _COLUMNS, f"{job} has left no results.")
        return
    if not found:
        out.note(f"{job} has left no results.")
        return
    target = to or Path("suanli-results", job)
    total = human.size(sum(file.size_bytes for file in found))
    with out.progress(f"fetching {len(found)} files, {total}"):
        written = await transfer.fetch(link.connection, job, target, paths)
    if out.form == "table":
        for path in written:
            out.text(str(path))
        out.note(f"{len(written)} {'file' if len(written) == 1 else 'files'}, {total}, in {target}.")
    else:
        out.data([str(await asyncio.to_thread(path.absolute)) for path in written])


def _chosen(files: Iterable[jobs_pb2.ResultFile], paths: Iterable[str]) -> list[jobs_pb2.ResultFile]:
    """The files that ``paths`` name, all when there are none; a ``Failure`` for a path that names nothing."""
    files = list(files)
    for path in paths:
        if not any(_names(path, file.path) for file in files):
            raise Failure(f"The results hold no {path!r}; 'suanli fetch JOB --list' shows what there is.", NOT_FOUND)
    return [file for file in files if not paths or any(_names(path, file.path) for path in paths)]


def _names(path: str, file: str) -> bool:
    return file == path or file.startswith(f"{path.rstrip('/')}/")
