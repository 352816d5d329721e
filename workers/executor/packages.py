"""Virtual environments for jobs that name packages: one per list of requirements, shared and kept for reuse."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

MAX_PACKAGES = 200
MAX_REQUIREMENT = 500
_INSTALL_TIMEOUT_S = 900
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]\n]*\])?\s*([<>=!~;@(][^\n]*)?")
_PASSED_ON = re.compile(
    r"PIP_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|LANG", re.IGNORECASE | re.ASCII
)


Install = Callable[[list[str], Path], None]
"""Runs a command that fills a folder; raises PackagesError or OSError."""


class PackagesError(Exception):
    """The packages cannot be installed; the text is pip's own last words."""


class PackageEnvironments:
    """The environments below one folder. At most ``keep`` unused ones stay, those used last."""

    def __init__(self, folder: Path, keep: int = 16, pip_arguments: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._keep = keep
        self._pip_arguments = pip_arguments
        self._making: dict[str, asyncio.Future[None]] = {}
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def python(self, packages: tuple[str, ...], install: Install | None = None) -> AsyncIterator[str]:
        """Give the interpreter that has ``packages``, made if need be; it stays for as long as the context is open.

        ``install`` runs pip instead of us: building a package runs its code. Raises PackagesError when a requirement is not one or cannot be installed.
        """
        problem = problem_with(packages)
        if problem is not None:
            raise PackagesError(problem)
        wanted = sorted(set(packages))
        name = hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()[:32]
        self._users[name] = self._users.get(name, 0) + 1
        try:
            ready = self._folder / name / "ready"
            if not ready.exists():
                # A user who gives up leaves the making to go on: others may wait for it too.
                await asyncio.shield(self._make_once(name, wanted, install or _run))
            os.utime(ready)
            yield str(self._folder / name / "bin" / "python")
        finally:
            self._users[name] -= 1
            if self._users[name] == 0:
                del self._users[name]
                await asyncio.to_thread(self._remove_old)

    def _make_once(self, name: str, packages: list[str], install: Install) -> asyncio.Future[None]:
        making = self._making.get(name)
        if making is None:
            making = asyncio.ensure_future(asyncio.to_thread(self._make, self._folder / name, packages, install))
            self._making[name] = making
            making.add_done_callback(lambda _: self._making.pop(name))
        return making

    def _make(self, folder: Path, packages: list[str], install: Install) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _run([sys.executable, "-I", "-m", "venv", "--without-pip", "--system-site-packages", str(folder)], folder)
            # The node's own packages (torch and the like) are seen too: "system" means the interpreter underneath.
            inner = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
            (Path(inner) / "node.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
            pip = [sys.executable, "-I", "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
            options = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--quiet", *self._pip_arguments]
            install([*pip, *options, "--", *packages], folder)
            # What a package's code may have put there must not lead us elsewhere.
            os.close(os.open(folder / "ready", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _remove_old(self) -> None:
        if not self._folder.is_dir():
            return
        unused = [
            path for path in self._folder.iterdir() if path.name not in self._users and path.name not in self._making
        ]
        unused.sort(key=lambda path: (path / "ready").stat().st_mtime if (path / "ready").exists() else 0)
        for path in unused[: max(0, len(unused) - self._keep)]:
            shutil.rmtree(path, ignore_errors=True)


def problem_with(packages: tuple[str, ...]) -> str | None:
    """Return a sentence saying what is wrong with a list of requirements, or None. No option of pip gets through."""
    if len(packages) > MAX_PACKAGES:
        return f"a job can name at most {MAX_PACKAGES} packages, not {len(packages)}"
    for requirement in packages:
        if len(requirement) > MAX_REQUIREMENT or not _REQUIREMENT.fullmatch(requirement):
            return f"{requirement[:MAX_REQUIREMENT]!r} is not a requirement such as 'numpy>=2,<3'"
    return None


def installer_environment(folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that pip gets."""
    # Installing runs code of the packages: it gets the site's settings for pip, and none of the platform's secrets.
    passed = {name: value for name, value in inherited.items() if _PASSED_ON.fullmatch(name)}
    return {**passed, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)}


def _run(argv: list[str], folder: Path) -> None:
    run_installer(argv, folder, installer_environment(folder, os.environ))


def run_installer(argv: list[str], folder: Path, env: Mapping[str, str], pass_fds: tuple[int, ...] = ()) -> None:
    """Run one step of making an environment; raises PackagesError with its last words."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            argv,
            check=False,
            env=env,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_INSTALL_TIMEOUT_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise PackagesError(f"installing took more than {_INSTALL_TIMEOUT_S} seconds") from None
    if done.returncode != 0:
        lines = done.stdout[-20_000:].decode("utf-8", "replace").strip().splitlines()
        raise PackagesError("pip could not install the packages: " + " / ".join(lines[-5:])[:2000])
