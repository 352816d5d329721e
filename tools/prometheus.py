"""Have a Prometheus server and promtool: ``python -m tools.prometheus promtool check rules FILE``.

Both programs are taken from ``$PROMETHEUS`` (a folder), else from ``PATH``, else from Debian's package ``prometheus``,
which APT downloads and checks and ``dpkg`` unpacks below ``.tools/``. Nothing is installed, and nobody need be root. On a
machine without APT, put both programs on ``PATH`` or name their folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.debian import FetchError, fetch

PROGRAMS = ("prometheus", "promtool")
TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_HELP = "put the programs prometheus and promtool (https://prometheus.io/download/) on PATH, or set PROMETHEUS to their folder"


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
    try:
        fetch("prometheus", PROGRAMS, folder)
    except FetchError as error:
        raise PrometheusUnavailableError(f"{error}: {_HELP}") from error
    return folder / program


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end and return its status and output."""
    command = [str(prometheus_path("promtool")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)


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
