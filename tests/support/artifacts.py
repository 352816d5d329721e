"""A real artifact store below the real API, a job that leaves something in it, and a keeper that keeps it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from artifacts import Part
from scheduler.artifact_keeper import PREFIXES, ArtifactKeeper, KeeperSettings
from scheduler.artifact_store import PlatformArtifacts
from scheduler.service.ids import RandomIds, WallClock
from tests.support.api import Agent, Api, Client, running_api

HOUR_MS = 3_600_000


class Clock:
    """The wall's time, and as much more as a test says."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return WallClock().now_ms() + self.ahead_ms


class Sweeps:
    """What the keeper has counted."""

    def __init__(self) -> None:
        self.removed_bytes = 0

    def swept(self, size_bytes: int, removed_bytes: int, at_s: float) -> None:
        self.removed_bytes += removed_bytes


class Rig:
    """All of it together."""

    def __init__(self, api: Api, folder: Path, files: PlatformArtifacts) -> None:
        self.api = api
        self.folder = folder
        self.files = files
        self.clock = Clock()
        self.own: list[str] = []
        self.sweeps = Sweeps()
        self.keeper = self.new_keeper()

    def new_keeper(self, files: Any = None, **settings: int) -> ArtifactKeeper:
        return ArtifactKeeper(
            self.api.control_plane,
            files or self.files,
            self.api.codec,
            self.clock,
            RandomIds(),
            lambda: self.own,
            KeeperSettings(**settings),
            self.sweeps,
        )

    async def agent(self) -> Agent:
        agent = Agent(self.api)
        await agent.enrol()
        await agent.connect()
        return agent

    def put(self, **files: bytes) -> str:
        """Store a folder as an agent does."""
        source = self.folder / f"in-{len(list(self.folder.iterdir()))}"
        source.mkdir()
        for name, content in files.items():
            (source / name).write_bytes(content)
        ref = self.files.put_tree(Part(source)).ref
        assert ref is not None
        return ref

    async def upload_folder(self, client: Client, files: dict[str, bytes], **holder: str) -> str:
        """As a user does."""
        manifest = self.put(**files)
        for content in files.values():
            await client.upload(content, **holder)
        return await client.upload(self.files.get_bytes(manifest, 1 << 20), **holder)

    def blobs(self) -> set[str]:
        return {blob.digest for prefix in PREFIXES for blob in self.files.list_blobs(prefix)}

    def files_of(self, *folders: str) -> set[str]:
        return {*folders, *(entry.digest for folder in folders for entry in self.files.read_manifest(folder))}

    def age(self, hours: float = 48, only: Collection[str] | None = None) -> None:
        """Have what is in a local store lie there for longer."""
        for digest in self.blobs() if only is None else only:
            path = self.files._blob(digest.removeprefix("sha256:"))
            at_s = os.stat(path).st_mtime - hours * 3600
            os.utime(path, (at_s, at_s))


@asynccontextmanager
async def running_rig(folder: Path, url: str = "", **options: Any) -> AsyncIterator[Rig]:
    """Over a local folder, or over the store at ``url``."""
    files = PlatformArtifacts(url or str(folder / "store"), folder / "scratch")
    (folder / "inputs").mkdir()
    async with running_api(folder, files=files, **options) as api:
        rig = Rig(api, folder / "inputs", files)
        try:
            yield rig
        finally:
            rig.keeper.close()
