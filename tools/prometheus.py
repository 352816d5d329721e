"""Have a Prometheus server and promtool: ``python -m tools.prometheus promtool check rules FILE``.

Both programs are taken from ``$PROMETHEUS`` (a folder), else from ``PATH``, else from Debian's package ``prometheus``,
which APT downloads and checks and ``dpkg`` unpacks below ``.tools/``. Nothing is installed, and nobody need be root. On a
machine without APT, put both programs on ``PATH`` or name their folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_HELP = "put the programs prometheus and promtool (https://prometheus.io/download/) on PATH, or set PROMETHEUS to their folder"
_FETCH_S = 600


class PrometheusUnavailableError(Exception):
    """There is no Prometheus for this machine, or it could not be fetched; the message says what to do."""


def prometheus_path(program: str = "prometheus", tools: Path = TOOLS) -> Path:
    """Return the path of ``prometheus`` or ``promtool``, fetching both on first use (about 19 MB).

    Safe beside others doing the same: one fetches, the others wait. Raises PrometheusUnavailableError.
    """
    if chosen := os.environ.get("PROMETHEUS"):
        path = Path(chosen) / program
        if not path.is_file():
            raise PrometheusUnavailableError(f"PROMETHEUS={chosen} holds no {program}: {_HELP}")
        return path
    if found := shutil.which(program):
        return Path(found)
    folder = tools / "prometheus"
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _fetch(folder)
    return folder / program


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end and return its status and output."""
    command = [str(prometheus_path("promtool")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)


def _fetch(folder: Path) -> None:
    """Put the programs of Debian's package into ``folder``, which appears whole or not at all."""
    if not all(map(shutil.which, ("apt-get", "dpkg"))):
        raise PrometheusUnavailableError(f"there is no APT on this machine to fetch Prometheus with: {_HELP}")
    with tempfile.TemporaryDirectory(prefix="prometheus-", dir=folder.parent) as name:
        scratch = Path(name)
        failure = _download(scratch)
        packages = list(scratch.glob("prometheus_*.deb"))
        if failure or len(packages) != 1:
            raise PrometheusUnavailableError(f"APT could not fetch the package prometheus ({failure}): {_HELP}")
        if failure := _run(["dpkg", "-x", str(packages[0]), str(scratch / "root")], scratch):
            raise PrometheusUnavailableError(f"dpkg could not unpack {packages[0].name} ({failure}): {_HELP}")
        programs = scratch / "programs"
        programs.mkdir()
        for program in PROGRAMS:
            (scratch / "root" / "usr" / "bin" / program).rename(programs / program)
        programs.rename(folder)


def _download(scratch: Path) -> str:
    """Download the package; return what went wrong, or nothing. APT holds it against the archive's signature."""
    download = ["apt-get", "download", "--quiet", "prometheus"]
    if not _run(download, scratch):
        return ""
    # The machine has no lists of packages, as most container images: make some of our own, which needs no rights.
    for part in ("lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True)
    own = ["-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
    own += ["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=true"]
    return _run(["apt-get", *own, "--quiet", "update"], scratch) or _run([*download, *own], scratch)


def _run(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder; return the end of what it said if it failed, else nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_FETCH_S
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took more than {_FETCH_S} s"
    said = done.stderr.strip() or done.stdout.strip()
    return "" if done.returncode == 0 else said[-500:] or f"{command[0]} ended with status {done.returncode}"


def main() -> int:
    """Run the named program with this command line's other arguments; return its status, or 1 if there is none."""
    if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
        print(f"usage: python -m tools.prometheus {{{','.join(PROGRAMS)}}} [argument ...]", file=sys.stderr)
        return 2
    try:
        path = prometheus_path(sys.argv[1])
    except PrometheusUnavailableError as error:
        print(f"prometheus: {error}", file=sys.stderr)
        return 1
    return subprocess.call([str(path), *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
