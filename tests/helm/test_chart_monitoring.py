"""What the chart makes for Prometheus and Grafana: off by default, and then the very rules and dashboards that are tested."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.api.metrics import Metrics
from scheduler.metering import names
from tools import chart, dashboards
from tools.prometheus import run_promtool

KINDS = {"ServiceMonitor", "PrometheusRule"}
RULES = chart.CHART / "files" / "rules"
PAGE = chart.REPOSITORY / "docs" / "howto" / "dashboards.md"


@functools.cache
def full() -> list[chart.Manifest]:
    return chart.render("--values", str(chart.FULL_VALUES))


def one(kind: str) -> chart.Manifest:
    (found,) = [manifest for manifest in full() if manifest["kind"] == kind]
    return found


def boards(manifests: list[chart.Manifest]) -> list[chart.Manifest]:
    return [m for m in manifests if m["kind"] == "ConfigMap" and "grafana_dashboard" in m["metadata"]["labels"]]


def test_nothing_of_it_is_made_unless_asked_for_nor_for_a_region_alone() -> None:
    alone = ["--set", "controlPlane.enabled=false", "--set", "region.agent.controlPlane=suanli.example.org:50051"]
    for arguments in ([], ["--values", str(chart.FULL_VALUES), *alone]):
        manifests = chart.render(*arguments)
        assert not KINDS & {manifest["kind"] for manifest in manifests}
        assert not boards(manifests)


def test_the_rules_are_those_of_the_files_and_link_to_where_they_can_be_read(tmp_path: Path) -> None:
    groups = [group for path in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]]
    text = json.dumps(groups).replace("docs/howto/", "https://docs.example.org/howto/")
    rule = one("PrometheusRule")
    assert rule["spec"]["groups"] == json.loads(text)
    assert rule["metadata"]["labels"]["release"] == "monitoring"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    done = run_promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert done.returncode == 0, done.stderr


def test_the_dashboards_are_those_of_the_program() -> None:
    found = {name: text for board in boards(full()) for name, text in board["data"].items()}
    assert found == {f"suanli-{name}": text for name, text in dashboards.documents().items()}
    for board in boards(full()):
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert board["metadata"]["annotations"] == {"grafana_folder": "Suanli"}


def test_the_monitor_finds_the_service_of_the_metrics() -> None:
    monitor = one("ServiceMonitor")["spec"]
    services = [m for m in full() if m["kind"] == "Service"]
    selected = [m for m in services if monitor["selector"]["matchLabels"].items() <= m["metadata"]["labels"].items()]
    (endpoint,) = monitor["endpoints"]
    ports = [m["metadata"]["name"] for m in selected for port in m["spec"]["ports"] if port["name"] == endpoint["port"]]
    assert ports == ["compute-metrics"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "suanli"}]


def test_what_every_leader_tells_alike_loses_the_process_here_and_in_the_documentation() -> None:
    (endpoint,) = one("ServiceMonitor")["spec"]["endpoints"]
    assert [each["targetLabel"] for each in endpoint["metricRelabelings"]] == ["instance", "pod"]
    (pattern,) = {each["regex"] for each in endpoint["metricRelabelings"]}
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (job,) = next(found for found in map(yaml.safe_load, blocks) if "scrape_configs" in found)["scrape_configs"]
    assert job["job_name"] == "suanli"
    assert [each["regex"] for each in job["metric_relabel_configs"]] == [pattern]
    known = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")}
    # The epoch tells which process leads.
    own = {family.name for family in Metrics().registry.collect()} | {names.LEADER_EPOCH}
    alike = {name for name in known if name.removesuffix("_total") not in own}
    assert {name for name in known if re.fullmatch(pattern, name)} == alike
    assert len(known - alike) >= 9


def test_the_values_of_the_documentation_are_taken() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    values = next(found for found in map(yaml.safe_load, blocks) if "monitoring" in found)
    kinds = {m["kind"] for m in chart.render("--set-json", f"monitoring={json.dumps(values['monitoring'])}")}
    assert kinds >= KINDS


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "exprr"], "1", "exprr"),
        ("PrometheusRule", ["spec", "groups", 0, "interval"], 60, "interval"),
        ("ServiceMonitor", ["spec", "endpoints", 0, "metricRelabelings", 0, "source_labels"], [], "source_labels"),
        ("ServiceMonitor", ["spec", "selector"], None, "selector"),
    ],
)
def test_the_check_sees_a_fault(kind: str, path: list[Any], value: object, says: str) -> None:
    manifest = json.loads(json.dumps(one(kind)))
    assert chart.faults(manifest) == []
    node: Any = manifest
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert any(says in fault for fault in chart.faults(manifest))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("monitoring.serviceMonitor.interval=5m", "interval"),
        ("monitoring.serviceMonitor.enabled=maybe", "enabled"),
        ("monitoring.rules.runbooks=docs/howto", "runbooks"),
        ("monitoring.dashboards.folder=Suanli", "folder"),
    ],
)
def test_a_bad_value_is_refused_by_name(setting: str, says: str) -> None:
    with pytest.raises(chart.ChartError, match=says):
        chart.render("--set", setting)
