"""From the control plane's words to the executor's: launches, nodes and events."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from protos.suanli.v1 import jobs_pb2
from protos.suanli.v1 import regions_pb2 as pb
from workers.core_attempt import Attempt, Rank, Verdict
from workers.core_types import PoolRule
from workers.executor import types as ex

if TYPE_CHECKING:
    from protos.suanli.v1 import common_pb2

POOL_LABEL = "suanli.io/pool"
DEFAULT_GRACE_MS = 30_000

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")


def attempt_of(launch: pb.Launch, now_ms: int) -> Attempt:
    """The attempt that a launch asks for. ``ValueError`` with a sentence when its ranks make no sense."""
    placements = sorted(launch.replicas, key=lambda placement: placement.rank)
    if not placements or [placement.rank for placement in placements] != list(range(len(placements))):
        raise ValueError("the launch does not name the ranks 0 to n - 1, each once")
    spec = launch.spec
    return Attempt(
        job_id=launch.job_id,
        attempt=launch.attempt,
        lease_epoch=launch.lease_epoch,
        launch_seq=launch.launch_seq,
        made_ms=now_ms,
        grace_ms=spec.grace_period_ms if spec.HasField("grace_period_ms") else DEFAULT_GRACE_MS,
        move=spec.partition_policy == jobs_pb2.PARTITION_POLICY_MOVE,
        ranks=[Rank(placement.node_id) for placement in placements],
        checkpoint=launch.checkpoint,
        checkpoint_told=launch.checkpoint,
    )


def executor_launches(
    launch: pb.Launch, region: str, nodes: Mapping[str, ex.NodeUp], data_dirs: Mapping[str, str]
) -> list[ex.Launch]:
    """One launch per rank. ``ValueError`` with a sentence when a data set is not to be had in this region."""
    spec = launch.spec
    missing = [name for name in spec.data_sets if name not in data_dirs]
    if missing:
        raise ValueError(f"region {region} holds no copy of data set {missing[0]}")
    placements = sorted(launch.replicas, key=lambda placement: placement.rank)
    by_node: dict[str, list[int]] = {}
    for placement in placements:
        by_node.setdefault(placement.node_id, []).append(placement.rank)
    node_rank = {node_id: number for number, node_id in enumerate(by_node)}
    master = nodes[placements[0].node_id].address
    common = _common(launch, region, {name: data_dirs[name] for name in spec.data_sets})
    if len(placements) == 1:
        return [dataclasses.replace(common, gpu_indices=_gpus(placements[0], nodes), master_addr=master)]
    return [
        dataclasses.replace(
            common,
            rank=placement.rank,
            world_size=len(placements),
            local_rank=by_node[placement.node_id].index(placement.rank),
            local_world_size=len(by_node[placement.node_id]),
            node_rank=node_rank[placement.node_id],
            gpu_indices=_gpus(placement, nodes),
            master_addr=master,
        )
        for placement in placements
    ]


def _common(launch: pb.Launch, region: str, data_dirs: Mapping[str, str]) -> ex.Launch:
    spec = launch.spec
    return ex.Launch(
        job_id=launch.job_id,
        attempt=launch.attempt,
        argv=tuple(launch.argv),
        env=dict(spec.environment),
        workdir_artifact=launch.working_folder or None,
        checkpoint_artifact=launch.checkpoint or None,
        parameters_json=launch.parameters_json or None,
        packages=tuple(spec.packages),
        cpu_milli=spec.resources.cpu_milli,
        memory_mib=spec.resources.memory_mib,
        gpu_milli=spec.resources.gpu_milli,
        max_runtime_ms=spec.max_runtime_ms,
        grace_ms=spec.grace_period_ms if spec.HasField("grace_period_ms") else DEFAULT_GRACE_MS,
        data_dirs=data_dirs,
        keep=ex.Keep(
            name=spec.name,
            institution=spec.institution,
            project=spec.project,
            user=launch.user,
            region=region,
            pool=launch.pool,
            array_index=launch.array_index if launch.array_size else None,
            array_size=launch.array_size or None,
        ),
        isolated=launch.isolated,
    )


def _gpus(placement: jobs_pb2.ReplicaPlacement, nodes: Mapping[str, ex.NodeUp]) -> tuple[int, ...]:
    """The driver's numbers of the GPUs; the control plane counts a node's GPUs from 0."""
    gpus = nodes[placement.node_id].gpus
    return tuple(gpus[index].index if 0 <= index < len(gpus) else index for index in placement.gpu_indexes)


def node_message(node: ex.NodeUp, rules: Sequence[PoolRule]) -> pb.Node:
    """A node as reported to the control plane.

    Its pool is that of the first rule it meets, else its label ``suanli.io/pool``, else ``gpu`` or ``cpu`` by what it has.
    """
    message = pb.Node(
        id=node.node_id,
        name=node.name,
        pool=pool_of(node, rules),
        accelerator=node.accelerator_type if node.gpus else "",
        labels=dict(node.labels),
    )
    message.capacity.cpu_milli = node.cpu_milli
    message.capacity.memory_mib = node.memory_mib
    message.capacity.gpu_milli = 1000 * len(node.gpus)
    return message


def pool_of(node: ex.NodeUp, rules: Sequence[PoolRule]) -> str:
    """The name of the pool that a node belongs to."""
    for rule in rules:
        if all(node.labels.get(name) == value for name, value in rule.labels.items()):
            return rule.name
    label = node.labels.get(POOL_LABEL, "")
    if _SLUG.fullmatch(label):
        return label
    return "gpu" if node.gpus else "cpu"


def finished_event(found: Verdict) -> pb.AttemptFinished:
    """The wire's form of how an attempt ended."""
    return pb.AttemptFinished(
        outcome=cast("common_pb2.AttemptOutcome.ValueType", int(found.outcome)),
        exit_code=found.exit_code,
        exit_signal=found.exit_signal,
        message=found.message,
        cpu_used_ms=found.used.cpu_ms,
        peak_memory_mib=found.used.peak_memory_mib,
        gpu_used_milli_ms=found.used.gpu_used_milli_ms,
        gpu_peak_memory_mib=found.used.gpu_peak_memory_mib,
        results=found.results,
        checkpoint=found.checkpoint,
        lost_node_id=found.lost_node_id,
        logs=found.logs,
    )


def usage_message(attempt: Attempt) -> pb.AttemptUsage:
    """The wire's form of what an attempt has used so far."""
    used = attempt.used()
    return pb.AttemptUsage(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        lease_epoch=attempt.lease_epoch,
        cpu_used_ms=used.cpu_ms,
        peak_memory_mib=used.peak_memory_mib,
        gpu_used_milli_ms=used.gpu_used_milli_ms,
        gpu_peak_memory_mib=used.gpu_peak_memory_mib,
    )
