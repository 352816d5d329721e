"""The manifest of a job's pod: whatever a job, a pool and a worker's pod look like, nothing dangerous is in it."""

from __future__ import annotations

import dataclasses
import re
import string

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.executor.isolation import Isolation, Network, PodSettings, Tier
from workers.executor.pod_host import HostError, Mount, WorkerPod, worker_pod
from workers.executor.pod_manifest import PodPlan, label_value, name_of, network_of, render
from workers.executor.types import Keep, Launch

WORKER = WorkerPod(
    name="worker-0",
    namespace="suanli",
    uid="3f2c",
    node="node-1",
    image="registry.example.org/suanli:1",
    mounts=(
        Mount("/var/lib/suanli", "state", {"persistentVolumeClaim": {"claimName": "worker-0-state"}}, "region"),
        Mount("/data", "data", {"hostPath": {"path": "/srv/data"}}),
        Mount("/tmp", "tmp", None),
    ),
)
ROOT = "/var/lib/suanli/nodes/n1"

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)
slugs = st.text(string.ascii_lowercase + string.digits + "-_.@:A", min_size=1, max_size=100).filter(
    lambda text: text not in {".", ".."}
)
launches = st.builds(
    Launch,
    job_id=slugs,
    attempt=st.integers(1, 10**9),
    argv=st.tuples(texts),
    rank=st.integers(0, 99_999),
    world_size=st.integers(1, 3),
    env=st.dictionaries(texts, texts, max_size=3),
    parameters_json=st.none() | st.just("{}"),
    cpu_milli=st.integers(0, 10**6),
    memory_mib=st.integers(0, 10**6),
    gpu_indices=st.lists(st.integers(0, 15), unique=True, max_size=4).map(tuple),
    grace_ms=st.integers(0, 10**7),
    data_dirs=st.sampled_from([{}, {"a": "/data/a"}]),
    keep=st.builds(Keep, institution=texts, pool=texts, user=texts, region=st.just("east")),
    isolation=st.builds(
        Isolation,
        tier=st.just(Tier.POD),
        network=st.sampled_from([*Network]),
        pod=st.builds(
            PodSettings,
            runtime_class=st.sampled_from(["gvisor", ""]),
            priority_class=st.sampled_from(["", "jobs"]),
            labels=st.sampled_from([(), (("team", "a"),), (("suanli.io/network", "cluster"),)]),
        ),
    ),
)


def plan(launch: Launch, worker: WorkerPod = WORKER, uid: int = 10001) -> PodPlan:
    folder = f"{ROOT}/attempts/{launch.job_id}@{launch.attempt}-{launch.rank}"
    shown = [f"{folder}/data"] if launch.data_dirs else []
    return PodPlan(
        launch=launch,
        worker=worker,
        start="0123",
        uid=uid,
        gid=uid,
        folder=folder,
        writable=tuple(f"{folder}/{part}" for part in ("work", "results", "checkpoint", "tmp", "home")),
        read_only=(*shown, *launch.data_dirs.values()),
        code=f"{ROOT}/pods/code",
        control=f"{ROOT}/pods/1/control",
    )


@given(launches)
def test_no_pod_has_anything_dangerous(launch: Launch) -> None:
    pod = render(plan(launch))
    kubernetes_validate.validate(pod, "1.37", strict=True)
    spec = pod["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert (spec["hostNetwork"], spec["hostPID"], spec["hostIPC"], spec["shareProcessNamespace"]) == (False,) * 4
    assert not {"serviceAccountName", "initContainers", "hostAliases", "nodeName", "hostUsers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"envFrom", "ports", "lifecycle", "volumeDevices", "stdin", "tty"} & set(container)
    # Nothing comes out of a Secret, a ConfigMap or the node's own tokens.
    assert {kind for volume in spec["volumes"] for kind in volume} <= {
        "name",
        "persistentVolumeClaim",
        "hostPath",
        "emptyDir",
    }
    assert all(set(one) <= {"name", "value", "valueFrom"} for one in container["env"])
    assert [one["valueFrom"] for one in container["env"] if "valueFrom" in one] == [
        {"fieldRef": {"fieldPath": "status.podIP"}}
    ]
    # The node is the worker's, and its end is the pod's.
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}
    assert [one["uid"] for one in pod["metadata"]["ownerReferences"]] == [WORKER.uid]
    assert pod["metadata"]["labels"]["suanli.io/network"] == network_of(launch)


@given(launches)
def test_only_the_attempts_own_folders_are_mounted_and_the_rest_read_only(launch: Launch) -> None:
    wanted = plan(launch)
    mounts = render(wanted)["spec"]["containers"][0]["volumeMounts"]
    writable = {one["mountPath"] for one in mounts if not one.get("readOnly")}
    assert writable == {*wanted.writable, "/tmp", "/dev/shm"}
    for one in mounts:
        if one["name"] == "shm":
            continue
        assert one.get("subPath"), "a whole volume would show other jobs' folders"
        assert not one["subPath"].startswith("/")
        assert ".." not in one["subPath"].split("/")
        if one["name"] == "state":
            inner = one["subPath"].removeprefix("region/nodes/n1/")
            own = wanted.folder.removeprefix(f"{ROOT}/")
            assert inner.startswith((f"{own}/", "pods/code", "pods/1/control"))
        else:
            assert one["readOnly"] is True


@given(launches)
def test_what_was_granted_is_asked_for_and_limited(launch: Launch) -> None:
    resources = render(plan(launch))["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    wanted = {
        "cpu": f"{launch.cpu_milli}m",
        "memory": f"{launch.memory_mib}Mi",
        "nvidia.com/gpu": str(len(launch.gpu_indices)),
    }
    assert resources["limits"] == {name: value for name, value in wanted.items() if not value.startswith("0")}


@given(launches)
def test_nothing_that_a_user_wrote_is_in_the_manifest_but_ids_and_names(launch: Launch) -> None:
    secret = "c0ffee-" * 3
    hidden = dataclasses.replace(launch, argv=("sh", secret), env={"KEY": secret}, parameters_json=f'"{secret}"')
    assert secret not in repr(render(plan(hidden)))


@given(slugs, slugs, st.integers(1, 9), st.integers(0, 9))
def test_names_are_names_and_the_same_for_the_same_rank_only(one: str, other: str, attempt: int, rank: int) -> None:
    name = name_of("east", one, attempt, rank)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert name == name_of("east", one, attempt, rank)
    assert (name == name_of("east", other, attempt, rank)) is (one == other)
    assert (
        len({name_of("east", one, attempt, rank + step) for step in range(3)} | {name_of("west", one, attempt, rank)})
        == 4
    )


@given(texts)
def test_labels_are_labels(text: str) -> None:
    assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", label_value(text))


@pytest.mark.parametrize(
    ("network", "ranks", "label"),
    [
        (Network.NONE, 1, "none"),
        (Network.GANGS, 1, "none"),
        (Network.GANGS, 2, "gang"),
        (Network.HOST, 1, "cluster"),
    ],
)
def test_the_network_is_a_label(network: Network, ranks: int, label: str) -> None:
    launch = Launch("j", 1, ("true",), world_size=ranks, isolation=Isolation(Tier.POD, network))
    pod = render(plan(launch))
    assert pod["metadata"]["labels"]["suanli.io/network"] == label
    assert (pod["spec"].get("dnsPolicy") == "None") is (label != "cluster")


def test_without_gpus_an_image_gets_none_and_with_them_kubernetes_chooses() -> None:
    def gpus(launch: Launch) -> list[str]:
        env = render(plan(launch))["spec"]["containers"][0]["env"]
        return [one["value"] for one in env if one["name"] == "NVIDIA_VISIBLE_DEVICES"]

    assert gpus(Launch("j", 1, ("true",))) == ["void"]
    assert gpus(Launch("j", 1, ("true",), gpu_indices=(3,))) == []


# --- the worker's own pod -----------------------------------------------------------------------------------------

POD = {
    "metadata": {"name": "worker-0", "namespace": "suanli", "uid": "u1"},
    "spec": {
        "nodeName": "node-1",
        "containers": [
            {"name": "injected", "image": "proxy:1"},
            {
                "name": "ray-worker",
                "image": "suanli:1",
                "volumeMounts": [
                    {"name": "state", "mountPath": "/var/lib/suanli"},
                    {"name": "claim", "mountPath": "/claim/", "subPath": "a/b"},
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "named", "mountPath": "/named", "subPathExpr": "$(POD_NAME)"},
                ],
            },
        ],
        "volumes": [
            {"name": "state", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "named", "hostPath": {"path": "/srv"}},
        ],
        "imagePullSecrets": [{"name": "registry"}],
    },
}


def test_folders_are_found_on_the_volumes_of_the_workers_pod() -> None:
    worker = worker_pod(POD, "/var/lib/suanli/nodes/n1")
    assert (worker.image, worker.node, worker.pull_secrets) == ("suanli:1", "node-1", ({"name": "registry"},))
    place = worker.place("/var/lib/suanli/nodes/n1")
    assert place.source == {"persistentVolumeClaim": {"claimName": "worker-0-state"}}
    assert (place.volume, place.sub_path) == ("state", "nodes/n1")
    assert worker.place("/claim/x").sub_path == "a/b/x"
    assert worker.place("/claim").sub_path == "a/b"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/scratch/x", "on the volume 'scratch' of the worker's pod, which no other pod can mount"),
        ("/named/x", "on the volume 'named'"),
        ("/claims/x", "on no volume"),
        ("/var/lib/suanli/../../x", "/var/x lies on no volume"),
    ],
)
def test_what_other_pods_cannot_mount_is_said(path: str, words: str) -> None:
    with pytest.raises(HostError, match=words):
        worker_pod(POD, "/var/lib/suanli").place(path)


def test_a_pod_without_a_node_is_no_place() -> None:
    with pytest.raises(HostError, match="which node"):
        worker_pod({**POD, "spec": {**POD["spec"], "nodeName": ""}}, "/x")  # type: ignore[dict-item]
