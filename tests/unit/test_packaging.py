"""`pip install .` gives all that the repository's packages hold, and only that."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("algorithms", "protos", "scheduler", "suanli", "workers")


def _tracked(*paths: str) -> set[str]:
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--", *paths]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in listed if name and (REPOSITORY / name).is_file()}


def test_the_wheel_holds_every_tracked_file_of_the_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    wanted = _tracked(*PACKAGES)
    assert wanted
    for name in wanted | _tracked("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*build, "--wheel-dir", str(tmp_path), str(source)], check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("suanli-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    assert packed == wanted
