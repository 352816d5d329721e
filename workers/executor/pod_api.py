"""The Kubernetes API as far as jobs' pods need it, through the ``kubernetes`` client: plain values in and out, one kind of error.

Everything here blocks. Inside a cluster it speaks as the pod's service account, whose token the client reads anew when it is
changed; elsewhere as ``KUBECONFIG`` says.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

_NOWHERE = "http://127.0.0.1:9"
"""The port that discards; where something listens there all the same, it learns nothing."""
_CONNECT_S = 5.0
_READ_S = 30.0
_SILENCE_S = 15.0
"""How much longer than asked for a watch may be silent before its connection counts as dead."""
_QUIET_LOG_S = 60.0
"""A log without a line for so long is asked for anew: a dead connection looks the same."""
NOT_REACHED = 0
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, TOO_MANY = 401, 403, 404, 409, 410, 429
_SERVER_FAULT = 500
_LEAST_GRACE_S = 1
"""With 0 the API forgets the pod at once, and nobody knows whether it still runs."""


class KubernetesUnavailableError(Exception):
    """There is no way to a Kubernetes API here; the text is a part of a sentence."""


class PodApiError(Exception):
    """A call failed. ``status`` is HTTP's, 0 when there was no answer; the text is the server's, if it said anything."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def passes(self) -> bool:
        """Whether the same call may well work a little later."""
        # A token may have run out between two readings of its file.
        return self.status in {NOT_REACHED, UNAUTHORIZED, TOO_MANY} or self.status >= _SERVER_FAULT


class PodApi:
    """Pods of one namespace."""

    def __init__(self, *, nowhere: bool = False) -> None:
        """``nowhere``: an API that does not answer."""
        try:
            client = importlib.import_module("kubernetes.client")
            config = importlib.import_module("kubernetes.config")
            self._no_answer: type[Exception] = importlib.import_module("urllib3.exceptions").HTTPError
        except ImportError as error:
            raise KubernetesUnavailableError(f"the Python package kubernetes is not installed ({error})") from error
        settings = client.Configuration()
        # Trying again is decided by those who call.
        settings.retries = False
        try:
            if nowhere:
                settings.host = _NOWHERE
            elif file := os.environ.get("KUBECONFIG"):
                # Named, for the client takes the variable's value from when it was imported.
                config.load_kube_config(file, client_configuration=settings)
            else:
                config.load_incluster_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise KubernetesUnavailableError(
                f"there is no way to the Kubernetes API: {error}; the worker's pod needs a service account with its token"
            ) from error
        self._refused: type[Exception] = client.ApiException
        connection = client.ApiClient(settings)
        self._core = client.CoreV1Api(connection)
        self._access = client.AuthorizationV1Api(connection)
        self._node = client.NodeV1Api(connection)

    @classmethod
    def warm_up(cls) -> None:
        """Let the client build what it builds at its first calls, which takes longer and more memory than all that follow."""
        api = cls(nowhere=True)
        pod = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x"}]}}
        for call in (
            lambda: api.get("x", "x"),
            lambda: api.list("x"),
            lambda: api.create("x", pod),
            lambda: api.delete("x", "x", "x", 1),
            lambda: list(api.log("x", "x", "x", since_s=None, follow=False)),
        ):
            with contextlib.suppress(PodApiError):
                call()

    def get(self, namespace: str, name: str) -> dict[str, Any]:
        """Return a pod; PodApiError with NOT_FOUND when there is none."""
        return self._json(self._core.read_namespaced_pod, name, namespace)

    def list(self, namespace: str, **selectors: str) -> tuple[list[dict[str, Any]], str]:
        """Return pods and the version of the list."""
        found = self._json(self._core.list_namespaced_pod, namespace, **selectors)
        return found["items"], found["metadata"]["resourceVersion"]

    def create(self, namespace: str, pod: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Create a pod, or have the server say whether it would."""
        extra = {"dry_run": "All"} if dry_run else {}
        return self._json(self._core.create_namespaced_pod, namespace, dict(pod), **extra)

    def delete(self, namespace: str, name: str, uid: str, grace_s: int) -> None:
        """Begin to delete this very pod; it is gone once ``get`` says so. Harmless when it is gone already."""
        body = {"gracePeriodSeconds": max(_LEAST_GRACE_S, grace_s), "preconditions": {"uid": uid}}
        try:
            self._json(self._core.delete_namespaced_pod, name, namespace, body=body)
        except PodApiError as error:
            # A conflict says that another pod bears the name now.
            if error.status not in {NOT_FOUND, CONFLICT}:
                raise

    def watch(self, namespace: str, name: str, version: str, seconds: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give kind and object of each change of a pod since a version, for so long; PodApiError with GONE when too old."""
        response = self._call(
            self._core.list_namespaced_pod,
            namespace,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=seconds,
            allow_watch_bookmarks=True,
            watch=True,
            _request_timeout=(_CONNECT_S, seconds + _SILENCE_S),
        )
        for line in self._lines(response):
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise PodApiError(int(status.get("code", 0)), str(status.get("message", "")))
            yield event["type"], event["object"]

    def log(self, namespace: str, name: str, container: str, *, since_s: int | None, follow: bool) -> Iterator[bytes]:
        """Give the lines of a container's log, each behind its time stamp, without their newlines."""
        extra = {} if since_s is None else {"since_seconds": max(1, since_s)}
        response = self._call(
            self._core.read_namespaced_pod_log,
            name,
            namespace,
            container=container,
            follow=follow,
            timestamps=True,
            _request_timeout=(_CONNECT_S, _QUIET_LOG_S),
            **extra,
        )
        return self._lines(response)

    def warning(self, namespace: str, name: str) -> str:
        """Return the newest warning about a pod; nothing when there is none or we may not know."""
        try:
            found = self._json(
                self._core.list_namespaced_event,
                namespace,
                field_selector=f"involvedObject.name={name},type=Warning",
                limit=100,
            )
        except PodApiError:
            return ""
        items = sorted(found["items"], key=lambda one: one.get("lastTimestamp") or one.get("eventTime") or "")
        return str(items[-1].get("message", "")) if items else ""

    def may(self, namespace: str, verb: str, resource: str, subresource: str = "") -> bool:
        """Whether we have a right."""
        wanted = {"namespace": namespace, "verb": verb, "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in wanted.items() if value}},
        }
        answer = self._json(self._access.create_self_subject_access_review, review)
        return bool(answer.get("status", {}).get("allowed"))

    def runtime_class(self, name: str) -> dict[str, Any]:
        """Return a RuntimeClass."""
        return self._json(self._node.read_runtime_class, name)

    # --- calls ----------------------------------------------------------------------------------------------------

    def _json(self, call: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        response = self._call(call, *arguments, _request_timeout=(_CONNECT_S, _READ_S), **options)
        try:
            found: dict[str, Any] = json.loads(response.data)
        except (self._no_answer, ValueError, OSError) as error:
            raise PodApiError(NOT_REACHED, _words(error)) from error
        return found

    def _call(self, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            response = call(*arguments, _preload_content=False, **options)
        except self._refused as error:
            raise PodApiError(int(getattr(error, "status", 0) or 0), _said(error)) from error
        except (self._no_answer, OSError) as error:
            raise PodApiError(NOT_REACHED, _words(error)) from error
        return response

    def _lines(self, response: Any) -> Iterator[bytes]:
        rest = b""
        try:
            # As it comes: a stream with a size would wait until that much is there.
            for piece in response.stream(None, decode_content=False):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
            if rest:
                yield rest
        except (self._no_answer, OSError) as error:
            raise PodApiError(NOT_REACHED, _words(error)) from error
        finally:
            response.close()


def _said(error: Exception) -> str:
    """The server's own sentence out of an ApiException."""
    body = getattr(error, "body", None) or b""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", "") or error)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[-300:] or type(error).__name__
