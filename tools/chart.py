"""Check the Helm chart: lint it, render it with each set of values, and hold what it renders against the schemas.

    python -m tools.chart          exit 1 and name every fault

Built-in kinds are checked strictly (an unknown field is a fault) against Kubernetes' own schemas, a RayCluster against
that of KubeRay with its pod templates as Kubernetes sees them, a ServiceMonitor and a PrometheusRule against those of the
Prometheus operator.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tools.helm import HelmUnavailableError, run_helm

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "helm" / "suanli"
FULL_VALUES = CHART / "ci" / "full-values.yaml"
KUBERNETES_VERSION = "1.37"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
CUSTOM_KINDS = {
    ("ray.io/v1", "RayCluster"): "rayclusters.ray.io-v1.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrules.monitoring.coreos.com-v1.json",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "servicemonitors.monitoring.coreos.com-v1.json",
}

Manifest = dict[str, Any]


class ChartError(Exception):
    """Helm refused the chart or its values; the message is Helm's."""


def lint(*arguments: str) -> None:
    """Run ``helm lint --strict``. Raises ChartError with Helm's words when it finds fault."""
    done = run_helm("lint", "--strict", str(CHART), *arguments)
    if done.returncode != 0:
        raise ChartError(f"{done.stdout}\n{done.stderr}".strip())


def render(*arguments: str) -> list[Manifest]:
    """Return the manifests the chart renders as release ``campus`` in namespace ``suanli``, without its notes.

    Raises ChartError when a template fails or a value breaks ``values.schema.json``.
    """
    target = ["--kube-version", KUBERNETES_VERSION, "--namespace", "suanli"]
    done = run_helm("template", "campus", str(CHART), *target, *arguments)
    if done.returncode != 0:
        raise ChartError(done.stderr.strip())
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def faults(manifest: Manifest) -> list[str]:
    """Return what is wrong with one manifest, each fault naming the object and the path within; empty when sound."""
    name = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
    schema = CUSTOM_KINDS.get((str(manifest.get("apiVersion")), str(manifest.get("kind"))))
    if schema is None:
        found = _kubernetes_faults(manifest)
    else:
        found = [
            f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message}"
            for error in jsonschema.Draft202012Validator(_custom_schema(schema)).iter_errors(manifest)
        ]
    if manifest.get("kind") == "RayCluster":
        found += _pod_template_faults(manifest)
    return [f"{name}: {fault}" for fault in found]


def _kubernetes_faults(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message}"]
    return []


def _pod_template_faults(cluster: Manifest) -> list[str]:
    """Check each group of a RayCluster in the clothes of a PodTemplate."""
    found = []
    spec = cluster.get("spec", {})
    for group in [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]:
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": group.get("template", {})}
        name = group.get("groupName", "head")
        found += [f"{name}: {fault}" for fault in _kubernetes_faults(template)]
    return found


@functools.cache
def _custom_schema(file: str) -> Manifest:
    schema: Manifest = json.loads((SCHEMAS / file).read_text())
    _close(schema)
    # The definition says nothing of these, since every object has them.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _close(node: Any) -> None:
    """Make every object that lists its fields refuse others, as an API server would drop them without a word."""
    if isinstance(node, list):
        for item in node:
            _close(item)
    elif isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        if node.pop("x-kubernetes-int-or-string", False):
            node.pop("anyOf", None)
            node["type"] = ["integer", "string"]
        for value in node.values():
            _close(value)


def main() -> int:
    """Lint, render and check; return 1 if anything is wrong."""
    try:
        for values in ([], ["--values", str(FULL_VALUES)]):
            lint(*values)
            manifests = render(*values)
            found = [fault for manifest in manifests for fault in faults(manifest)]
            if found:
                raise ChartError("\n".join(found))
            print(f"chart: {'full' if values else 'default'} values: {len(manifests)} manifests, all sound")
    except (ChartError, HelmUnavailableError) as error:
        print(f"chart: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
