"""The chart, rendered by a real Helm: what it makes is sound, safe by default, and bad values are refused in words."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import yaml

from tools import chart
from workers.executor.pod_host import worker_pod
from workers.executor.pod_manifest import COMPONENT, NETWORK_LABEL
from workers.executor.pod_trial import RIGHTS


@functools.cache
def _rendered(*arguments: str) -> tuple[chart.Manifest, ...]:
    return tuple(chart.render(*arguments))


def rendered(*arguments: str) -> list[chart.Manifest]:
    return copy.deepcopy(list(_rendered(*arguments)))


def full() -> list[chart.Manifest]:
    return rendered("--values", str(chart.FULL_VALUES))


def one(manifests: list[chart.Manifest], kind: str, suffix: str) -> chart.Manifest:
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{kind} …{suffix}: {[m['metadata']['name'] for m in manifests if m['kind'] == kind]}"
    return found[0]


def pods(manifests: list[chart.Manifest]) -> list[tuple[str, dict[str, Any]]]:
    found = [(m["metadata"]["name"], m["spec"]["template"]["spec"]) for m in manifests if m["kind"] == "Deployment"]
    for cluster in (m for m in manifests if m["kind"] == "RayCluster"):
        found.append(("head", cluster["spec"]["headGroupSpec"]["template"]["spec"]))
        found += [(g["groupName"], g["template"]["spec"]) for g in cluster["spec"]["workerGroupSpecs"]]
    return found


@pytest.mark.parametrize("arguments", [(), ("--values", str(chart.FULL_VALUES))], ids=["default", "full"])
def test_every_manifest_is_sound(arguments: tuple[str, ...]) -> None:
    chart.lint(*arguments)
    manifests = rendered(*arguments)
    assert {"Deployment", "Service", "ConfigMap", "RayCluster", "PersistentVolumeClaim"} <= {
        manifest["kind"] for manifest in manifests
    }
    assert [fault for manifest in manifests for fault in chart.faults(manifest)] == []


@pytest.mark.parametrize(
    ("kind", "suffix", "path", "value", "says"),
    [
        ("Deployment", "-agent", ["spec", "replica"], 1, "replica"),
        ("Deployment", "-agent", ["spec", "replicas"], "one", "replicas"),
        ("RayCluster", "-ray", ["spec", "rayVersoin"], "2.60.0", "rayVersoin"),
        ("RayCluster", "-ray", ["spec", "workerGroupSpecs", 0, "replicas"], "2", "replicas"),
        ("RayCluster", "-ray", ["spec", "headGroupSpec", "template", "spec", "container"], [], "container"),
        ("RayCluster", "-ray", ["spec", "workerGroupSpecs", 0, "template", "spec", "volumes"], {}, "volumes"),
    ],
)
def test_the_check_sees_a_fault(kind: str, suffix: str, path: list[Any], value: object, says: str) -> None:
    manifest = one(rendered(), kind, suffix)
    node: Any = manifest
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert any(says in fault for fault in chart.faults(manifest))


@pytest.mark.parametrize("arguments", [(), ("--values", str(chart.FULL_VALUES))], ids=["default", "full"])
def test_every_pod_is_confined(arguments: tuple[str, ...]) -> None:
    found = pods(rendered(*arguments))
    assert len(found) >= 4
    for name, pod in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # Who makes the pods of jobs must be let; in that pod no job runs.
        assert pod["automountServiceAccountToken"] is (name == "shared"), name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert "memory" in container["resources"]["limits"], name


def test_the_server_gets_its_settings_and_secrets_by_reference() -> None:
    manifests = rendered()
    config = yaml.safe_load(one(manifests, "ConfigMap", "-control-plane")["data"]["server.yaml"])
    assert set(config) == {
        *("listen", "metrics_listen", "tls", "artifacts_url", "state_dir", "bootstrap_admin_key_file", "audit_key_file")
    }
    assert set(config["tls"]) == {"cert", "key"}
    pod = one(manifests, "Deployment", "-control-plane")["spec"]["template"]["spec"]
    server = pod["containers"][0]
    assert server["args"] == ["server", "--config", "/etc/suanli/server.yaml"]
    environment = {entry["name"]: entry for entry in server["env"]}
    reference = environment["SUANLI_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "suanli-database", "key": "url"}
    assert {server["readinessProbe"]["httpGet"]["path"], server["livenessProbe"]["httpGet"]["path"]} == {
        "/readyz",
        "/healthz",
    }
    assert [m for m in manifests if m["kind"] == "Secret"] == []


def test_the_first_operator_has_the_key_of_the_secret() -> None:
    config = yaml.safe_load(one(full(), "ConfigMap", "-control-plane")["data"]["server.yaml"])
    assert config["bootstrap_admin_key_file"] == "/etc/suanli/bootstrap/api-key"


def test_heads_of_the_audit_log_are_signed_with_the_key_of_the_secret() -> None:
    config = yaml.safe_load(one(full(), "ConfigMap", "-control-plane")["data"]["server.yaml"])
    pod = one(full(), "Deployment", "-control-plane")["spec"]["template"]["spec"]
    folder, _, name = config["audit_key_file"].rpartition("/")
    mounts = [each["name"] for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == folder]
    (volume,) = [each for each in pod["volumes"] if each["name"] in mounts]
    assert volume["secret"]["secretName"] == "suanli-audit-key"
    assert volume["secret"]["items"] == [{"key": "audit-key.pem", "path": name}]


def test_services_lead_to_the_control_plane_alone() -> None:
    manifests = full()
    selector = one(manifests, "Service", "-control-plane")["spec"]["selector"]
    for name in ("-control-plane", "-agent"):
        labels = one(manifests, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert (selector.items() <= labels.items()) is (name == "-control-plane")
    ports = one(manifests, "Service", "-control-plane")["spec"]["ports"]
    assert [(port["name"], port["port"]) for port in ports] == [("grpc", 443), ("agents", 8443)]
    metrics = one(manifests, "Service", "-metrics")["spec"]
    assert (metrics["type"], metrics["ports"][0]["port"]) == ("ClusterIP", 9464)


def test_the_agent_dials_the_control_plane_of_its_release_or_the_one_named() -> None:
    here = yaml.safe_load(one(rendered(), "ConfigMap", "-agent")["data"]["agent.yaml"])
    service = one(rendered(), "Service", "-control-plane")["metadata"]["name"]
    assert here["control_plane"] == f"{service}.suanli.svc:50051"
    assert here["ray_address"] == "auto"
    there = yaml.safe_load(one(full(), "ConfigMap", "-agent")["data"]["agent.yaml"])
    assert there["control_plane"] == "suanli.example.org:443"
    assert set(there) == {
        *("region", "control_plane", "tls_ca", "token_file", "ray_address", "state_dir", "artifacts_url", "pools"),
        *("agents_address", "tls_cert", "tls_key"),
    }


def test_agents_show_certificates_on_a_port_of_their_own_when_it_is_on() -> None:
    signing = rendered("--set", "controlPlane.agents.enabled=true")
    for manifests, signs in ((signing, True), (full(), False)):
        server = yaml.safe_load(one(manifests, "ConfigMap", "-control-plane")["data"]["server.yaml"])
        assert server["agents_listen"] == "0.0.0.0:50052"
        assert server["tls"]["agents_need_certificates"] is True
        assert ("agent_ca_key" in server["tls"]) is signs
        volumes = one(manifests, "Deployment", "-control-plane")["spec"]["template"]["spec"]["volumes"]
        authority = next(volume["secret"] for volume in volumes if volume["name"] == "agent-ca")
        assert [item["key"] for item in authority["items"]] == ["tls.crt", *(["tls.key"] if signs else [])]
    service = one(signing, "Service", "-control-plane")["metadata"]["name"]
    agent = yaml.safe_load(one(signing, "ConfigMap", "-agent")["data"]["agent.yaml"])
    assert agent["agents_address"] == f"{service}.suanli.svc:50052"
    assert "tls_cert" not in agent
    brought = yaml.safe_load(one(full(), "ConfigMap", "-agent")["data"]["agent.yaml"])
    assert brought["agents_address"] == "suanli.example.org:8443"
    mounts = one(full(), "Deployment", "-agent")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    folder = brought["tls_cert"].rpartition("/")[0]
    assert any(mount["mountPath"] == folder and "subPath" not in mount for mount in mounts)


def test_secrets_are_mounted_so_that_a_renewed_one_is_seen() -> None:
    """Kubernetes never updates what is mounted by subPath."""
    for name in ("-control-plane", "-agent"):
        pod = one(full(), "Deployment", name)["spec"]["template"]["spec"]
        secrets = {volume["name"] for volume in pod["volumes"] if "secret" in volume}
        mounts = pod["containers"][0]["volumeMounts"]
        assert not [mount for mount in mounts if mount["name"] in secrets and "subPath" in mount]


def test_the_agent_never_sees_the_private_key() -> None:
    volumes = one(rendered(), "Deployment", "-agent")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["name"]: volume["secret"] for volume in volumes if "secret" in volume}
    assert secrets["tls"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_each_pool_is_a_worker_group_the_agent_can_find() -> None:
    manifests = full()
    cluster = one(manifests, "RayCluster", "-ray")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    pools = yaml.safe_load(one(manifests, "ConfigMap", "-agent")["data"]["agent.yaml"])["pools"]
    assert {pool["name"] for pool in pools} == set(groups) == {"cpu", "gpu-a100", "shared"}
    for pool in pools:
        assert pool["labels"].items() <= groups[pool["name"]]["labels"].items()
    assert {pool["name"]: pool.get("isolation") for pool in pools if pool["name"] != "shared"} == {
        "cpu": None,
        "gpu-a100": {"network": "none", "disk_mib": 10240},
    }
    gpu = groups["gpu-a100"]
    assert gpu["labels"]["ray.io/accelerator-type"] == "A100"
    assert gpu["labels"]["topology.suanli.io/rack"] == "r7"
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": 8}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert one(manifests, "PodDisruptionBudget", "-ray")["spec"]["minAvailable"] == 1 + 3 + 2 + 2


def test_a_pool_of_pods_leaves_its_room_to_the_jobs() -> None:
    cluster = one(full(), "RayCluster", "-ray")["spec"]
    (group,) = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "shared"]
    assert group["labels"]["suanli.io/cpu-milli"] == "7500"
    assert group["labels"]["suanli.io/memory-mib"] == str(30 * 10**9 // 2**20)
    assert (group["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-gpus"]) == ("8", "4")
    pod = group["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "3Gi"}, "limits": {"memory": "6Gi"}}
    assert {"SUANLI_POD_NAME", "SUANLI_POD_NAMESPACE"} <= {entry["name"] for entry in container["env"]}
    # The executor finds its own folders on a volume that other pods can mount.
    found = worker_pod(
        {"metadata": {"name": "w", "namespace": "n", "uid": "u"}, "spec": {**pod, "nodeName": "n1"}},
        "/var/lib/suanli/nodes/x",
    )
    place = found.place("/var/lib/suanli/nodes/x")
    assert place.source == {"persistentVolumeClaim": {"claimName": "w-state"}}


def test_what_makes_pods_may_do_that_and_no_more() -> None:
    role = one(full(), "Role", "-workers")["rules"]
    granted = {(verb, resource) for rule in role for verb in rule["verbs"] for resource in rule["resources"]}
    needed = {(verb, "/".join(filter(None, (resource, below)))) for verb, resource, below in RIGHTS}
    assert granted == needed | {("list", "events")}
    assert all(rule["apiGroups"] == [""] for rule in role)
    (subject,) = one(full(), "RoleBinding", "-workers")["subjects"]
    with_it = [name for name, pod in pods(full()) if pod.get("serviceAccountName") == subject["name"]]
    assert with_it == ["shared"]
    assert not [m for m in rendered() if m["kind"] in {"Role", "RoleBinding", "ClusterRole"}]


def test_pods_of_jobs_reach_what_their_network_says() -> None:
    policies = [m["spec"] for m in full() if m["kind"] == "NetworkPolicy" and "-jobs" in m["metadata"]["name"]]

    def peers(network: str, way: str) -> list[Any]:
        """Whom a job's pod may reach, or be reached by: the sum of all policies that select it."""
        labels = {"app.kubernetes.io/component": COMPONENT, NETWORK_LABEL: network}
        chosen = [one for one in policies if one["podSelector"]["matchLabels"].items() <= labels.items()]
        assert chosen
        assert all(way.capitalize() in one["policyTypes"] for one in chosen)
        return [rule for one in chosen for rule in one.get(way, ())]

    gangs = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": COMPONENT, NETWORK_LABEL: "gang"}}}
    assert (peers("none", "ingress"), peers("none", "egress")) == ([], [])
    assert (peers("gang", "ingress"), peers("gang", "egress")) == ([{"from": [gangs]}], [{"to": [gangs]}])
    assert peers("cluster", "egress") == [{}]
    assert peers("cluster", "ingress") != [{}]
    assert not [m for m in rendered() if m["kind"] == "NetworkPolicy" and "-jobs" in m["metadata"]["name"]]


@pytest.mark.parametrize(
    ("cpu", "memory", "milli", "mebibytes"),
    [
        ("4", "16Gi", "4000", "16384"),
        ("1500m", "512Mi", "1500", "512"),
        ("2.5", "1Ti", "2500", str(1 << 20)),
        ("2", "1.5Gi", "2000", "1536"),
        ("1", "2000000000", "1000", str(2_000_000_000 >> 20)),
    ],
)
def test_quantities_become_whole_numbers(cpu: str, memory: str, milli: str, mebibytes: str) -> None:
    fields = {"name": "p", "replicas": "1", "cpu": cpu, "memory": memory, "isolation.tier": "pod"}
    manifests = chart.render(
        *(
            word
            for field, value in fields.items()
            if field not in {"cpu", "memory"}
            for word in ("--set", f"region.pools[0].{field}={value}")
        ),
        *(word for field in ("cpu", "memory") for word in ("--set-string", f"region.pools[0].{field}={fields[field]}")),
    )
    (group,) = one(manifests, "RayCluster", "-ray")["spec"]["workerGroupSpecs"]
    assert (group["labels"]["suanli.io/cpu-milli"], group["labels"]["suanli.io/memory-mib"]) == (milli, mebibytes)


def test_ray_admits_its_own_pods_and_the_agent_only() -> None:
    manifests = rendered()
    rules = one(manifests, "NetworkPolicy", "-ray")["spec"]["ingress"]
    selectors = [source["podSelector"]["matchLabels"] for source in rules[0]["from"]]
    agent = one(manifests, "Deployment", "-agent")["spec"]["template"]["metadata"]["labels"]
    server = one(manifests, "Deployment", "-control-plane")["spec"]["template"]["metadata"]["labels"]
    assert any(selector.items() <= agent.items() for selector in selectors)
    assert not any(selector.items() <= server.items() for selector in selectors)


def test_control_plane_and_region_install_apart() -> None:
    server_only = {m["kind"] for m in rendered("--set", "region.enabled=false")}
    assert "RayCluster" not in server_only
    dial = ("--set", "controlPlane.enabled=false", "--set", "region.agent.controlPlane=suanli.example.org:50051")
    names = {m["metadata"]["name"] for m in rendered(*dial)}
    assert "campus-suanli-agent" in names
    assert "campus-suanli-control-plane" not in names


def test_a_changed_setting_restarts_the_pod_that_reads_it() -> None:
    def checksum(manifests: list[chart.Manifest]) -> str:
        template = one(manifests, "Deployment", "-control-plane")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(rendered()) != checksum(rendered("--set", "artifacts.url=s3://other"))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("controlPlane.replicas=3", "replicas"),
        ("controlPlane.database.existingSecret=", "existingSecret"),
        ("controlPlane.tls.existingSecret=", "existingSecret"),
        ("controlPlane.service.port=70000", "port"),
        ("image.digest=sha256:abc", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("artifacts.url=bucket", "url"),
        ("region.name=East_Campus", "name"),
        ("region.rayVersion=2.60", "rayVersion"),
        ("region.agent.controlPlane=https://suanli.example.org", "controlPlane"),
        ("region.agent.agentsAddress=nowhere", "agentsAddress"),
        ("region.agent.certificate.existingSecret=east-agent", "region.agent.agentsAddress"),
        ("controlPlane.agents.ca.existingSecret=", "existingSecret"),
        ("region.pools[0].replicas=-1", "replicas"),
        ("region.pools[0].memory=lots", "memory"),
        ("region.pools[0].labels.suanli\\.io/pool=other", "suanli.io/pool"),
        ("region.pools[0].gpus=2", "acceleratorType"),
        ("region.pools[0].isolation.tier=jail", "tier"),
        ("region.pools[0].isolation.pod.runtime=gvisor", "runtime"),
        ("region.pools[0].isolation.pod.switch_ms=100", "switch_ms"),
        ("region.pods.workerResources=null", "workerResources"),
        ("region.pools=null", "pools"),
        ("controlPlane.enabled=false", "region.agent.controlPlane"),
        ("unknown=1", "unknown"),
    ],
)
def test_a_bad_value_is_refused_by_name(setting: str, says: str) -> None:
    fields = {"name": "p", "replicas": "1", "cpu": "1000m", "memory": "1Gi"}
    pool = ",".join(f"region.pools[0].{field}={value}" for field, value in fields.items())
    base = ("--set", pool) if "pools[0]" in setting else ()
    with pytest.raises(chart.ChartError, match=says):
        chart.render(*base, "--set", setting)
