"""The control plane's process: ``python -m scheduler.server --config server.yaml``.

It listens at once, and says NOT_SERVING until it leads. SIGTERM: no new calls, those under way end, the leadership is given
back, exit status 0. When the leadership is lost, exit status 1: whoever started the process starts it anew, as a standby.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from scheduler.api.blobs import Artifacts
from scheduler.api.http import HttpServer
from scheduler.api.metrics import Metrics
from scheduler.api.permissions import Role
from scheduler.api.serving import ApiServer
from scheduler.api.tls import ConfigurationError
from scheduler.artifact_keeper import DAY_MS, ArtifactKeeper, KeeperSettings
from scheduler.artifact_store import PlatformArtifacts
from scheduler.audit_key import load_audit_key
from scheduler.catalog.catalogue import Catalogue, load_catalogue
from scheduler.catalog.manifest import CatalogueError
from scheduler.config import Config, load_config, split_address
from scheduler.domain.errors import SuanliError
from scheduler.domain.records import UserRecord
from scheduler.planning.policy import PRESETS
from scheduler.planning.policy_document import DEFAULT_PRESET
from scheduler.service.contract import Service
from scheduler.service.control_plane import ControlPlane
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.state import Settings
from scheduler.store.sql import SqlStore
from scheduler.wire.spec import SpecCodec

log = logging.getLogger("scheduler.server")
ADMIN = "admin"
HOUR_MS = 3_600_000


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its time (UTC), level, logger and message, and the traceback of an error."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; returns the exit status (2: the configuration is not in order)."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.server", description="The Suanli control plane.")
    parser.add_argument("--config", type=Path, required=True, help="the YAML configuration file")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        _log_to_stderr(config.log_level)
        return asyncio.run(serve(config))
    except (ConfigurationError, CatalogueError) as error:
        print(f"suanli control plane: {error}", file=sys.stderr)
        return 2
    except SuanliError as error:
        print(f"suanli control plane: {error.message}", file=sys.stderr)
        return 2 if error.field else 1


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


async def serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT (0), or until the leadership is lost (1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if config.ready_file is not None:
        config.ready_file.unlink(missing_ok=True)
    async with _parts(config) as (control_plane, api, metrics, keeper):
        addresses = await _listen(config, api)
        async with _http(config, control_plane, metrics) as metrics_address:
            leading = asyncio.create_task(control_plane.start())
            stopped = asyncio.create_task(stop.wait())
            try:
                await _first(leading, stopped, control_plane.failure)
                if leading.done() and not stop.is_set():
                    leading.result()
                    # What was rebuilt stays for long: the collector of cycles need not walk millions of jobs again and again.
                    gc.collect()
                    gc.freeze()
                    await _lead(config, control_plane, api, addresses | {"metrics_listen": metrics_address})
                    async with _running(keeper):
                        await _first(stopped, control_plane.failure)
            finally:
                leading.cancel()
                stopped.cancel()
                await asyncio.gather(leading, stopped, return_exceptions=True)
                log.info("stopping")
                await api.stop(config.shutdown_grace_ms / 1000)
    if control_plane.failure.done():
        log.error("this process leads no more: %s", control_plane.failure.result())
        return 1
    return 0


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


@contextlib.asynccontextmanager
async def _running(keeper: ArtifactKeeper) -> AsyncIterator[None]:
    """The keeper at work meanwhile."""
    keeping = asyncio.create_task(keeper.run())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@contextlib.asynccontextmanager
async def _parts(config: Config) -> AsyncIterator[tuple[ControlPlane, ApiServer, Metrics, ArtifactKeeper]]:
    """Everything, made and in the end put away."""
    uploads = config.state_dir / "uploads"
    # What an earlier process was sent and did not finish.
    shutil.rmtree(uploads, ignore_errors=True)
    artifact_store = PlatformArtifacts(config.artifacts, scratch=config.state_dir / "scratch")
    catalogue: Catalogue = await asyncio.to_thread(load_catalogue, config.algorithms_dir, artifact_store)
    codec = SpecCodec(catalogue)
    metrics = Metrics()
    key_file = config.audit_key_file or config.state_dir / "audit-key.pem"
    audit_key = load_audit_key(key_file, create=config.audit_key_file is None)
    store = SqlStore(config.database)
    artifacts = Artifacts(artifact_store, uploads)
    settings = Settings(
        heartbeat_interval_ms=config.heartbeat_interval_ms,
        lease_ttl_ms=config.lease_ttl_ms,
        verify_ledger_every_ms=config.verify_ledger_hours * HOUR_MS,
        max_project_jobs=config.limits.pending_jobs_per_project,
    )
    policy = PRESETS[DEFAULT_PRESET]
    control_plane = ControlPlane(store, WallClock(), RandomIds(), codec, policy, settings, metrics, audit_key)
    api = ApiServer(
        control_plane,
        codec,
        catalogue,
        artifacts,
        metrics,
        artifacts_url=config.artifacts,
        max_blob_bytes=config.max_blob_bytes,
        oidc=config.oidc,
        tls=config.tls,
        limits=config.limits,
    )

    def store_catalogue() -> list[str]:
        return [algorithm.folder for algorithm in load_catalogue(config.algorithms_dir, artifact_store).all()]

    kept = KeeperSettings(
        config.collect_artifacts_hours * HOUR_MS,
        config.artifacts_grace_hours * HOUR_MS,
        config.results_retention_days * DAY_MS,
        config.uploads_retention_days * DAY_MS,
    )
    keeper = ArtifactKeeper(
        control_plane, artifact_store, codec, WallClock(), RandomIds(), store_catalogue, kept, metrics
    )
    try:
        yield control_plane, api, metrics, keeper
    finally:
        await control_plane.stop()
        artifacts.close()
        keeper.close()
        await asyncio.to_thread(store.close)


async def _listen(config: Config, api: ApiServer) -> dict[str, str]:
    """Bind what is configured; gives the addresses by their setting."""
    host, port = split_address(config.listen, "listen")
    addresses = {"listen": _joined(host, api.listen(host, port))}
    if config.agents_listen:
        host, port = split_address(config.agents_listen, "agents_listen")
        addresses["agents_listen"] = _joined(host, api.listen_for_agents(host, port))
    await api.start()
    log.info("listening on %s", " and ".join(addresses.values()))
    return addresses


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.asynccontextmanager
async def _http(config: Config, control_plane: ControlPlane, metrics: Metrics) -> AsyncIterator[str]:
    """The HTTP server, when there is to be one; gives its address."""
    if not config.metrics_listen:
        yield ""
        return

    async def page() -> tuple[int, bytes]:
        return 200, await metrics.page(control_plane if control_plane.is_leader else None)

    async def healthy() -> tuple[int, bytes]:
        return (503, b"failed\n") if control_plane.failure.done() else (200, b"ok\n")

    async def ready() -> tuple[int, bytes]:
        return (200, b"leading\n") if control_plane.is_leader else (503, b"standby\n")

    server = HttpServer({"/metrics": page, "/healthz": healthy, "/readyz": ready})
    host, port = split_address(config.metrics_listen, "metrics_listen")
    try:
        bound = await server.start(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_listen: {config.metrics_listen} cannot be bound: {error.strerror}"
        ) from error
    try:
        yield _joined(host, bound)
    finally:
        await server.stop()


async def _lead(config: Config, service: Service, api: ApiServer, addresses: dict[str, str]) -> None:
    """Begin to serve, and say so."""
    if config.bootstrap_admin_key_file is not None:
        await bootstrap_admin(service, config.bootstrap_admin_key_file)
    await api.limiting.remember_uploads(service, WallClock().now_ms())
    await api.serving(True)
    log.info("serving on %s", addresses["listen"])
    if config.ready_file is not None:
        write_private(config.ready_file, json.dumps({**addresses, "pid": os.getpid()}) + "\n")


async def bootstrap_admin(service: Service, key_file: Path) -> None:
    """Make the first operator, unless an operator's key exists: with the key in the file, or with a new one written to it.

    A mark beside the file says that the latter was begun: a process that died between making the key and writing it does it again.
    """
    mark = key_file.with_name(key_file.name + ".pending")
    keys = await service.list_api_keys("", "")
    if not mark.exists() and any(key.role == Role.OPERATOR and not key.revoked for key in keys):
        return
    if not any(user.user == ADMIN for user in await service.list_users("")):
        await service.put_user(UserRecord(ADMIN, "", "Administrator", Role.OPERATOR, 0, 0), ADMIN)
    key = "" if mark.exists() else _text_of(key_file)
    if key:
        given = await service.adopt_api_key(ADMIN, "given at the first start", key)
        log.info("the key %s in %s is now one of user %s", given.prefix, key_file, ADMIN)
        return
    key_file.parent.mkdir(parents=True, exist_ok=True)
    write_private(mark, "")
    record, secret = await service.create_api_key(ADMIN, "made at the first start", 0, ADMIN)
    write_private(key_file, secret + "\n")
    mark.unlink()
    log.info("wrote the key %s of user %s to %s", record.prefix, ADMIN, key_file)


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner's eyes only."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main())
