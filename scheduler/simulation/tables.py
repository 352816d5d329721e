"""Tables of what happened: the files that ``suanli simulate export`` writes, read with checks.

A folder holds ``manifest.json``, ``jobs.csv``, ``nodes.csv`` and ``tenants.csv`` (``docs/howto/simulate.md`` lists the columns). Instants and
durations are milliseconds, amounts milli-cores, MiB and milli-GPUs. Every error is an ``InvalidArgument`` of one line that names file,
line and column.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from scheduler.domain.agent import NodeReport
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.simulation.workload import SimTenant

FORMAT = 1
MANIFEST, JOBS, NODES, TENANTS = "manifest.json", "jobs.csv", "nodes.csv", "tenants.csv"
POLICY = "policy.yaml"
MAX_AMOUNT = 1 << 53
MAX_REPLICAS = 4096
NO_LIMIT = -1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PastJob:
    """A job as it went. ``runtime_ms``: what its attempts held, together, from the window's beginning on; ``eligible_ms``: when nothing but a
    place was wanting. ``start_ms`` and ``end_ms`` are 0 where it did not come to that. ``ran_on``: the accelerator type it had;
    ``checkpoints``: it had saved its progress at least once."""

    job_id: str
    institution: str
    project: str
    user: str
    name: str
    state: str
    submit_ms: int
    eligible_ms: int
    start_ms: int
    end_ms: int
    runtime_ms: int
    attempts: int
    evictions: int
    shape: Shape
    priority: PriorityClass
    preemptible: bool
    limit_ms: int
    grace_ms: int
    checkpoints: bool
    ran_on: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """A window [from_ms, to_ms) of a platform's past. ``regions`` maps each region to its nodes."""

    from_ms: int
    to_ms: int
    jobs: tuple[PastJob, ...]
    regions: Mapping[str, tuple[NodeReport, ...]]
    tenants: tuple[SimTenant, ...]


class Row:
    """A line of a table, whose cells are read with checks. Missing optional columns read as empty."""

    def __init__(self, file: str, line: int, cells: Mapping[str, str]) -> None:
        self._file, self._line, self._cells = file, line, cells

    def wrong(self, column: str, why: str) -> NoReturn:
        """Raise the error of a cell."""
        where = f"{self._file}, line {self._line}, column {column}"
        raise InvalidArgument(f"{where}: {why}", field=f"{self._file}:{self._line}:{column}")

    def text(self, column: str, *, empty: bool = True) -> str:
        """The cell without surrounding space."""
        value = self._cells.get(column, "").strip()
        if not value and not empty:
            self.wrong(column, "is empty.")
        return value

    def integer(self, column: str, low: int = 0, high: int = MAX_AMOUNT, default: int | None = None) -> int:
        """A whole number within bounds; ``default`` for an empty cell, where there is one."""
        text = self.text(column, empty=default is not None)
        if not text and default is not None:
            return default
        try:
            value = int(text)
        except ValueError:
            self.wrong(column, f"{text[:40]!r} is no whole number.")
        if not low <= value <= high:
            self.wrong(column, f"{value} is not from {low} to {high}.")
        return value

    def flag(self, column: str, default: bool) -> bool:
        """0 or 1."""
        return bool(self.integer(column, 0, 1, int(default)))

    def names(self, column: str) -> tuple[str, ...]:
        """Names with semicolons between them."""
        return tuple(name for each in self.text(column).split(";") if (name := each.strip()))

    def pairs(self, column: str) -> tuple[tuple[str, str], ...]:
        """A JSON object of strings, as sorted pairs."""
        text = self.text(column)
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            self.wrong(column, 'is no JSON object of strings, as in {"disk": "ssd"}.')
        return tuple(sorted(found.items()))

    def resources(self, low: int = 0, default: int | None = None) -> Resources:
        """The columns cpu_milli, memory_mib and gpu_milli."""
        cpu, memory, gpu = (
            self.integer(name, low, default=default) for name in ("cpu_milli", "memory_mib", "gpu_milli")
        )
        return Resources(cpu, memory, gpu)


def read_history(folder: Path) -> History:
    """Read a folder as ``suanli simulate export`` writes it.

    Raises ``InvalidArgument`` for what is missing or wrong, naming the place.
    """
    manifest = _manifest(folder / MANIFEST)
    jobs = tuple(read_table(folder / JOBS, _JOB_COLUMNS, _job))
    regions: dict[str, list[NodeReport]] = {}
    for region, node, up in read_table(folder / NODES, _NODE_COLUMNS, _node):
        regions.setdefault(region, [])
        if up:
            regions[region].append(node)
    tenants = tuple(read_table(folder / TENANTS, ("institution",), _tenant))
    _unique((each.job_id for each in jobs), JOBS, "job_id")
    _unique(((each.institution, each.project) for each in tenants), TENANTS, "project")
    for region, nodes in regions.items():
        _unique((each.node_id for each in nodes), f"{NODES} (region {region})", "node")
    if not any(regions.values()):
        raise InvalidArgument(f"{NODES}: no node is up, so that nothing could run.", field=NODES)
    window = manifest["from_ms"], manifest["to_ms"]
    return History(*window, jobs, {name: tuple(nodes) for name, nodes in sorted(regions.items())}, tenants)


def read_table(path: Path, needed: Sequence[str], read: Callable[[Row], _T]) -> Iterator[_T]:
    """Read a CSV file with a head line, UTF-8, row by row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            missing = [column for column in needed if column not in (lines.fieldnames or ())]
            if missing:
                raise InvalidArgument(f"{path.name}, line 1: has no column {missing[0]!r}.", field=f"{path.name}:1")
            for cells in lines:
                row = Row(path.name, lines.line_num, {key: value or "" for key, value in cells.items() if key})
                if None in cells or None in cells.values():
                    row.wrong(needed[0], "the line has not as many cells as the head.")
                yield read(row)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}.", field=path.name) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path.name}: is no CSV table in UTF-8: {error}.", field=path.name) from error


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file with a head line."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _manifest(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(
            f"{path}: {error.strerror}; 'suanli simulate export' makes such a folder.", field=path.name
        ) from error
    except ValueError as error:
        raise InvalidArgument(f"{path.name}: is no JSON document: {error}.", field=path.name) from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path.name}: is no JSON object.", field=path.name)
    if found.get("format") != FORMAT:
        raise InvalidArgument(
            f"{path.name}: has format {found.get('format')!r}; this version reads {FORMAT}.", field=path.name
        )
    window = {}
    for name in ("from_ms", "to_ms"):
        value = found.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < MAX_AMOUNT:
            raise InvalidArgument(f"{path.name}: {name} is no instant in milliseconds since 1970.", field=path.name)
        window[name] = value
    if window["to_ms"] <= window["from_ms"]:
        raise InvalidArgument(f"{path.name}: to_ms is not after from_ms.", field=path.name)
    return window


_JOB_COLUMNS = (
    "job_id",
    "institution",
    "submit_ms",
    "start_ms",
    "end_ms",
    "state",
    "runtime_ms",
    "cpu_milli",
    "memory_mib",
    "gpu_milli",
)
_PRIORITIES = {each.name: each for each in PriorityClass}


def _job(row: Row) -> PastJob:
    submit_ms = row.integer("submit_ms", 1)
    priority = row.text("priority").upper() or "NORMAL"
    if priority not in _PRIORITIES:
        row.wrong("priority", f"{priority[:40]!r} is none of {', '.join(_PRIORITIES)}.")
    shape = Shape(
        row.resources(),
        row.integer("replicas", 1, MAX_REPLICAS, 1),
        accelerators=row.names("accelerators"),
        preferred_regions=row.names("preferred_regions"),
        required_regions=row.names("required_regions"),
        pools=row.names("pools"),
        node_selector=row.pairs("node_selector"),
        data_sets=row.names("data_sets"),
        pack=row.text("pack"),
        pack_required=row.flag("pack_required", False),
    )
    job = PastJob(
        row.text("job_id", empty=False),
        row.text("institution", empty=False),
        row.text("project") or "default",
        row.text("user") or "someone",
        row.text("name") or "job",
        row.text("state", empty=False),
        submit_ms,
        row.integer("eligible_ms", default=submit_ms),
        row.integer("start_ms"),
        row.integer("end_ms"),
        row.integer("runtime_ms"),
        row.integer("attempts", default=1),
        row.integer("evictions", default=0),
        shape,
        _PRIORITIES[priority],
        row.flag("preemptible", False),
        row.integer("limit_ms", 1, default=86_400_000),
        row.integer("grace_ms", default=0),
        row.flag("checkpoints", False),
        row.text("accelerator"),
    )
    if job.eligible_ms < submit_ms:
        row.wrong("eligible_ms", f"{job.eligible_ms} is before submit_ms.")
    if job.end_ms and job.end_ms < submit_ms:
        row.wrong("end_ms", f"{job.end_ms} is before submit_ms.")
    if job.start_ms and job.start_ms < submit_ms:
        row.wrong("start_ms", f"{job.start_ms} is before submit_ms.")
    return job


_NODE_COLUMNS = ("region", "node", "pool", "cpu_milli", "memory_mib", "gpu_milli")


def _node(row: Row) -> tuple[str, NodeReport, bool]:
    region, node_id = row.text("region", empty=False), row.text("node", empty=False)
    report = NodeReport(
        node_id,
        row.text("name") or node_id,
        row.text("pool", empty=False),
        row.text("accelerator"),
        row.resources(),
        row.pairs("labels"),
    )
    return region, report, row.flag("up", True)


def _tenant(row: Row) -> SimTenant:
    quota = row.resources(NO_LIMIT, NO_LIMIT)
    return SimTenant(
        row.text("institution", empty=False),
        row.text("project"),
        row.integer("weight", 1, 1_000_000, 1000),
        row.text("home_region"),
        quota if any(amount != NO_LIMIT for amount in quota) else None,
    )


def _unique(keys: Iterable[object], file: str, column: str) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise InvalidArgument(f"{file}, column {column}: {key!r} occurs twice.", field=file)
        seen.add(key)
