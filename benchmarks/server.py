"""A control plane of its own for a benchmark: started, asked for its ports, and stopped by its process id."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

START_S = 60


@dataclass(frozen=True)
class Server:
    """A running control plane. ``key`` is the platform operator's."""

    address: str
    key: str
    pid: int
    folder: Path

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Credentials for a call."""
        return (("authorization", f"Bearer {self.key}"),)


@contextmanager
def running_server(database_url: str = "", **settings: object) -> Iterator[Server]:
    """Start ``python -m scheduler.server`` on free loopback ports with an empty store, and end it afterwards."""
    with tempfile.TemporaryDirectory(prefix="suanli-bench-") as name:
        folder = Path(name)
        config = {
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "state_dir": str(folder / "state"),
            "bootstrap_admin_key_file": str(folder / "admin.key"),
            "ready_file": str(folder / "ready.json"),
            **settings,
        }
        if database_url:
            config["database_url"] = database_url
        (folder / "server.yaml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.server", "--config", str(folder / "server.yaml")], stderr=log
            )
            try:
                ready = _wait(folder, process)
                key = (folder / "admin.key").read_text().strip()
                yield Server(ready["listen"], key, process.pid, folder)
            finally:
                process.terminate()
                process.wait(30)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    deadline = time.monotonic() + START_S
    while not (folder / "ready.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the control plane did not start:\n{(folder / 'log').read_text()[-4000:]}")
        time.sleep(0.05)
    ready: dict[str, str] = json.loads((folder / "ready.json").read_text())
    return ready
