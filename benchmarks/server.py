"""What a benchmark measures: a control plane of its own, or a whole platform, ended by process id afterwards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.platform import Daemon
from tests.support.platform import running_platform as running_parts


@dataclass(frozen=True)
class Server:
    """A running control plane. ``key`` is the platform operator's; ``folder`` holds all that it keeps."""

    address: str
    key: str
    folder: Path

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Credentials for a call."""
        return (("authorization", f"Bearer {self.key}"),)


@contextmanager
def running_server(database_url: str = "") -> Iterator[Server]:
    """A control plane with an empty store and no region."""
    with tempfile.TemporaryDirectory(prefix="suanli-bench-") as name:
        folder = Path(name)
        settings: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "state_dir": str(folder / "state"),
            "bootstrap_admin_key_file": str(folder / "admin.key"),
        }
        if database_url:
            settings["database_url"] = database_url
        daemon = Daemon("scheduler.server", folder / "server", settings, {})
        try:
            ready = json.loads(daemon.start())
            yield Server(ready["listen"], (folder / "admin.key").read_text().strip(), folder)
        finally:
            daemon.end()


@contextmanager
def running_platform(cpus: int, tier: str) -> Iterator[Server]:
    """A control plane, one region's Ray cluster of one node that declares ``cpus`` cores, and its agent; jobs run in ``tier``."""
    with tempfile.TemporaryDirectory(prefix="suanli-bench-") as name:
        defaults = {"heartbeat_interval_ms": 5_000, "lease_ttl_ms": 30_000}
        with running_parts(Path(name), cpus=cpus, memory_mib=64 * 1024, tier=tier, **defaults) as platform:
            yield Server(platform.address, platform.keys["admin"], Path(name))
