"""The manifest of a job's pod. Pure: the same plan gives the same pod.

Nothing that a user wrote is in it but for what ids and names leave of themselves in labels: the command and its variables are in
a file that only the pod sees, where they cannot be expanded by Kubernetes nor read by whoever may list pods.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from workers.executor.isolation import Network, PodSettings
from workers.executor.pod_host import WorkerPod
from workers.executor.types import Launch

COMPONENT = "suanli-job"
WORKER_LABEL = "suanli.io/worker"
"""The uid of the worker's pod: what a node's executor finds its pods by."""
START_LABEL = "suanli.io/start"
"""Tells the starts of a pod apart: one that bears another is none of ours."""
NETWORK_LABEL = "suanli.io/network"
"""``none``, ``gang`` or ``cluster``: what network policies select."""
CONTAINER = "job"
_SHM_MIB = 1024
_NAME_CHARACTERS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class PodPlan:
    """One pod of one attempt. ``shown`` is what is mounted: paths, each writable or not, at themselves."""

    launch: Launch
    worker: WorkerPod
    start: str
    uid: int
    gid: int
    folder: str
    writable: tuple[str, ...]
    read_only: tuple[str, ...]
    code: str
    """Folder with the code of the pod's first process."""
    control: str
    """Folder that it is told things in."""

    @property
    def settings(self) -> PodSettings:
        """What the pool declares."""
        return self.launch.isolation.pod


def name_of(region: str, job_id: str, attempt: int, rank: int) -> str:
    """Return the name of a rank's pod: the same for each start of the same rank, so that it cannot be there twice."""
    digest = hashlib.sha256("\0".join((region, job_id, str(attempt), str(rank))).encode()).hexdigest()[:16]
    readable = re.sub(r"[^a-z0-9]+", "-", job_id.lower())[:_NAME_CHARACTERS].strip("-")
    return "-".join(part for part in ("suanli", readable, str(attempt), str(rank), digest) if part)


def network_of(launch: Launch) -> str:
    """Return the value of the label that network policies select."""
    network = launch.isolation.network
    if network is Network.HOST:
        return "cluster"
    return "gang" if network is Network.GANGS and launch.world_size > 1 else "none"


def label_value(text: str) -> str:
    """Return what of a text may be the value of a label."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:63].strip("._-")


def render(plan: PodPlan) -> dict[str, Any]:
    """Return the pod; raises HostError when a folder cannot be mounted."""
    launch, settings, worker = plan.launch, plan.settings, plan.worker
    volumes, mounts = _volumes(plan)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": max(1, -(-launch.grace_ms // 1000)),
        # As a DaemonSet does it: through the scheduler, which knows what else is on the node, to this node alone.
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _only(worker.node)}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": plan.uid,
            "runAsGroup": plan.gid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan, mounts)],
        "volumes": volumes,
    }
    if network_of(launch) != "cluster":
        # Ranks find each other by address: no name of the cluster is for them.
        spec |= {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["127.0.0.1"]}}
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if worker.pull_secrets:
        spec["imagePullSecrets"] = [dict(one) for one in worker.pull_secrets]
    if worker.tolerations:
        spec["tolerations"] = [dict(one) for one in worker.tolerations]
    key = launch.key
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name_of(launch.keep.region, key.job_id, key.attempt, key.rank),
            "namespace": worker.namespace,
            "labels": _labels(plan),
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
            # Kubernetes removes the pod when the worker's is gone, whatever becomes of us.
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": worker.name,
                    "uid": worker.uid,
                    "controller": False,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec,
    }


def _only(node: str) -> dict[str, Any]:
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    return {"nodeSelectorTerms": [{"matchFields": [field]}]}


def _labels(plan: PodPlan) -> dict[str, str]:
    launch = plan.launch
    own = {
        "app.kubernetes.io/part-of": "suanli",
        "app.kubernetes.io/component": COMPONENT,
        WORKER_LABEL: plan.worker.uid,
        START_LABEL: plan.start,
        NETWORK_LABEL: network_of(launch),
        "suanli.io/job": label_value(launch.job_id),
        "suanli.io/attempt": str(launch.attempt),
        "suanli.io/rank": str(launch.rank),
        "suanli.io/institution": label_value(launch.keep.institution),
        "suanli.io/pool": label_value(launch.keep.pool),
    }
    # Ours last: a network policy must not be got around by a setting.
    return {**dict(plan.settings.labels), **own}


def _container(plan: PodPlan, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    boot = "import sys; sys.path.insert(0, sys.argv[1]); from workers.executor.pod_init import main; main(sys.argv[2])"
    resources = _resources(plan.launch, plan.settings)
    env: list[dict[str, Any]] = [
        {"name": "SUANLI_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    if not plan.launch.gpu_indices:
        # An image may ask for every GPU; where the node's default runtime listens to that, it must hear no.
        env.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    return {
        "name": CONTAINER,
        "image": plan.settings.image or plan.worker.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [sys.executable, "-I", "-S", "-c", boot, plan.code, plan.control],
        "workingDir": "/",
        "env": env,
        "resources": {"requests": dict(resources), "limits": resources},
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }


def _resources(launch: Launch, settings: PodSettings) -> dict[str, str]:
    """What was granted, as requests and limits both; 0 is no limit, as everywhere."""
    granted = {}
    if launch.cpu_milli:
        granted["cpu"] = f"{launch.cpu_milli}m"
    if launch.memory_mib:
        granted["memory"] = f"{launch.memory_mib}Mi"
    if launch.gpu_indices:
        granted[settings.gpu_resource] = str(len(launch.gpu_indices))
    return granted


def _volumes(plan: PodPlan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The volumes behind what is shown, and where each path is mounted."""
    volumes: dict[str, Mapping[str, Any]] = {}
    mounts = []
    for path, target, read_only in _shown(plan):
        place = plan.worker.place(path)
        volumes[place.volume] = place.source
        mount: dict[str, Any] = {"name": place.volume, "mountPath": target, "readOnly": read_only}
        if place.sub_path:
            mount["subPath"] = place.sub_path
        mounts.append(mount)
    size = plan.launch.memory_mib or _SHM_MIB
    shm = "dshm" if "shm" in volumes else "shm"
    mounts.append({"name": shm, "mountPath": "/dev/shm"})  # noqa: S108
    listed = [{"name": name, **source} for name, source in volumes.items()]
    return [*listed, {"name": shm, "emptyDir": {"medium": "Memory", "sizeLimit": f"{size}Mi"}}], mounts


def _shown(plan: PodPlan) -> Iterable[tuple[str, str, bool]]:
    yield plan.code, plan.code, True
    yield plan.control, plan.control, True
    for path in plan.writable:
        yield path, path, False
    for path in dict.fromkeys(plan.read_only):
        yield path, path, True
    yield f"{plan.folder}/tmp", "/tmp", False  # noqa: S108
