"""The pod that the executor itself stands in: which node it is on, and which of its folders other pods can have too."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

_SHAREABLE = ("persistentVolumeClaim", "hostPath", "nfs")
"""Kinds of volumes that a second pod on the same node can mount."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the executor's container. ``source`` is the volume as another pod would name it; None: none can."""

    path: str
    volume: str
    source: Mapping[str, Any] | None
    sub_path: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A path on a volume: the name and source of the volume, and where on it."""

    volume: str
    source: Mapping[str, Any]
    sub_path: str


class HostError(Exception):
    """Other pods cannot stand beside this one; the text is a part of a sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerPod:
    """What pods beside it need to know of it."""

    name: str
    namespace: str
    uid: str
    node: str
    image: str
    mounts: tuple[Mount, ...]
    pull_secrets: tuple[Mapping[str, Any], ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()

    def place(self, path: str) -> Place:
        """Return where a path lies; raises HostError where no other pod can reach it."""
        path = os.path.normpath(path)
        covering = [mount for mount in self.mounts if _within(path, mount.path)]
        if not covering:
            raise HostError(f"{path} lies on no volume of the worker's pod, so that no other pod can mount it")
        mount = max(covering, key=lambda one: len(one.path))
        if mount.source is None:
            raise HostError(
                f"{path} lies on the volume {mount.volume!r} of the worker's pod, which no other pod can mount: "
                "it must be a claim, a folder of the node or NFS"
            )
        inner = os.path.relpath(path, mount.path)
        parts = [part for part in (mount.sub_path, inner) if part not in {"", "."}]
        return Place(mount.volume, mount.source, "/".join(parts))


def worker_pod(pod: Mapping[str, Any], folder: str) -> WorkerPod:
    """Read the executor's own pod, as the API gives it; ``folder`` is where the executor works. Raises HostError."""
    meta, spec = pod["metadata"], pod["spec"]
    if not spec.get("nodeName"):
        raise HostError(f"the pod {meta['name']} does not say which node it is on")
    container = _container(spec["containers"], folder)
    volumes = {one["name"]: one for one in spec.get("volumes", ())}
    return WorkerPod(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        node=spec["nodeName"],
        image=container["image"],
        mounts=tuple(_mount(meta["name"], one, volumes) for one in container.get("volumeMounts", ())),
        pull_secrets=tuple(spec.get("imagePullSecrets") or ()),
        tolerations=tuple(spec.get("tolerations") or ()),
    )


def _container(containers: Sequence[Mapping[str, Any]], folder: str) -> Mapping[str, Any]:
    """The container that has the folder: others may have been put beside it."""
    for one in containers:
        if any(_within(folder, mount["mountPath"]) for mount in one.get("volumeMounts", ())):
            return one
    return containers[0]


def _mount(pod: str, mount: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]]) -> Mount:
    name = mount["name"]
    volume = volumes.get(name, {})
    source: Mapping[str, Any] | None = None
    if "ephemeral" in volume:
        # Kubernetes names the claim so.
        source = {"persistentVolumeClaim": {"claimName": f"{pod}-{name}"}}
    else:
        for kind in _SHAREABLE:
            if kind in volume:
                source = {kind: volume[kind]}
    if mount.get("subPathExpr"):
        source = None
    return Mount(os.path.normpath(mount["mountPath"]), name, source, mount.get("subPath", ""))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
