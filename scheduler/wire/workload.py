"""What a job runs: from the three forms a spec allows to one command."""

from __future__ import annotations

import re
from typing import Protocol

from protos.suanli.v1 import jobs_pb2, stored_pb2
from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.spec import Workload
from scheduler.wire.check import count, invalid, program_text, shown, text

MAX_ARGUMENTS = 1024
MAX_PROGRAM_BYTES = 128 * 1024
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_NAME = 128
MAX_PATH = 1024

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Algorithms(Protocol):
    """The catalogue, as far as a spec's conversion needs it."""

    def resolve(self, name: str, version: str, parameters_json: str, field: str) -> ResolvedAlgorithm:
        """The algorithm with its parameters checked and filled in. ``InvalidArgument`` below ``field``."""
        ...


def complete_workload(stored: stored_pb2.StoredSpec, algorithms: Algorithms, field: str) -> ResolvedAlgorithm | None:
    """Check the workload and fill in what the catalogue decides; returns the algorithm when it is one."""
    spec = stored.spec
    kind = spec.WhichOneof("workload")
    if kind == "command":
        _check_command(spec.command, f"{field}.command")
    elif kind == "python":
        _check_python(spec, f"{field}.python")
    elif kind == "algorithm":
        return _complete_algorithm(stored, algorithms, field)
    else:
        invalid(f"{field}.workload", "the job says nothing to run; set one of command, python or algorithm.")
    return None


def _check_command(command: jobs_pb2.Command, field: str) -> None:
    argv = command.argv
    if not argv or not argv[0]:
        invalid(
            f"{field}.argv", "it names no program; give the program and its arguments, as in ['python', 'train.py']."
        )
    _check_arguments(list(argv), f"{field}.argv")


def _check_arguments(values: list[str], field: str) -> None:
    count(len(values), MAX_ARGUMENTS, field, "arguments")
    program_text(values, MAX_PROGRAM_BYTES, field)


def _check_python(spec: jobs_pb2.JobSpec, field: str) -> None:
    entry = spec.python
    target = entry.WhichOneof("target")
    if target == "script":
        check_relative_path(entry.script, f"{field}.script")
        if not spec.working_folder:
            invalid(
                f"{field}.script", "a script needs the folder it lies in; upload one and name it in working_folder."
            )
    elif target == "module":
        if len(entry.module) > MAX_PATH or _MODULE.fullmatch(entry.module) is None:
            invalid(f"{field}.module", f"{shown(entry.module)} is not a module's name; give one as in 'package.train'.")
    else:
        invalid(field, "it names no program; set script or module.")
    _check_arguments(list(entry.args), f"{field}.args")


def check_relative_path(path: str, field: str) -> None:
    """A file below a folder: relative, without ``..``, and not to be taken for an option."""
    if not path:
        invalid(field, "it is empty; give a path relative to the working folder.")
    text(path, MAX_PATH, field)
    if path.startswith(("/", "-")) or ".." in path.split("/"):
        invalid(field, f"{shown(path)} is not a path within the working folder; give one as in 'src/train.py'.")


def _complete_algorithm(stored: stored_pb2.StoredSpec, algorithms: Algorithms, field: str) -> ResolvedAlgorithm:
    spec = stored.spec
    run = spec.algorithm
    if spec.working_folder:
        invalid(f"{field}.working_folder", "an algorithm brings its own folder; leave it empty.")
    size = len(run.parameters_json.encode())
    if size > MAX_PARAMETERS_BYTES:
        invalid(
            f"{field}.algorithm.parameters_json",
            f"{size:,} bytes are too many; give at most {MAX_PARAMETERS_BYTES:,}, larger things as a data set.",
        )
    resolved = algorithms.resolve(run.name, run.version, run.parameters_json, f"{field}.algorithm")
    run.version = resolved.version
    run.parameters_json = resolved.parameters_json
    stored.algorithm_argv.extend(resolved.argv)
    stored.algorithm_folder = resolved.folder
    return resolved


def derived_name(spec: jobs_pb2.JobSpec) -> str:
    """A name for a job that was given none."""
    kind = spec.WhichOneof("workload")
    if kind == "command":
        name = spec.command.argv[0].rstrip("/").rpartition("/")[2]
    elif kind == "python":
        name = spec.python.script.rpartition("/")[2] or spec.python.module
    else:
        name = spec.algorithm.name
    return "".join(c for c in name if c.isprintable())[:MAX_NAME] or "job"


def workload_of(stored: stored_pb2.StoredSpec) -> Workload:
    """The resolved workload of a completed specification."""
    spec = stored.spec
    kind = spec.WhichOneof("workload")
    if kind == "command":
        return Workload("command", tuple(spec.command.argv), spec.working_folder)
    if kind == "python":
        entry = spec.python
        target = (entry.script,) if entry.WhichOneof("target") == "script" else ("-m", entry.module)
        return Workload("python", ("python", *target, *entry.args), spec.working_folder)
    run = spec.algorithm
    return Workload(
        "algorithm",
        tuple(stored.algorithm_argv),
        stored.algorithm_folder,
        run.parameters_json,
        f"{run.name}@{run.version}",
    )
