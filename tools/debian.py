"""Programs out of Debian's packages, fetched without installing anything and without being root.

APT downloads a package and holds it against the archive's signature; ``dpkg`` unpacks it.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FETCH_S = 600


class FetchError(Exception):
    """A package could not be fetched; the message says why."""


def fetch(package: str, programs: Sequence[str], folder: Path) -> None:
    """Put programs of a package's ``/usr/bin`` into ``folder``, which appears whole or not at all; raises FetchError.

    Safe beside others doing the same: one fetches, the others wait.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _fetch(package, programs, folder)


def _fetch(package: str, programs: Sequence[str], folder: Path) -> None:
    if not all(map(shutil.which, ("apt-get", "dpkg"))):
        raise FetchError("there is no APT on this machine")
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as name:
        scratch = Path(name)
        failure = _download(package, scratch)
        packages = list(scratch.glob(f"{package}_*.deb"))
        if failure or len(packages) != 1:
            raise FetchError(f"APT could not fetch the package {package} ({failure})")
        if failure := _run(["dpkg", "-x", str(packages[0]), str(scratch / "root")], scratch):
            raise FetchError(f"dpkg could not unpack {packages[0].name} ({failure})")
        kept = scratch / "programs"
        kept.mkdir()
        for program in programs:
            (scratch / "root" / "usr" / "bin" / program).rename(kept / program)
        kept.rename(folder)


def _download(package: str, scratch: Path) -> str:
    """Download the package; return what went wrong, or nothing."""
    download = ["apt-get", "download", "--quiet", package]
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
