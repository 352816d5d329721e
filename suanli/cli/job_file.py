"""Job files: YAML documents with the words of ``suanli.spec.JobOptions``, each a job, and errors that name the line."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from suanli.cli import exits
from suanli.cli.runtime import Failure
from suanli.errors import SuanliError

MAX_BYTES = 8 << 20
MAX_JOBS = 10_000
MAX_NODES = 500_000
"""Values in all documents together, those behind aliases counted each time they are used."""
_AT = re.compile(r"(?:jobs\[(\d+)\]|spec)(?:\.(.*))?", re.DOTALL)
_AFTER = ("after", "after_any")

OPTION_OF = {
    "resources.cpu_milli": "cpus",
    "resources.memory_mib": "memory",
    "resources.gpu_milli": "gpus",
    "accelerators": "gpu_types",
    "preferred_regions": "regions",
    "required_regions": "only_regions",
    "node_selector": "node_labels",
    "topology.level": "pack",
    "topology.required": "pack_required",
    "ray.object_store_mib": "ray_object_store",
    "environment": "env",
    "priority_class": "priority",
    "max_runtime_ms": "max_runtime",
    "retry.max_retries": "retries",
    "retry.backoff_ms": "retry_backoff",
    "dependencies": "after",
    "array.size": "array",
    "array.max_parallel": "array_parallel",
    "grace_period_ms": "grace_period",
    "partition_policy": "on_partition",
    "command.argv": "command",
    "python.script": "script",
    "python.module": "module",
    "python.args": "args",
    "algorithm.name": "algorithm",
    "algorithm.version": "algorithm",
    "algorithm.parameters_json": "parameters",
    "working_folder": "folder",
}
"""What a field of the contract is called in a job file, where the names differ."""


@dataclass(frozen=True)
class JobFile:
    """The jobs of a file, and where each of their settings stands."""

    name: str
    jobs: list[dict[str, Any]]
    lines: list[dict[str, int]] = field(default_factory=list)
    """Per job: the path of a setting ("memory", "env.HOME", "command[1]"; "" for the job itself) to its line."""

    def locate(self, error: SuanliError) -> Failure:
        """The error with file and line in front, when it is about a setting of a job."""
        index, path = 0, error.field
        message = error.message
        if match := _AT.fullmatch(error.field):
            index, path = int(match[1] or 0), match[2] or ""
            start = error.field.partition(".")[0]
            message = message.removeprefix(f"{start}.").removeprefix(f"{start}: ")
        option = _option(path)
        if index < len(self.lines) and option.startswith("after[") and "after" not in self.lines[index]:
            option = option.replace("after", "after_any", 1)
        if option != path and message.startswith(f"{path}:"):
            message = option + message[len(path) :]
        if not error.field or index >= len(self.lines):
            return Failure(message, error.exit_code)
        return Failure(f"{self.name}:{self._line(index, option)}: {message}", error.exit_code)

    def _line(self, index: int, path: str) -> int:
        lines = self.lines[index]
        while path and path not in lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return lines[path]


def _option(path: str) -> str:
    for start, option in OPTION_OF.items():
        if path == start or path.startswith((f"{start}[", f"{start}.")):
            return option + path[len(start) :]
    return path


def read_job_file(path: str) -> JobFile:
    """Read a file, or stdin for ``-``. Raises ``Failure`` that names the line."""
    name, text, base = _text_of(path)
    jobs: list[dict[str, Any]] = []
    lines: list[dict[str, int]] = []
    try:
        for node, document in _documents(name, text):
            jobs.append(document)
            lines.append(_lines(node))
            if len(jobs) > MAX_JOBS:
                raise Failure(f"{name} has more than {MAX_JOBS:,} jobs; submit them in several files.", exits.USAGE)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise Failure(f"{where}: this is not readable YAML: {error.problem or error}.", exits.USAGE) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Failure(f"{name}: this is not readable YAML: {str(error).splitlines()[0]}.", exits.USAGE) from None
    if not jobs:
        raise Failure(f"{name}: there is no job in it.", exits.USAGE)
    found = JobFile(name, jobs, lines)
    _resolve_names(found)
    _resolve_paths(jobs, base)
    return found


def _text_of(path: str) -> tuple[str, str, Path]:
    """The name for messages, the text, and the folder that relative paths are below."""
    if path == "-":
        name, base = "<stdin>", Path()
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        name, base = path, Path(path).parent
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Failure(f"{name} is larger than {MAX_BYTES >> 20} MiB; is it the right file?", exits.USAGE)
    try:
        return name, raw.decode(), base
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Failure(f"{name}:{line}: this is not UTF-8 text.", exits.USAGE) from None


def _documents(name: str, text: str) -> Iterator[tuple[yaml.Node, dict[str, Any]]]:
    loader = yaml.SafeLoader(text)
    room = MAX_NODES
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
                continue
            room = _count(name, node, room, ())
            if not isinstance(node, yaml.MappingNode):
                line = node.start_mark.line + 1
                raise Failure(f"{name}:{line}: a job is written as names and values, as in 'cpus: 2'.", exits.USAGE)
            document = loader.construct_document(node)
            for key_node, _ in node.value:
                if not isinstance(loader.construct_object(key_node), str):
                    line = key_node.start_mark.line + 1
                    raise Failure(f"{name}:{line}: the name of a setting is a text.", exits.USAGE)
            yield node, document
    finally:
        loader.dispose()


def _count(name: str, node: yaml.Node, room: int, above: tuple[int, ...]) -> int:
    """What is left of ``room``; refuses keys given twice, too many values, and values inside themselves."""
    line = node.start_mark.line + 1
    if id(node) in above or room <= 0:
        raise Failure(f"{name}:{line}: there are too many values here, or one that contains itself.", exits.USAGE)
    room -= 1
    inner = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            room = _count(name, item, room, inner)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise Failure(f"{name}:{key.start_mark.line + 1}: {key.value} is given twice.", exits.USAGE)
                seen.add(key.value)
            room = _count(name, value, _count(name, key, room, inner), inner)
    return room


def _lines(node: yaml.Node) -> dict[str, int]:
    """Where each setting of a job stands, and each value inside one."""
    lines = {"": node.start_mark.line + 1}
    for key, value in node.value:
        lines[key.value] = key.start_mark.line + 1
        if isinstance(value, yaml.SequenceNode):
            lines.update({f"{key.value}[{i}]": item.start_mark.line + 1 for i, item in enumerate(value.value)})
        elif isinstance(value, yaml.MappingNode):
            lines.update({f"{key.value}.{inner.value}": inner.start_mark.line + 1 for inner, _ in value.value})
    return lines


def _resolve_names(found: JobFile) -> None:
    """``after: [prepare]`` may name another job of the file; it becomes its position."""
    names = Counter(job["name"] for job in found.jobs if isinstance(job.get("name"), str))
    positions = {job.get("name"): index for index, job in enumerate(found.jobs) if isinstance(job.get("name"), str)}
    for index, job in enumerate(found.jobs):
        for option in _AFTER:
            if isinstance(job.get(option), str):
                job[option] = [job[option]]
            if not isinstance(job.get(option), list):
                continue
            for position, one in enumerate(job[option]):
                if not isinstance(one, str) or one not in names:
                    continue
                if names[one] > 1:
                    line = found._line(index, f"{option}[{position}]")
                    raise Failure(f"{found.name}:{line}: {option}: {names[one]} jobs are named {one!r}.", exits.USAGE)
                job[option][position] = positions[one]


def _resolve_paths(jobs: list[dict[str, Any]], base: Path) -> None:
    """Paths in a file are relative to the file, wherever the command runs."""
    for job in jobs:
        option = "folder" if job.get("folder") is not None else "script"
        if isinstance(job.get(option), str):
            job[option] = str(base / Path(job[option]).expanduser())
