"""The agent's configuration: defaults, bounds, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.config import ConfigError, load_config, parse_config
from workers.core_types import PoolRule
from workers.executor.isolation import Isolation, Network, PodSettings, Tier


def test_a_region_is_enough() -> None:
    config = parse_config({"region": "east"}, Path("/etc/suanli"))
    assert (config.control_plane, config.ray_address, config.loopback) == ("127.0.0.1:50051", "auto", True)
    assert config.state_dir == Path.home() / ".local/state/suanli/east"
    assert config.credential_file == config.state_dir / "credential"
    assert config.node_dir == str(config.state_dir / "nodes" / "{node_id}")


def test_every_key_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(
        "region: east\ncontrol_plane: '[::1]:7'\ntls_ca: ca.crt\nagents_address: h:8\ntls_cert: t.crt\ntls_key: t.key\ntoken_file: /t\ncredential_file: c\nray_address: a:1\n"
        "state_dir: s\nnode_dir: /n/{node_id}\nartifacts_url: s3://b/p\nready_file: r\nstop_grace_ms: 5\nlog_level: debug\n"
        "pools:\n- name: big\n  labels: {size: l}\ndata_sets: {star98: /data/star98}\n"
    )
    config = load_config(path)
    assert config.loopback
    assert (config.tls_ca, config.token_file, config.ready_file) == (tmp_path / "ca.crt", Path("/t"), tmp_path / "r")
    assert (config.agents_address, config.tls_cert, config.tls_key) == ("h:8", tmp_path / "t.crt", tmp_path / "t.key")
    assert (config.state_dir, config.credential_file) == (tmp_path / "s", tmp_path / "c")
    assert (config.artifacts_url, config.node_dir) == ("s3://b/p", "/n/{node_id}")
    assert config.pools == (PoolRule("big", {"size": "l"}),)
    assert config.data_sets == {"star98": "/data/star98"}
    assert (config.stop_grace_ms, config.log_level) == (5, "debug")


def test_isolation_is_the_pools_own_or_that_of_all_or_automatic() -> None:
    assert parse_config({"region": "e"}, Path("/")).isolations.of("any") == Isolation(Tier.AUTO, Network.GANGS)
    own = {"tier": "sandbox", "network": "none", "extra_read_only": ["/opt/models"], "disk_mib": 7, "processes": 99}
    document = {
        "region": "e",
        "isolation": {"tier": "process"},
        "pools": [{"name": "a", "labels": {}, "isolation": own}, {"name": "b", "labels": {"x": "y"}}],
    }
    isolations = parse_config(document, Path("/")).isolations
    assert isolations.of("a") == Isolation(Tier.SANDBOX, Network.NONE, ("/opt/models",), 7, 99)
    assert isolations.of("b").tier is Tier.PROCESS


def test_a_plain_artifacts_folder_counts_from_the_file(tmp_path: Path) -> None:
    assert parse_config({"region": "e", "artifacts_url": "a"}, tmp_path).artifacts_url == str(tmp_path / "a")


def test_another_host_is_no_loopback() -> None:
    assert not parse_config({"region": "e", "control_plane": "suanli.example:50051"}, Path("/")).loopback


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({}, "region"),
        ({"region": "Üst"}, "region"),
        ({"region": 3}, "region"),
        ([], "map"),
        ({"region": "e", "control_plane": "nowhere"}, "control_plane"),
        ({"region": "e", "control_plane": "h:99999"}, "control_plane"),
        ({"region": "e", "log_level": "loud"}, "log_level"),
        ({"region": "e", "stop_grace_ms": -1}, "stop_grace_ms"),
        ({"region": "e", "stop_grace_ms": True}, "stop_grace_ms"),
        ({"region": "e", "node_dir": "/same"}, "node_dir"),
        ({"region": "e", "pools": [{"name": "a"}]}, r"pools\[0\]"),
        ({"region": "e", "pools": [{"name": "A b", "labels": {}}]}, r"pools\[0\].name"),
        ({"region": "e", "pools": [{"name": "a", "labels": {"x": 1}}]}, r"pools\[0\].labels"),
        ({"region": "e", "data_sets": ["x"]}, "data_sets"),
        ({"region": "e", "tls_ca": 5}, "tls_ca"),
        ({"region": "e", "agents_address": "h:0"}, "agents_address"),
        ({"region": "e", "agents_address": "h:1", "tls_cert": "c"}, "tls_key"),
        ({"region": "e", "tls_cert": "c", "tls_key": "k"}, "agents_address"),
        ({"region": "e", "regoin": "x"}, "regoin"),
        ({"region": "e", "isolation": "sandbox"}, "isolation: must be a map"),
        ({"region": "e", "isolation": {"tier": "jail"}}, "isolation.tier: must be one of auto, sandbox, process, pod"),
        ({"region": "e", "isolation": {"pod": {}}}, "isolation.pod: is of the tier pod only"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": "x"}}, "isolation.pod: must be a map"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"runtime": "x"}}}, "isolation.pod.runtime: there is no"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"runtime_class": "A b"}}}, "isolation.pod.runtime_class"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"priority_class": "A"}}}, "isolation.pod.priority_class"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"gpu_resource": "gpu"}}}, "isolation.pod.gpu_resource"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"switch_ms": 500}}}, "isolation.pod.switch_ms"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"start_timeout_ms": -1}}}, "isolation.pod.start_timeout"),
        ({"region": "e", "isolation": {"tier": "pod", "pod": {"labels": {"a": "b c"}}}}, "isolation.pod.labels: 'a'"),
        (
            {"region": "e", "isolation": {"tier": "pod", "pod": {"labels": {"suanli.io/network": "cluster"}}}},
            "isolation.pod.labels: suanli.io/network belongs to",
        ),
        (
            {"region": "e", "isolation": {"tier": "pod", "pod": {"labels": {"app.kubernetes.io/name": "x"}}}},
            "isolation.pod.labels: app.kubernetes.io/name belongs to",
        ),
        ({"region": "e", "isolation": {"network": 1}}, "isolation.network: must be text"),
        ({"region": "e", "isolation": {"extra_read_only": ["x"]}}, "isolation.extra_read_only"),
        ({"region": "e", "isolation": {"extra_read_only": ["//."]}}, "cannot be shown"),
        ({"region": "e", "isolation": {"extra_read_only": ["/tmp/../proc/1"]}}, "/proc/1 cannot be shown"),
        ({"region": "e", "isolation": {"processes": 3}}, "isolation.processes"),
        ({"region": "e", "isolation": {"disk": 3}}, "isolation.disk"),
        (
            {"region": "e", "pools": [{"name": "a", "labels": {}, "isolation": {"tier": "jail"}}]},
            r"pools\[0\].isolation.tier",
        ),
    ],
)
def test_an_error_names_the_key(document: object, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_config(document, Path("/"))


def test_pods_are_declared_per_pool() -> None:
    pod = {"runtime_class": "kata", "image": "jobs:2", "labels": {"team": "a"}, "switch_ms": 0}
    pools = [{"name": "a", "labels": {}, "isolation": {"tier": "pod", "pod": pod}}, {"name": "b", "labels": {}}]
    isolations = parse_config({"region": "e", "pools": pools, "isolation": {"tier": "pod"}}, Path("/")).isolations
    declared = PodSettings(runtime_class="kata", image="jobs:2", labels=(("team", "a"),), switch_ms=0)
    assert isolations.of("a").pod == declared
    assert isolations.of("b").pod == PodSettings()
    assert isolations.pods == (PodSettings(), declared)
    assert parse_config({"region": "e"}, Path("/")).isolations.pods == ()


def test_a_file_that_is_not_there_or_not_yaml_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none")
    (tmp_path / "bad").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        load_config(tmp_path / "bad")
    assert "\n" not in str(caught.value)
