"""What a job may ask for, in the words of ``Client.submit``, of job files and of the command line: one list for all."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, cast

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.amounts import Amount, mebibytes, milli, milliseconds
from suanli.errors import InvalidArgument

Priority = Literal["low", "normal", "high", "urgent"]


class Identified(Protocol):
    """A job: anything with a job's id."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...


class JobOptions(TypedDict, total=False):
    """The keywords of ``submit``. Exactly one of command, shell, script, module and algorithm says what to run."""

    command: Sequence[str]
    """A program and its arguments, started without a shell."""
    shell: str
    """A line for ``/bin/sh -c``."""
    script: str
    """A Python script: a path relative to ``folder``, or without a folder the one file to send along."""
    module: str
    """A Python module, as for ``python -m``."""
    args: Sequence[str]
    """Arguments of the script or module."""
    algorithm: str
    """An algorithm of the catalogue: "irt", or "irt@1.0.0"."""
    parameters: Mapping[str, Any]
    """The algorithm's parameters."""
    folder: str
    """The working folder to send along; ``.suanliignore`` leaves files out."""
    name: str
    institution: str
    """Default: the caller's."""
    project: str
    """Default: "default"."""
    cpus: Amount
    """Cores per replica: 2, 0.5 or "500m". Default 1."""
    memory: Amount
    """Per replica: "2GiB", or MiB as a whole number. Default 1 GiB."""
    gpus: Amount
    """Per replica: a whole number, or a share of one such as 0.25. Default 0."""
    gpu_types: Sequence[str]
    """In order of preference."""
    replicas: int
    """Processes that start together or not at all. Default 1."""
    pack: str
    """Where the replicas should stand together: "node", or the key of a node label, as in "rack". Default: anywhere."""
    pack_required: bool
    """Wait for such a place instead of being spread. Default: no."""
    regions: Sequence[str]
    """Preferred regions, the best first; others may be used."""
    only_regions: Sequence[str]
    """The only regions that may be used."""
    pools: Sequence[str]
    """The only pools that may be used: "east/cpu", or "cpu" for that of any region."""
    node_labels: Mapping[str, str]
    """Labels that a node must carry."""
    data_sets: Sequence[str]
    env: Mapping[str, str]
    """Environment variables."""
    packages: Sequence[str]
    """pip requirements, installed before the start."""
    priority: Priority
    preemptible: bool
    """May be stopped with notice and queued again."""
    max_runtime: Amount
    """"2h", or seconds. Default: a day."""
    retries: int
    """How often a failed job is tried again. Default 0."""
    retry_backoff: Amount
    """Wait before the first retry; doubles each time."""
    after: Sequence[str | int | Identified]
    """Jobs that must succeed first: themselves, their ids, or positions in the same ``submit_many``."""
    after_any: Sequence[str | int | Identified]
    """Jobs that must end first, however."""
    array: int
    """Expands to so many tasks with SUANLI_ARRAY_INDEX 0, 1, …"""
    array_parallel: int
    """At most so many tasks at once. Default: no limit."""
    labels: Mapping[str, str]
    grace_period: Amount
    """Between SIGTERM and SIGKILL. Default 30 s."""
    on_partition: Literal["wait", "move"]
    """What becomes of the running job when its region cannot be reached."""
    purpose: str
    ray: bool
    """A Ray cluster of the job's own, one node per replica; what is run starts once, on the first."""
    ray_object_store: Amount
    """Memory of each node's object store, of what the job has: "1GiB". Default: three tenths. Asks for a cluster, too."""


KNOWN = tuple(JobOptions.__annotations__)
WORKLOADS = ("command", "shell", "script", "module", "algorithm")


def build_spec(options: Mapping[str, Any], working_folder: str = "") -> jobs_pb2.JobSpec:
    """Make a specification. ``working_folder``: the uploaded folder's manifest. Raises InvalidArgument with a field."""
    check_names(options)
    spec = jobs_pb2.JobSpec(working_folder=working_folder)
    _workload(spec, options)
    for name, value in options.items():
        if value is not None and name in _SETTERS:
            _SETTERS[name](spec, value, name)
    if options.get("ray") is False and spec.HasField("ray"):
        raise InvalidArgument("ray_object_store: there is no object store without a cluster.", field="ray_object_store")
    return spec


def build_change(options: Mapping[str, Any]) -> jobs_pb2.JobChange:
    """What a job would ask for instead, for ``why``: cpus, memory, gpus, gpu_types, replicas, only_regions, pools, max_runtime, preemptible,
    priority, pack and pack_required of ``JobOptions``; an empty list lifts a restriction. Raises InvalidArgument with a field."""
    change = jobs_pb2.JobChange()
    for name, value in options.items():
        if name not in _CHANGERS:
            raise InvalidArgument(
                f"{name}: this cannot be asked for instead; there are {', '.join(_CHANGERS)}.", field=str(name)
            )
        if value is not None:
            _CHANGERS[name](change, value, name)
    return change


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse a key that there is not, with the nearest one; and a job that says nothing, or two things, to run."""
    for name in options:
        if name not in KNOWN:
            near = difflib.get_close_matches(str(name), KNOWN, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KNOWN)}."
            raise InvalidArgument(f"{name}: a job has no such setting; {hint}", field=str(name))
    given = [name for name in WORKLOADS if options.get(name) is not None]
    if len(given) != 1:
        what = "nothing" if not given else " and ".join(given)
        raise InvalidArgument(
            f"The job says {what} to run; give one of {', '.join(WORKLOADS)}.", field=given[1] if given else "command"
        )


def _workload(spec: jobs_pb2.JobSpec, options: Mapping[str, Any]) -> None:
    if (command := options.get("command")) is not None:
        spec.command.argv.extend(_texts(command, "command"))
    elif (shell := options.get("shell")) is not None:
        spec.command.argv.extend(["/bin/sh", "-c", _text(shell, "shell")])
    elif (algorithm := options.get("algorithm")) is not None:
        spec.algorithm.name, _, spec.algorithm.version = _text(algorithm, "algorithm").partition("@")
        spec.algorithm.parameters_json = _parameters(options.get("parameters"))
    elif (script := options.get("script")) is not None:
        spec.python.script = _text(script, "script")
    else:
        spec.python.module = _text(options["module"], "module")
    if options.get("args") is not None:
        if not spec.HasField("python"):
            raise InvalidArgument(
                "args: they belong to script or module; write those of a command into it.", field="args"
            )
        spec.python.args.extend(_texts(options["args"], "args"))
    if options.get("parameters") is not None and not spec.HasField("algorithm"):
        raise InvalidArgument("parameters: only an algorithm has them.", field="parameters")


def _parameters(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        raise InvalidArgument("parameters: give names and values.", field="parameters")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"parameters: they cannot be written as JSON: {error}.", field="parameters") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: {str(value)[:60]!r} is not a text; put it in quotes.", field=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name}: it is not valid UTF-8.", field=name) from None
    return value


def _texts(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgument(f'{name}: give a list of texts, as in ["python", "train.py"].', field=name)
    return [_text(one, f"{name}[{index}]") for index, one in enumerate(value)]


def _text_map(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name}: give names and values.", field=name)
    return {_text(key, name): _text(one, f"{name}.{key}") for key, one in value.items()}


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise InvalidArgument(f"{name}: {str(value)[:60]!r} is not a whole number of 0 or more.", field=name)
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name}: give true or false.", field=name)
    return value


def _choice(value: Any, name: str, choices: Mapping[str, int]) -> int:
    if not isinstance(value, str) or value.lower() not in choices:
        raise InvalidArgument(f"{name}: {str(value)[:60]!r} is none of {', '.join(choices)}.", field=name)
    return choices[value.lower()]


_PRIORITIES = {
    name.removeprefix("PRIORITY_CLASS_").lower(): number for name, number in common_pb2.PriorityClass.items() if number
}
_PARTITION = {
    name.removeprefix("PARTITION_POLICY_").lower(): number
    for name, number in jobs_pb2.PartitionPolicy.items()
    if number
}
_JOB_ID = re.compile(r"[\x21-\x7e]{1,128}")


def _dependencies(condition: jobs_pb2.Dependency.Condition.ValueType) -> Callable[[jobs_pb2.JobSpec, Any, str], None]:
    def set_them(spec: jobs_pb2.JobSpec, value: Any, name: str) -> None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidArgument(f"{name}: give a list of jobs.", field=name)
        for job in value:
            one = getattr(job, "id", job)
            if isinstance(one, int) and not isinstance(one, bool):
                spec.dependencies.add(batch_index=_whole(one, name), condition=condition)
            elif isinstance(one, str) and _JOB_ID.fullmatch(one):
                spec.dependencies.add(job_id=one, condition=condition)
            else:
                raise InvalidArgument(f"{name}: {str(one)[:60]!r} is not a job id.", field=name)

    return set_them


def _field(path: str, read: Callable[[Any, str], Any]) -> Callable[[Any, Any, str], None]:
    *parents, last = path.split(".")

    def set_it(message: Any, value: Any, name: str) -> None:
        holder = message
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, last, read(value, name))

    return set_it


def _ray(spec: jobs_pb2.JobSpec, value: Any, name: str) -> None:
    if _flag(value, name):
        spec.ray.SetInParent()


def _positive(read: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
    """Refuse an explicit 0, which on the wire would stand for the default."""

    def checked(value: Any, name: str) -> int:
        number = read(value, name)
        if number == 0:
            raise InvalidArgument(f"{name}: give more than 0, or leave it out for the default.", field=name)
        return number

    return checked


def _many(path: str) -> Callable[[jobs_pb2.JobSpec, Any, str], None]:
    return lambda spec, value, name: getattr(spec, path).extend(_texts(value, name))


def _mapping(path: str) -> Callable[[jobs_pb2.JobSpec, Any, str], None]:
    return lambda spec, value, name: getattr(spec, path).update(_text_map(value, name))


_SETTERS: dict[str, Callable[[jobs_pb2.JobSpec, Any, str], None]] = {
    "name": _field("name", _text),
    "institution": _field("institution", _text),
    "project": _field("project", _text),
    "cpus": _field("resources.cpu_milli", _positive(milli)),
    "memory": _field("resources.memory_mib", _positive(mebibytes)),
    "gpus": _field("resources.gpu_milli", milli),
    "gpu_types": _many("accelerators"),
    "replicas": _field("replicas", _positive(_whole)),
    "pack": _field("topology.level", _text),
    "pack_required": _field("topology.required", _flag),
    "regions": _many("preferred_regions"),
    "only_regions": _many("required_regions"),
    "pools": _many("pools"),
    "node_labels": _mapping("node_selector"),
    "data_sets": _many("data_sets"),
    "env": _mapping("environment"),
    "packages": _many("packages"),
    "priority": _field("priority_class", lambda value, name: _choice(value, name, _PRIORITIES)),
    "preemptible": _field("preemptible", _flag),
    "max_runtime": _field("max_runtime_ms", _positive(milliseconds)),
    "retries": _field("retry.max_retries", _whole),
    "retry_backoff": _field("retry.backoff_ms", milliseconds),
    "after": _dependencies(cast(Any, jobs_pb2.Dependency.CONDITION_AFTER_OK)),
    "after_any": _dependencies(cast(Any, jobs_pb2.Dependency.CONDITION_AFTER_ANY)),
    "array": _field("array.size", _positive(_whole)),
    "array_parallel": _field("array.max_parallel", _whole),
    "labels": _mapping("labels"),
    "grace_period": _field("grace_period_ms", milliseconds),
    "on_partition": _field("partition_policy", lambda value, name: _choice(value, name, _PARTITION)),
    "purpose": _field("purpose", _text),
    "ray": _ray,
    "ray_object_store": _field("ray.object_store_mib", _positive(mebibytes)),
}


def _names_of(path: str) -> Callable[[jobs_pb2.JobChange, Any, str], None]:
    return lambda change, value, name: getattr(change, path).CopyFrom(jobs_pb2.NameList(names=_texts(value, name)))


_CHANGERS: dict[str, Callable[[Any, Any, str], None]] = {
    "cpus": _field("cpu_milli", _positive(milli)),
    "memory": _field("memory_mib", _positive(mebibytes)),
    "gpus": _field("gpu_milli", milli),
    "gpu_types": _names_of("accelerators"),
    "replicas": _field("replicas", _positive(_whole)),
    "only_regions": _names_of("required_regions"),
    "pools": _names_of("pools"),
    "max_runtime": _field("max_runtime_ms", _positive(milliseconds)),
    "preemptible": _field("preemptible", _flag),
    "priority": _field("priority_class", lambda value, name: _choice(value, name, _PRIORITIES)),
    "pack": _field("topology.level", _text),
    "pack_required": _field("topology.required", _flag),
}
