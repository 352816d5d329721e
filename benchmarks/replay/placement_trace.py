"""Reads a placement trace in the form of fgd-openb: nodes, pods, the order of arrival and the rank of nodes, a column a seed."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class TraceError(Exception):
    """A file is missing or not of the form it should have; the text names the file and what is wrong."""


class PodShape(NamedTuple):
    """What a pod asks for. ``gpu_milli`` is of each of ``num_gpu`` GPUs; ``models``: those allowed (none: any)."""

    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    num_gpu: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The cluster and the pods; ``pods`` are indexes into ``shapes``, ``specs`` the allowed models as written, one a shape."""

    names: list[str]
    cpu_milli: Ints
    memory_mib: Ints
    gpus: Ints
    models: list[str]
    shapes: list[PodShape]
    specs: list[str]
    pods: Ints

    @property
    def gpu_milli(self) -> int:
        """All GPUs of the cluster."""
        return int(self.gpus.sum()) * 1000

    def allowed(self, shape: PodShape) -> npt.NDArray[np.bool_]:
        """Which nodes have a model that the pod may use."""
        return np.array([not shape.models or model in shape.models for model in self.models], dtype=np.bool_)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows by line number; every one of ``columns`` has a text, though it may be empty."""
    try:
        with _open(path) as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(f"{path}: no column {missing[0]!r}")
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise TraceError(f"{path}, line {reader.line_num}: too few columns")
                yield reader.line_num, row
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    try:
        number = int(row[column])
    except ValueError:
        raise TraceError(f"{path}, line {line}: {column} is no integer: {row[column]!r}") from None
    if not 0 <= number < 1 << 40:
        raise TraceError(f"{path}, line {line}: {column} is out of range: {number}")
    return number


def read_trace(nodes_path: Path, pods_path: Path) -> Trace:
    """The cluster and the pods; raises ``TraceError``."""
    names, models = [], []
    capacity: list[tuple[int, int, int]] = []
    for line, row in _rows(nodes_path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        names.append(row["sn"])
        models.append(row["model"])
        cpu, memory, gpus = (_number(nodes_path, line, row, column) for column in ("cpu_milli", "memory_mib", "gpu"))
        if gpus > 1024:
            raise TraceError(f"{nodes_path}, line {line}: gpu is out of range: {gpus}")
        capacity.append((cpu, memory, gpus))
    if len(set(names)) < len(names):
        raise TraceError(f"{nodes_path}: two nodes have the same sn")
    if not any(gpus for _, _, gpus in capacity):
        raise TraceError(f"{nodes_path}: no node has a GPU, so there is nothing to measure")
    numbers: dict[tuple[PodShape, str], int] = {}
    pods = []
    for line, row in _rows(pods_path, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")):
        shape = _shape(pods_path, line, row)
        pods.append(numbers.setdefault((shape, row["gpu_spec"]), len(numbers)))
    if not pods:
        raise TraceError(f"{pods_path}: no pods")
    columns = np.array(capacity, dtype=np.int64)
    return Trace(
        names,
        columns[:, 0].copy(),
        columns[:, 1].copy(),
        columns[:, 2].copy(),
        models,
        [shape for shape, _ in numbers],
        [spec for _, spec in numbers],
        np.array(pods, dtype=np.int64),
    )


def _shape(path: Path, line: int, row: dict[str, str]) -> PodShape:
    cpu, memory, gpus, milli = (
        _number(path, line, row, column) for column in ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
    )
    if gpus == 0:
        return PodShape(cpu, memory, 0, 0, ())
    if not 1 <= milli <= 1000 or (gpus > 1 and milli != 1000):
        raise TraceError(f"{path}, line {line}: gpu_milli must be 1..1000, and 1000 where num_gpu is more than 1")
    return PodShape(cpu, memory, milli, gpus, tuple(sorted(filter(None, row["gpu_spec"].split("|")))))


def read_arrivals(path: Path, seed: int, pods: int) -> Ints:
    """The pods (row numbers, from 0) in the order of arrival; raises ``TraceError``."""
    column = f"seed_{seed}"
    order = [_number(path, line, row, column) for line, row in _rows(path, (column,)) if row[column]]
    if not order:
        raise TraceError(f"{path}: nothing arrives in column {column!r}")
    if max(order) >= pods:
        raise TraceError(
            f"{path}: column {column!r} names pod {max(order)}, but there are {pods} pods, numbered from 0"
        )
    return np.array(order, dtype=np.int64)


def read_rank(path: Path, seed: int, names: list[str]) -> Ints:
    """The rank of each node (of nodes that are equally good the smaller wins); raises ``TraceError``."""
    column = f"seed_{seed}"
    ranks = {row["sn"]: _number(path, line, row, column) for line, row in _rows(path, ("sn", column))}
    for name in names:
        if name not in ranks:
            raise TraceError(f"{path}: no rank for node {name!r}")
    return np.array([ranks[name] for name in names], dtype=np.int64)
