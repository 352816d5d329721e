"""``python -m scheduler.simulation HISTORY --into FOLDER``: simulate variants of a history, and leave the figures in a folder.

Prints a line of JSON for each thing that happens: {"kind": "progress"}, {"kind": "variant"}, then {"kind": "result"} with the
contents of ``metrics.json``, or {"kind": "error"}. Ends with 0, 2 (a wrong argument or file) or 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from scheduler.domain.errors import FailedPrecondition, InvalidArgument, SuanliError
from scheduler.planning.runtimes import RuntimeModel
from scheduler.simulation import page, plots
from scheduler.simulation.comparison import Result, report
from scheduler.simulation.series import series
from scheduler.simulation.tables import POLICY, History, read_history, write_table
from scheduler.simulation.trial import Changes, Variant, scenario, variants
from scheduler.simulation.world import Simulation

FAILED, USAGE = 1, 2
METRICS, HISTORY = "metrics.json", "history"
MAX_LOAD_MILLI = 100_000
_JOB_COLUMNS = (
    "job_id",
    "institution",
    "project",
    "user",
    "name",
    "submit_ms",
    "start_ms",
    "end_ms",
    "wait_ms",
    "held_ms",
    "evictions",
    "region",
    "refused",
    "happened_start_ms",
    "happened_end_ms",
)


def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code."""
    try:
        asked = _parser().parse_args(arguments)
        changes = Changes(
            tuple(_pool_count(text, "--add-nodes") for text in asked.add_nodes),
            tuple(_pool_count(text, "--remove-nodes") for text in asked.remove_nodes),
            tuple(_region_copy(text) for text in asked.add_region),
            _load(asked.scale_load),
        )
        metrics = compare(asked.history, asked.into, asked.policy, changes, with_plots=not asked.no_plots)
    except SuanliError as error:
        _say(kind="error", message=error.message, field=error.field, reason=error.reason)
        return USAGE if isinstance(error, InvalidArgument) else FAILED
    except OSError as error:
        _say(kind="error", message=f"{error.filename or asked.into}: {error.strerror}.", field="", reason="IO")
        return FAILED
    _say(kind="result", metrics=metrics, tables=page.tables(metrics))
    return 0


def compare(folder: Path, into: Path, policies: Sequence[str], changes: Changes, *, with_plots: bool) -> dict[str, Any]:
    """Simulate everything that is asked for and write the files; returns the contents of ``metrics.json``."""
    if with_plots:
        plots.check_available()
    current = folder / POLICY
    chosen = variants(policies, changes, current if current.is_file() else None)
    history = read_history(folder)
    # What cannot be tried is said before the first of many simulations.
    scenarios = [scenario(history, variant) for variant in chosen]
    _empty(into)
    weights = {each.institution: each.weight for each in history.tenants if not each.project}
    results = []
    for number, (variant, (given, origins)) in enumerate(zip(chosen, scenarios, strict=True)):
        # Each begins without a memory, and learns from the jobs that end, as the live server does.
        simulation = Simulation(given, variant.policy, RuntimeModel())
        whole, began = len(given.jobs), time.monotonic()
        about = {"variant": number, "variants": len(chosen), "label": variant.label, "of": whole}
        _say(kind="progress", **about, done=0)
        outcome = simulation.run(tell=lambda done, about=about: _say(kind="progress", **about, done=done))  # type: ignore[misc]
        seconds = time.monotonic() - began
        _say(kind="variant", **about, done=simulation.ended, seconds=round(seconds, 3), events=outcome.events)
        result = Result(variant, outcome, origins, series(outcome, weights, history.from_ms, history.to_ms))
        write_table(into / f"jobs-{number + 1}-{_slug(variant)}.csv", _JOB_COLUMNS, _job_rows(result))
        results.append(result)
    return _leave(history, results, into, with_plots)


def _empty(into: Path) -> None:
    """Make the folder, without what an earlier simulation left in it; the history it was made from may lie there."""
    into.mkdir(parents=True, exist_ok=True)
    if not (into / METRICS).exists() and any(path.name != HISTORY for path in into.iterdir()):
        raise FailedPrecondition(f"{into} holds something other than an earlier simulation; choose another folder.")
    for old in (*into.glob("jobs-*.csv"), *into.glob("*.png"), into / "report.html"):
        old.unlink(missing_ok=True)


def _leave(history: History, results: Sequence[Result], into: Path, with_plots: bool) -> dict[str, Any]:
    metrics = report(history, results)
    (into / METRICS).write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    images = []
    if with_plots:
        _say(kind="drawing")
        images = [(into / name, title) for name, title in plots.draw(history, results, into)]
    version = metadata.version("suanli")
    (into / "report.html").write_text(page.render(metrics, images, version), encoding="utf-8")
    return metrics


def _job_rows(result: Result) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for each, past in zip(result.outcome.jobs, result.origins, strict=True):
        job = each.job
        rows.append(
            (
                past.job_id if past else "",
                job.institution,
                job.project,
                job.user,
                job.name,
                job.submit_ms,
                each.start_ms if each.start_ms >= 0 else "",
                each.end_ms if each.ended else "",
                each.wait_ms if each.ended else "",
                each.held_ms,
                each.evictions,
                each.region,
                each.refused,
                past.start_ms or "" if past else "",
                past.end_ms or "" if past else "",
            )
        )
    return rows


def _slug(variant: Variant) -> str:
    return re.sub(r"[^a-z0-9]+", "-", variant.label.lower()).strip("-")[:60] or "variant"


def _pool_count(text: str, option: str) -> tuple[str, str, int]:
    """``east/gpu=4``."""
    found = re.fullmatch(r"([^/=\s]+)/([^/=\s]+)=(\d{1,6})", text)
    if found is None or int(found[3]) < 1:
        raise InvalidArgument(
            f"{option}: {text!r} is not of the form REGION/POOL=COUNT, as in east/gpu=4.", field=option
        )
    return found[1], found[2], int(found[3])


def _region_copy(text: str) -> tuple[str, str]:
    """``north=east``."""
    found = re.fullmatch(r"([a-z][a-z0-9-]{0,62})=([^/=\s]+)", text)
    if found is None:
        raise InvalidArgument(
            f"--add-region: {text!r} is not of the form NEW=LIKE, as in north=east.", field="--add-region"
        )
    return found[1], found[2]


def _load(text: str) -> int:
    """1000 times a factor written with at most three decimals."""
    found = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,3}))?", text)
    milli = int(found[1]) * 1000 + int((found[2] or "").ljust(3, "0")) if found else 0
    if not 0 < milli <= MAX_LOAD_MILLI:
        raise InvalidArgument(
            f"--scale-load: {text!r} is no factor from 0.001 to {MAX_LOAD_MILLI // 1000}, as in 1.2.",
            field="--scale-load",
        )
    return milli


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """As every other wrong argument."""
        raise InvalidArgument(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m scheduler.simulation", description=__doc__)
    parser.add_argument("history", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--policy", action="append", default=[])
    parser.add_argument("--add-nodes", action="append", default=[])
    parser.add_argument("--remove-nodes", action="append", default=[])
    parser.add_argument("--add-region", action="append", default=[])
    parser.add_argument("--scale-load", default="1")
    parser.add_argument("--no-plots", action="store_true")
    return parser


def _say(**what: object) -> None:
    print(json.dumps(what, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
