"""What a policy, a bigger pool or another region would have done with the jobs of last month.

The simulation runs in a process of its own, ``python -m scheduler.simulation``: it needs the planner, of which the command knows
nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from suanli.cli import exits, human
from suanli.cli.groups import DefaultGroup
from suanli.cli.history import Exported, check_folder, fetched, write
from suanli.cli.output import Column, Output, output_option
from suanli.cli.runtime import Failure, Link, connected
from suanli.cli.values import Instant
from suanli.local.processes import python_path

_MODULE = "scheduler.simulation"
_INTO = "suanli-simulation"
_HISTORY = "history"
_PATIENCE_S = 10.0
_LAST_WORDS = 4096


@click.group(cls=DefaultGroup, default="run", bare=False)
def simulate() -> None:
    """Try a policy, another fleet or more load on what really happened, before anything is changed.

    'suanli simulate --from TIME' is short for 'suanli simulate run --from TIME'.
    """


_FROM = click.option("--from", "from_ms", type=Instant(), metavar="TIME", help="Since: 2026-10, 2026-10-01, 30d (ago).")
_TO = click.option("--to", "to_ms", type=Instant(), metavar="TIME", help="Before. Default: now.")


@simulate.command("export")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_FROM
@_TO
@output_option
def export_history(folder: Path, from_ms: int | None, to_ms: int | None, out: Output) -> None:
    """Write the history of a window into FOLDER: jobs with their run times, nodes and tenants, as CSV.

    It holds what you may see, so that it is whole for an operator. Times are UTC.
    """
    done = _exported(folder, from_ms, to_ms, out)
    counts = done.counts
    if out.form == "table":
        words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        out.text(f"{folder}: {words}, {human.instant(done.from_ms)} to {human.instant(done.to_ms)}")
    else:
        out.data({"folder": str(folder), "from_ms": done.from_ms, "to_ms": done.to_ms, **counts})


def _exported(folder: Path, from_ms: int | None, to_ms: int | None, out: Output) -> Exported:
    if from_ms is None:
        raise click.UsageError("Say since when with --from, as in --from 30d or --from 2026-10-01.")
    check_folder(folder)
    done: list[Exported] = []

    @connected
    async def fetch(link: Link) -> None:
        with out.progress("reading the history") as tell:
            done.append(await fetched(link, from_ms, to_ms or human.now_ms(), tell))

    fetch()
    write(done[0], folder)
    return done[0]


@simulate.command()
@click.argument("history", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@_FROM
@_TO
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME|FILE",
    help="'current' (in force at the export), a preset (suanli, fair, fifo, shortest), or a file with a policy; may be repeated. "
    "The first is the baseline. Default: current.",
)
@click.option("--add-nodes", multiple=True, metavar="REGION/POOL=N", help="So many more nodes like those of the pool.")
@click.option("--remove-nodes", multiple=True, metavar="REGION/POOL=N", help="So many nodes less.")
@click.option("--add-region", multiple=True, metavar="NEW=LIKE", help="A region with the nodes of another one.")
@click.option("--scale-load", default="1", metavar="FACTOR", help="So many times the jobs, as in 1.2.")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=_INTO,
    show_default=True,
    metavar="FOLDER",
    help="Where to leave metrics.json, report.html, drawings, and the jobs of each variant.",
)
@click.option("--no-plots", is_flag=True, help="Draw nothing; needs no matplotlib.")
@output_option
def run(
    history: Path | None,
    from_ms: int | None,
    to_ms: int | None,
    policies: tuple[str, ...],
    add_nodes: tuple[str, ...],
    remove_nodes: tuple[str, ...],
    add_region: tuple[str, ...],
    scale_load: str,
    into: Path,
    no_plots: bool,
    out: Output,
) -> None:
    """Simulate an exported HISTORY, or with --from the platform's own, which is exported first.

    The baseline is the first policy with everything as it was. Beside it stand the other policies; or, with --add-nodes,
    --remove-nodes, --add-region or --scale-load, every policy with these changes.
    """
    if history is None:
        history = into / _HISTORY
        _exported(history, from_ms, to_ms, out)
    elif from_ms is not None or to_ms is not None:
        raise click.UsageError("Give either a folder or --from and --to: a folder has a window of its own.")
    # Relative names and those with a dash at the beginning stay what they are for the other process.
    words = [str(history.resolve()), f"--into={into}", f"--scale-load={scale_load}"]
    words += [f"--policy={text}" for text in policies]
    words += [f"--add-nodes={text}" for text in add_nodes]
    words += [f"--remove-nodes={text}" for text in remove_nodes]
    words += [f"--add-region={text}" for text in add_region]
    words += ["--no-plots"] if no_plots else []
    result = _simulated(words, out)
    if out.form != "table":
        out.data(result["metrics"])
        return
    for table in result["tables"]:
        if table["title"]:
            out.console.print()
            out.console.print(table["title"], style="bold")
        out.table(table["rows"], [_column(index, title) for index, title in enumerate(table["head"])], "")
    changes = next((one["changes"] for one in result["metrics"]["variants"] if one["changes"]), "")
    if changes:
        out.note(f"Changed: {changes}.")
    _say_what_is_left_out(result["metrics"], out)
    out.note(f"{into / 'report.html'} shows it over time.")


def _column(index: int, title: str) -> Column[list[str]]:
    return Column(title, lambda row: row[index], right=index > 0, whole=True)


def _say_what_is_left_out(metrics: dict[str, Any], out: Output) -> None:
    never = metrics["jobs"]["never_ran"]
    if never:
        out.note(f"{never:,} jobs never ran and are left out: nobody knows for how long they would have.")
    for variant in metrics["variants"]:
        for one in variant["refused"][:5]:
            out.note(f"{variant['label']}: refuses {one['job_id']} ({one['name']}): {one['message']}")
        more = variant["figures"]["refused"] - min(5, len(variant["refused"]))
        if more > 0:
            out.note(f"{variant['label']}: refuses {more:,} more; see report.html.")


def _simulated(words: Sequence[str], out: Output) -> dict[str, Any]:
    """Run the simulation in a process of its own, showing how far it is; returns what it says in the end."""
    # In a group of its own, so that Ctrl-C comes here alone.
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": python_path(), "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,
    )
    try:
        result = _followed(process, out)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(_PATIENCE_S)
    if result is None or result["kind"] == "error":
        sentence = result["message"] if result else f"The simulation ended with {code}."
        raise Failure(sentence, exits.USAGE if code == exits.USAGE else exits.FAILED)
    return result


def _followed(process: subprocess.Popen[str], out: Output) -> dict[str, Any] | None:
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    last: dict[str, Any] | None = None
    with _bars(out) as show:
        for line in process.stdout:
            said = json.loads(line)
            if said["kind"] in ("result", "error"):
                last = said
            else:
                show(said)
    reader.join(_PATIENCE_S)
    if last is None and errors:
        raise Failure("The simulation failed:\n" + "".join(errors)[-_LAST_WORDS:].rstrip())
    return last


@contextmanager
def _bars(out: Output) -> Iterator[Any]:
    """A bar for each variant, on a terminal and only there."""
    console = out.notes
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bars: dict[int, Any] = {}

        def show(said: dict[str, Any]) -> None:
            if "variant" in said:
                number = said["variant"]
                if number not in bars:
                    bars[number] = progress.add_task(human.one_line(said["label"]), total=said["of"])
                progress.update(bars[number], completed=said["done"])

        yield show
