"""A fake of the Kubernetes API: pods, their logs and watches, access reviews and RuntimeClasses, over HTTPS.

It is no Kubernetes. It has what ``workers.executor.pod_api`` uses, as the documentation of the API describes it: resource
versions, watches that time out or are too old (410), 409 for a name that is taken, deletion with grace, dry runs, and manifests held
against Kubernetes' own schema. Its kubelet (``kubelet.py``) runs containers as local processes.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import trustme
import yaml

from tests.support.kubelet import Kubelet

TOKEN = "a-token-of-the-worker"
VERSION = "1.37"
NAMESPACE = "suanli"
Object = dict[str, Any]


class Refused(Exception):
    """An answer with a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        self.code = code


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class FakeKubernetes:
    """One cluster of one node. ``url`` and ``kubeconfig`` lead to it."""

    node = "node-1"

    def __init__(self, folder: Path) -> None:
        self.changed = threading.Condition()
        self.pods: dict[str, Object] = {}
        self.history: list[tuple[int, str, Object]] = []
        self.version = 100
        self.oldest = 100
        """Watches from before this version are too old."""
        self.runtime_classes = {"gvisor"}
        self.denied: set[tuple[str, str]] = set()
        """Verb and resource (``pods/log``) that the token may not."""
        self.quota = ""
        """Why no pod may be created; empty when some may."""
        self.lose_answers = 0
        """So many creations take place, and the connection is lost before the answer."""
        self.events: list[Object] = []
        self.created: list[Object] = []
        """Every manifest that became a pod, as it was sent."""
        self.requests: list[str] = []
        self.away = False
        self.longest_watch_s = 1800.0
        self.kubelet = Kubelet(self)
        self._streams: set[Any] = set()
        self._authority = trustme.CA()
        self._server = _serve(self, self._authority)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        self.kubeconfig = folder / "kubeconfig"
        self._authority.cert_pem.write_to_path(str(folder / "kube-ca.pem"))
        self.kubeconfig.write_text(yaml.safe_dump(self._config(folder / "kube-ca.pem")))

    def _config(self, ca: Path) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url, "certificate-authority": str(ca)}}],
            "users": [{"name": "worker", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "worker", "namespace": NAMESPACE}}],
        }

    def close(self) -> None:
        self.kubelet.close()
        self.cut()
        self._server.shutdown()
        self._server.server_close()

    # --- what a test does to it -----------------------------------------------------------------------------------

    def add_worker(self, path: Path, name: str) -> Object:
        """The pod that the executor under test believes itself in, with a claim of its own at ``path``, as the chart makes it."""
        self.kubelet.claims[f"{name}-state"] = path
        pod = {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"ray.io/cluster": "campus-ray"}},
            "spec": {
                "nodeName": self.node,
                "containers": [
                    {
                        "name": "ray-worker",
                        "image": "registry.example.org/suanli:1",
                        "volumeMounts": [{"name": "state", "mountPath": str(path)}],
                    }
                ],
                "volumes": [{"name": "state", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}],
                "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
                "imagePullSecrets": [{"name": "registry"}],
            },
            "status": {"phase": "Running"},
        }
        self.kubelet.images.add("registry.example.org/suanli:1")
        return self._add(pod)

    def cut(self) -> None:
        """Every open watch and log loses its connection."""
        with self.changed:
            streams, self._streams = self._streams, set()
        for connection in streams:
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def go_away(self) -> None:
        """The API answers nobody until it comes back; containers go on."""
        self.away = True
        self.cut()

    def come_back(self) -> None:
        self.away = False

    def forget_history(self) -> None:
        """Watches that go on from an older version are told 410."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    def jobs(self) -> dict[str, Object]:
        """Pods of jobs by name."""
        with self.changed:
            return {
                name: copy.deepcopy(pod)
                for name, pod in self.pods.items()
                if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "suanli-job"
            }

    # --- the store ------------------------------------------------------------------------------------------------

    def _add(self, pod: Object) -> Object:
        with self.changed:
            name = pod["metadata"]["name"]
            pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            self.pods[name] = pod
            self._note("ADDED", pod)
            return copy.deepcopy(pod)

    def _note(self, kind: str, pod: Object) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, copy.deepcopy(pod)))
        self.changed.notify_all()

    def update(self, name: str, change: Callable[[Object], None]) -> bool:
        """Change a pod; whether it is there."""
        with self.changed:
            pod = self.pods.get(name)
            if pod is None:
                return False
            change(pod)
            self._note("MODIFIED", pod)
            return True

    def remove(self, name: str) -> None:
        with self.changed:
            pod = self.pods.pop(name, None)
            if pod is not None:
                self._note("DELETED", pod)
                self.kubelet.forget(pod)

    # --- requests -------------------------------------------------------------------------------------------------

    def check(self, verb: str, resource: str) -> None:
        if (verb, resource) in self.denied:
            raise Refused(403, "Forbidden", f'User "worker" cannot {verb} resource "{resource}" in API group ""')

    def create(self, pod: Object, dry_run: bool) -> Object:
        self.check("create", "pods")
        try:
            kubernetes_validate.validate(pod, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Refused(422, "Invalid", f"Pod is invalid: {error.message}") from None
        runtime = pod["spec"].get("runtimeClassName")
        if runtime and runtime not in self.runtime_classes:
            raise Refused(403, "Forbidden", f'pod rejected: RuntimeClass "{runtime}" not found')
        if self.quota:
            raise Refused(403, "Forbidden", self.quota)
        name = pod["metadata"]["name"]
        with self.changed:
            if name in self.pods:
                raise Refused(409, "AlreadyExists", f'pods "{name}" already exists')
            if dry_run:
                return pod
            self.created.append(copy.deepcopy(pod))
            pod["status"] = {"phase": "Pending", "conditions": []}
            added = self._add(pod)
        self.kubelet.take(added)
        return added

    def get(self, name: str) -> Object:
        self.check("get", "pods")
        with self.changed:
            if name not in self.pods:
                raise Refused(404, "NotFound", f'pods "{name}" not found')
            return copy.deepcopy(self.pods[name])

    def delete(self, name: str, options: Object) -> Object:
        self.check("delete", "pods")
        pod = self.get(name)
        wanted = options.get("preconditions", {}).get("uid")
        if wanted and wanted != pod["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {wanted}")
        self.kubelet.delete(pod, int(options.get("gracePeriodSeconds", 30)))
        return pod

    def select(self, query: dict[str, str]) -> tuple[list[Object], int]:
        self.check("list", "pods")
        with self.changed:
            return [copy.deepcopy(pod) for pod in self.pods.values() if _selected(pod, query)], self.version

    def watch(self, query: dict[str, str]) -> Iterator[Object]:
        """Changes since a version, until the time is over or the connection is cut."""
        self.check("watch", "pods")
        seen = int(query.get("resourceVersion") or self.version)
        until = time.monotonic() + min(self.longest_watch_s, float(query.get("timeoutSeconds", 1800)))
        while True:
            with self.changed:
                if seen < self.oldest:
                    message = f"too old resource version: {seen} ({self.oldest})"
                    yield {"type": "ERROR", "object": Refused(410, "Expired", message).status}
                    return
                fresh = [one for one in self.history if one[0] > seen]
                if not fresh:
                    left = until - time.monotonic()
                    if left <= 0:
                        bookmark = {
                            "kind": "Pod",
                            "apiVersion": "v1",
                            "metadata": {"resourceVersion": str(self.version)},
                        }
                        bookmark["metadata"]["uid"] = ""
                        yield {"type": "BOOKMARK", "object": bookmark}
                        return
                    self.changed.wait(min(left, 0.5))
                    if self.away:
                        return
                    continue
            for version, kind, pod in fresh:
                seen = version
                if _selected(pod, query):
                    yield {"type": kind, "object": pod}

    def opened(self, connection: Any) -> None:
        with self.changed:
            self._streams.add(connection)


def _selected(pod: Object, query: dict[str, str]) -> bool:
    meta = pod["metadata"]
    fields = [one.split("=", 1) for one in query.get("fieldSelector", "").split(",") if one]
    labels = [one.split("=", 1) for one in query.get("labelSelector", "").split(",") if one]
    assert all(key == "metadata.name" for key, _ in fields)
    return all(meta["name"] == value for _, value in fields) and all(
        meta.get("labels", {}).get(key) == value for key, value in labels
    )


def _serve(cluster: FakeKubernetes, authority: trustme.CA) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.cluster = cluster
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeKubernetes
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, ValueError):
            super().handle()

    def _answer(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunks(self, pieces: Iterator[bytes]) -> None:
        self.cluster.opened(self.connection)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if self.cluster.away:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _request(self) -> None:
        cluster = self.cluster
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}") if length else {}
        if cluster.away:
            self.close_connection = True
            return
        cluster.requests.append(f"{self.command} {self.path}")
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            self._route([part for part in url.path.split("/") if part], query, body)
        except Refused as refused:
            self._answer(refused.code, refused.status)

    do_GET = _request  # noqa: N815 - the names that http.server asks for
    do_POST = _request  # noqa: N815
    do_DELETE = _request  # noqa: N815

    def _route(self, path: list[str], query: dict[str, str], body: Object) -> None:
        cluster = self.cluster
        match self.command, path:
            case "POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]:
                wanted = body["spec"]["resourceAttributes"]
                resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource", ""))))
                allowed = (wanted["verb"], resource) not in cluster.denied
                self._answer(201, {**body, "status": {"allowed": allowed}})
            case "GET", ["apis", "node.k8s.io", "v1", "runtimeclasses", name]:
                if name not in cluster.runtime_classes:
                    raise Refused(404, "NotFound", f'runtimeclasses.node.k8s.io "{name}" not found')
                self._answer(200, {"kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runsc"})
            case "GET", ["api", "v1", "namespaces", str(), "events"]:
                self._answer(200, {"kind": "EventList", "metadata": {}, "items": cluster.events})
            case "POST", ["api", "v1", "namespaces", str(), "pods"]:
                made = cluster.create(body, query.get("dryRun") == "All")
                if cluster.lose_answers and "dryRun" not in query:
                    cluster.lose_answers -= 1
                    self.close_connection = True
                    return
                self._answer(201, made)
            case "GET", ["api", "v1", "namespaces", str(), "pods"] if query.get("watch") == "true":
                events = cluster.watch(query)
                first = next(events, None)
                lines = ([first] if first else [], events)
                self._chunks(json.dumps(one).encode() + b"\n" for some in lines for one in some)
            case "GET", ["api", "v1", "namespaces", str(), "pods"]:
                items, version = cluster.select(query)
                meta = {"resourceVersion": str(version)}
                self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": items})
            case "GET", ["api", "v1", "namespaces", str(), "pods", name]:
                self._answer(200, cluster.get(name))
            case "DELETE", ["api", "v1", "namespaces", str(), "pods", name]:
                self._answer(200, cluster.delete(name, body))
            case "GET", ["api", "v1", "namespaces", str(), "pods", name, "log"]:
                cluster.check("get", "pods/log")
                self._chunks(cluster.kubelet.log(cluster.get(name), query))
            case _:
                raise Refused(404, "NotFound", f"no {self.command} {self.path}")
