"""``suanli demo`` from nothing to a report and back to nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from tests.e2e.tools import ENVIRONMENT, command, leftovers, suanli, wait_for

LIMIT_S = 180


def _state_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("suanli-demo-*"))


class _Page(HTMLParser):
    """What a page asks a browser to load, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_demonstration_succeeds_and_leaves_a_report_and_nothing_else(tmp_path: Path) -> None:
    before = _state_folders()
    done = suanli("demo", "--results", str(tmp_path / "out"), cwd=tmp_path)
    findings = json.loads((tmp_path / "out" / "demo.json").read_text())

    assert findings["problems"] == []
    assert findings["end_ms"] - findings["begin_ms"] < LIMIT_S * 1000
    assert [analysis["folder"] for analysis in findings["analyses"]] == ["irt", "school-effects", "response-model"]
    assert {job["region"] for job in findings["jobs"]} == {"east", "west"}
    assert len(findings["jobs"]) == 10
    gang = next(job for job in findings["jobs"] if job["replicas"] == 2)
    assert len(gang["nodes"]) == 2
    powers = [power for _, power in findings["power"]]
    assert powers == sorted(powers)
    assert findings["function"][1] == "48 questions"
    assert findings["why"]["code"] == "FIT"
    assert "512 CPU" in findings["refused"]["said"]
    # The bill, worked out once more from what the jobs say they held.
    for bill in findings["bills"]:
        held = [
            job["replicas"] * job["cpu_milli"] * (job["end_ms"] - job["grant_ms"])
            for job in findings["jobs"]
            if (job["institution"], job["region"]) == (bill["institution"], bill["region"])
        ]
        assert (sum(held), len(held)) == (bill["cpu_milli_ms"], bill["attempts"])
    assert "Beishan University" in done.stdout

    page = _Page()
    text = (tmp_path / "out" / "index.html").read_text()
    page.feed(text)
    assert page.open == []
    assert len(page.loaded) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) > 8
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert _state_folders() == before


def test_an_interrupted_demonstration_takes_everything_down(tmp_path: Path) -> None:
    before = _state_folders()
    words = command("demo", "--results", str(tmp_path / "out"))
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as demo:
        state = next(iter(wait_for(lambda: _state_folders() - before)))
        wait_for((state / "up.json").exists)
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert leftovers(state) == []
    assert not os.path.exists(state)
