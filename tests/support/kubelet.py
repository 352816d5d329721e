"""The kubelet of the fake Kubernetes: containers are processes of this machine, in bubblewrap, that see what is mounted.

As in a container the command is process 1 of its namespace, everything but its mounts is read-only, what lies beside its mounts
on their volumes is not there, and the user is the one that the pod names.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from tests.support.kubernetes import FakeKubernetes

Object = dict[str, Any]
_REPOSITORY = str(Path(__file__).resolve().parents[2])
_IMAGE = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/opt"),
    *dict.fromkeys((sys.base_prefix, sys.prefix, os.path.realpath(sys.prefix), _REPOSITORY)),
)
"""What the image holds: of this machine what its Python needs."""
_LOOK_S = 0.05


class Container:
    """One container, as its node sees it."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.lines: list[tuple[str, bytes]] = []
        self.over = False
        self.first_pid = 0
        self.reason = ""
        self.kill_at = float("inf")

    def signal(self, number: int) -> None:
        if self.first_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first_pid, number)


class Kubelet:
    def __init__(self, cluster: FakeKubernetes) -> None:
        self.cluster = cluster
        self.claims: dict[str, Path] = {}
        """The folders behind claims."""
        self.images: set[str] = set()
        self.room = True
        """Whether the scheduler finds room on the node."""
        self.slow_start_s = 0.0
        self.containers: dict[str, Container] = {}
        """By uid of their pod."""
        self.threads: list[threading.Thread] = []
        self.closing = False

    def close(self) -> None:
        self.closing = True
        for container in list(self.containers.values()):
            container.signal(signal.SIGKILL)
        for thread in self.threads:
            thread.join(10)

    # --- what a test does to it -----------------------------------------------------------------------------------

    def container(self, name: str) -> Container:
        return self.containers[self.cluster.pods[name]["metadata"]["uid"]]

    def rotate(self, name: str, keep: int) -> None:
        """The node throws all but the newest lines of a log away."""
        with self.cluster.changed:
            del self.container(name).lines[:-keep]

    def evict(self, name: str) -> None:
        container = self.container(name)
        container.reason = "Evicted"
        container.signal(signal.SIGKILL)

    # --- pods -----------------------------------------------------------------------------------------------------

    def take(self, pod: Object) -> None:
        thread = threading.Thread(target=self._life, args=(pod,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def delete(self, pod: Object, grace_s: int) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        container = self.containers.get(uid)
        if grace_s == 0 or container is None or container.over:
            self.cluster.remove(name)
            return
        self.cluster.update(
            name, lambda one: one["metadata"].update(deletionTimestamp=_now(), deletionGracePeriodSeconds=grace_s)
        )
        container.kill_at = min(container.kill_at, time.monotonic() + grace_s)
        container.signal(signal.SIGTERM)

    def forget(self, pod: Object) -> None:
        """A pod that the API has no more must not run."""
        container = self.containers.get(pod["metadata"]["uid"])
        if container is not None and not container.over:
            container.signal(signal.SIGKILL)

    def _life(self, pod: Object) -> None:
        name, spec = pod["metadata"]["name"], pod["spec"]
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [self.cluster.node]}]}]
        if not self._wait_for(pod, lambda: self.room, self._unschedulable):
            return
        self.cluster.update(name, lambda one: one["spec"].update(nodeName=self.cluster.node))
        time.sleep(self.slow_start_s)
        image = spec["containers"][0]["image"]
        if not self._wait_for(pod, lambda: image in self.images, lambda one: _waiting(one, image)):
            return
        container = self.containers[pod["metadata"]["uid"]] = Container(pod["metadata"]["uid"])
        code = self._run(pod, container)
        reason = container.reason or ("Completed" if code == 0 else "Error")

        def over(one: Object) -> None:
            terminated = {"exitCode": code, "reason": reason, "finishedAt": _now(), "startedAt": _now()}
            one["status"]["phase"] = "Failed" if code else "Succeeded"
            if reason == "Evicted":
                one["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
            one["status"]["containerStatuses"] = [{"name": "job", "state": {"terminated": terminated}}]

        with self.cluster.changed:
            container.over = True
            self.cluster.update(name, over)
            if self.cluster.pods.get(name, {}).get("metadata", {}).get("deletionTimestamp"):
                self.cluster.remove(name)

    def _wait_for(self, pod: Object, ready: Any, say: Any) -> bool:
        """Wait until something holds, saying otherwise in the pod's status; False when the pod is gone before."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        said = False
        while not self.closing:
            with self.cluster.changed:
                if self.cluster.pods.get(name, {}).get("metadata", {}).get("uid") != uid:
                    return False
            if ready():
                return True
            if not said:
                said = True
                self.cluster.update(name, say)
            time.sleep(_LOOK_S)
        return False

    @staticmethod
    def _unschedulable(pod: Object) -> None:
        message = "0/1 nodes are available: 1 Insufficient cpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        pod["status"]["conditions"] = [condition]

    # --- containers -----------------------------------------------------------------------------------------------

    def _run(self, pod: Object, container: Container) -> int:
        status_read, status_write = os.pipe()
        command = [*self._walls(pod), "--json-status-fd", str(status_write), "--", *self._as_user(pod)]
        command += pod["spec"]["containers"][0]["command"]
        env = {"PATH": "/usr/bin:/bin", "SUANLI_POD_IP": "127.0.0.1"}
        for one in pod["spec"]["containers"][0].get("env", ()):
            env[one["name"]] = one.get("value", "127.0.0.1")
        process = subprocess.Popen(
            command,
            pass_fds=[status_write],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(status_write)
        with os.fdopen(status_read) as status:
            container.first_pid = int(json.loads(status.readline() or "{}").get("child-pid", 0))
            running = {"name": "job", "state": {"running": {"startedAt": _now()}}}
            name = pod["metadata"]["name"]
            self.cluster.update(
                name, lambda one: one["status"].update(phase="Running", podIP="127.0.0.1", containerStatuses=[running])
            )
            reader = threading.Thread(target=self._read, args=(process, container), daemon=True)
            reader.start()
            limit = pod["spec"]["containers"][0]["resources"]["limits"].get("memory", "0Mi")
            while process.poll() is None:
                if time.monotonic() > container.kill_at:
                    container.signal(signal.SIGKILL)
                if int(limit[:-2]) and _rss_mib(process.pid) > int(limit[:-2]):
                    container.reason = "OOMKilled"
                    container.signal(signal.SIGKILL)
                time.sleep(_LOOK_S)
            reader.join()
        return process.returncode

    def _read(self, process: subprocess.Popen[bytes], container: Container) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self.cluster.changed:
                container.lines.append((_now(), line.rstrip(b"\n")))
                self.cluster.changed.notify_all()

    def _walls(self, pod: Object) -> list[str]:
        spec = pod["spec"]
        sources = {one["name"]: one for one in spec["volumes"]}
        mounts = sorted(spec["containers"][0]["volumeMounts"], key=lambda one: one["mountPath"].count("/"))
        walls = ["bwrap", "--unshare-pid", "--unshare-ipc", "--as-pid-1", "--die-with-parent"]
        for path in _IMAGE:
            walls += [*_parents(path), "--symlink", os.readlink(path), path] if os.path.islink(path) else []
            walls += (
                [*_parents(path), "--ro-bind", path, path] if os.path.isdir(path) and not os.path.islink(path) else []
            )
        walls += ["--dev", "/dev", "--proc", "/proc"]
        for mount in mounts:
            volume, target = sources[mount["name"]], mount["mountPath"]
            if "emptyDir" in volume:
                walls += ["--perms", "1777", "--tmpfs", target]
                continue
            base = volume["hostPath"]["path"] if "hostPath" in volume else str(self.claim(volume))
            assert ".." not in mount.get("subPath", "")
            assert not mount.get("subPath", "").startswith("/")
            source = os.path.join(base, mount.get("subPath", ""))
            walls += [*_parents(target), "--ro-bind" if mount.get("readOnly") else "--bind", source, target]
        walls += ["--remount-ro", "/", "--chdir", spec["containers"][0].get("workingDir", "/"), "--cap-drop", "ALL"]
        if os.geteuid() == 0:
            walls += [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
        return walls

    def claim(self, volume: Object) -> Path:
        """The folder behind a claim."""
        return self.claims[volume["persistentVolumeClaim"]["claimName"]]

    @staticmethod
    def _as_user(pod: Object) -> list[str]:
        user = pod["spec"]["securityContext"]
        if os.geteuid() != 0:
            return []
        ids = [f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}", "--clear-groups"]
        return [str(shutil.which("setpriv")), *ids, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]

    # --- logs -----------------------------------------------------------------------------------------------------

    def log(self, pod: Object, query: dict[str, str]) -> Iterator[bytes]:
        """The lines of a container's log, with time stamps; goes on until its end when asked to follow."""
        container = self.containers.get(pod["metadata"]["uid"])
        if container is None:
            return
        since = ""
        if "sinceSeconds" in query:
            at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=int(query["sinceSeconds"]))
            since = at.isoformat(timespec="microseconds")
        sent = ""
        while True:
            with self.cluster.changed:
                fresh = [(at, line) for at, line in container.lines if at > sent and at >= since]
                over = container.over or self.closing
                if not fresh and not over and query.get("follow") == "true":
                    if self.cluster.away:
                        return
                    self.cluster.changed.wait(0.5)
                    continue
            for at, line in fresh:
                sent = at
                yield f"{at} ".encode() + line + b"\n"
            if over or query.get("follow") != "true":
                return


def _waiting(pod: Object, image: str) -> None:
    message = f'Back-off pulling image "{image}": not found'
    pod["status"]["containerStatuses"] = [
        {"name": "job", "state": {"waiting": {"reason": "ImagePullBackOff", "message": message}}}
    ]


def _parents(path: str) -> list[str]:
    return [word for parent in reversed(Path(path).parents[:-1]) for word in ("--perms", "0755", "--dir", str(parent))]


_last = ""
_last_lock = threading.Lock()


def _now() -> str:
    """The time, never the same twice: the fake tells lines apart by it."""
    global _last
    with _last_lock:
        while True:
            text = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            if text != _last:
                _last = text
                return text


def _rss_mib(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total >> 20
