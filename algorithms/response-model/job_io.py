"""What every algorithm of the catalogue shares: parameters, folders, tables, plots and errors.

Each algorithm's folder is sent to a machine alone, so each carries its own copy of this file. The copies are
byte-identical and a test keeps them so: edit one, then copy it to the others.

The contract is the environment (`SUANLI_PARAMETERS`, `SUANLI_RESULTS`, `SUANLI_CHECKPOINT`, `SUANLI_DATA`, `RANK`,
`WORLD_SIZE`); each variable is the default of a command-line flag, so the same program runs by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

EXIT_BAD_INPUT = 2
MAX_TABLE_BYTES = 512 * 1024 * 1024
MAX_TABLE_ROWS = 2_000_000
MAX_TABLE_COLUMNS = 4_096
MAX_PARAMETER_BYTES = 1024 * 1024

# Colours that people with the common forms of colour blindness can tell apart (Okabe and Ito).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#44AA99", "#999933")
INK = "#1f2933"
MUTED = "#7b8794"


class InputError(Exception):
    """The parameters or the data cannot be used. The message is one sentence for the person who sent them."""


@dataclass(frozen=True)
class Job:
    """One run of an algorithm: its manifest, validated parameters and folders."""

    manifest: Mapping[str, Any]
    parameters: Mapping[str, Any]
    results: Path
    checkpoint: Path
    data: Path | None
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the job's results (rank 0 of a gang, or a job that is no gang)."""
        return self.rank == 0


@dataclass(frozen=True)
class Table:
    """A CSV table as text: column names and rows, every row as long as the header."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[str]]

    def text(self, column: str) -> list[str]:
        """One column's cells, stripped; `InputError` when the table has no such column."""
        if column not in self.columns:
            raise InputError(f"{self.name} has no column {column!r}; it has {_some(self.columns)}.")
        at = self.columns.index(column)
        return [row[at].strip() for row in self.rows]

    def numbers(self, column: str) -> list[float]:
        """One column as finite floats; `InputError` names the first row that is not a number."""
        values = []
        for line, cell in enumerate(self.text(column), start=2):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise InputError(f"{self.name}, line {line}: column {column!r} holds {cell[:40]!r}, not a number.")
            values.append(value)
        return values


def load_job(argv: Sequence[str] | None = None) -> Job:
    """Read the manifest beside this file, the flags and the environment, and check the parameters."""
    folder = Path(__file__).resolve().parent
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text(encoding="utf-8"))
    env = os.environ
    parser = argparse.ArgumentParser(description=f"{manifest['title']} ({manifest['name']} {manifest['version']})")
    parser.add_argument("--parameters", default=env.get("SUANLI_PARAMETERS"), help="JSON file of parameters")
    parser.add_argument("--results", default=env.get("SUANLI_RESULTS", f"results-{manifest['name']}"))
    parser.add_argument("--checkpoint", default=env.get("SUANLI_CHECKPOINT"), help="default: RESULTS/checkpoint")
    parser.add_argument("--data", default=env.get("SUANLI_DATA"), help="folder of data sets, one folder each")
    flags = parser.parse_args(argv)
    parameters = _parameters(flags.parameters, manifest["parameters"])
    results = Path(flags.results)
    checkpoint = Path(flags.checkpoint) if flags.checkpoint else results / "checkpoint"
    rank, world_size = _integer("RANK", 0), _integer("WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise InputError(f"RANK is {rank} but WORLD_SIZE is {world_size}.")
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The results folder {results} cannot be made: {error.strerror}.") from error
    data = Path(flags.data) if flags.data else None
    return Job(manifest, parameters, results, checkpoint, data, rank, world_size)


def run(body: Callable[[Job], int | None]) -> int:
    """Run an algorithm's body and return its exit code: 2 and one sentence on stderr for a bad input."""
    try:
        return body(load_job()) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def find_table(job: Job, dataset: str, file: str) -> Path:
    """Where a data set's table is: granted (`<SUANLI_DATA>/<dataset>/<file>`) or shipped (`data/<dataset>.csv`)."""
    if job.data is not None and (job.data / dataset).is_dir():
        folder = (job.data / dataset).resolve()
        path = (folder / file).resolve()
        if not path.is_relative_to(folder):
            raise InputError(f"The file {file!r} is outside the data set {dataset!r}.")
        if not path.is_file():
            raise InputError(f"The data set {dataset!r} has no file {file!r}.")
        return path
    shipped = Path(__file__).resolve().parent / "data"
    path = shipped / f"{dataset}.csv"
    if re.fullmatch(r"[A-Za-z0-9._-]+", dataset) and path.is_file():
        return path
    names = _some(sorted(each.stem for each in shipped.glob("*.csv")))
    raise InputError(f"There is no data set {dataset!r}: it is neither granted to this job nor shipped ({names}).")


def read_table(path: Path) -> Table:
    """Read a CSV file with a header; `InputError` when it is missing, empty, ragged, too large or not UTF-8."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{path.name} is larger than {MAX_TABLE_BYTES // 1024**2} MiB.")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _read_rows(path.name, csv.reader(stream, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text.") from error
    except csv.Error as error:
        raise InputError(f"{path.name} is not a CSV file: {error}.") from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; infinite and undefined numbers are refused, as JSON has none."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all; floats with 10 significant digits, None as an empty cell."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    temporary.replace(path)


def plot_style() -> Any:
    """Matplotlib settings the catalogue's figures share; use with `matplotlib.rc_context`."""
    return {
        "figure.dpi": 144,
        "savefig.bbox": "tight",
        "font.size": 9.5,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e7eb",
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
    }


def _parameters(path: str | None, schema: Mapping[str, Any]) -> dict[str, Any]:
    given: Any = {}
    if path:
        try:
            if Path(path).stat().st_size > MAX_PARAMETER_BYTES:
                raise InputError(f"The parameter file {path} is larger than {MAX_PARAMETER_BYTES} bytes.")
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The parameter file {path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"The parameter file {path} is not JSON: {error}.") from error
    if isinstance(given, dict):
        defaults = {name: each["default"] for name, each in schema["properties"].items() if "default" in each}
        given = defaults | given
    validator = jsonschema.Draft202012Validator(dict(schema))
    first = next(iter(sorted(validator.iter_errors(given), key=lambda error: list(map(str, error.path)))), None)
    if first is not None:
        where = f"Parameter {'.'.join(map(str, first.path))!r}" if first.path else "The parameters"
        raise InputError(f"{where}: {first.message[:300]}.")
    return dict(given)


def _read_rows(name: str, reader: Iterable[list[str]]) -> Table:
    lines = iter(reader)
    header = [column.strip() for column in next(lines, [])]
    if not any(header):
        raise InputError(f"{name} is empty.")
    if len(header) > MAX_TABLE_COLUMNS:
        raise InputError(f"{name} has {len(header)} columns; the most is {MAX_TABLE_COLUMNS}.")
    if len(set(header)) != len(header) or "" in header:
        raise InputError(f"{name}: every column needs a name of its own.")
    rows: list[list[str]] = []
    for line, row in enumerate(lines, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{name}, line {line}: {len(row)} cells where the header has {len(header)}.")
        if len(rows) == MAX_TABLE_ROWS:
            raise InputError(f"{name} has more than {MAX_TABLE_ROWS} rows.")
        rows.append(row)
    if not rows:
        raise InputError(f"{name} has a header but no rows.")
    return Table(name, tuple(header), rows)


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,6}", text):
        raise InputError(f"{name} is {text[:40]!r}, not a whole number.")
    return int(text)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 12 else shown
