"""Finding out whether jobs can have pods on this node, by asking everything that could stand in the way."""

from __future__ import annotations

import contextlib

from workers.executor.pod_api import FORBIDDEN, NOT_FOUND, PodApi, PodApiError
from workers.executor.pod_host import WorkerPod, worker_pod
from workers.executor.pod_manifest import PodPlan, render

RIGHTS = (
    ("create", "pods", ""),
    ("get", "pods", ""),
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("delete", "pods", ""),
    ("get", "pods", "log"),
)
"""What the worker's service account needs in its namespace. ``list events`` helps to say why a pod does not start."""
_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def own_namespace(declared: str) -> str:
    """Return the namespace of the worker's pod: as declared, else that of its service account."""
    if declared:
        return declared
    with contextlib.suppress(OSError), open(_NAMESPACE_FILE, encoding="ascii") as file:
        return file.read().strip()
    return "default"


def own_pod(api: PodApi, namespace: str, name: str, folder: str) -> WorkerPod:
    """Return what the API knows of the executor's own pod; raises PodApiError, HostError."""
    return worker_pod(api.get(namespace, name), folder)


def problem(api: PodApi, plan: PodPlan) -> str:
    """Return why a pod such as this one cannot be had, as a part of a sentence; empty when it can.

    Raises PodApiError when the API does not answer, HostError when a folder cannot be mounted.
    """
    namespace = plan.worker.namespace
    missing = [
        " ".join((verb, "/".join(part for part in (resource, below) if part)))
        for verb, resource, below in RIGHTS
        if not api.may(namespace, verb, resource, below)
    ]
    if missing:
        return f"the worker's service account lacks rights in the namespace {namespace}: {', '.join(missing)}"
    name = plan.settings.runtime_class
    if name:
        try:
            api.runtime_class(name)
        except PodApiError as error:
            if error.status == NOT_FOUND:
                return f"the cluster has no RuntimeClass {name!r}"
            # Not to be allowed to look is no fault: the trial below finds out.
            if error.status != FORBIDDEN:
                raise
    pod = render(plan)
    pod["metadata"]["name"] = f"suanli-trial-{plan.start[:16]}"
    try:
        api.create(namespace, pod, dry_run=True)
    except PodApiError as error:
        if error.passes:
            raise
        return f"Kubernetes would refuse a job's pod: {error}"
    return ""
