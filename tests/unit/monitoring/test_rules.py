"""The rules that the chart ships, held against promtool: sound, each alert seen to fire and to keep still, and all written up."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.metering import names
from tools.prometheus import run_promtool

REPOSITORY = Path(__file__).resolve().parents[3]
RULES = REPOSITORY / "helm" / "suanli" / "files" / "rules"
CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yaml"))
PAGE = REPOSITORY / "docs" / "howto" / "alerts.md"


def rules(file: str, kind: str) -> dict[str, dict[str, Any]]:
    """The rules of a file by name; ``kind`` is ``alert`` or ``record``."""
    groups = yaml.safe_load((RULES / file).read_text())["groups"]
    found = {rule[kind]: rule for group in groups for rule in group["rules"]}
    assert len(found) == sum(len(group["rules"]) for group in groups), "two rules of one name"
    return found


ALERTS = rules("alerts.yaml", "alert")
RECORDS = rules("recording.yaml", "record")


def test_promtool_finds_no_fault() -> None:
    done = run_promtool("check", "rules", *map(str, sorted(RULES.glob("*.yaml"))))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.partition(".")[0])
def test_the_rules_do_what_the_cases_say(case: Path) -> None:
    done = run_promtool("test", "rules", str(case))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("case", "file", "old", "new"),
    [
        ("budgets", "alerts.yaml", "ratio >= 0.8 ", "ratio >= 0.81 "),
        ("control_plane", "alerts.yaml", "for: 1m", "for: 15m"),
        ("recording", "recording.yaml", "increase(suanli_used_gpu", "rate(suanli_used_gpu"),
    ],
)
def test_the_cases_see_a_changed_rule(case: str, file: str, old: str, new: str, tmp_path: Path) -> None:
    for path in RULES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    cases = (Path(__file__).parent / "rules" / f"{case}.test.yaml").read_text()
    (tmp_path / "case.yaml").write_text(cases.replace("../../../../helm/suanli/files/rules/", ""))
    assert run_promtool("test", "rules", str(tmp_path / "case.yaml")).returncode == 1


def test_every_rule_has_a_case_and_every_alert_is_seen_to_fire_and_not_to() -> None:
    seen: dict[str, set[bool]] = defaultdict(set)
    expressions = ""
    for case in CASES:
        for test in yaml.safe_load(case.read_text())["tests"]:
            for check in test.get("alert_rule_test", ()):
                seen[check["alertname"]].add(bool(check["exp_alerts"]))
            expressions += "".join(f"{check['expr']}\n" for check in test.get("promql_expr_test", ()))
    assert seen == {name: {True, False} for name in ALERTS}
    assert [name for name in RECORDS if name not in expressions] == []


def test_every_alert_says_how_urgent_it_is_for_whom_and_where_to_read_on() -> None:
    headings = re.findall(r"^## (Suanli\w+)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert rule["labels"]["audience"] in ("operator", "finance"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/howto/alerts.md#{name.lower()}"


def test_the_page_tells_severity_and_delay_as_the_rules_do() -> None:
    for section in PAGE.read_text().split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        rule = ALERTS[name]
        first = text.strip().partition("\n")[0]
        delay = f"after {rule['for']}" if "for" in rule else "at once"
        assert first == f"*{rule['labels']['severity']}, {rule['labels']['audience']}, {delay}*", name


def test_rules_speak_of_metrics_that_exist() -> None:
    known = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")}
    for rule in [*ALERTS.values(), *RECORDS.values()]:
        # What follows a colon is a part of a recorded name.
        for name in re.findall(r"(?<![\w:])suanli_\w+(?!:)\b", rule["expr"]):
            assert re.sub(r"_(bucket|count|sum)$", "", name) in known, name
        for name in re.findall(r"\w+:\w+(?::\w+)?", rule["expr"]):
            assert name in RECORDS, name
