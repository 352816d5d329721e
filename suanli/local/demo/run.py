"""The demonstration from beginning to end: up, the scenario, the report, down."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path

from suanli.errors import SuanliError
from suanli.local.demo import report
from suanli.local.demo.findings import Findings
from suanli.local.demo.scenario import Say, Scenario
from suanli.local.demo.tenants import TENANTS
from suanli.local.launcher import Launcher, Wanted
from suanli.local.state import LocalError, StateDir

REGIONS = ("east", "west")
DATA_FILE = "demo.json"
PAGE_FILE = "index.html"
CPUS = 2
MEMORY_MIB = 4096


def run_demo(folder: Path, say: Say) -> Findings:
    """Run it, leave report and results in ``folder`` and nothing running. What went wrong is among the findings.

    Raises LocalError when ``folder`` holds something other than an earlier demonstration.
    """
    _empty(folder)
    findings = Findings(TENANTS, REGIONS, _version(), time.time_ns() // 1_000_000)
    state = StateDir(tempfile.mkdtemp(prefix="suanli-demo-"))
    # The launcher tells of its parts from several threads, and of more than is of interest here.
    try:
        try:
            say(f"Starting a control plane and the regions {' and '.join(REGIONS)}…")
            wanted = Wanted(REGIONS, CPUS, 0, MEMORY_MIB)
            up, _ = Launcher(state, _quiet).up(wanted)
            findings.startup_ms = time.time_ns() // 1_000_000 - findings.begin_ms
            say("The platform is up.")
            Scenario(up.address, up.ca, state.key_file, folder, findings, say).run()
        except (SuanliError, LocalError) as error:
            findings.problems.append(str(error))
            _keep_logs(state, folder)
    finally:
        say("Taking everything down…")
        Launcher(state, _quiet).down()
        shutil.rmtree(state.path, ignore_errors=True)
    findings.end_ms = time.time_ns() // 1_000_000
    (folder / DATA_FILE).write_text(json.dumps(findings.to_data(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / PAGE_FILE).write_text(report.render(findings), "utf-8")
    return findings


def _empty(folder: Path) -> None:
    """Make the folder, without what an earlier demonstration left in it."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / DATA_FILE).exists():
            raise LocalError(f"{folder} holds something that is not a demonstration's; name another folder.")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # From the beginning, so that a demonstration that was interrupted is known for one.
        (folder / DATA_FILE).write_text("{}\n")
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}.") from error


def _keep_logs(state: StateDir, folder: Path) -> None:
    logs = state.path / "logs"
    if logs.is_dir():
        shutil.copytree(logs, folder / "logs", dirs_exist_ok=True)


def _quiet(name: str, doing: str) -> None:
    del name, doing


def _version() -> str:
    try:
        return metadata.version("suanli")
    except metadata.PackageNotFoundError:
        return "(not installed)"
