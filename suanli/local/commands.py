"""The commands ``up``, ``down``, ``status`` and ``demo``."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from suanli.cli.output import Column, Output, output_option, plain_output
from suanli.cli.runtime import Failure, Session
from suanli.local import processes
from suanli.local.launcher import Launcher, Part, Progress, Wanted
from suanli.local.state import LocalError, StateDir, Up, parse_regions

_WATCH_S = 1.0
_RENEW_S = 3600.0
"""How often certificates are looked at in the foreground."""
_COLUMNS: list[Column[Part]] = [
    Column("PART", lambda part: part.name, whole=True),
    Column("STATE", lambda part: "running" if part.alive else "ended"),
    Column("PID", lambda part: str(part.pid), right=True),
    Column("", lambda part: part.detail),
]


class _Regions(click.ParamType[tuple[str, ...]]):
    name = "regions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Read "east,west"."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_regions(value)
        except LocalError as error:
            self.fail(str(error), param, ctx)


_STATE_OPTION = click.option(
    "--state-dir",
    metavar="FOLDER",
    help="Where to keep everything. [default: $SUANLI_STATE_DIR or ~/.local/state/suanli]",
)


@click.command()
@click.option(
    "--regions", type=_Regions(), metavar="NAMES", help="As in east,west. [default: those of last time, or local]"
)
@_STATE_OPTION
@click.option(
    "--cpus-per-region", type=click.IntRange(1, 1024), help="CPUs to declare. [default: those of this machine]"
)
@click.option(
    "--gpus-per-region",
    type=click.IntRange(0, 64),
    help="GPUs to declare; nothing checks that they exist. [default: 0]",
)
@click.option(
    "--memory-per-region",
    type=click.IntRange(256, 1 << 26),
    metavar="MIB",
    help="Memory to declare. [default: a fair part]",
)
@click.option("--foreground", is_flag=True, help="Stay, start again what dies, and take everything down at Ctrl-C.")
@click.option("--detach", "foreground", flag_value=False, help="Leave it running and return. [default]")
def up(
    regions: tuple[str, ...] | None,
    state_dir: str | None,
    cpus_per_region: int | None,
    gpus_per_region: int | None,
    memory_per_region: int | None,
    foreground: bool,
) -> None:
    """Run Suanli on this machine: a control plane, and a Ray cluster with an agent for each region.

    Run it again to start what has died, or with more --regions to add some. Everything listens on 127.0.0.1 only.
    """
    state = _state(state_dir)
    out = plain_output()
    wanted = Wanted(regions, cpus_per_region, gpus_per_region, memory_per_region)
    began = time.monotonic()
    with _failures(), _shown(out, "Starting") as progress:
        up, begun = Launcher(state, progress).up(wanted)
    names = ", ".join(up.regions)
    if not begun:
        out.note(f"Suanli runs already in {state.path} (regions: {names}).")
    else:
        out.note(f"Suanli is up after {time.monotonic() - began:.0f} s, with the regions {names}.")
    out.text(f"control plane  {up.address}\nmetrics        http://{up.metrics}/metrics\nstate          {state.path}")
    option = f" --state-dir {state_dir}" if state_dir else ""
    out.note(f"Try: suanli{option} submit --wait -- echo hello    End it: suanli down{option}")
    if foreground:
        _stay(state, out)


@click.command()
@_STATE_OPTION
def down(state_dir: str | None) -> None:
    """End what 'suanli up' has started. Running jobs are stopped and queued again; the next 'up' runs them."""
    state = _state(state_dir)
    out = plain_output()
    if not state.path.is_dir():
        out.note(f"Nothing runs in {state.path}.")
        return
    with _failures(), _shown(out, "Stopping") as progress:
        count = Launcher(state, progress).down()
    out.note("Suanli is down; jobs, results and usage are kept." if count else f"Nothing runs in {state.path}.")


@click.command()
@_STATE_OPTION
@output_option
def status(state_dir: str | None, out: Output) -> None:
    """Say what runs on this machine; exit code 1 when something of it has died."""
    state = _state(state_dir)
    with _failures():
        found = Launcher(state, _silent).status() if state.path.is_dir() else None
    if found is None:
        raise Failure(f"Nothing runs in {state.path}; 'suanli up' starts it.")
    up, parts = found
    if out.form == "table":
        out.table(parts, _COLUMNS, "")
    else:
        out.data(_status_data(state, up, parts))
    if not all(part.alive for part in parts):
        out.note("Something has died; 'suanli up' starts it again.")
        sys.exit(1)


def _status_data(state: StateDir, up: Up, parts: list[Part]) -> dict[str, object]:
    return {
        "state_dir": str(state.path),
        "address": up.address,
        "metrics": up.metrics,
        "regions": list(up.regions),
        "parts": [{"name": p.name, "pid": p.pid, "alive": p.alive, "detail": p.detail} for p in parts],
    }


def _stay(state: StateDir, out: Output) -> None:
    """Mend what dies until a signal comes, then take everything down."""
    stop = threading.Event()
    before = [signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)]
    out.note("Ctrl-C ends it.")
    with _failures():
        renew_at = time.monotonic() + _RENEW_S
        try:
            while not stop.wait(_WATCH_S):
                up = state.read_up()
                if up is None:
                    out.note("It was taken down by another command.")
                    return
                for process in up.processes.values():
                    if not processes.is_alive(process):
                        out.note(f"{process.name} has died; starting it again.")
                due = time.monotonic() >= renew_at
                if due or not all(map(processes.is_alive, up.processes.values())):
                    renew_at = time.monotonic() + _RENEW_S
                    _mend(state, out)
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
        with _shown(out, "Stopping") as progress:
            Launcher(state, progress).down()
    out.note("Suanli is down; jobs, results and usage are kept.")


def _mend(state: StateDir, out: Output) -> None:
    try:
        Launcher(state, _silent).up(Wanted())
    except LocalError as error:
        # Another command may be at it, or the machine be short of something for a while: the next look tries again.
        out.note(str(error))


def _state(option: str | None) -> StateDir:
    session = click.get_current_context().find_object(Session)
    return StateDir(option or (session.state_dir if session else None))


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except LocalError as error:
        raise Failure(str(error)) from error


@contextlib.contextmanager
def _shown(out: Output, verb: str) -> Iterator[Progress]:
    """Show the parts that are not done yet."""
    busy: dict[str, str] = {}
    guard = threading.Lock()
    with out.progress(f"{verb}…") as say:

        def progress(name: str, doing: str) -> None:
            with guard:
                if doing in {"ready", "stopped"}:
                    busy.pop(name, None)
                else:
                    busy[name] = doing
                say(f"{verb}: {', '.join(sorted(busy)) or '…'}")

        yield progress


def _silent(name: str, doing: str) -> None:
    del name, doing


@click.command()
@click.option(
    "--results",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo-results",
    show_default=True,
    help="Where to leave the report and the results.",
)
def demo(folder: Path) -> None:
    """Show all of it: two institutions, two regions, real education data, a report; nothing stays running.

    Takes a minute or two. Uses a state folder of its own, so that it does not touch a running 'suanli up'.
    """
    # What only the demonstration needs is imported only for it.
    from suanli.local.demo.report import bill_lines
    from suanli.local.demo.run import PAGE_FILE, run_demo

    out = plain_output()
    began = time.monotonic()
    with _failures(), out.progress("The demonstration runs…"):
        findings = run_demo(folder, lambda text: out.note(f"{time.monotonic() - began:6.1f} s  {text}"))
    out.lines(bill_lines(findings))
    out.note(f"The report: {folder / PAGE_FILE}")
    if findings.problems:
        raise Failure("\n".join(["Not everything went well:", *findings.problems]))
