"""Job specifications: the caller's message, the form the store keeps, and the domain's value.

The stored form is a ``suanli.v1.StoredSpec``: the caller's ``JobSpec`` with every default filled in, serialised
deterministically, and beside it what an algorithm's manifest said. The domain's value is built from the stored form alone,
by the same function at submission and after a restart, so that both give the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from protos.suanli.v1 import common_pb2, jobs_pb2, stored_pb2
from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.errors import Internal
from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import (
    Dependency,
    DependencyCondition,
    JobSpec,
    PartitionPolicy,
    PriorityClass,
    Shape,
)
from scheduler.wire import check
from scheduler.wire.cache import BoundedCache
from scheduler.wire.check import count, integer, invalid, shown, slug, text
from scheduler.wire.workload import (
    MAX_NAME,
    MAX_PROGRAM_BYTES,
    Algorithms,
    complete_workload,
    derived_name,
    workload_of,
)

DEFAULT_PROJECT = "default"
DEFAULT_CPU_MILLI = 1000
DEFAULT_MEMORY_MIB = 1024
DEFAULT_MAX_RUNTIME_MS = 86_400_000
DEFAULT_GRACE_MS = 30_000
MAX_CPU_MILLI = 1_024_000
MAX_MEMORY_MIB = 67_108_864
MAX_GPU_MILLI = 64_000
MAX_REPLICAS = 4096
MAX_RUNTIME_MS = 31_536_000_000
MAX_ARRAY = 1_000_000
MAX_BATCH = 10_000
HOUR_MS = 3_600_000
MIN_RAY_MEMORY_MIB = 1024
"""Ray's own processes take about 600 MiB of a node, each worker some 90 more."""
MIN_OBJECT_STORE_MIB = 80
"""Ray refuses less than 75."""

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACCELERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DATA_SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,127}")

# What the caches may hold, in bytes of encoded specifications; in memory they take a few times as much.
_CACHE_BYTES = 32 * 1024 * 1024
# An entry weighs at least this much, whatever its encoding: the objects around it.
_ENTRY_BYTES = 1024


class SpecCodec:
    """Reads callers' specifications and the store's; equal ones give the same object as long as a cache holds it."""

    def __init__(self, algorithms: Algorithms, cache_bytes: int = _CACHE_BYTES) -> None:
        self._algorithms = algorithms
        self._read: BoundedCache[tuple[str, bytes], JobSpec] = BoundedCache(cache_bytes)
        self._decoded: BoundedCache[bytes, tuple[JobSpec, stored_pb2.StoredSpec]] = BoundedCache(cache_bytes)
        self._shapes: BoundedCache[Shape, Shape] = BoundedCache(cache_bytes)

    def read(self, message: jobs_pb2.JobSpec, *, field: str, institution: str) -> JobSpec:
        """The validated specification of a caller of ``institution``; errors name paths below ``field``."""
        key = (institution, message.SerializeToString(deterministic=True))
        spec = self._read.get(key)
        if spec is None:
            stored = stored_pb2.StoredSpec()
            stored.spec.MergeFrom(message)
            stored.spec.DiscardUnknownFields()
            _complete(stored, self._algorithms, field, institution)
            spec = self._intern(stored)
            self._read.put(key, spec, len(key[1]) + _ENTRY_BYTES)
        return spec

    def decode(self, encoded: bytes) -> JobSpec:
        """The specification of ``JobSpec.encoded``. ``Internal`` when the bytes are none."""
        return self._lookup(encoded)[0]

    def message(self, encoded: bytes) -> jobs_pb2.JobSpec:
        """The caller's specification with all defaults, as clients and agents are shown it. Not to be changed."""
        return self._lookup(encoded)[1].spec

    def with_dependencies(self, spec: JobSpec, dependencies: Sequence[Dependency]) -> JobSpec:
        """The same specification with these dependencies instead of its own, encoded anew."""
        stored = stored_pb2.StoredSpec()
        stored.CopyFrom(self._lookup(spec.encoded)[1])
        del stored.spec.dependencies[:]
        for dependency in dependencies:
            message = stored.spec.dependencies.add(condition=int(dependency.condition))
            if dependency.batch_index >= 0:
                message.batch_index = dependency.batch_index
            else:
                message.job_id = dependency.job_id
        return self._intern(stored)

    def with_change(self, spec: JobSpec, change: jobs_pb2.JobChange, *, field: str) -> JobSpec:
        """The same specification with what a ``JobChange`` asks for instead; ``InvalidArgument`` names paths below ``field``."""
        stored = stored_pb2.StoredSpec()
        stored.CopyFrom(self._lookup(spec.encoded)[1])
        apply_change(stored.spec, change, field)
        return self._intern(stored)

    def _intern(self, stored: stored_pb2.StoredSpec) -> JobSpec:
        encoded = stored.SerializeToString(deterministic=True)
        found = self._decoded.get(encoded)
        return self._keep(encoded, stored) if found is None else found[0]

    def _lookup(self, encoded: bytes) -> tuple[JobSpec, stored_pb2.StoredSpec]:
        found = self._decoded.get(encoded)
        if found is not None:
            return found
        try:
            stored = stored_pb2.StoredSpec.FromString(encoded)
            return self._keep(encoded, stored), stored
        except Exception as error:
            raise Internal(f"a stored specification cannot be read: {error}", reason="STORED_SPEC") from error

    def _keep(self, encoded: bytes, stored: stored_pb2.StoredSpec) -> JobSpec:
        shape = _shape(stored.spec)
        known = self._shapes.get(shape)
        if known is None:
            self._shapes.put(shape, shape, _ENTRY_BYTES)
        spec = _domain(stored, encoded, known or shape)
        self._decoded.put(encoded, (spec, stored), len(encoded) + _ENTRY_BYTES)
        return spec


def _complete(stored: stored_pb2.StoredSpec, algorithms: Algorithms, field: str, institution: str) -> None:
    """Check every bound of the message in ``stored`` and fill in all defaults."""
    spec = stored.spec
    if not spec.institution:
        if not institution:
            invalid(f"{field}.institution", "it is empty and the key belongs to no institution; name one.")
        spec.institution = institution
    elif spec.institution != institution:
        slug(spec.institution, f"{field}.institution", "an institution's id")
    if spec.project:
        slug(spec.project, f"{field}.project", "a project's id")
    else:
        spec.project = DEFAULT_PROJECT
    if spec.working_folder:
        check.digest(spec.working_folder, f"{field}.working_folder")
    algorithm = complete_workload(stored, algorithms, field)
    if spec.name:
        text(spec.name, MAX_NAME, f"{field}.name")
    else:
        spec.name = derived_name(spec)
    _complete_resources(spec, algorithm, field)
    _check_places(spec, field)
    _check_topology(spec.topology, f"{field}.topology")
    _check_ray(spec, f"{field}.ray.object_store_mib", f"{field}.resources.memory_mib")
    _check_surroundings(spec, field)
    _complete_policy(spec, algorithm, field)
    _complete_order(spec, field)


def _complete_resources(spec: jobs_pb2.JobSpec, algorithm: ResolvedAlgorithm | None, field: str) -> None:
    asked = spec.resources
    default = algorithm.resources if algorithm else Resources(DEFAULT_CPU_MILLI, DEFAULT_MEMORY_MIB, 0)
    path = f"{field}.resources"
    asked.cpu_milli = integer(
        asked.cpu_milli or default.cpu_milli, 1, MAX_CPU_MILLI, f"{path}.cpu_milli", "milli-cores (1000 = one core)"
    )
    asked.memory_mib = integer(asked.memory_mib or default.memory_mib, 1, MAX_MEMORY_MIB, f"{path}.memory_mib", "MiB")
    gpu = asked.gpu_milli or default.gpu_milli
    if gpu:
        asked.gpu_milli = _gpu_milli(gpu, f"{path}.gpu_milli")
    spec.replicas = integer(
        spec.replicas or (algorithm.replicas if algorithm else 1), 1, MAX_REPLICAS, f"{field}.replicas", "replicas"
    )


def _gpu_milli(value: int, field: str) -> int:
    integer(value, 0, MAX_GPU_MILLI, field, "milli-GPUs (1000 = one GPU)")
    if value > GPU_UNIT and value % GPU_UNIT:
        invalid(field, f"{value} is neither a share of one GPU nor whole GPUs; give 1 to 999, or a multiple of 1,000.")
    return value


def _check_places(spec: jobs_pb2.JobSpec, field: str) -> None:
    if spec.accelerators:
        count(len(spec.accelerators), 16, f"{field}.accelerators", "accelerator types")
        for index, name in enumerate(spec.accelerators):
            if _ACCELERATOR.fullmatch(name) is None:
                invalid(
                    f"{field}.accelerators[{index}]",
                    f"{shown(name)} is not an accelerator type; give one that `suanli pools` shows, as in NVIDIA-A100.",
                )
    for part in ("preferred_regions", "required_regions"):
        regions = getattr(spec, part)
        if regions:
            count(len(regions), 32, f"{field}.{part}", "regions")
            for index, region in enumerate(regions):
                slug(region, f"{field}.{part}[{index}]", "a region's id")
    if spec.pools:
        count(len(spec.pools), 32, f"{field}.pools", "pools")
        for index, pool in enumerate(spec.pools):
            region, slash, name = pool.rpartition("/")
            path = f"{field}.pools[{index}]"
            slug(name, path, "a pool; write 'region/pool' or a pool's id")
            if slash:
                slug(region, path, "a region's id before the slash")
    if spec.node_selector:
        count(len(spec.node_selector), 16, f"{field}.node_selector", "labels")
        for key, value in spec.node_selector.items():
            if check.NODE_LABEL_KEY.fullmatch(key) is None:
                invalid(f"{field}.node_selector", f"{shown(key)} is not a label's key, as in 'zone' or 'ray.io/zone'.")
            text(value, 256, f"{field}.node_selector[{shown(key)}]")


def _check_topology(topology: jobs_pb2.Topology, field: str) -> None:
    if topology.level and check.NODE_LABEL_KEY.fullmatch(topology.level) is None:
        invalid(
            f"{field}.level",
            f"{shown(topology.level)} is no level; give 'node' or the key of a node label, as in 'rack'.",
        )
    if topology.required and not topology.level:
        invalid(f"{field}.level", "it is empty, but the place is required; give 'node' or a label's key, as in 'rack'.")


def _check_ray(spec: jobs_pb2.JobSpec, store_field: str, memory_field: str) -> None:
    if not spec.HasField("ray"):
        return
    memory_mib, store_mib = spec.resources.memory_mib, spec.ray.object_store_mib
    if memory_mib < MIN_RAY_MEMORY_MIB:
        invalid(
            memory_field, f"{memory_mib} MiB are too few for a Ray cluster; give at least {MIN_RAY_MEMORY_MIB} MiB."
        )
    if store_mib and not MIN_OBJECT_STORE_MIB <= store_mib <= memory_mib // 2:
        invalid(
            store_field,
            f"an object store of {store_mib} MiB does not fit in {memory_mib} MiB of memory; it takes "
            f"{MIN_OBJECT_STORE_MIB} MiB to half of it, or 0 for the default.",
        )


def _check_surroundings(spec: jobs_pb2.JobSpec, field: str) -> None:
    if spec.data_sets:
        count(len(spec.data_sets), 64, f"{field}.data_sets", "data sets")
        for index, name in enumerate(spec.data_sets):
            if _DATA_SET.fullmatch(name) is None:
                invalid(
                    f"{field}.data_sets[{index}]",
                    f"{shown(name)} is not a data set's name; use letters, digits and . _ / @ -, at most 128.",
                )
    if spec.environment:
        _check_environment(spec, f"{field}.environment")
    if spec.packages:
        count(len(spec.packages), 64, f"{field}.packages", "packages")
        for index, requirement in enumerate(spec.packages):
            path = f"{field}.packages[{index}]"
            text(requirement, 256, path)
            if not requirement.strip() or requirement.lstrip().startswith("-"):
                invalid(path, f"{shown(requirement)} is not a pip requirement; give one as in 'pandas>=2,<3'.")
    if spec.labels:
        count(len(spec.labels), 64, f"{field}.labels", "labels")
        for key, value in spec.labels.items():
            if check.LABEL_KEY.fullmatch(key) is None:
                invalid(
                    f"{field}.labels",
                    f"{shown(key)} is not a label's key; use 1 to 63 of a-z 0-9 . _ / -, beginning and ending with a letter "
                    "or digit.",
                )
            text(value, 256, f"{field}.labels[{shown(key)}]")
    text(spec.purpose, 256, f"{field}.purpose")


def _check_environment(spec: jobs_pb2.JobSpec, field: str) -> None:
    count(len(spec.environment), 256, field, "variables")
    for name in spec.environment:
        if _ENVIRONMENT_NAME.fullmatch(name) is None:
            invalid(field, f"{shown(name)} is not a variable's name; use letters, digits and _, no digit first.")
        if name.startswith(("SUANLI_", "RAY_")):
            invalid(
                field, f"{shown(name)} is reserved; names with the prefixes SUANLI_ and RAY_ are set by the platform."
            )
    program_text = [part for pair in spec.environment.items() for part in pair]
    check.program_text(program_text, MAX_PROGRAM_BYTES, field)


def _complete_policy(spec: jobs_pb2.JobSpec, algorithm: ResolvedAlgorithm | None, field: str) -> None:
    if not spec.priority_class:
        spec.priority_class = common_pb2.PRIORITY_CLASS_NORMAL
    elif spec.priority_class not in _PRIORITIES:
        invalid(f"{field}.priority_class", f"{spec.priority_class} is none; give LOW, NORMAL, HIGH or URGENT.")
    if not spec.partition_policy:
        spec.partition_policy = jobs_pb2.PARTITION_POLICY_WAIT
    elif spec.partition_policy not in _PARTITION_POLICIES:
        invalid(f"{field}.partition_policy", f"{spec.partition_policy} is none; give WAIT or MOVE.")
    default_ms = algorithm.max_runtime_ms if algorithm else DEFAULT_MAX_RUNTIME_MS
    spec.max_runtime_ms = integer(
        spec.max_runtime_ms or default_ms, 1000, MAX_RUNTIME_MS, f"{field}.max_runtime_ms", "ms (a second to a year)"
    )
    if spec.HasField("grace_period_ms"):
        integer(spec.grace_period_ms, 0, HOUR_MS, f"{field}.grace_period_ms", "ms")
    else:
        spec.grace_period_ms = DEFAULT_GRACE_MS
    if spec.HasField("retry"):
        integer(spec.retry.max_retries, 0, 100, f"{field}.retry.max_retries", "retries")
        integer(spec.retry.backoff_ms, 0, HOUR_MS, f"{field}.retry.backoff_ms", "ms")
    else:
        spec.retry.SetInParent()


def _complete_order(spec: jobs_pb2.JobSpec, field: str) -> None:
    if spec.dependencies:
        count(len(spec.dependencies), 64, f"{field}.dependencies", "dependencies")
        for index, dependency in enumerate(spec.dependencies):
            _complete_dependency(dependency, f"{field}.dependencies[{index}]")
    if spec.HasField("array"):
        array = spec.array
        integer(array.size, 1, MAX_ARRAY, f"{field}.array.size", "tasks")
        integer(array.max_parallel, 0, MAX_ARRAY, f"{field}.array.max_parallel", "tasks at once (0: no limit)")


def _complete_dependency(dependency: jobs_pb2.Dependency, field: str) -> None:
    target = dependency.WhichOneof("target")
    if target == "job_id":
        check.job_id(dependency.job_id, f"{field}.job_id")
    elif target == "batch_index":
        integer(dependency.batch_index, 0, MAX_BATCH - 1, f"{field}.batch_index")
    else:
        invalid(field, "it names no job; set job_id or batch_index.")
    if not dependency.condition:
        dependency.condition = jobs_pb2.Dependency.CONDITION_AFTER_OK
    elif dependency.condition not in _CONDITIONS:
        invalid(f"{field}.condition", f"{dependency.condition} is none; give AFTER_OK or AFTER_ANY.")


def apply_change(spec: jobs_pb2.JobSpec, change: jobs_pb2.JobChange, field: str) -> None:
    """Change a complete specification; what the change does not set stays as it is."""
    asked = spec.resources
    for name, limit in (("cpu_milli", MAX_CPU_MILLI), ("memory_mib", MAX_MEMORY_MIB)):
        if change.HasField(name):  # type: ignore[arg-type]
            setattr(asked, name, integer(getattr(change, name), 1, limit, f"{field}.{name}"))
    if change.HasField("gpu_milli"):
        asked.gpu_milli = _gpu_milli(change.gpu_milli, f"{field}.gpu_milli")
    if change.HasField("replicas"):
        spec.replicas = integer(change.replicas, 1, MAX_REPLICAS, f"{field}.replicas", "replicas")
    if change.HasField("max_runtime_ms"):
        spec.max_runtime_ms = integer(change.max_runtime_ms, 1000, MAX_RUNTIME_MS, f"{field}.max_runtime_ms", "ms")
    if change.HasField("preemptible"):
        spec.preemptible = change.preemptible
    if change.priority_class:
        spec.priority_class = change.priority_class
    for name in ("accelerators", "required_regions", "pools"):
        if change.HasField(name):  # type: ignore[arg-type]
            held = getattr(spec, name)
            del held[:]
            held.extend(getattr(change, name).names)
    if change.HasField("topology"):
        spec.topology.CopyFrom(change.topology)
    _check_places(spec, field)
    _check_topology(spec.topology, f"{field}.topology")
    _check_ray(spec, f"{field}.memory_mib", f"{field}.memory_mib")
    if spec.priority_class not in _PRIORITIES:
        invalid(f"{field}.priority_class", f"{spec.priority_class} is none; give LOW, NORMAL, HIGH or URGENT.")


def _shape(spec: jobs_pb2.JobSpec) -> Shape:
    asked = spec.resources
    # A single replica stands together with itself wherever it is.
    together = spec.replicas > 1 and bool(spec.topology.level)
    return Shape(
        request=Resources(asked.cpu_milli, asked.memory_mib, asked.gpu_milli),
        replicas=spec.replicas,
        accelerators=tuple(spec.accelerators),
        preferred_regions=tuple(spec.preferred_regions),
        required_regions=tuple(spec.required_regions),
        pools=tuple(spec.pools),
        node_selector=tuple(sorted(spec.node_selector.items())),
        data_sets=tuple(sorted(set(spec.data_sets))),
        pack=spec.topology.level if together else "",
        pack_required=spec.topology.required if together else False,
    )


def _domain(stored: stored_pb2.StoredSpec, encoded: bytes, shape: Shape) -> JobSpec:
    """The domain's value of a completed specification."""
    spec = stored.spec
    return JobSpec(
        institution=spec.institution,
        project=spec.project,
        name=spec.name,
        workload=workload_of(stored),
        shape=shape,
        priority=_PRIORITIES[spec.priority_class],
        preemptible=spec.preemptible,
        max_runtime_ms=spec.max_runtime_ms,
        grace_ms=spec.grace_period_ms,
        max_retries=spec.retry.max_retries,
        backoff_ms=spec.retry.backoff_ms,
        partition_policy=_PARTITION_POLICIES[spec.partition_policy],
        array_size=spec.array.size,
        array_max_parallel=spec.array.max_parallel,
        encoded=encoded,
        dependencies=tuple(_dependency(d) for d in spec.dependencies),
        data_sets=tuple(spec.data_sets),
        purpose=spec.purpose,
        labels=tuple(sorted(spec.labels.items())),
    )


def _dependency(message: jobs_pb2.Dependency) -> Dependency:
    condition = _CONDITIONS[message.condition]
    if message.WhichOneof("target") == "batch_index":
        return Dependency("", condition, message.batch_index)
    return Dependency(message.job_id, condition)


_PRIORITIES: dict[int, PriorityClass] = {int(p): p for p in PriorityClass}
_PARTITION_POLICIES: dict[int, PartitionPolicy] = {int(p): p for p in PartitionPolicy}
_CONDITIONS: dict[int, DependencyCondition] = {int(c): c for c in DependencyCondition}
