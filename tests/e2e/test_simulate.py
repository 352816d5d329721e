"""``suanli simulate`` as an operator types it: the recorded export, a process of its own for the simulation, and what it leaves."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
from pathlib import Path

from tests.e2e.tools import COMMAND_S, ENVIRONMENT, REPOSITORY, command, suanli, wait_for

EXPORT = REPOSITORY / "tests" / "data" / "simulation"


def test_a_bigger_pool_and_another_policy_on_a_recorded_week(tmp_path: Path) -> None:
    into = tmp_path / "found"
    options = ("--policy", "fair", "--policy", "fifo", "--add-nodes", "east/gpu-a100=1", "--into", str(into))
    done = suanli("simulate", "run", str(EXPORT), *options, cwd=tmp_path)
    assert "fair: +1 east/gpu-a100" in done.stdout
    metrics = json.loads((into / "metrics.json").read_text())
    baseline, bigger, fifo = metrics["variants"]
    assert [each["figures"]["ended"] for each in metrics["variants"]] == [400, 400, 400]
    assert bigger["figures"]["wait_average_ms"] < baseline["figures"]["wait_average_ms"]
    difference = fifo["figures"]["wait_average_ms"] - baseline["figures"]["wait_average_ms"]
    assert fifo["against_baseline"]["wait_average_ms"]["difference"] == difference
    check_against_the_jobs(metrics, into)
    for name in ("utilisation", "queue", "fairness", "waits"):
        width, height = struct.unpack(">II", (into / f"{name}.png").read_bytes()[16:24])
        assert width > 1000
        assert height > 400
    page = (into / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "fifo: +1 east/gpu-a100" in page
    with (EXPORT / "jobs.csv").open(newline="") as stream:
        happened = [
            {name: int(row[f"{name}_ms"]) for name in ("eligible", "end", "runtime")} for row in csv.DictReader(stream)
        ]
    waits = [row["end"] - row["eligible"] - row["runtime"] for row in happened]
    assert metrics["calibration"]["actual"]["wait_average_ms"] == sum(waits) // len(waits)
    assert metrics["calibration"]["simulated"]["wait_average_ms"] == baseline["figures"]["wait_average_ms"]


def check_against_the_jobs(metrics: dict, into: Path) -> None:
    """The figures of each variant are those of its jobs, summed up anew."""
    files = sorted(into.glob("jobs-*.csv"))
    assert len(files) == 3
    for variant, file in zip(metrics["variants"], files, strict=True):
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        waits = sorted(int(row["wait_ms"]) for row in rows)
        assert variant["figures"]["wait_average_ms"] == sum(waits) // len(waits)
        assert variant["figures"]["wait_p99_ms"] == waits[len(waits) * 99 // 100]
        assert variant["figures"]["evictions"] == sum(int(row["evictions"]) for row in rows)
        for name, figures in variant["institutions"].items():
            of_one = [int(row["wait_ms"]) for row in rows if row["institution"] == name]
            assert figures["wait_average_ms"] == sum(of_one) // len(of_one)


def test_ctrl_c_ends_the_simulation_too(tmp_path: Path) -> None:
    words = command("simulate", "run", str(EXPORT), "--scale-load", "20", "--into", str(tmp_path / "found"))
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)
    try:
        (child,) = wait_for(lambda: children(process.pid))
        wait_for((tmp_path / "found").exists)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=COMMAND_S)
    finally:
        process.kill()
        process.wait(COMMAND_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not Path(f"/proc/{child}").exists()


def children(pid: int) -> list[int]:
    """The processes that this one started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(name))
    return found
