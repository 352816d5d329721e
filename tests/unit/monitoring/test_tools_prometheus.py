"""Where Prometheus is taken from, and what is said when it cannot be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import prometheus
from tools.prometheus import PrometheusUnavailableError, prometheus_path

REPOSITORY = Path(__file__).resolve().parents[3]
# Stand in for APT and dpkg: a package is a text, and what is unpacked prints it.
APT = """#!/bin/sh
echo "$1" >> "$CALLS"
[ "$1" = download ] || exit 1
[ -z "$BROKEN" ] || { echo "E: Unable to locate package prometheus" >&2; exit 100; }
sleep 0.2
echo package > prometheus_2.0_amd64.deb
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/bin"
for program in prometheus promtool; do echo "#!/bin/sh" > "$3/usr/bin/$program"; done
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with APT and without Prometheus; gives the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"apt-get": APT, "dpkg": DPKG}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("sh", "sleep", "mkdir"):
        found = prometheus.shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    monkeypatch.delenv("PROMETHEUS", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("BROKEN", "")
    return programs


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


def test_it_is_fetched_once_by_processes_that_ask_at_the_same_time(machine: Path, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tools.prometheus import prometheus_path; "
        "print(prometheus_path('promtool', pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "tools")]
    asking = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].strip() for process in asking]
    assert answers == [str(tmp_path / "tools" / "prometheus" / "promtool")] * 3
    assert calls(tmp_path) == ["download"]
    assert (tmp_path / "tools" / "prometheus" / "prometheus").is_file()
    assert sorted(path.name for path in (tmp_path / "tools").iterdir()) == ["prometheus", "prometheus.lock"]


def test_one_on_the_path_is_preferred_and_one_that_is_named_before_that(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "promtool").write_text("#!/bin/sh\n")
    (machine / "promtool").chmod(0o755)
    assert prometheus_path("promtool", tmp_path / "tools") == machine / "promtool"
    (tmp_path / "promtool").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PROMETHEUS", str(tmp_path))
    assert prometheus_path("promtool", tmp_path / "tools") == tmp_path / "promtool"
    with pytest.raises(PrometheusUnavailableError, match="holds no prometheus: put the programs"):
        prometheus_path("prometheus", tmp_path / "tools")


def test_without_lists_of_packages_it_makes_some_and_a_failure_says_what_to_do(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(PrometheusUnavailableError, match="set PROMETHEUS to their folder"):
        prometheus_path("promtool", tmp_path / "tools")
    assert calls(tmp_path) == ["download", "-o"]
    assert not (tmp_path / "tools" / "prometheus").exists()


def test_without_apt_it_says_what_to_do(machine: Path, tmp_path: Path) -> None:
    (machine / "apt-get").unlink()
    with pytest.raises(PrometheusUnavailableError, match=r"no APT .* on PATH, or set PROMETHEUS"):
        prometheus_path("promtool", tmp_path / "tools")
